"""What is not one more cell of the matrix: arm64, other compilers and distributions, dkms."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from guests import (
    LOAD,
    MOUNT,
    RESULTS,
    UNLOAD,
    VERSIONS,
    files_of,
    guest_modules,
    prepare,
    report,
    test_script,
)
from pythonguest import BRIDGES, over_p2pmod

import boot
import build
import debugkernel
import packages
from packages import CACHE, LabError, Unpacked, run


def tell(name: str, complaints: list[str]) -> bool:
    """One line, and what is wrong. Whether all was well."""
    print(f"{'not ok' if complaints else 'ok'} - {name}", flush=True)
    for line in complaints[:40]:
        print(f"#   {line}")
    return not complaints


def _guest(name: str, kernel: Unpacked, script: str, timeout: float = 3600, memory: int = 1024,
           flavour: str = "open") -> bool:  # fmt: skip
    """Build for a kernel, run, tell."""
    modules = build.modules(kernel, flavour, "own")
    result = boot.boot(kernel, files_of(modules, build.tests(kernel.architecture)), script,
                       timeout=timeout, memory=memory)  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{kernel.series}.log").write_text(result.text)
    complaints = [*result.failed, *result.splats]
    if not result.finished:
        complaints.append("the guest did not finish")
    return tell(f"{name} ({kernel.release}): {len(result.passed)} passed, {len(result.failed)} failed, "
                f"{result.seconds:.0f} s", complaints)  # fmt: skip


# -- arm64 --


def arm64() -> int:
    """On arm64, cross-built, with pages of 4 and of 16 KiB: the C tests, then what every bridge must do."""
    prepare()
    packages.install("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-system-arm")
    kernels = {"6.12-arm64": (4, "2.0"), "6.12-arm64-16k": (16, "1.2")}
    good = [
        _guest(f"arm64, pages of {pages} KiB", packages.kernel(kernel), test_script(VERSIONS[version]))
        for kernel, (pages, version) in kernels.items()
    ]
    # through the other bridge that is there they run outside, on processors that are not emulated
    good += [over_p2pmod(f"-k p2pmod {BRIDGES}", kernel) for kernel in kernels]
    return report(sum(good), len(good) - sum(good))


# -- compilers, distributions --


def rhel9() -> list[str]:
    """Does the module build for a 5.14 that carries interfaces of 6.5 back, as RHEL 9.5's does? It is
    made from 6.1: read-only vm_flags with vm_flags_init(), and pin_user_pages() with four arguments."""
    kernel = packages.kernel("6.1")
    work = build.modules(kernel, "open", "own").p2pmod.parent
    tree = build.work_folder("rhel9") / "usr"
    old = kernel.headers.parents[1]
    shutil.copytree(old, tree, symlinks=True)
    headers = tree / "src" / kernel.headers.name
    common = next((tree / "src").glob("linux-headers-*-common"))

    def change(file: Path, *changes: tuple[str, str]) -> None:
        text = file.read_text()
        for pattern, new in changes:
            text, n = re.subn(pattern, new, text, count=1, flags=re.MULTILINE)
            if not n:
                raise LabError(f"{file.name} of kernel 6.1 has no {pattern!r}: the cell must be made anew")
        file.write_text(text)

    for makefile in (headers / "Makefile", headers / ".config"):
        makefile.write_text(makefile.read_text().replace(str(old), str(tree)))
    change(common / "Makefile", (r"^VERSION = 6$", "VERSION = 5"), (r"^PATCHLEVEL = 1$", "PATCHLEVEL = 14"))
    version = 5 << 16 | 14 << 8
    change(headers / "include/generated/uapi/linux/version.h",
           (r"LINUX_VERSION_CODE \d+", f"LINUX_VERSION_CODE {version}"),
           (r"LINUX_VERSION_MAJOR \d+", "LINUX_VERSION_MAJOR 5"),
           (r"LINUX_VERSION_PATCHLEVEL \d+", "LINUX_VERSION_PATCHLEVEL 14"))  # fmt: skip
    change(common / "include/linux/mm_types.h",
           (r"^\tunsigned long vm_flags;.*$", "\tunion { const vm_flags_t vm_flags; "
            "vm_flags_t __private __vm_flags; };"))  # fmt: skip
    change(common / "include/linux/mm.h",
           (r"^(long pin_user_pages\(unsigned long start, unsigned long nr_pages,\n[^;]*), struct page"
            r" \*\*pages,\s*struct vm_area_struct \*\*vmas\);", r"\1, struct page **pages);"),
           (r"^static inline bool vma_is_anonymous",
            "static inline void vm_flags_init(struct vm_area_struct *vma, vm_flags_t flags)\n"
            "{\n\tACCESS_PRIVATE(vma, __vm_flags) = flags;\n}\n\n"
            "static inline bool vma_is_anonymous"))  # fmt: skip
    for made in [*work.rglob("*.o"), *work.rglob("p2pmod*.ko")]:
        made.unlink()
    try:
        log = build.user_make(
            Unpacked("rhel9", kernel.release, kernel.image, headers, None), work, *build.CLIENT_OPTIONS
        )
    except LabError as e:
        return str(e).splitlines()[-40:]
    info = run(["modinfo", "-F", "vermagic", work / "p2pmod.ko"])
    return [x for x in log.splitlines() if "warning:" in x] + ([] if info else ["nothing was built"])


def too_old() -> list[str]:
    """Is a kernel before 5.10 refused with a sentence?"""
    kernel = packages.kernel("5.10")
    work = build.modules(kernel, "open", "own").p2pmod.parent
    try:
        build.user_make(kernel, work, "VERSION=5", "PATCHLEVEL=4")
    except LabError as e:
        return [] if "5.10 is the oldest kernel supported" in str(e) else [str(e)[-500:]]
    return ["5.4 was not refused"]


def twice() -> list[str]:
    """`make`, and again, without the driver's header; and without the driver on a kernel that checks."""
    kernel = packages.kernel("6.1")
    work = build.modules(kernel, "open", "own").p2pmod.parent
    build.user_make(kernel, work, *build.CLIENT_OPTIONS)
    build.user_make(kernel, work, *build.CLIENT_OPTIONS)
    shutil.rmtree(work / "sysroot/lib/modules" / kernel.release / "updates")
    try:
        build.user_make(kernel, work)
    except LabError as e:
        return [] if "Install the driver for" in str(e) else [str(e)[-500:]]
    return ["a module that would not load was built"]


