"""Building the module, the stand-in driver and the C tests for a kernel."""

from __future__ import annotations

import atexit
import hashlib
import itertools
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from packages import CACHE, Apt, LabError, Unpacked, driver_source, run

ROOT = Path(__file__).resolve().parents[3]
VM = ROOT / "tests" / "vm"
FLAVOURS = ("open", "proprietary")
CLIENTS = ("p2pmod_quixote", "p2pmod_caller", "p2pmod_priority")
CLIENT_OPTIONS = ("TESTS=m", "EXAMPLES=m")


_numbers = itertools.count(1)


def work_folder(name: str) -> Path:
    """An empty folder of this run's own: several may go on at once. Gone with the process."""
    base = CACHE / "work"
    for old in base.glob("*"):  # of runs that were killed
        if not Path("/proc", old.name).exists():
            shutil.rmtree(old, ignore_errors=True)
    mine = base / str(os.getpid())
    if not mine.exists():
        atexit.register(shutil.rmtree, mine, ignore_errors=True)
    folder = mine / f"{next(_numbers)}-{name}"
    folder.mkdir(parents=True)
    return folder


@dataclass(frozen=True)
class Modules:
    """What a guest loads, in this order. Clients: modules that use p2pmod."""

    nvidia: Path
    p2pmod: Path
    clients: tuple[Path, ...]
    warnings: str


# how a distribution may have compressed the driver's module, one way a kernel series
PACKED = {"5.10": "xz", "6.1": "gzip", "6.12": "xz"}


def modules(kernel: Unpacked, flavour: str, header: str, extra: tuple[str, ...] = ()) -> Modules:
    """Build for a kernel beside one flavour of the driver, with one of its headers ("own": ours).

    As a user does: the driver's module is installed in a system of its own, with its header where
    distributions put it, and ``make -C p2pmod`` finds both.
    """
    work = work_folder(f"{kernel.series}-{flavour}-{header.replace('/', '_')}")
    for name in ("Kbuild", "p2pmod"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, work / name, ignore=shutil.ignore_patterns("*.o", "*.ko", "*.cmd"))
        else:
            shutil.copy(source, work / name)
    shutil.copytree(VM / "standin", work / "standin")
    include = ""
    options = ["STANDIN_PROPRIETARY=y"] if flavour == "proprietary" else []
    if header != "own":
        source = driver_source(header, flavour)
        # an installed driver's header lies where distributions put it; its own source is the lab's
        number = next(iter(re.findall(r"\d{3}", header)), "999")
        include = f"sysroot/usr/src/nvidia-{number}.1/nvidia"
        (work / include).mkdir(parents=True)
        shutil.copy(source / "nv-p2p.h", work / include)
        for name in ("nv-p2p.h", "nv-p2p.c"):
            shutil.copy(source / name, work / "standin")
        options += ["STANDIN_DRIVER=y", f"STANDIN_DRIVER_OPTIONS={' '.join(_manager(source))}"]
    # the stand-in's own relative include of p2pmod/nv-p2p-own.h is from tests/vm/standin
    text = (work / "standin/layer.c").read_text()
    (work / "standin/layer.c").write_text(text.replace("../../../p2pmod/", "../p2pmod/"))
    inside = Path("/src") if kernel.root else work
    log = make(kernel, work, headers_of(kernel),
                [f"M={inside / 'standin'}", *options, *extra, "modules"])  # fmt: skip
    place = work / "sysroot/lib/modules" / kernel.release / "updates"
    place.mkdir(parents=True)
    shutil.copy(work / "standin/nvidia.ko", place)
    if packer := PACKED.get(kernel.series):
        run([packer, place / "nvidia.ko"])
    told = user_make(kernel, work, *CLIENT_OPTIONS, *extra)
    if "updates/nvidia.ko" not in told or include not in told:
        raise LabError(f"the build did not find the driver it was to find:\n{told[:3000]}")
    log += told
    return Modules(work / "standin/nvidia.ko", work / "p2pmod.ko",
                   tuple(work / f"{name}.ko" for name in CLIENTS),
                   "\n".join(x for x in log.splitlines() if "warning:" in x))  # fmt: skip


def _manager(source: Path) -> list[str]:
    """What this version of nv-p2p.c passes to the resource manager: shim/nv-linux.h asks for it."""
    text = (source / "nv-p2p.c").read_text(errors="replace")
    words = {"mem_info->mig_info": "MIG_INFO", "force_pcie, *page_table": "FORCE_PCIE",
             "&cpu_cacheable": "CPU_CACHEABLE", "NV_ERR_GPU_UUID_NOT_FOUND": "GPU_NOT_FOUND"}  # fmt: skip
    return [f"-DSTANDIN_{name}" for word, name in words.items() if word in text]


def headers_of(kernel: Unpacked) -> Path:
    """A kernel's headers, as the build sees them."""
    return Path("/usr/src", kernel.headers.name) if kernel.root else kernel.headers


def user_make(kernel: Unpacked, work: Path, *words: str) -> str:
    """``make -C p2pmod`` on a copy of the sources, beside the system in its folder sysroot."""
    inside = Path("/src") if kernel.root else work
    return make(kernel, work, inside / "p2pmod",
                 [f"KVER={kernel.release}", f"KDIR={headers_of(kernel)}", f"SYSROOT={inside / 'sysroot'}",
                  *words])  # fmt: skip


