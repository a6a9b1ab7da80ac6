#!/bin/bash
# The Debian package as its users have it: installed, upgraded and removed by dpkg, in a mount namespace of
# its own with a package database of its own. $1: folder with dkms unpacked; $2: as in dkms.sh, and in $2/debs
# the packages of versions $5 and $6; $3, $4: kernels. One "ok" or "not ok" line a step; modules in $2/out.
set -u
package=$1 work=$2 first=$3 second=$4 old=$5 new=$6
name=gpudirect-p2pmod-dkms
for place in /usr/lib/modules /usr/src /var/lib/dkms /boot /etc/kernel /usr/lib/udev/rules.d /usr/share/doc \
	/usr/local/sbin /var/lib/dpkg; do
	mkdir -p $place && mount -t tmpfs tmpfs $place || exit 1
done
mkdir -p /etc/dkms && mount -t tmpfs tmpfs /etc/dkms && cp -r "$package/etc/dkms/." /etc/dkms/
mkdir -p /usr/lib/dkms && mount -t tmpfs tmpfs /usr/lib/dkms && cp -r "$package/usr/lib/dkms/." /usr/lib/dkms/
printf '#!/bin/bash\nexec bash "%s/usr/sbin/dkms" "$@" </dev/null\n' "$package" >/usr/local/sbin/dkms
chmod 755 /usr/local/sbin/dkms
export PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive
export MAKEFLAGS=" -- CONFIG_DEBUG_INFO_BTF_MODULES="
mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates /var/lib/dpkg/triggers
printf 'Package: %s\nStatus: install ok installed\nArchitecture: all\nMaintainer: lab\nVersion: 3.0\nDescription: x\n\n' \
	dkms >/var/lib/dpkg/status
printf 'Package: %s\nStatus: install ok installed\nArchitecture: amd64\nMaintainer: lab\nVersion: 30\nDescription: x\n\n' \
	kmod >>/var/lib/dpkg/status
for p in dkms kmod; do : >/var/lib/dpkg/info/$p.list; done

machine_has() { # KERNEL: its headers are installed
	mkdir -p "/lib/modules/$1" && ln -sfn "$(cat "$work/$1/headers")" "/lib/modules/$1/build"
	cp "$work/$1/modules."* "/lib/modules/$1/" 2>/dev/null
	cp "$(cat "$work/$1/headers")/.config" "/boot/config-$1"
}

number=0
step() { # NAME COMMAND...: tells whether it went well
	local title=$1 log
	shift
	number=$((number + 1))
	if log=$("$@" 2>&1); then
		echo "ok $number $title"
	else
		echo "$log" | tail -n 25 | sed "s/^/# $title: /"
		echo "not ok $number $title"
	fi
}

driver_package() { # the driver as Debian has it: sources in /usr/src, built by its own postinst
	local tree=$work/driver at
	at=$tree/usr/src/nvidia-current-550.163.01
	mkdir -p $at/nvidia $tree/DEBIAN
	cp "$work/nv-p2p.h" $at/nvidia/
	cat >$at/dkms.conf <<-END
		PACKAGE_NAME="nvidia-current"
		PACKAGE_VERSION="550.163.01"
		MAKE[0]="cp $work/\$kernelver/nvidia.ko ."
		BUILT_MODULE_NAME[0]="nvidia"
		DEST_MODULE_NAME[0]="nvidia-current"
		DEST_MODULE_LOCATION[0]="/updates/dkms"
		AUTOINSTALL="yes"
	END
	printf 'Package: nvidia-kernel-dkms\nVersion: 550.163.01\nArchitecture: all\nMaintainer: lab\nDescription: x\n' \
		>$tree/DEBIAN/control
	printf '#!/bin/sh\nset -e\n[ "$1" != configure ] || { dkms add -m nvidia-current -v 550.163.01; for k in /lib/modules/*/build; do k=${k%%/build}; dkms install -m nvidia-current -v 550.163.01 -k ${k##*/}; done; }\n' \
		>$tree/DEBIAN/postinst
	chmod 755 $tree/DEBIAN/postinst
	dpkg-deb --root-owner-group -b $tree "$work/driver.deb"
}

there() { find "/lib/modules/$1/updates/dkms" -name "p2pmod.ko*" | grep -q . && dkms status | grep -q "p2pmod.*$1.*installed"; }
absent() { ! find "/lib/modules/$1" -name "p2pmod.ko*" | grep -q . ; }
configured() { dpkg-query -W -f '${Status} ${Version}' $name | grep -qx "install ok installed $1"; }
only() { configured "$1" && ! dkms status | grep p2pmod | grep -vq "$1" && there "$first"; }
gone() { ! ls -d /usr/src/p2pmod-* 2>/dev/null | grep . && ! test -e /usr/lib/udev/rules.d/60-p2pmod.rules && ! dkms status | grep -q p2pmod; }
unpurged() { dpkg-query -W $name 2>/dev/null | grep .; }
none() { ! unpurged; }

machine_has "$first"
driver_package >/dev/null
step install_before_the_driver dpkg -i "$work/debs/${name}_${old}_all.deb"
step it_is_configured configured "$old"
step and_builds_nothing absent "$first"
step the_driver_comes dpkg -i "$work/driver.deb"
step and_the_module_is_built there "$first"
step its_rule_is_there test -e /usr/lib/udev/rules.d/60-p2pmod.rules
machine_has "$second"
step a_new_kernel dkms autoinstall -k "$second"
step gets_it_too there "$second"
step install_once_more dpkg -i "$work/debs/${name}_${old}_all.deb"
step changes_nothing only "$old"
mkdir -p "$work/out" && cp "/lib/modules/$first/updates/dkms/"* "$work/out/" && xz -df "$work/out/"*.xz 2>/dev/null
step upgrade dpkg -i "$work/debs/${name}_${new}_all.deb"
step upgrade_is_complete only "$new"
step for_each_kernel there "$second"
step downgrade dpkg -i "$work/debs/${name}_${old}_all.deb"
step downgrade_is_complete only "$old"
step remove dpkg -r $name
step nothing_is_left gone
step no_module_is_left absent "$second"
step purge dpkg -P $name
step nothing_is_known none
