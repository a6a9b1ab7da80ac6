"""Kernels and driver headers out of Debian's suites: downloaded, unpacked, never installed.

The address of the package server is this machine's own: it is read from the apt configuration and
written into a private sources list in the cache folder only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("GPUDIRECT_LAB") or Path.home() / ".cache" / "gpudirect-lab")
SUITES = ("bullseye", "bullseye-security", "bookworm", "bookworm-updates", "bookworm-security",
          "bookworm-backports", "trixie", "trixie-backports", "trixie-updates", "trixie-security")  # fmt: skip
SECURITY = re.compile(r"-security$")


class LabError(Exception):
    """Something the lab needs is missing or failed; the message says what to do."""


def run(command: Iterable[object], **how: object) -> str:
    """Run a command; its output. Raises LabError with the output when it fails."""
    words = [str(w) for w in command]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace", **how)  # type: ignore[call-overload]  # fmt: skip
    if done.returncode:
        raise LabError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return str(done.stdout)


def install(*packages: str) -> None:
    """Install Debian packages that are missing, as root; otherwise say what to install."""
    missing = [p for p in packages if subprocess.run(["dpkg", "-s", p], capture_output=True).returncode]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise LabError(f"the lab needs these Debian packages: apt-get install {' '.join(missing)}")
    run(["apt-get", "update", "-qq"])
    run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """A distribution kernel."""

    series: str
    """What a user says: "6.12"."""
    package: str
    """Regular expression of the headers' package name."""
    foreign: bool = False
    """Built with newer tools than this system's: needs a root folder of its suite."""
    architecture: str = "amd64"


KERNELS = {
    k.series: k
    for k in (
        Kernel("5.10", r"linux-headers-5\.10\.0-\d+-amd64"),
        Kernel("6.1", r"linux-headers-6\.1\.0-\d+-amd64"),
        Kernel("6.12", r"linux-headers-6\.12\.[\d.]+\+deb12-amd64"),
        Kernel("6.12-rt", r"linux-headers-6\.12\.[\d.]+\+deb12-rt-amd64"),
        Kernel("6.12-arm64", r"linux-headers-6\.12\.[\d.]+\+deb12-arm64", architecture="arm64"),
        Kernel("6.12-arm64-16k", r"linux-headers-6\.12\.[\d.]+\+deb12-arm64-16k", architecture="arm64"),
        Kernel("7.2", r"linux-headers-7\.2\.[\d.]+\+deb13-amd64", foreign=True),
        Kernel("7.3", r"linux-headers-7\.3\.[\d.]+\+deb13-amd64", foreign=True),
        Kernel("7.3-rt", r"linux-headers-7\.3\.[\d.]+\+deb13-rt-amd64", foreign=True),
    )
}
# a machine of the lab: the kernel, and words of its command line
MACHINES = {
    **{name: (name, ()) for name, kernel in KERNELS.items() if kernel.architecture == "amd64"},
    "6.1-nopat": ("6.1", ("nopat",)),  # no write-combining to be had
    # every allocation is filled, and checked when freed
    "7.3-slab": ("7.3", ("init_on_alloc=1", "init_on_free=1", "slab_debug=FZPU")),
}
DRIVERS = {  # series -> flavour -> package; 470 came in one flavour only
    "470": {"proprietary": "nvidia-kernel-source"},
    "535": {"open": "nvidia-open-kernel-source", "proprietary": "nvidia-kernel-source"},
    "550": {"open": "nvidia-open-kernel-source", "proprietary": "nvidia-kernel-source"},
}
BUILD_ROOT = ("base-files dash coreutils sed grep gawk findutils diffutils gcc-14 make libelf1t64 "
              "binutils kmod perl-base bash libc6-dev").split()  # fmt: skip


def _mirror() -> str:
    """The server's address in this machine's apt configuration."""
    text = ""
    for file in [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]:
        if file.suffix in (".list", ".sources", ""):
            text += file.read_text(errors="replace") + "\n" if file.is_file() else ""
    for pattern in (r"^URIs:\s*(\S+/debian)/?\s*$", r"^deb\s+(?:\[.*\]\s+)?(\S+/debian)/?\s"):
        if found := re.search(pattern, text, re.MULTILINE):
            return found[1]
    raise LabError("no Debian package server in /etc/apt: the lab runs on Debian, with apt set up")