REFUSED = """#include <linux/module.h>
int nvidia_p2p_get_pages(void) { return -EINVAL; }
int nvidia_p2p_put_pages(void) { return -EINVAL; }
int nvidia_p2p_free_page_table(void) { return -EINVAL; }
EXPORT_SYMBOL(nvidia_p2p_get_pages);
EXPORT_SYMBOL(nvidia_p2p_put_pages);
EXPORT_SYMBOL(nvidia_p2p_free_page_table);
#ifdef CAP
int nvidia_p2p_cap_persistent_pages = 1;
EXPORT_SYMBOL(nvidia_p2p_cap_persistent_pages);
#endif
MODULE_LICENSE("Dual MIT/GPL");
"""


def refused_driver() -> list[str]:
    """A module built for driver 470 loads beside that, and says why not beside 515 to 530. (Where a kernel
    checks symbol versions, it refuses by itself: there is none for the variable that tells them.)"""
    kernel = packages.kernel("7.3")
    client = build.modules(kernel, "open", "470").p2pmod.parent
    files = {"/lab/p2pmod.ko": client / "p2pmod.ko"}
    for name, options in (("old", ""), ("refused", "-DCAP")):
        work = build.work_folder(name)
        (work / "nvidia.c").write_text(REFUSED)
        (work / "Kbuild").write_text(f"obj-m := nvidia.o\nccflags-y := {options} -Wno-missing-prototypes\n")
        inside = "/src" if kernel.root else work
        build.make(kernel, work, build.headers_of(kernel), [f"M={inside}", "modules"])
        files[f"/lab/{name}.ko"] = work / "nvidia.ko"
    installed = client / "sysroot/lib/modules" / kernel.release / "updates"
    for packed in installed.iterdir():
        packed.unlink()
    shutil.copy(files["/lab/old.ko"], installed / "nvidia.ko")
    build.user_make(kernel, client)
    result = boot.boot(
        kernel, files,
        "modprobe() { insmod /lab/$1.ko && insmod /lab/p2pmod.ko; }\n"
        "modprobe old && echo ok 1 loads || echo not ok 1 loads\nrmmod p2pmod; rmmod nvidia\n"
        "modprobe refused && echo not ok 2 refused || echo ok 2 refused\nrmmod nvidia\n",
    )  # fmt: skip
    complaints = [*result.failed, *result.splats]
    if "drivers 515 to 530" not in result.text:
        complaints.append(result.text[-600:])
    return complaints


