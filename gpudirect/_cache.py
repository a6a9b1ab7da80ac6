"""Files that can be made again, kept between processes under ``$GPUDIRECT_CACHE``.

What is kept is code that later runs, so it is used only from folders in which nobody else can put
files (``ours``). It ends in a seal: a mark and a digest of its name and of all that stands before it.
A file that was cut short has none that fits; it counts as absent, and whoever needs it makes it again.
The seal stands behind the content because loaders of shared objects mind no bytes there.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from functools import cache
from pathlib import Path

from .config import cache_folder

_MARK = b"gd-seal2"
_SEAL = len(_MARK) + hashlib.sha256().digest_size


def key(*parts: str | bytes) -> str:
    """A file name for what is made from these parts alone."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()[:32]


def ours(folder: Path, *, close: bool = True) -> bool:
    """Whether nobody but this user (and root) can put a file there, or another folder in its place.

    The folder is this user's, and is closed to others if it is not; every folder above is this
    user's or root's, and no stranger may write to it or remove from it what is not his.
    """
    me = os.geteuid()
    try:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != me:
            return False
        if close and found.st_mode & 0o022:
            folder.chmod(0o700)
        for above in {*folder.absolute().parents, *folder.resolve().parents}:
            found = above.stat()
            if found.st_uid not in (0, me):
                return False
            if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
                return False
    except OSError:
        return False
    return True


def _seal(path: Path, content: bytes) -> bytes:
    return _MARK + hashlib.sha256(path.name.encode() + b"\0" + content).digest()


def load(path: Path) -> bytes | None:
    """What ``keep`` put there; None where it is absent or damaged, or others could have put it there."""
    if not ours(path.parent):
        return None
    try:
        data = path.read_bytes()
    except OSError:
        return None
    content, seal = data[:-_SEAL], data[-_SEAL:]
    return content if seal == _seal(path, content) else None


def keep(path: Path, content: bytes) -> bool:
    """Put a file there, whole or not at all, whoever else does the same. False: it cannot be kept, or
    others could put theirs in its place."""
    name = ""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not ours(path.parent):
            return False
        fd, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(fd, "wb") as file:
            file.write(content + _seal(path, content))
        os.replace(name, path)
    except OSError:
        if name:
            with contextlib.suppress(OSError):
                os.unlink(name)
        return False
    return True


def place(kind: str, name: str, content: bytes) -> Path:
    """Keep a file that has to lie somewhere: in the cache, or else where it goes with this process.

    Raises OSError where there is no room for it at all.
    """
    path = cache_folder() / kind / name
    if not keep(path, content):
        path = spare_folder(kind) / name
        if not keep(path, content):
            raise OSError(f"neither {cache_folder()} nor {path.parent} takes {len(content)} bytes")
    return path


def find(kind: str, name: str) -> tuple[Path, bytes] | None:
    """(where it lies, its content) of a file that ``place`` put somewhere."""
    for folder in (cache_folder() / kind, *([spare_folder(kind)] if _spared() else [])):
        content = load(folder / name)
        if content is not None:
            return folder / name, content
    return None


@cache
def _spare(pid: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="gpudirect-"))
    _spares.append((pid, folder))
    return folder


_spares: list[tuple[int, Path]] = []


def _spared() -> bool:
    return any(pid == os.getpid() for pid, _ in _spares)


def spare_folder(kind: str) -> Path:
    """Instead of a cache that cannot be written: a folder that is gone when this process ends."""
    folder = _spare(os.getpid()) / kind
    folder.mkdir(exist_ok=True)
    return folder


@atexit.register
def _remove_spares() -> None:
    for pid, folder in _spares:
        if pid == os.getpid():
            shutil.rmtree(folder, ignore_errors=True)