class Apt:
    """apt-get and apt-cache on a private list of sources."""

    def __init__(self, architecture: str = "") -> None:
        self.folder = CACHE / ("apt" + architecture)
        self.debs = CACHE / ("debs" + architecture)
        (self.folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        sources = self.folder / "sources.list"
        mirror = _mirror()
        options = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
        lines = []
        for suite in SUITES:
            uri = mirror + "-security" if SECURITY.search(suite) else mirror
            parts = "main contrib non-free" + ("" if "bullseye" in suite else " non-free-firmware")
            lines.append(f"deb {options} {uri} {suite} {parts}")
        sources.write_text("\n".join(lines) + "\n")
        self.options = [
            "-o", f"Dir::Etc::sourcelist={sources}", "-o", "Dir::Etc::sourceparts=-",
            "-o", f"Dir::State::lists={self.folder / 'lists'}", "-o", "APT::Get::List-Cleanup=0",
            "-o", f"Dir::Cache::pkgcache={self.folder / 'pkgcache.bin'}",
            "-o", f"Dir::Cache::srcpkgcache={self.folder / 'srcpkgcache.bin'}",
            "-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none",
        ]  # fmt: skip
        if architecture:
            self.options += ["-o", f"APT::Architecture={architecture}",
                             "-o", f"APT::Architectures={architecture}"]  # fmt: skip
        stamp = self.folder / "updated"
        if not stamp.exists():
            run(["apt-get", *self.options, "update"])
            stamp.touch()

    def names(self, pattern: str) -> list[str]:
        """Package names that match, oldest version first."""
        found = run(["apt-cache", *self.options, "pkgnames"]).split()
        match = re.compile(pattern)
        return sorted((n for n in found if match.fullmatch(n)), key=_natural)

    def versions(self, package: str) -> list[str]:
        """Versions of a package, newest first."""
        text = run(["apt-cache", *self.options, "madison", package])
        return [line.split("|")[1].strip() for line in text.splitlines() if "|" in line]

    def unpack(self, package: str, into: Path, version: str | None = None) -> None:
        """Download a package and unpack it."""
        debs = self.debs
        debs.mkdir(parents=True, exist_ok=True)
        what = package if version is None else f"{package}={version}"
        # named as apt names it: of a package there may be several
        pattern = f"{package}_{'*' if version is None else version.replace(':', '%3a') + '_*'}.deb"
        if not list(debs.glob(pattern)):
            run(["apt-get", *self.options, "download", what], cwd=debs)
        run(["dpkg", "-x", sorted(debs.glob(pattern))[-1], into])

    def closure(self, suite: str, packages: Iterable[str], debs: Path, into: Path) -> None:
        """Download packages of a suite, with all that they depend on, and unpack what is then in ``debs``."""
        run(["apt-get", *self.options, "update"])  # a server keeps what old lists name for a while only
        status = self.folder / "empty-status"
        status.write_text("")
        (debs / "partial").mkdir(parents=True, exist_ok=True)
        run(["apt-get", "-y", *self.options, "-o", f"Dir::State::status={status}",
             "-o", f"APT::Default-Release={suite}", "-o", "APT::Install-Recommends=0",
             "-o", f"Dir::Cache::archives={debs}", "--download-only", "install", *packages])  # fmt: skip
        # the first brings the links of /bin and /lib
        for deb in sorted(debs.glob("*.deb"), key=lambda f: not f.name.startswith("base-files_")):
            run(["dpkg", "-x", deb, into])


def _natural(name: str) -> list[object]:
    return [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)]