def compilers() -> int:
    """RHEL 9's interfaces, and builds that must be refused."""
    prepare()
    good = [tell("RHEL 9.5: 5.14 with interfaces of 6.5, compiled", rhel9()),
            tell("kernels before 5.10 are refused", too_old()),
            tell("a driver of 515 to 530 is refused at load, too", refused_driver()),
            tell("make twice; without the driver it is refused", twice())]  # fmt: skip
    return report(sum(good), len(good) - sum(good))


# -- dkms, make install, signatures --

ON_A_MACHINE = """
mount -t tmpfs modules /host/usr/lib/modules && mount -t tmpfs rules /host/usr/lib/udev/rules.d
mkdir -p /host/usr/lib/modules/{release}/updates
cp /lab/nvidia.ko /host/usr/lib/modules/{release}/updates/
ln -s {headers} /host/usr/lib/modules/{release}/build
for f in order builtin builtin.modinfo; do : > /host/usr/lib/modules/{release}/modules.$f; done
cat > /host{scratch}/steps <<'EOF'
export TMPDIR={scratch} HOME={scratch}
n=0
step() {{ n=$((n+1)); name=$1; shift; if "$@" >{scratch}/log 2>&1; then echo "ok $n $name"; else
  sed "s/^/# $name: /" {scratch}/log | tail -n 30; echo "not ok $n $name"; fi; }}
refused() {{ ! "$@" && ! grep -q '^p2pmod ' /proc/modules; }}
cp -r {root}/Kbuild {root}/p2pmod {scratch}/ && cd {scratch}/p2pmod || echo "not ok 900 copy"
depmod {release}
step load_before_the_driver_is_refused refused make load
step the_driver modprobe nvidia
step make_install make install CONFIG_DEBUG_INFO_BTF_MODULES=
step the_rule test -e /usr/lib/udev/rules.d/60-p2pmod.rules
step modprobe modprobe p2pmod
step the_device test -c /dev/p2pmod
step the_driver_cannot_go_before_it sh -c '! rmmod nvidia'
step make_unload make unload
step it_is_gone refused make unload
step make_load make load
sleep 1000 < /dev/p2pmod & held=$!
step unload_while_in_use_is_refused sh -c '! make unload'
kill $held; wait $held
step unload_at_last make unload
EOF
chroot /host /bin/bash {scratch}/steps
rmmod nvidia
"""


def on_a_machine() -> bool:
    """`make install`, load and unload, for real: in a guest that sees this machine's files."""
    kernel = packages.kernel("6.1")
    modules = build.modules(kernel, "open", "own")
    drivers = guest_modules(kernel, ("virtio_pci", "9pnet_virtio", "9p"))
    files = files_of(modules, build.tests()) | {f"/drivers/{f.name}": f for f in drivers}
    scratch = next(f for f in ("/mnt", "/srv", "/var/tmp", "/tmp") if not build.ROOT.is_relative_to(f))
    Path("/usr/lib/udev/rules.d").mkdir(parents=True, exist_ok=True)
    script = MOUNT.format(modules=" ".join(f"/drivers/{f.name}" for f in drivers), scratch=scratch)
    script += ON_A_MACHINE.format(release=kernel.release, headers=kernel.headers, scratch=scratch,
                                  root=build.ROOT)  # fmt: skip
    result = boot.boot(kernel, files, script, memory=3072, share=Path("/"))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "install.log").write_text(result.text)
    complaints = [*result.failed, *result.splats] + ([] if result.finished else ["the guest did not finish"])
    return tell(f"make install, load, unload: {len(result.passed)} passed, {result.seconds:.0f} s", complaints)


