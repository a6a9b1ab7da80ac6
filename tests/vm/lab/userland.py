"""A guest's Python: what this machine has, or a user land of arm64 out of Debian's packages."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import build
import packages
from packages import CACHE, Apt, LabError, run

ROOT = build.ROOT


@dataclass(frozen=True)
class UserLand:
    """What pytest runs on inside a guest."""

    root: Path
    """The folder of this machine that is the guest's root."""
    checkout: Path
    """Where in it gpudirect and its tests lie."""
    python: Path
    scratch: str
    """The only place that the guest can write to: not where the checkout is."""
    environment: dict[str, str]
    files: dict[str, Path] = field(default_factory=dict)
    """Path in the guest, outside of that root -> file here."""
    script: str = ""
    """What puts them there."""


def here() -> UserLand:
    """This machine's own, with the checkout's virtual environment."""
    scratch = next(f for f in ("/mnt", "/srv", "/var/tmp", "/tmp") if not ROOT.is_relative_to(f))
    cache = os.environ.get("GPUDIRECT_CACHE") or str(Path.home() / ".cache" / "gpudirect")
    return UserLand(Path("/"), ROOT, _python(), scratch,
                    {"GPUDIRECT_CACHE": cache, "PATH": os.environ["PATH"],
                     "PYTHONDONTWRITEBYTECODE": "1"})  # fmt: skip


def _python() -> Path:
    python = ROOT / ".venv" / "bin" / "python"
    if not python.exists():
        raise LabError(f"{python} is missing: run `make demo` first")
    return python


# -- arm64 --

SUITE = "trixie"  # the oldest whose NumPy is new enough for gpudirect
PACKAGES = (
    "base-files dash coreutils python3 libpython3-dev python3-numpy python3-cffi python3-psutil "
    "python3-typer python3-rich python3-jinja2 python3-pytest python3-pytest-timeout g++"
).split()
LIBRARIES = "usr/lib/aarch64-linux-gnu"
ALTERNATIVES = ("blas/libblas.so.3", "lapack/liblapack.so.3")  # which the packages' scripts would link
CHECKOUT = "checkout"


def arm64() -> UserLand:
    """Debian's arm64, with gpudirect cross-built for its Python, and the checkout's tests."""
    root = _unpacked()
    built = _cross_built(root)
    files = {f.relative_to(built): f for f in built.rglob("*") if f.is_file()}
    tests = (ROOT / "pyproject.toml", *ROOT.glob("tests/**/*.py"), *ROOT.glob("p2pmod/**/*.h"))
    files |= {f.relative_to(ROOT): f for f in tests}
    return UserLand(
        root, Path("/", CHECKOUT), Path("/usr/bin/python3"), "/tmp",
        # what is imported is compiled once, and not by each of the tests' programs
        {"PATH": "/usr/bin", "PYTHONPYCACHEPREFIX": "/tmp/bytecode", "GPUDIRECT_CACHE": "/tmp/cache"},
        {f"/{CHECKOUT}/{name}": file for name, file in files.items()},
        f"mount --bind /{CHECKOUT} /host/{CHECKOUT}\n",
    )  # fmt: skip


def _unpacked() -> Path:
    """The user land's folder: packages unpacked, never installed. Cached."""
    base = CACHE / "userland-arm64"
    root, done, made = base / "root", base / "done", " ".join([SUITE, *PACKAGES])
    with packages.alone("userland"):
        if not done.exists() or done.read_text() != made:
            shutil.rmtree(base, ignore_errors=True)
            root.mkdir(parents=True)
            Apt("arm64").closure(SUITE, PACKAGES, base / "debs", root)
            shutil.rmtree(base / "debs")
            for library in ALTERNATIVES:
                (root / LIBRARIES / Path(library).name).symlink_to(library)
            (root / CHECKOUT).mkdir()
            done.write_text(made)
    return root


def _cross_built(root: Path) -> Path:
    """The package, its extensions built with the headers of the user land's Python."""
    work = build.work_folder("arm64-package")
    headers = root / "usr/include"
    version = next(headers.glob("python3.*")).name
    # and no more of its headers: the C library's are the cross compiler's
    (work / "include/aarch64-linux-gnu").mkdir(parents=True)
    for folder in (version, f"aarch64-linux-gnu/{version}"):
        (work / "include" / folder).symlink_to(headers / folder)
    compiler = "aarch64-linux-gnu-gcc"
    run([_python(), "setup.py", "-q", "egg_info", "--egg-base", work, "build", "--build-base", work / "build",
         "--build-lib", work / "package"],
        cwd=ROOT, env={**os.environ, "CC": compiler, "LDSHARED": f"{compiler} -shared",
                       "CFLAGS": f"-I{work / 'include' / version} -I{work / 'include'}"})  # fmt: skip
    extensions = [f.name for f in (work / "package").rglob("_native/*.so")]
    if not extensions or any(not name.endswith(".abi3.so") for name in extensions):
        raise LabError(f"{_python()} built {extensions}, for itself alone: it must be Python 3.11 or later")
    return work / "package"
