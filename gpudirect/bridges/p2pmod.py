"""Bridge ``p2pmod``: our kernel module. Maps any device memory, and tells its bus addresses.

The ABI is ``p2pmod/p2pmod.h``, read by cffi: no struct and no number of it is repeated here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from typing import Any

from .. import _native
from .._descriptors import telling
from .._keeper import keeper
from ..errors import ApertureError, BridgeError, NotMappableError, RevokedError
from .base import (
    PAGE,
    Bridge,
    Facts,
    Mapping,
    PageRun,
    Source,
    Standing,
    check_span,
    map_file,
    unmap,
)

_ffi, _lib = _native.ffi, _native.lib
NODE = _ffi.string(_lib.P2PMOD_NODE).decode() if hasattr(_lib, "P2PMOD_NODE") else "/dev/p2pmod"
STANDIN_NODE = "/dev/nvidia-standin"
CACHING = {"wc": 0, "uc": "P2PMOD_PIN_UNCACHED", "wb": "P2PMOD_PIN_CACHED"}


def _call(fd: int, command: int, argument: Any, doing: str) -> None:
    """An ioctl of the module; raises the exception that its errno means (p2pmod.h, DOC)."""
    argument.size = _ffi.sizeof(_ffi.typeof(argument).item)
    view = _ffi.buffer(argument)
    try:
        fcntl.ioctl(fd, command, view, True)
    except OSError as e:
        code = e.errno or 0
        what = f"p2pmod: {doing} failed: {os.strerror(code)} (errno {code})"
        if code == errno.ENOMEM:
            raise ApertureError(
                f"{what}: BAR1 or memory is exhausted. Close arrays or map smaller windows; "
                "`gpudirect info` shows BAR1's size and use.", code,
            ) from e  # fmt: skip
        if code == errno.ENOSPC:
            raise ApertureError(
                f"{what}: a limit of the module is reached (max_pins_per_user, max_bytes_per_user or "
                "max_bytes_total under /sys/module/p2pmod/parameters)", code,
            ) from e  # fmt: skip
        if code == errno.ENODEV:
            raise RevokedError(f"{what}: the memory was revoked") from e
        if code in (errno.EINVAL, errno.EOPNOTSUPP):
            raise NotMappableError(
                f"{what}: it is no memory of this process that the NVIDIA driver can pin (made by "
                "cuMemCreate without gpuDirectRDMACapable, or freed?), or a flag is not offered", code,
            ) from e  # fmt: skip
        raise BridgeError(what, code) from e


class P2pmodMapping(Mapping):
    """A pinned buffer and its mapping. The driver may revoke it."""

    revocable = True

    def __init__(self, bridge: P2pmodBridge, source: Source, offset: int, length: int,
                 at: int | None, caching: str) -> None:
        self.bridge: P2pmodBridge = bridge
        self.length = length
        self.caching = caching
        source.prepare_pinning()
        fd = bridge.file()
        flag = CACHING[caching]
        pin = _ffi.new("struct p2pmod_pin *")
        pin.address = source.ptr + offset
        pin.length = length
        pin.flags = getattr(_lib, flag) if isinstance(flag, str) else flag
        _call(fd, _lib.P2PMOD_PIN, pin, f"pinning {length} bytes at {source.ptr + offset:#x}")
        self._handle = pin.handle
        # of the first and last GPU page, only what was asked for: neighbours stay out of reach
        lead = pin.lead % PAGE
        self._size = -(-(lead + length) // PAGE) * PAGE
        start = pin.map_offset + pin.lead - lead
        self._reserved = at is not None
        self._open, self._base = True, 0
        try:
            self._base = map_file("p2pmod", fd, start, self._size, at - lead if at else None)
            state = self._state(fd)  # the first mapping reserves the type of the pages
        except BaseException:
            keeper.give_back(self.close)
            raise
        if caching == "wc" and state & _lib.P2PMOD_STATE_CACHEABLE:
            self.caching = "wb"  # coherent memory: cached is what the module maps, and the faster way
        elif caching == "wc" and not state & _lib.P2PMOD_STATE_WRITE_COMBINED:
            self.caching = "uc"  # somebody has reserved these pages so, or there is no PAT
        self._first = source.ptr + offset - lead
        self._into_page = pin.lead - lead
        self._pages = int(pin.page_count)
        self.address = self._base + lead

    def pages(self) -> list[PageRun]:
        bus = self.bridge.bus_addresses_of(self._handle, self._pages)
        size = _lib.P2PMOD_GPU_PAGE_SIZE
        runs: list[PageRun] = []
        done, into = 0, self._into_page
        for address in bus:
            step = min(size - into, self._size - done)
            there = None if address is None else address + into
            last = runs[-1] if runs else None
            if last and last.bus_address is not None and last.bus_address + last.size == there:
                runs[-1] = PageRun(last.device_address, last.bus_address, last.size + step)
            elif last and there is None:
                runs[-1] = PageRun(last.device_address, None, last.size + step)
            else:
                runs.append(PageRun(self._first + done, there, step))
            done, into = done + step, 0
        return runs

    def revoked(self) -> bool:
        if not self._open or self.bridge._fd is None:
            return False
        return bool(self._state(self.bridge._fd) & _lib.P2PMOD_STATE_REVOKED)

    def _state(self, fd: int) -> int:
        status = _ffi.new("struct p2pmod_status *")
        status.handle = self._handle
        _call(fd, _lib.P2PMOD_STATUS, status, "asking for a buffer's state")
        return int(status.state)

    def close(self) -> None:
        if self._base:
            unmap(self._base, self._size, self._reserved)
            self._base = 0
        if self._open:
            self.bridge.unpin(self._handle)
            self._open = False


class P2pmodBridge(Bridge):
    """Maps through our kernel module."""

    name = "p2pmod"
    maps_foreign = True
    bus_addresses = True

    def __init__(self) -> None:
        self._fd: int | None = None
        self._lock = threading.RLock()

    def standing(self, device: Facts) -> Standing:
        if device.kind == "emulated" and not os.path.exists(STANDIN_NODE):
            return Standing(False, "pins the NVIDIA driver's memory, and the emulated device has "
                                   "its own (a memfd)")  # fmt: skip
        if not os.path.exists(NODE):
            return Standing(
                False, f"{NODE} is absent: load the kernel module (make -C p2pmod load, as root)"
            )
        if not hasattr(_lib, "P2PMOD_PIN"):
            return Standing(False, "this build of gpudirect was made without p2pmod/p2pmod.h")
        if not os.access(NODE, os.R_OK | os.W_OK):
            return Standing(False, f"{NODE} cannot be opened for reading and writing: join its "
                                   "group (sudo usermod -aG video $USER, and log in anew; the rule is "
                                   "p2pmod/60-p2pmod.rules)")  # fmt: skip
        try:
            query = self.query()
        except BridgeError as e:
            return Standing(False, str(e).removeprefix("p2pmod: "))
        told = query.features & _lib.P2PMOD_FEATURE_BUS_ADDRESSES
        return Standing(
            True,
            f"{NODE}, ABI {query.abi_version}; bus addresses "
            + ("are told" if told else "need CAP_SYS_RAWIO or show_bus_addresses=1"),
        )

    def file(self) -> int:
        """The module's open file, made on first use."""
        with self._lock:
            if self._fd is None:
                with telling(f"p2pmod: cannot open {NODE}", BridgeError):
                    self._fd = os.open(NODE, os.O_RDWR | os.O_CLOEXEC)
            return self._fd

    def query(self) -> Any:
        """struct p2pmod_query: what module and driver offer."""
        query = _ffi.new("struct p2pmod_query *")
        _call(self.file(), _lib.P2PMOD_QUERY, query, "asking what the module offers")
        return query

    def bus_addresses_of(self, handle: int, count: int) -> list[int | None]:
        """Bus address of each GPU page of a buffer; None where the caller may not know."""
        addresses = _ffi.new("uint64_t[]", count)
        pages = _ffi.new("struct p2pmod_pages *")
        pages.handle, pages.count = handle, count
        pages.addresses = int(_ffi.cast("uintptr_t", addresses))
        try:
            _call(self.file(), _lib.P2PMOD_PAGES, pages, "asking for bus addresses")
        except BridgeError as e:
            if e.errno != errno.EPERM:
                raise
            return [None] * count
        return [int(a) for a in addresses]

    def unpin(self, handle: int) -> None:
        """Give a buffer back. Nothing to do where the file is closed already."""
        if self._fd is None:
            return
        unpin = _ffi.new("struct p2pmod_unpin *")
        unpin.handle = handle
        _call(self._fd, _lib.P2PMOD_UNPIN, unpin, "unpinning")

    def map(
        self, source: Source, offset: int, length: int, *, at: int | None = None, caching: str = "wc"
    ) -> P2pmodMapping:
        check_span("p2pmod", source, offset, length, caching, tuple(CACHING))
        return P2pmodMapping(self, source, offset, length, at, caching)

    def after_fork(self) -> None:
        fd, self._fd = self._fd, None
        self._lock = threading.RLock()
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)
