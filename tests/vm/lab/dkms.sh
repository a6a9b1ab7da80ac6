#!/bin/bash
# dkms as its users run it, in a mount namespace of its own: nothing of this machine is seen or changed.
# $1: folder with dkms unpacked; $2: folder with src/ (the checkout) and KVER/nvidia.ko, KVER/headers for
# each of the two kernels $3 and $4. Prints one "ok" or "not ok" line a step; leaves the modules in $2/out.
set -u
package=$1 work=$2 first=$3 second=$4
for place in /usr/lib/modules /usr/src /var/lib/dkms /boot /etc/kernel; do
	mkdir -p $place && mount -t tmpfs tmpfs $place || exit 1
done
mkdir -p /etc/dkms && mount -t tmpfs tmpfs /etc/dkms && cp -r "$package/etc/dkms/." /etc/dkms/
mkdir -p /usr/lib/dkms && mount -t tmpfs tmpfs /usr/lib/dkms && cp -r "$package/usr/lib/dkms/." /usr/lib/dkms/
for kernel in "$first" "$second"; do
	mkdir -p "/lib/modules/$kernel" && ln -s "$(cat "$work/$kernel/headers")" "/lib/modules/$kernel/build"
	cp "$work/$kernel/modules."* "/lib/modules/$kernel/" 2>/dev/null
	cp "$(cat "$work/$kernel/headers")/.config" "/boot/config-$kernel"
done
number=0

export MAKEFLAGS=" -- CONFIG_DEBUG_INFO_BTF_MODULES=" # pahole, which Debian's headers depend on, is not needed
dkms() { bash "$package/usr/sbin/dkms" "$@" </dev/null; }

step() { # NAME COMMAND...: tells whether it went well
	local name=$1 log
	shift
	number=$((number + 1))
	if log=$("$@" 2>&1); then
		echo "ok $number $name"
	else
		echo "$log" | tail -n 25 | sed "s/^/# $name: /"
		echo "not ok $number $name"
	fi
}

source_of() { # VERSION: the checkout where dkms looks for it
	mkdir -p "/usr/src/p2pmod-$1"
	cp -r "$work/src/." "/usr/src/p2pmod-$1/"
	sed -i "s/^PACKAGE_VERSION=.*/PACKAGE_VERSION=\"$1\"/" "/usr/src/p2pmod-$1/dkms.conf"
}

driver() { # the driver as Debian packages it: its module's name is nvidia-current
	local at=/usr/src/nvidia-current-550.163.01
	mkdir -p $at/nvidia
	cp "$work/nv-p2p.h" $at/nvidia/
	cat >$at/dkms.conf <<-EOF
		PACKAGE_NAME="nvidia-current"
		PACKAGE_VERSION="550.163.01"
		MAKE[0]="cp $work/\$kernelver/nvidia.ko ."
		BUILT_MODULE_NAME[0]="nvidia"
		DEST_MODULE_NAME[0]="nvidia-current"
		DEST_MODULE_LOCATION[0]="/updates/dkms"
		AUTOINSTALL="yes"
	EOF
	dkms add -m nvidia-current -v 550.163.01
}

there() { find "/lib/modules/$1/updates/dkms" -name "p2pmod.ko*" | grep -q . && dkms status | grep -q "p2pmod.*$1.*installed"; }
absent() { ! find "/lib/modules/$1" -name "p2pmod.ko*" | grep -q . ; }
refused() { ! dkms install -m p2pmod -v 0.1.0 -k "$first" && cat /var/lib/dkms/p2pmod/0.1.0/build/make.log && \
	grep -q "Install the driver for" /var/lib/dkms/p2pmod/0.1.0/build/make.log; }
only() { ! dkms status | grep -q "p2pmod.*0\.1\.0" && dkms status | grep -q "p2pmod.*$1"; }

source_of 0.1.0
step add_p2pmod dkms add -m p2pmod -v 0.1.0
step without_the_driver_autoinstall_succeeds dkms autoinstall -k "$first"
step and_builds_nothing absent "$first"
step by_hand_it_says_what_is_missing refused
dkms remove -m p2pmod -v 0.1.0 --all >/dev/null 2>&1
step add_p2pmod_again dkms add -m p2pmod -v 0.1.0
step add_the_driver driver
step autoinstall_builds_both dkms autoinstall -k "$first"
step it_is_installed there "$first"
step a_new_kernel_gets_it_too dkms autoinstall -k "$second"
step it_is_installed_there there "$second"
mkdir -p "$work/out" && cp "/lib/modules/$first/updates/dkms/"* "$work/out/"
xz -df "$work/out/"*.xz 2>/dev/null
source_of 0.1.1
step upgrade_add dkms add -m p2pmod -v 0.1.1
step upgrade_install dkms install -m p2pmod -v 0.1.1 -k "$first" --force
step upgrade_remove_the_old dkms remove -m p2pmod -v 0.1.0 --all
step upgrade_is_complete only 0.1.1
step remove dkms remove -m p2pmod -v 0.1.1 --all
step nothing_is_left absent "$first"
