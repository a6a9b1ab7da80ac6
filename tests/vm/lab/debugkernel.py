"""Kernels that are built here, from a configuration each. Built once, cached.

debug: looks for mistakes: KASAN, UBSAN, lockdep, kmemleak, fault injection. signed: loads only modules
that are signed with the throw-away key of its build.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from packages import CACHE, Apt, LabError, Unpacked, alone, install, run

SERIES = "6.12"
HERE = Path(__file__).resolve().parent
NEEDED = {"signed": ("CONFIG_MODULE_SIG_FORCE=y", "CONFIG_X86_PAT=y"), "debug": (
    "CONFIG_BUG=y", "CONFIG_KASAN=y", "CONFIG_PROVE_LOCKING=y", "CONFIG_DEBUG_KMEMLEAK=y", "CONFIG_FAILSLAB=y",
          "CONFIG_DEBUG_ATOMIC_SLEEP=y", "CONFIG_X86_PAT=y", "CONFIG_MODULES=y", "CONFIG_UBSAN=y",
          "CONFIG_PROVE_RAW_LOCK_NESTING=y", "CONFIG_PAGE_TABLE_CHECK=y", "CONFIG_IO_URING=y",
          "CONFIG_USERFAULTFD=y", "CONFIG_CROSS_MEMORY_ATTACH=y", "CONFIG_IA32_EMULATION=y")}  # fmt: skip
CLANG = 19
COMPILERS = {  # name -> words for make; Debian packages
    "gcc": ((), ()),
    "clang": ((f"LLVM=-{CLANG}",), (f"clang-{CLANG}", f"lld-{CLANG}", f"llvm-{CLANG}")),
}


def kernel(compiler: str = "gcc", name: str = "debug") -> Unpacked:
    """A kernel, built if its inputs changed (about ten minutes on two idle cores)."""
    with alone(f"{name}-{compiler}"):
        return _kernel(compiler, name)


def _kernel(compiler: str, name: str) -> Unpacked:
    words, programs = COMPILERS[compiler]
    install(*programs)
    wanted = HERE / f"{name}.config"
    key = hashlib.sha256(wanted.read_bytes() + SERIES.encode() + "".join(words).encode()).hexdigest()[:12]
    folder = CACHE / "debug" / key
    build = folder / "build"
    image = build / "arch/x86/boot/bzImage"
    done = folder / "release"
    source, configured = folder / f"linux-source-{SERIES}", folder / "configured"
    make = ["make", "-C", source, f"O={build}", *words]
    if not done.exists() and not configured.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        Apt().unpack(source.name, folder / "package")
        run(["tar", "-xf", next((folder / "package/usr/src").glob("linux-source-*.tar.xz")),
             "-C", folder])  # fmt: skip
        shutil.rmtree(folder / "package")
        build.mkdir()
        run([*make, "tinyconfig"])
        run([source / "scripts/kconfig/merge_config.sh", "-m", "-O", build, build / ".config",
             wanted], cwd=source)  # fmt: skip
        run([*make, "olddefconfig"])
        config = (build / ".config").read_text().splitlines()
        lost = [line for line in NEEDED[name] if line not in config]
        if lost:
            raise LabError(f"the {name} kernel's configuration lost {', '.join(lost)}")
        configured.touch()
    if not done.exists():  # an interrupted build goes on where it was
        run([*make, f"-j{os.cpu_count()}", "bzImage", "modules"])
        done.write_text(run([*make, "-s", "kernelrelease"]).split()[-1])
    series = name if compiler == "gcc" else f"{name}-{compiler}"
    return Unpacked(series, done.read_text().strip(), image, build, None, words)
