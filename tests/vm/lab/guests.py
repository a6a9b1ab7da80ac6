"""What a guest holds, and what it runs; which machines there are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import build
import debugkernel
import packages
from packages import CACHE, LabError, Unpacked, run

ROOT = build.ROOT
RESULTS = CACHE / "results"
NEEDED = {  # program -> Debian package
    "qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "cpio": "cpio",
    "depmod": "kmod", "make": "make", "gcc": "gcc", "flex": "flex", "bison": "bison", "bc": "bc",
    "objdump": "binutils", "sparse": "sparse", "unshare": "util-linux", "xz": "xz-utils", "perl": "perl",
}  # fmt: skip
LIBRARIES = {"/usr/include/libelf.h": "libelf-dev", "/usr/include/openssl/opensslv.h": "libssl-dev"}

LOAD = """
insmod /lab/nvidia.ko version={version} && insmod /lab/p2pmod.ko
"""
CLIENTS = "".join(f"insmod /lab/{name}.ko || echo not ok 901 {name}\n" for name in build.CLIENTS)
NO_CLIENTS = "".join(f"rmmod {name}\n" for name in build.CLIENTS)
UNLOADING = ("edges", "driver")  # they unload and load the module: before anything else uses it
ALONE = "P2PMOD_KO=/lab/p2pmod.ko "
UNLOAD = """
rmmod p2pmod && echo "ok 902 unload_p2pmod" || echo "not ok 902 unload_p2pmod"
rmmod nvidia && echo "ok 903 unload_driver" || echo "not ok 903 unload_driver"
"""


def prepare() -> None:
    """Install what is missing, as root; otherwise say what to install."""
    missing = [p for program, p in NEEDED.items() if shutil.which(program) is None]
    missing += [p for file, p in LIBRARIES.items() if not os.path.exists(file) and not
                list(Path("/usr/include").glob(f"*/{Path(file).parent.name}/{Path(file).name}"))]  # fmt: skip
    packages.install(*missing)


def report(passed: int, failed: int) -> int:
    """The closing line that a runner reads."""
    print(f"{passed} passed, {failed} failed", flush=True)
    return 1 if failed or not passed else 0


VERSIONS = {"1.2": "0x00010002", "2.0": "0x00020000"}


def machine(name: str) -> tuple[Unpacked, tuple[str, ...]]:
    """A machine's kernel, and words of its command line."""
    if name.startswith("debug"):
        return debugkernel.kernel("clang" if name == "debug-clang" else "gcc"), ()
    if name in packages.KERNELS:
        return packages.kernel(name), ()
    if name not in packages.MACHINES:
        there = sorted({*packages.MACHINES, *packages.KERNELS, "debug", "debug-clang"})
        raise LabError(f"no machine {name!r}; there are {', '.join(there)}")
    kernel, words = packages.MACHINES[name]
    return packages.kernel(kernel), words


def files_of(modules: build.Modules, tests: Path) -> dict[str, Path]:
    """What a guest of the C tests holds."""
    files = {"/lab/nvidia.ko": modules.nvidia, "/lab/p2pmod.ko": modules.p2pmod,
             **{f"/lab/{client.name}": client for client in modules.clients}}  # fmt: skip
    for program in tests.iterdir():
        if program.name != "done":
            files[f"/lab/{program.name}"] = program
    return files


def test_script(version: str) -> str:
    """The C tests, every program of them but the fuzzer."""
    runs = "".join(f"{ALONE}/lab/{name}\n" for name in UNLOADING) + f"{CLIENTS}/lab/p2pmod\n/lab/lane\n"
    return LOAD.format(version=version) + runs + NO_CLIENTS + UNLOAD


# -- guests that see this machine's files --

MOUNT = """
for m in {modules}; do insmod $m || echo "not ok 900 $m"; done
mkdir -p /host && mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose root /host
mount -t proc proc /host/proc && mount -t sysfs sys /host/sys && mount -t devtmpfs dev /host/dev
mkdir -p /host/dev/shm && mount -t tmpfs shm /host/dev/shm
mount -t tmpfs scratch /host{scratch} && mount -t tmpfs run /host/run
ip link set lo up 2>/dev/null
chmod 1777 /host{scratch}
"""


def guest_modules(kernel: Unpacked, names: tuple[str, ...]) -> list[Path]:
    """Kernel modules and what they depend on, in the order of loading."""
    base = kernel.image.parent.parent
    folder = next(f for f in (base / "lib/modules" / kernel.release,
                              base / "usr/lib/modules" / kernel.release) if f.exists())  # fmt: skip
    by_name = {f.name.split(".ko")[0].replace("-", "_"): f for f in folder.rglob("*.ko*")}
    order: list[Path] = []

    def add(name: str) -> None:
        file = by_name.get(name.replace("-", "_"))
        if file is None or file in order:
            return  # built in
        for needed in run(["modinfo", "-F", "depends", file]).strip().split(","):
            if needed:
                add(needed)
        order.append(file)

    for name in names:
        add(name)
    return order
