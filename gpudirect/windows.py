"""Windows: mappings of parts of device memory that is not mapped whole.

    w = a.window(0, 64 << 20)     the user's own, moved with w.move(offset)
    a.write(data, offset)         maps what it needs, and keeps the windows used most recently
    a.writer()                    a file of device memory, written from start to end

A window has an address of its own: only memory that is mapped whole is unified. Windows mapped on
demand start at multiples of their width, which is a quarter of what the aperture's budget leaves,
so that one is written, the next is being mapped, and the others wait for the next access.
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from . import _native, memory, paths
from .aperture import AUTOMATIC, WINDOWS, Account, account, charge
from .bridges import Bridge, Mapping, PageRun
from .bridges.base import PAGE
from .devices import Device, DeviceMemory
from .errors import ApertureError, ArgumentError, ClosedError, DTypeError, Error, RangeError

if TYPE_CHECKING:
    from .arrays import Array
    from .host import HostView
    from .memory import Backing, Block, Piece

T = TypeVar("T")

WIDEST = 64 << 20
"""Bytes: wider windows gain nothing, a copy of this takes 2 ms and a mapping 0.1."""
TOUCH = 64 << 10
"""Bytes: a smaller write to a place that was not touched lately goes by DMA, which takes 5 us
where a mapping takes 100; the second one maps it."""


BOTH_ENDS = 64 << 20
"""Bytes: larger writes go through windows and by DMA at the same time."""
DMA_PART = 4 << 20
"""Bytes of one DMA then: short beside the whole, long beside what starting one takes."""


class Part:
    """Some bytes of a piece, mapped by themselves. Stands in for the piece in an Array."""

    __slots__ = ("__weakref__", "_account", "_mapping", "host", "nbytes", "piece", "ptr")

    def __init__(self, piece: Backing, offset: int, nbytes: int) -> None:
        self._mapping: Mapping | None = None
        self.piece = piece
        self.ptr = piece.ptr + offset
        self.nbytes = nbytes
        self._account = account(piece.device)
        if piece.host:
            self.host = piece.host + offset
            return
        block, start = piece.memory_at(offset, nbytes)
        if isinstance(piece, memory.Piece):
            piece.block.hold(piece.bridge)
        self._mapping = with_room(
            piece.device,
            lambda: self._account.map(WINDOWS, piece.bridge, block, start, nbytes),
        )
        self.host = self._mapping.address

    @property
    def device(self) -> Device:
        return self.piece.device

    @property
    def bridge(self) -> Bridge:
        return self.piece.bridge

    @property
    def exported(self) -> bool:
        return self.piece.exported

    @exported.setter
    def exported(self, value: bool) -> None:
        self.piece.exported = value

    @property
    def revocable(self) -> bool:
        return self.piece.revocable if self._mapping is None else self._mapping.revocable

    def revoked(self) -> bool:
        return self.piece.revoked() if self._mapping is None else self._mapping.revoked()

    def pages(self) -> list[PageRun]:
        return self.piece.pages() if self._mapping is None else self._mapping.pages()

    def memory_at(self, offset: int, length: int) -> tuple[DeviceMemory, int]:
        return self.piece.memory_at(self.ptr - self.piece.ptr + offset, length)

    def __del__(self) -> None:
        mapping = self._mapping
        if mapping is None or not memory.alive() or self.piece.device.forked:
            return
        _native.lib.gd_fence()  # stores on their way must not meet what is mapped there next
        _, start = self.memory_at(0, self.nbytes)
        self._account.give(WINDOWS, charge(start, self.nbytes), mapping.close)


def with_room(device: Device, make: Callable[[], T]) -> T:
    """Map something; where the aperture is full, once more without what the pools keep.

    Raises ApertureError that says who holds how much.
    """
    try:
        return make()
    except ApertureError as e:
        if not memory.shed(device):
            raise ApertureError(f"{e}\n{memory.holders()}", e.errno) from e
    try:
        return make()
    except ApertureError as e:
        raise ApertureError(f"{e}\n{memory.holders()}", e.errno) from e


class Window:
    """A mapping of part of an array. Made by ``Array.window``.

    It keeps the array's memory alive, also when the array is closed. A view of it (``host``,
    ``buffer``, a slice of ``array``) stays valid when the window moves or closes: it goes on
    showing the bytes it was made for, and holds that part of the aperture until it is gone.
    """

    __slots__ = ("_array", "_dtype", "_piece", "_start", "nbytes", "offset", "parent_bytes")

    offset: int
    """Bytes from the start of the array."""
    nbytes: int
    """Bytes that the window shows."""

    def __init__(self, array: Array, offset: int, nbytes: int | None,
                 dtype: DTypeLike | None) -> None:
        from .arrays import _dtype, _index

        piece = array._open()
        if not array.contiguous:
            raise ArgumentError("a window shows consecutive bytes, and this array has strides: "
                                "make it of the contiguous array behind it")  # fmt: skip
        self._piece: Backing | None = piece
        self._start = array.ptr - piece.ptr
        self.parent_bytes = array.nbytes
        self._dtype = array.dtype if dtype is None else _dtype(dtype)
        offset = _index(offset, "offset")
        self.nbytes = array.nbytes - offset if nbytes is None else _index(nbytes, "size")
        self._check(offset)
        if self.nbytes % self._dtype.itemsize:
            raise ArgumentError(
                f"a window of {self.nbytes} bytes holds no whole number of {self._dtype} "
                f"({self._dtype.itemsize} bytes each); dtype='u1' makes one of bytes"
            )
        self._array: Array | None = None
        self._show(Part(piece, self._start + offset, self.nbytes), offset)

    def _check(self, offset: int) -> None:
        if self.nbytes <= 0 or offset < 0 or offset + self.nbytes > self.parent_bytes:
            raise RangeError(
                f"a window of {self.nbytes} bytes at offset {offset} is not inside an array of "
                f"{self.parent_bytes} bytes"
            )

    def _show(self, part: Part, offset: int) -> None:
        from .arrays import Array

        count = self.nbytes // self._dtype.itemsize
        self._array = Array._make(part, part.ptr, (count,), None, self._dtype)
        self.offset = offset

    @property
    def array(self) -> Array:
        """The bytes shown, as an Array of one dimension, with everything that an Array can do."""
        if self._array is None:
            raise ClosedError(f"this window of {self.nbytes} bytes was closed")
        return self._array

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called, or a move failed half way."""
        return self._array is None

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype

    @property
    def ptr(self) -> int:
        """Device address of the first byte shown."""
        return self.array.ptr

    @property
    def host_ptr(self) -> int:
        """CPU address of the first byte shown."""
        return self.array.host_ptr

    @property
    def host(self) -> HostView:
        """The CPU's view, as ``Array.host``: one dimension of the window's dtype."""
        return self.array.host

    @property
    def buffer(self) -> memoryview:
        """The bytes shown, writable."""
        return self.array.buffer

    def write(self, data: Any, offset: int = 0, /, *, via: str | None = None) -> None:
        """Store ``data`` from byte ``offset`` of the window on, and fence, as ``Array.write``."""
        if via is None:
            self.array.write(data, offset)
        else:
            self.array.write(data, offset, via=via)

    def read(self, out: np.ndarray[Any, Any] | None = None, **options: Any) -> np.ndarray[Any, Any]:
        """A copy of the window, or of part of it, as ``Array.read``."""
        return self.array.read(out, **options)

    def flush(self) -> None:
        """Make all stores of this thread leave for the device."""
        self.array.flush()

    def move(self, offset: int) -> Window:
        """Show as many bytes from byte ``offset`` of the array on; the window itself.

        Raises RangeError and stays where it was, or ApertureError: the new place is mapped before
        the old one is given up if there is room for both, and after it otherwise, which cannot be
        done while views of the old place are left.
        """
        from .arrays import _index

        piece = self.array._open() and self._piece  # raises when closed, or after a fork
        assert piece is not None
        offset = _index(offset, "offset")
        self._check(offset)
        if offset == self.offset:
            return self
        start = self._start + offset
        try:
            part = Part(piece, start, self.nbytes)
        except ApertureError as e:
            if not self._let_go():
                raise ApertureError(
                    f"{e}\nThe window cannot give up its present place first: a view of it is left.",
                    e.errno,
                ) from e
            try:
                part = Part(piece, start, self.nbytes)
            except Error:
                self._show(Part(piece, self._start + self.offset, self.nbytes), self.offset)
                raise
        self._show(part, offset)
        return self

    def _let_go(self) -> bool:
        """Give up the present place, unless something else still looks at it."""
        part = self.array._piece
        assert part is not None
        left = weakref.ref(part)
        self.array.close()
        self._array = None
        del part
        there = left()
        if there is None:
            return True
        assert isinstance(there, Part)
        self._show(there, self.offset)
        return False

    def close(self) -> None:
        """Unmap the window once no view of it is left. Safe twice."""
        if self._array is not None:
            self._array.close()
        self._array = self._piece = None

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.nbytes

    def __repr__(self) -> str:
        if self._array is None or self._piece is None:
            return f"<Window of {self.nbytes} bytes closed>"
        device = self._piece.device
        mark = ", emulated" if device.emulated else ""
        return (
            f"<Window of bytes {self.offset}..{self.offset + self.nbytes} of {self.parent_bytes} "
            f"at {self.ptr:#x} of {device.id} via {self._piece.bridge.name}{mark}>"
        )