def _dkms(version: str, package: Path, script: str = "dkms") -> bool:
    """Every step of a module's life with one version of dkms; then the module is loaded and tried.

    script: "dkms", its own commands; "debian", what dpkg does with our package.
    """
    work = build.work_folder("dkms")
    kernels = [packages.kernel("6.1"), packages.kernel("6.12")]
    (work / "src").mkdir()
    shutil.copy(build.ROOT / "Kbuild", work / "src")
    shutil.copy(build.ROOT / "dkms.conf", work / "src")
    shutil.copytree(build.ROOT / "p2pmod", work / "src/p2pmod", ignore=shutil.ignore_patterns("*.o", "*.ko"))
    shutil.copy(packages.driver_source("550", "open") / "nv-p2p.h", work / "nv-p2p.h")
    for kernel in kernels:
        folder = work / kernel.release
        folder.mkdir()
        shutil.copy(build.modules(kernel, "open", "550").nvidia, folder)
        (folder / "headers").write_text(str(kernel.headers))
    words: list[object] = [package, work, *(k.release for k in kernels)]
    if script == "debian":
        for made in ("0.1.0", "0.1.1"):
            run([sys.executable, build.ROOT / "tools/module-packages", "deb", "--version", made, "--out",
                 work / "debs"])  # fmt: skip
            words.append(made)
    log = run(["unshare", "--mount", "--propagation", "private", "bash",
               Path(__file__).with_name(f"{script}.sh"), *words])  # fmt: skip
    complaints = [line for line in log.splitlines() if line.startswith(("not ok", "# "))]
    steps = sum(line.startswith("ok ") for line in log.splitlines())
    out = work / "out"
    names = sorted(f.name for f in out.glob("*.ko"))
    if names == ["nvidia-current.ko", "p2pmod.ko"]:
        files = files_of(build.modules(kernels[0], "open", "550"), build.tests())
        files |= {"/lab/nvidia.ko": out / "nvidia-current.ko", "/lab/p2pmod.ko": out / "p2pmod.ko"}
        result = boot.boot(kernels[0], files, LOAD.format(version=VERSIONS["1.2"]) + "/lab/p2pmod "
                           "stores_reach_the_gpu_and_its_stores_come_back\n" + UNLOAD)  # fmt: skip
        complaints += [*result.failed, *result.splats]
        steps += len(result.passed)
        if not result.finished or len(result.passed) < 3:
            complaints.append("what dkms built was not loaded")
    else:
        complaints.append(f"dkms left {names}")
    return tell(f"{script}, dkms {version}: {steps} steps", complaints)


def signed() -> bool:
    """A kernel that enforces signatures: the module is refused, and loads when `make sign` has signed it
    with the throw-away key that this kernel was built with."""
    kernel = debugkernel.kernel("gcc", "signed")
    modules = build.modules(kernel, "open", "own")
    work = modules.p2pmod.parent
    unsigned = work / "unsigned.ko"
    shutil.copy(modules.p2pmod, unsigned)
    key, certificate = kernel.headers / "certs/signing_key.pem", kernel.headers / "certs/signing_key.x509"
    build.user_make(kernel, work, "sign", f"KEY={key}", f"CERT={certificate}")
    run([kernel.headers / "scripts/sign-file", "sha256", key, certificate, modules.nvidia])
    files = files_of(modules, build.tests()) | {"/lab/unsigned.ko": unsigned}
    result = boot.boot(kernel, files, "insmod /lab/nvidia.ko && echo ok 1 driver || echo not ok 1 driver\n"
                       "insmod /lab/unsigned.ko && echo not ok 2 unsigned || echo ok 2 unsigned_is_refused\n"
                       "insmod /lab/p2pmod.ko && echo ok 3 signed || echo not ok 3 signed\n"
                       "/lab/p2pmod stores_reach_the_gpu_and_its_stores_come_back\n" + UNLOAD)  # fmt: skip
    complaints = [*result.failed, *result.splats] + ([] if result.finished else ["the guest did not finish"])
    return tell(f"signed modules ({kernel.release}): {len(result.passed)} passed", complaints)


def dkms() -> int:
    """dkms (each version that the suites have), the Debian package and `make install` as users run them;
    signed modules."""
    prepare()
    if os.geteuid():
        raise LabError("dkms is tried in a mount namespace: run this as root")
    apt = packages.Apt()
    good = []
    for version in apt.versions("dkms"):
        package = CACHE / "dkms" / version
        with packages.alone("dkms"):
            if not package.exists():
                package.mkdir(parents=True)
                apt.unpack("dkms", package, version)
        good += [_dkms(version, package), _dkms(version, package, "debian")]
    good += [on_a_machine(), signed()]
    return report(sum(good), len(good) - sum(good))