def make(kernel: Unpacked, work: Path, folder: Path, words: list[str]) -> str:
    """Run make in a folder with the tools that the kernel was built with; its output."""
    command = ["make", "-C", str(folder), "CONFIG_DEBUG_INFO_BTF_MODULES=", *kernel.words, *words]
    if kernel.root is None:
        if kernel.series == "5.10":
            command += ["CC=gcc", "CROSS_COMPILE="]
        return run(command)
    for name in ("src", "proc", "dev", "tmp"):
        (kernel.root / name).mkdir(exist_ok=True)
    script = (
        f"mount -t proc proc {kernel.root}/proc && mount --bind /dev {kernel.root}/dev && "
        f"mount --bind {work} {kernel.root}/src && "
        f"exec chroot {kernel.root} {shlex.join(command)} CC=gcc-14 HOSTCC=gcc-14"
    )
    return run(["unshare", "--mount", "sh", "-c", script])


def tests(architecture: str = "amd64") -> Path:
    """The C tests, static, as a folder of programs. Built again when a source changes."""
    source = VM / "selftests"
    files = sorted([*source.glob("*.c"), *source.glob("*.h"), *(ROOT / "p2pmod").rglob("*.h"),
                    VM / "standin/standin.h"])  # fmt: skip
    key = hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:12]
    folder = CACHE / "tests" / f"{key}-{architecture}"
    compiler = {"amd64": "cc", "arm64": "aarch64-linux-gnu-gcc"}[architecture]
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for program in sorted(source.glob("*.c")):
            run([compiler, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-static",
                 "-pthread", f"-I{ROOT / 'p2pmod'}", f"-I{VM / 'standin'}", program, "-o",
                 folder / program.stem])  # fmt: skip
        (folder / "done").touch()
    return folder


def gpl_only_symbols(module: Path, symvers: Path) -> list[str]:
    """The GPL-only symbols a module needs: with one of them it loads beside no proprietary driver."""
    needed = set(re.findall(r"^\s+U (\S+)$", run(["nm", "-u", module]), re.MULTILINE))
    found = []
    for line in symvers.read_text().splitlines():
        fields = line.split("\t")
        if len(fields) >= 4 and fields[1] in needed and fields[3].startswith("EXPORT_SYMBOL_GPL"):
            found.append(fields[1])
    return sorted(found)


def sparse(kernel: Unpacked) -> list[str]:
    """What sparse says of the module."""
    work = modules(kernel, "open", "own").p2pmod.parent
    for old in work.rglob("*.o"):
        old.unlink()
    log = user_make(kernel, work, "C=2", "CHECK=sparse", "W=1", *CLIENT_OPTIONS)
    return [x for x in log.splitlines() if f"{work}/p2pmod" in x and ("warning:" in x or "error:" in x)]


def store64(kernel: Unpacked) -> list[str]:
    """Is the store of 64 bytes, written as bytes, the instruction it should be? A complaint if not."""
    code = run(["objdump", "-d", "--no-show-raw-insn", modules(kernel, "open", "own").p2pmod])
    body = code.partition("<p2pmod_lane_submit>:")[2].partition("\n\n")[0]
    found = re.findall(r"movdir64b (\S+)", body)
    return [] if found == ["(%rdx),%rax"] else [f"p2pmod_lane_submit has movdir64b {found}"]


PLANTED = """#include <linux/module.h>
#include <linux/mm.h>
static int __init planted(void)
{
	return pgprot_val(pgprot_writecombine(PAGE_KERNEL)) == 1;
}
module_init(planted);
MODULE_LICENSE("Dual MIT/GPL");
"""


def planted_symbol(kernel: Unpacked) -> list[str]:
    """Does the symbol check find what it is there to find? A complaint if not."""
    work = work_folder(f"planted-{kernel.series}")
    (work / "planted.c").write_text(PLANTED)
    (work / "Kbuild").write_text("obj-m := planted.o\n")
    make(kernel, work, headers_of(kernel), [f"M={work}", "modules"])
    found = gpl_only_symbols(work / "planted.ko", kernel.headers / "Module.symvers")
    return [] if found == ["pgprot_writecombine"] else [f"found {found}, not pgprot_writecombine"]


# complaints of checkpatch that are wrong here: (file, type) -> why
EXCEPTIONS = {
    ("p2pmod/compat.h", "CONSTANT_COMPARISON"): "LINUX_VERSION_CODE is compared as everywhere in Linux",
    ("p2pmod/test/quixote.c", "SPLIT_STRING"): "the string is a novel, not a message to grep for",
}


def checkpatch() -> list[str]:
    """What checkpatch.pl of a kernel's source says of the module."""
    folder = CACHE / "checkpatch"
    script = folder / "checkpatch.pl"
    if not script.exists():
        folder.mkdir(parents=True, exist_ok=True)
        Apt().unpack("linux-source-6.1", folder / "package")
        archive = next((folder / "package/usr/src").glob("linux-source-*.tar.xz"))
        names = [f"linux-source-6.1/scripts/{n}" for n in ("checkpatch.pl", "spelling.txt",
                                                           "const_structs.checkpatch")]  # fmt: skip
        run(["tar", "-xf", archive, "-C", folder, "--strip-components=2", *names])
        shutil.rmtree(folder / "package")
    files = sorted([*(ROOT / "p2pmod").glob("*.[ch]"), *(ROOT / "p2pmod").glob("*/*.[ch]")])
    # line length is the project's own
    done = subprocess.run(
        ["perl", script, "--no-tree", "--terse", "--show-types", "--max-line-length=100",
         "--ignore", "LINUX_VERSION_CODE,PREFER_KERNEL_TYPES", "-f", *files],
        capture_output=True, text=True,
    )  # fmt: skip
    found = []
    for line in done.stdout.replace(f"{ROOT}/", "").splitlines():
        told = re.match(r"(\S+?):\d+: (?:WARNING|ERROR|CHECK):(\w+):", line)
        if told and (told[1], told[2]) not in EXCEPTIONS:
            found.append(line)
    return found