# -- windows mapped on demand ----------------------------------------------------------------


class Slot:
    """One window mapped on demand. Its methods are called by who holds the account."""

    __slots__ = ("host", "length", "mapping", "of", "revocable", "size", "start", "users")

    def __init__(self, of: OnDemand, start: int, length: int, mapping: Mapping) -> None:
        self.of = of
        self.start = start  # bytes from the start of the block
        self.length = length
        self.mapping: Mapping | None = mapping
        self.host = mapping.address
        self.revocable = mapping.revocable
        self.size = charge(start, length)
        self.users = 0

    def close(self) -> bool:
        """Unmap it; False if that was done before."""
        mapping, self.mapping = self.mapping, None
        if mapping is None:
            return False
        self.of.slots.pop(self.start, None)
        self.of.account.forget(self)
        _native.lib.gd_fence()  # stores on their way must not meet what is mapped there next
        mapping.close()
        return True

    def _left(self) -> None:
        self.users -= 1

    def leave(self) -> None:
        """Somebody is done with it. Called without holding the account; waits for it."""
        with self.of.account:
            self.users -= 1

    def leave_soon(self) -> None:
        """The same from a ``__del__``, which must not wait."""
        self.of.account.give(AUTOMATIC, 0, self._left)


class OnDemand:
    """The windows of one block that were mapped on demand; ``Block.windows``."""

    __slots__ = ("account", "block", "bridge", "last", "slots", "touched", "width")

    def __init__(self, block: Block, bridge: Bridge) -> None:
        self.block = block
        self.bridge = bridge
        self.account: Account = block.account
        self.slots: dict[int, Slot] = {}
        self.touched: dict[int, None] = {}  # windows last written by DMA, the oldest first
        self.last = -1  # start of the window entered last
        self.width = self._fitting_width()

    @classmethod
    def of(cls, piece: Piece) -> OnDemand:
        block = piece.block
        if block.windows is None:
            block.hold(piece.bridge)
            with block.account:
                if block.windows is None:
                    block.windows = cls(block, piece.bridge)
        assert isinstance(block.windows, cls)
        return block.windows

    def _fitting_width(self) -> int:
        quarter = min(self.account.on_demand() // 4, WIDEST)
        return 1 << quarter.bit_length() - 1 if quarter >= PAGE else PAGE

    def find(self, offset: int) -> int:
        """Start of the window that shows byte ``offset`` of the block."""
        return offset // self.width * self.width

    def enter(self, offset: int) -> Slot:
        """The window that shows byte ``offset`` of the block, mapped if need be.

        It stays until ``Slot.leave``. Raises ApertureError.
        """
        return with_room(self.block.memory.device, lambda: self._enter(offset))

    def _enter(self, offset: int) -> Slot:
        with self.account:
            if not self.slots:
                self.width = self._fitting_width()  # the budget, or what others hold, may differ
            slot = self._map(self.find(offset))
            slot.users += 1
            return slot

    def hit(self, offset: int, count: int) -> Slot | None:
        """The window that shows all of these bytes, if it is mapped, held until its ``leave``."""
        with self.account:
            slot = self.slots.get(self.find(offset))
            if slot is None or offset + count > slot.start + slot.length:
                return None
            slot.users += 1
            self.account.keep(slot)
            self.last = slot.start
            return slot

    def _map(self, start: int) -> Slot:
        slot = self.slots.get(start)
        if slot is None:
            block = self.block.memory
            length = min(self.width, block.size - start)
            mapping = self.account.map_locked(AUTOMATIC, self.bridge, block, start, length)
            slot = self.slots[start] = Slot(self, start, length, mapping)
        self.account.keep(slot)
        return slot

    def follow(self, piece: Piece, slot: Slot, end: int) -> None:
        """Have the next window mapped meanwhile, where bytes up to ``end`` or a habit call for it."""
        last, self.last = self.last, slot.start
        behind = slot.start + slot.length
        if last == slot.start or behind >= self.block.memory.size or behind in self.slots:
            return
        if end > behind or last + self.width == slot.start:
            _ahead.submit(piece, behind)

    def prepare(self, offset: int) -> None:
        """Map a window that will be needed soon, if there is room for it."""
        with self.account:
            # one that is in use and this one: never push the window out that is being written
            if 2 * self.width <= self.account.on_demand() and self.find(offset) not in self.slots:
                self._map(self.find(offset))

    def close(self) -> None:
        """The memory goes. Nobody uses the windows any more."""
        for slot in tuple(self.slots.values()):
            self.account.give(AUTOMATIC, slot.size, slot.close)


class _Ahead:
    """Maps the next window of a sequential writer while the present one is being written."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Piece, int]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def submit(self, piece: Piece, offset: int) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="gpudirect windows", daemon=True
                )
                self._thread.start()
        self._jobs.put((piece, offset))

    def _run(self) -> None:
        while True:
            piece, offset = self._jobs.get()
            # who needs the window meets the error himself
            with contextlib.suppress(Error, OSError):
                OnDemand.of(piece).prepare(offset)
            del piece  # the last reference, maybe: its memory goes back


_ahead = _Ahead()


def _after_fork_in_child() -> None:
    global _ahead
    _ahead = _Ahead()


os.register_at_fork(after_in_child=_after_fork_in_child)


@contextmanager
def _entered(piece: Piece, offset: int, end: int) -> Iterator[Slot]:
    """The window at ``offset`` of the block, mapped on demand, held while the ``with`` runs.

    end: bytes up to there will be needed.
    """
    windows = OnDemand.of(piece)
    slot = windows.enter(offset)
    try:
        windows.follow(piece, slot, end)
        yield slot
    finally:
        slot.leave()


def _base(array: Array, piece: Piece) -> int:
    """Where in its block an array starts."""
    return array.ptr - piece.block.memory.ptr


def write(array: Array, source: np.ndarray[Any, Any], offset: int, via: str | None) -> None:
    """``paths.write`` for a contiguous array that is not mapped whole.

    Mapped stores, window by window. Where the aperture has no room, and for the first small write
    to a place, DMA does it, unless via is "map".
    """
    piece: Any = array._open()
    source = np.ascontiguousarray(source).reshape(-1)
    windows = OnDemand.of(piece)
    if via == "dma" or (via is None and _rather_dma(array, piece, windows, offset, source.nbytes)):
        paths.write(array, source, offset, "dma")
        return
    raw = source.view(np.uint8)
    at = _base(array, piece) + offset
    if via is None and raw.nbytes >= BOTH_ENDS and not piece.device.busy:
        _from_both_ends(array, raw, offset)
        return
    if slot := windows.hit(at, raw.nbytes):
        try:
            code = _native.lib.gd_write(
                slot.host + at - slot.start,
                _native.ffi.cast("char *", paths._address(raw)),
                raw.nbytes,
                _native.lib.GD_GUARDED if slot.revocable else 0,
            )
        finally:
            slot.leave()
        paths._done(code, array, "writing to")
        return
    done = 0
    while done < raw.nbytes:
        try:
            done += _store_window(array, raw, offset, done, raw.nbytes)
        except ApertureError as e:
            if via == "map":
                raise ApertureError(f"{done} of {raw.nbytes} bytes were written; {e}", e.errno) from e
            paths.write(array, raw[done:], offset + done, "dma")
            return


def _store_window(array: Array, raw: np.ndarray[Any, Any], offset: int, done: int, end: int) -> int:
    """Store bytes ``done`` to ``end`` of ``raw``, as far as one window goes; how many it took."""
    piece: Any = array._open()
    at = _base(array, piece) + offset
    with _entered(piece, at + done, at + end) as slot:
        into = at + done - slot.start
        count = min(end - done, slot.length - into)
        code = _native.lib.gd_write(
            slot.host + into,
            _native.ffi.cast("char *", paths._address(raw) + done),
            count,
            _native.lib.GD_GUARDED if slot.revocable else 0,
        )
    paths._done(code, array, "writing to")
    return count


class _Ends:
    """What is left of a write, taken from both ends."""

    def __init__(self, nbytes: int) -> None:
        self._low, self._high = 0, nbytes
        self._lock = threading.Lock()

    def first(self, count: int) -> tuple[int, int]:
        """The next bytes from the start on, at most ``count``."""
        with self._lock:
            low = self._low
            self._low = min(low + count, self._high)
            return low, self._low

    def last(self, count: int) -> tuple[int, int]:
        """The next bytes from the end backwards, at most ``count``."""
        with self._lock:
            high = self._high
            self._high = max(high - count, self._low)
            return self._high, high


def _from_both_ends(array: Array, raw: np.ndarray[Any, Any], offset: int) -> None:
    """A large write: window by window from the start, by DMA from the end, until both meet.

    The first store to a page of a new mapping costs a walk of the page tables, or more in a virtual
    machine, and every page of every window is new: mapped stores alone reach three quarters of what
    they reach where the array is mapped whole. DMA has nothing to map, and half of the speed.
    """
    ends, failed = _Ends(raw.nbytes), []

    def by_dma() -> None:
        try:
            while (part := ends.last(DMA_PART))[0] < part[1]:
                paths.write(array, raw[slice(*part)], offset + part[0], "dma")
        except Exception as e:  # told by who asked for the write
            failed.append(e)

    thread = threading.Thread(target=by_dma, name="gpudirect DMA", daemon=True)
    thread.start()
    try:
        width = OnDemand.of(array._open()).width  # type: ignore[arg-type]
        while (part := ends.first(width))[0] < part[1]:
            done, end = part
            try:
                while done < end:
                    done += _store_window(array, raw, offset, done, end)
            except ApertureError:
                paths.write(array, raw[done:end], offset + done, "dma")
    finally:
        thread.join()
    if failed:
        raise failed[0]


def _rather_dma(array: Array, piece: Piece, windows: OnDemand, offset: int, count: int) -> bool:
    """Whether to spare the mapping: a first small write, and no kernel that DMA might wait for."""
    start = windows.find(_base(array, piece) + offset)
    if count >= TOUCH or start in windows.slots or piece.device.busy:
        return False
    if start in windows.touched:
        del windows.touched[start]
        return False
    windows.touched[start] = None
    if len(windows.touched) > 16:
        windows.touched.pop(next(iter(windows.touched)), None)
    return True


def read(array: Array, out: np.ndarray[Any, Any], offset: int, via: str | None) -> None:
    """``paths.read`` for a contiguous array that is not mapped whole.

    DMA, unless via is "map" or a small part is mapped already.
    """
    piece: Any = array._open()
    windows = OnDemand.of(piece)
    at = _base(array, piece) + offset
    if via is None:
        start = windows.find(at)
        here = start in windows.slots and at + out.nbytes <= start + windows.width
        limits = paths.of(piece.device, piece.bridge).limits
        via = limits.path("read_pageable", out.nbytes) if here else "dma"
    if via == "dma":
        paths.read(array, out, offset, via)
        return
    done = 0
    while done < out.nbytes:
        with _entered(piece, at + done, at + out.nbytes) as slot:
            into = at + done - slot.start
            count = min(out.nbytes - done, slot.length - into)
            code = _native.lib.gd_read(
                _native.ffi.cast("char *", paths._address(out) + done),
                slot.host + into,
                count,
                _native.lib.GD_GUARDED if slot.revocable else 0,
            )
        paths._done(code, array, "reading from")
        done += count


def write_nd(array: Array, source: np.ndarray[Any, Any]) -> None:
    """Write a strided array that is not mapped whole, from data of its shape."""
    _strided(array, source, paths.write_nd)


def read_nd(array: Array, out: np.ndarray[Any, Any]) -> None:
    """Read a strided array that is not mapped whole."""
    _strided(array, out.reshape(array.shape), paths.read_nd)


def _strided(array: Array, other: np.ndarray[Any, Any],
             copy: Callable[[Array, np.ndarray[Any, Any]], None]) -> None:
    """Map what the array reaches, if that is little enough, and else go along a dimension."""
    from .arrays import Array

    piece: Any = array._open()
    low, high = array._extent()
    if high - low > OnDemand.of(piece).width and array.ndim > 1:
        for i in range(array.shape[0]):
            _strided(array[i], other[i], copy)
        return
    try:
        part = Part(piece, low - piece.ptr, high - low)
    except ApertureError:
        if len(array) < 2:
            raise
        half = len(array) // 2
        _strided(array[:half], other[:half], copy)
        _strided(array[half:], other[half:], copy)
        return
    shown = Array._make(part, array.ptr, array.shape, array.strides, array.dtype)
    if shown.contiguous:  # a row of one that is not
        whole = np.ascontiguousarray(other)
        (shown.write if copy is paths.write_nd else shown.read)(whole)
        if whole is not other and copy is paths.read_nd:
            other[...] = whole
    else:
        copy(shown, other)


class Writer(io.RawIOBase):
    """A file-like object that stores into device memory from some byte on. ``Array.writer``.

    Stores leave for the device as they are made. ``flush`` and ``close`` fence them, and a write
    alone does not: what was written may linger in the CPU's write-combining buffers.
    """

    _bytes: Array | None = None
    _slot: Slot | None = None

    def __init__(self, array: Array, offset: int = 0) -> None:
        super().__init__()
        array._open()
        if not array.contiguous:
            raise ArgumentError("a writer fills consecutive bytes, and this array has strides: "
                                "make it of the contiguous array behind it")  # fmt: skip
        self._bytes = array.reshape(-1).view(np.uint8)
        self._at = 0
        self._shown = (0, 0, 0)  # the first byte of the window, one past its last, CPU address
        self._flags = 0
        self.seek(offset)

    def _open(self) -> Array:
        if self._bytes is None:
            raise ClosedError("this writer was closed")
        return self._bytes

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        """Bytes from the start of the array to the next byte written."""
        self._open()
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go on elsewhere: bytes from the start, from here, or from the end. Returns ``tell()``."""
        from .arrays import _index

        size = self._open().nbytes
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: size}.get(whence)
        if base is None:
            raise ArgumentError(f"whence is {whence!r}: give 0, 1 or 2")
        at = base + _index(offset, "offset")
        if not 0 <= at <= size:
            raise RangeError(f"byte {at} is not inside an array of {size} bytes")
        self._at = at
        return at

    def write(self, data: Any, /) -> int:
        """Store bytes-like ``data`` and go on behind it; how many bytes it has: all are written.

        Raises RangeError if they do not fit, and stores nothing then.
        """
        array = self._open()
        piece = array._open()
        if type(data) is bytes or type(data) is bytearray:
            first, end, host = self._shown
            count = len(data)
            if first <= self._at and self._at + count <= end:  # the plain case, in a hurry
                source = _native.ffi.from_buffer(data)
                code = _native.lib.gd_write(host + self._at - first, source, count, self._flags)
                paths._done(code, array, "writing to")
                self._at += count
                return count
        raw = _bytes_of(data)
        if raw.nbytes > array.nbytes - self._at:
            raise RangeError(
                f"{raw.nbytes} bytes at offset {self._at} do not fit into an array of "
                f"{array.nbytes} bytes"
            )
        if piece.host and raw.nbytes:
            from .arrays import _overlap

            if _overlap(raw, piece.host, piece.nbytes):
                raw = raw.copy()
        done = 0
        while done < raw.nbytes:
            first, end, host = self._shown
            if not first <= self._at < end:
                try:
                    first, end, host = self._turn(array, raw.nbytes - done)
                except ApertureError:
                    paths.write(array, raw[done:], self._at, "dma")
                    self._at += raw.nbytes - done
                    break
            count = min(raw.nbytes - done, end - self._at)
            code = _native.lib.gd_write(
                host + self._at - first,
                _native.ffi.cast("char *", paths._address(raw) + done),
                count,
                self._flags,
            )
            paths._done(code, array, "writing to")
            self._at += count
            done += count
        return raw.nbytes

    def _turn(self, array: Array, more: int) -> tuple[int, int, int]:
        """Take the window at the present byte in place of the last one."""
        piece: Any = array._open()
        lib = _native.lib
        if piece.host:
            self._shown = (0, array.nbytes, array.host_ptr)
            self._flags = array._flags | lib.GD_NO_FENCE
            return self._shown
        self._leave()
        base = _base(array, piece)
        windows = OnDemand.of(piece)
        slot = self._slot = windows.enter(base + self._at)
        windows.follow(piece, slot, base + self._at + more)
        first = slot.start - base
        self._shown = (first, min(first + slot.length, array.nbytes), slot.host)
        self._flags = lib.GD_NO_FENCE | (lib.GD_GUARDED if slot.revocable else 0)
        return self._shown

    def _leave(self) -> None:
        slot, self._slot = self._slot, None
        self._shown = (0, 0, 0)
        if slot is not None:
            _native.lib.gd_fence()
            slot.leave_soon()

    def flush(self) -> None:
        """Make everything written so far leave for the device."""
        _native.lib.gd_fence()

    def close(self) -> None:
        """Flush, and let the array go. Safe twice."""
        if not self.closed:
            super().close()
            self._leave()
            self._bytes = None

    def __repr__(self) -> str:
        if self._bytes is None:
            return "<Writer closed>"
        return f"<Writer at byte {self._at} of {self._bytes!r}>"


def _bytes_of(data: Any) -> np.ndarray[Any, Any]:
    """Bytes-like data or a NumPy array, as bytes; copied only where it is not contiguous."""
    from .arrays import _source

    found = _source(data, np.dtype(np.uint8))
    if found.dtype.hasobject:
        raise DTypeError("object arrays hold addresses of Python objects; they stay on the CPU")
    return np.ascontiguousarray(found).reshape(-1).view(np.uint8)