@dataclass(frozen=True)
class Unpacked:
    """A kernel ready to build against and to boot."""

    series: str
    release: str
    image: Path
    headers: Path
    root: Path | None
    """The folder to chroot into for building, or None."""
    words: tuple[str, ...] = ()
    """Words that every make for it needs."""
    architecture: str = "amd64"


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """What is fetched or built into the cache is so by one process at a time."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def kernel(series: str) -> Unpacked:
    """Fetch a kernel of KERNELS, its headers relocated. Cached."""
    with alone("kernels"):
        return _kernel(series)


def _kernel(series: str) -> Unpacked:
    what = KERNELS[series]
    base = CACHE / "kernels" / series
    done = base / "release"
    if not done.exists():
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir(parents=True)
        apt = Apt("" if what.architecture == "amd64" else what.architecture)
        names = apt.names(what.package)
        if not names:
            raise LabError(f"no package {what.package} in the suites {', '.join(SUITES)}")
        headers = names[-1]
        release = headers.removeprefix("linux-headers-")
        tree = base / "root"
        tree.mkdir()
        if what.foreign:
            _build_root(apt, tree)
        abi = _abi(release)
        apt.unpack(headers, tree)
        for common in (f"linux-headers-{abi}-common", f"linux-headers-{abi}-common-rt"):
            if apt.names(re.escape(common)):
                apt.unpack(common, tree)
        Apt().unpack(_kbuild(Apt(), release), tree)  # programs of this machine, whatever they build for
        image = f"linux-image-{release}-unsigned"
        if not apt.names(re.escape(image)):
            image = f"linux-image-{release}"
        binary = f"linux-binary-{release}"
        for name in (image, binary):
            if apt.names(re.escape(name)):
                apt.unpack(name, tree)
        done.write_text(release)
    release = done.read_text()
    tree = base / "root"
    headers_path = tree / "usr/src" / f"linux-headers-{release}"
    if not what.foreign:
        makefile = headers_path / "Makefile"
        text = makefile.read_text()
        if str(tree) not in text:
            makefile.write_text(re.sub(r"([ =])/usr/src/", rf"\g<1>{tree}/usr/src/", text))
    images = [*tree.glob(f"boot/vmlinuz-{release}"),
              *tree.glob(f"usr/lib/modules/{release}/vmlinuz"),
              *tree.glob(f"lib/modules/{release}/vmlinuz")]  # fmt: skip
    if not images:
        raise LabError(f"no kernel image of {release} under {tree}")
    words: tuple[str, ...] = ()
    if what.architecture == "arm64":
        words = ("ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-")
    return Unpacked(series, release, images[0], headers_path, tree if what.foreign else None, words,
                    what.architecture)  # fmt: skip


def busybox(architecture: str) -> Path:
    """A static busybox for guests of an architecture."""
    if architecture == "amd64":
        if there := shutil.which("busybox"):
            return Path(there)
        raise LabError("busybox is missing: apt-get install busybox-static")
    program = CACHE / f"busybox-{architecture}"
    with alone("busybox"):
        if not program.exists():
            tree = CACHE / "busybox-package"
            Apt(architecture).unpack("busybox-static", tree)
            shutil.copy(next(tree.glob("*/busybox*"), None) or next(tree.glob("usr/*/busybox*")), program)
            shutil.rmtree(tree)
    return program


def _abi(release: str) -> str:
    """A release without its flavour and architecture."""
    return re.sub(r"(-rt)?-(amd64|arm64)(-16k)?$", "", release)


def _kbuild(apt: Apt, release: str) -> str:
    """The package with the build tools of a kernel release."""
    version = re.match(r"(\d+\.\d+)", release)[1]  # type: ignore[index]
    abi = _abi(release)
    for name in (f"linux-kbuild-{abi}", f"linux-kbuild-{version}"):
        if apt.names(re.escape(name)):
            return name
    raise LabError(f"no linux-kbuild package for {release}")


def _build_root(apt: Apt, tree: Path) -> None:
    """Newer build tools in a folder: what a kernel of another suite was built with."""
    apt.closure("trixie", BUILD_ROOT, CACHE / "debs-trixie", tree)
    awk = tree / "usr/bin/awk"
    if not awk.exists():
        awk.symlink_to("gawk")


def driver_source(series: str, flavour: str) -> Path:
    """A folder with nv-p2p.c and nv-p2p.h of a driver, out of Debian's packages. Cached.

    series: of DRIVERS, or a folder that holds both (an installed driver's, for instance).
    """
    if "/" in series:
        folder = Path(series)
        for name in ("nv-p2p.c", "nv-p2p.h"):
            if not (folder / name).exists():
                raise LabError(f"there is no {name} in {folder}")
        return folder
    with alone("drivers"):
        return _driver_source(series, flavour)


def _driver_source(series: str, flavour: str) -> Path:
    packages = DRIVERS[series]
    flavour = flavour if flavour in packages else next(iter(packages))
    folder = CACHE / "drivers" / f"{series}-{flavour}"
    if not (folder / "nv-p2p.c").exists():
        apt = Apt()
        package = packages[flavour]
        version = next((v for v in apt.versions(package) if v.startswith(f"{series}.")), None)
        if version is None:
            raise LabError(f"no {package} {series}.x in the suites; there are {apt.versions(package)}")
        tree = folder / "package"
        tree.mkdir(parents=True, exist_ok=True)
        apt.unpack(package, tree, version)
        run(["tar", "-xf", next((tree / "usr/src").glob("*.tar.xz")), "-C", tree])
        for name in ("nv-p2p.h", "nv-p2p.c"):
            shutil.copy(next(tree.glob(f"modules/*/nvidia/{name}")), folder / name)
        if not any(f'NV_VERSION_STRING=\\"{series}.' in f.read_text() for f in tree.glob("modules/*/Kbuild")):
            shutil.rmtree(folder)
            raise LabError(f"{package} {version} holds another driver than {series}")
        shutil.rmtree(tree)
    return folder
