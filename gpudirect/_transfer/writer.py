"""A file of device memory, written from start to end."""

from __future__ import annotations

import io
import threading
from typing import Any

from .. import _native
from ..arguments import as_bytes, index, overlap
from ..errors import ApertureError, ArgumentError, ClosedError, RangeError
from ..extent import Extent
from . import copies
from .ondemand import OnDemand, Use, base, piece_of


class Writer(io.RawIOBase):
    """A file-like object over the bytes of device memory. ``Array.writer``.

    Stores leave for the device as they are made. ``flush`` and ``close`` fence them, and a write
    alone does not: what was written may linger in the CPU's write-combining buffers.
    """

    _bytes: Extent | None = None
    _use: Use | None = None

    def __init__(self, extent: Extent) -> None:
        super().__init__()
        # one call at a time: a close must not unmap what a write stores into. Once more for a
        # signal handler that closes the file in the middle of a write of its own thread
        self._lock = threading.RLock()
        if not extent.contiguous:
            raise ArgumentError("a writer fills consecutive bytes, and this array has strides: "
                                "make it of the contiguous array behind it")  # fmt: skip
        self._bytes = extent.bytes()
        self._at = 0
        self._shown = (0, 0, 0)  # the first byte of the window, one past its last, CPU address
        self._flags = 0

    def _open(self) -> Extent:
        if self._bytes is None:
            raise ClosedError("this writer was closed")
        return self._bytes.usable()

    def writable(self) -> bool:
        return True

    def readinto(self, out: Any, /) -> int:
        raise io.UnsupportedOperation("a writer is not read from: use Array.read")

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        """Bytes from the start of the array to the next byte written."""
        self._open()
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go on elsewhere: bytes from the start, from here, or from the end. Returns ``tell()``."""
        size = self._open().nbytes
        if not isinstance(whence, int) or not 0 <= whence <= 2:
            raise ArgumentError(f"whence is {whence!r}: give 0, 1 or 2")
        origin = (0, self._at, size)[whence]  # io.SEEK_SET, SEEK_CUR, SEEK_END
        at = origin + index(offset, "offset")
        if not 0 <= at <= size:
            raise RangeError(f"byte {at} is not inside an array of {size} bytes")
        self._at = at
        return at

    def write(self, data: Any, /) -> int:
        """Store bytes-like ``data`` and go on behind it; how many bytes it has: all are written.

        Raises RangeError if they do not fit, and stores nothing then.
        """
        with self._lock:
            return self._write(data)

    def _write(self, data: Any) -> int:
        extent = self._open()
        piece = extent.memory
        if type(data) is bytes or type(data) is bytearray:
            first, end, host = self._shown
            count = len(data)
            if first <= self._at and self._at + count <= end:  # the plain case, in a hurry
                source = _native.ffi.from_buffer(data)
                code = _native.lib.gd_write(host + self._at - first, source, count, self._flags)
                copies.done(code, extent, "writing to")
                self._at += count
                return count
        raw = as_bytes(data)
        if raw.nbytes > extent.nbytes - self._at:
            raise RangeError(
                f"{raw.nbytes} bytes at offset {self._at} do not fit into an array of "
                f"{extent.nbytes} bytes"
            )
        if piece.host and raw.nbytes:
            if overlap(raw, piece.host, piece.nbytes):
                raw = raw.copy()
        done = 0
        while done < raw.nbytes:
            self._open()  # a signal handler may have closed it
            first, end, host = self._shown
            if not first <= self._at < end:
                try:
                    first, end, host = self._turn(extent, raw.nbytes - done)
                except ApertureError:
                    copies.write(extent, raw[done:], self._at, "dma")
                    self._at += raw.nbytes - done
                    break
            count = min(raw.nbytes - done, end - self._at)
            code = _native.lib.gd_write(
                host + self._at - first,
                _native.ffi.cast("char *", copies.address_of(raw) + done),
                count,
                self._flags,
            )
            copies.done(code, extent, "writing to")
            self._at += count
            done += count
        return raw.nbytes

    def _turn(self, extent: Extent, more: int) -> tuple[int, int, int]:
        """Take the window at the present byte in place of the last one."""
        lib = _native.lib
        if extent.mapped:
            self._shown = (0, extent.nbytes, extent.host)
            self._flags = extent.flags | lib.GD_NO_FENCE
            return self._shown
        self._leave()
        first_byte, piece = base(extent), piece_of(extent)
        windows = OnDemand.of(piece)
        use = self._use = windows.enter(first_byte + self._at)
        slot = use.slot
        windows.follow(piece, slot, first_byte + self._at + more)
        first = slot.start - first_byte
        self._shown = (first, min(first + slot.length, extent.nbytes), slot.host)
        self._flags = lib.GD_NO_FENCE | slot.flags
        return self._shown

    def _leave(self) -> None:
        self._shown = (0, 0, 0)
        if self._use is not None:
            _native.lib.gd_fence()  # on the thread that stored, before anybody unmaps the window
            self._use = None

    def flush(self) -> None:
        """Make everything written so far leave for the device."""
        _native.lib.gd_fence()

    def close(self) -> None:
        """Flush, and let the array go. Safe twice."""
        with self._lock:
            if not self.closed:
                super().close()
                self._leave()
                self._bytes = None

    def __repr__(self) -> str:
        if self._bytes is None:
            return "<Writer closed>"
        return f"<Writer at byte {self._at} of {self._bytes}>"
