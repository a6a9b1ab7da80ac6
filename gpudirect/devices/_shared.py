"""Host memory that a descriptor stands for: another process maps it, and needs no CUDA for that."""

from __future__ import annotations

import fcntl
import os

from .. import _native
from .._descriptors import told
from ..errors import DeviceError

_SEALS = fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
PAGE = os.sysconf("SC_PAGE_SIZE")


def new_descriptor(size: int) -> int:
    """A file of so many bytes, all 0, in memory only. Nobody can change its size, whoever is given it.

    Raises DeviceError where the system has no room or no descriptor left.
    """
    fd = -1
    try:
        fd = os.memfd_create("gpudirect", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.truncate(fd, size)
        fcntl.fcntl(fd, *_SEALS)
    except OSError as e:
        if fd >= 0:
            os.close(fd)
        raise told(e, f"making {size} bytes of memory that a descriptor stands for") from e
    return fd


class SharedPages:
    """Such a file and this process's mapping of it, which a child of fork() gets neither of."""

    def __init__(self, size: int) -> None:
        self.size = -(-size // PAGE) * PAGE
        self.fd = new_descriptor(self.size)
        self.ptr = int(_native.lib.gd_map(0, self.size, 1, 1, self.fd, 0, 0))
        if self.ptr < 0:
            os.close(self.fd)
            raise DeviceError(f"mapping shared host memory: {os.strerror(-self.ptr)}", -self.ptr)
        _all.add(self)

    def close(self) -> None:
        """Unmap it, and close the file. Safe twice."""
        if self.fd >= 0:
            _native.lib.gd_unmap(self.ptr, self.size)
            self._forget()

    def _forget(self) -> None:
        fd, self.fd = self.fd, -1
        os.close(fd)
        _all.discard(self)


_all: set[SharedPages] = set()


def _after_fork_in_child() -> None:
    for pages in tuple(_all):
        pages._forget()


os.register_at_fork(after_in_child=_after_fork_in_child)

__all__ = ["SharedPages", "new_descriptor"]
