"""Windows mapped on demand: ``write`` and ``read`` of an array that is not mapped whole.

They start at multiples of their width, which is a quarter of what the aperture's budget leaves, so
that one is written, the next is being mapped, and the others wait for the next access: those used
most recently are kept.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from .. import _native
from .._keeper import keeper
from ..aperture import AUTOMATIC, Account, Charged
from ..bridges import Bridge
from ..bridges.base import PAGE
from ..errors import ApertureError, Error
from ..extent import Extent
from ..memory import Block, Piece
from . import copies, paths
from .parts import Part, with_room

WIDEST = 64 << 20
"""Bytes: wider windows gain nothing, a copy of this takes 2 ms and a mapping 0.1."""
TOUCH = 64 << 10
"""Bytes: a smaller write to a place that was not touched lately goes by DMA, which takes 5 us
where a mapping takes 100; the second one maps it."""


BOTH_ENDS = 64 << 20
"""Bytes: larger writes go through windows and by DMA at the same time."""
DMA_PART = 4 << 20
"""Bytes of one DMA then: short beside the whole, long beside what starting one takes."""


class Slot:
    """One window mapped on demand. Whoever uses it refers to its ``Use`` meanwhile."""

    __slots__ = ("charged", "flags", "host", "length", "of", "start", "use")

    def __init__(self, of: OnDemand, start: int, length: int, charged: Charged) -> None:
        self.of = of
        self.start = start  # bytes from the start of the block
        self.length = length
        self.charged = charged
        self.host = charged.mapping.address
        self.flags = of.block.memory.device.copying(charged.mapping.revocable)  # of copies through it
        self.use: Use | None = Use(self)
        """None: it is gone, or about to be taken back."""

    def store(self, offset: int, source: int, count: int) -> int:
        """Copy bytes from an address to byte ``offset`` of the block; what the engine answers."""
        return int(
            _native.lib.gd_write(
                self.host + offset - self.start, _native.ffi.cast("char *", source), count, self.flags
            )
        )

    def reclaim(self) -> bool:
        """Unmap it; False if somebody uses it. Keeper's."""
        use, self.use = self.use, None  # from here on nobody new finds it
        if use is None:
            return False
        seen = weakref.ref(use)
        del use
        used = seen()
        if used is not None:
            self.use = used
            return False
        self.close()
        return True

    def close(self) -> None:
        """Unmap it. Keeper's."""
        self.use = None
        self.of.slots.pop(self.start, None)
        self.of.account.forget(self)
        self.charged.close()


class Use:
    """While somebody refers to it, its slot stays mapped."""

    __slots__ = ("__weakref__", "slot")

    def __init__(self, slot: Slot) -> None:
        self.slot = slot


class OnDemand:
    """The windows of one block that were mapped on demand; ``Block.windows``.

    What maps and unmaps runs on the keeper's thread.
    """

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
            keeper.run(cls._open, block, piece.bridge)
        assert isinstance(block.windows, cls)
        return block.windows

    @classmethod
    def _open(cls, block: Block, bridge: Bridge) -> None:
        if block.windows is None:
            block.windows = cls(block, bridge)

    def _fitting_width(self) -> int:
        quarter = min(self.account.on_demand() // 4, WIDEST)
        return 1 << quarter.bit_length() - 1 if quarter >= PAGE else PAGE

    def find(self, offset: int) -> int:
        """Start of the window that shows byte ``offset`` of the block."""
        return offset // self.width * self.width

    def enter(self, offset: int) -> Use:
        """The window that shows byte ``offset`` of the block, mapped if need be.

        It stays while somebody refers to what is returned. Raises ApertureError.
        """
        return with_room(self.block.memory.device, lambda: keeper.run(self._enter, offset))

    def _enter(self, offset: int) -> Use:
        if not self.slots:
            self.width = self._fitting_width()  # the budget, or what others hold, may differ
        return self._map(self.find(offset))

    def hit(self, offset: int, count: int) -> Use | None:
        """The window that shows all of these bytes, if it is mapped; as ``enter``."""
        slot = self.slots.get(self.find(offset))
        if slot is None or offset + count > slot.start + slot.length:
            return None
        use = slot.use
        if use is not None:
            self.account.touch(slot)
            self.last = slot.start
        return use

    def _map(self, start: int) -> Use:
        slot = self.slots.get(start)
        if slot is None:
            block = self.block.memory
            length = min(self.width, block.size - start)
            charged = self.account.map(AUTOMATIC, self.bridge, block, start, length)
            slot = self.slots[start] = Slot(self, start, length, charged)
            self.account.keep(slot)
        self.account.touch(slot)
        assert slot.use is not None
        return slot.use

    def follow(self, piece: Piece, slot: Slot, end: int) -> None:
        """Have the next window mapped meanwhile, where bytes up to ``end`` or a habit call for it."""
        last, self.last = self.last, slot.start
        behind = slot.start + slot.length
        if last == slot.start or behind >= self.block.memory.size or behind in self.slots:
            return
        if end > behind or last + self.width == slot.start:
            keeper.post(partial(self.prepare, piece, behind))

    def prepare(self, piece: Piece, offset: int) -> None:
        """Map a window that will be needed soon, if there is room for it. Keeper's.

        piece: whose memory it is, alive as long as this is to be done.
        """
        # one that is in use and this one: never push the window out that is being written
        if 2 * self.width <= self.account.on_demand() and self.find(offset) not in self.slots:
            with contextlib.suppress(Error, OSError):  # who needs the window meets the error himself
                self._map(self.find(offset))

    def close(self) -> None:
        """The memory goes. Nobody uses the windows any more. Keeper's."""
        for slot in tuple(self.slots.values()):
            slot.close()


@contextmanager
def entered(piece: Piece, offset: int, end: int) -> Iterator[Slot]:
    """The window at ``offset`` of the block, mapped on demand, held while the ``with`` runs.

    end: bytes up to there will be needed.
    """
    windows = OnDemand.of(piece)
    use = windows.enter(offset)
    windows.follow(piece, use.slot, end)
    yield use.slot


def piece_of(extent: Extent) -> Piece:
    """What an extent stands on that is not mapped whole: memory of ours. Raises ForkError."""
    memory = extent.usable().memory
    assert isinstance(memory, Piece)
    return memory


def base(extent: Extent) -> int:
    """Where in its block an extent starts."""
    return extent.address - piece_of(extent).block.memory.ptr


def write(extent: Extent, source: np.ndarray[Any, Any], offset: int, via: str | None) -> None:
    """``copies.write`` for a contiguous extent that is not mapped whole.

    Mapped stores, window by window. Where the aperture has no room, and for the first small write
    to a place, DMA does it, unless via is "map".
    """
    copies.refuse_courier(via)
    piece = piece_of(extent)
    source = np.ascontiguousarray(source).reshape(-1)
    windows = OnDemand.of(piece)
    if via == "dma" or (via is None and _rather_dma(extent, windows, offset, source.nbytes)):
        copies.write(extent, source, offset, "dma")
        return
    raw = source.view(np.uint8)
    at = base(extent) + offset
    if via is None and raw.nbytes >= BOTH_ENDS and not piece.device.working():
        _from_both_ends(extent, raw, offset)
        return
    if use := windows.hit(at, raw.nbytes):
        code = use.slot.store(at, copies.address_of(raw), raw.nbytes)
        copies.done(code, extent, "writing to")
        return
    done = 0
    while done < raw.nbytes:
        try:
            done += _store_window(extent, raw, offset, done, raw.nbytes)
        except ApertureError as e:
            if via == "map":
                raise ApertureError(f"{done} of {raw.nbytes} bytes were written; {e}", e.errno) from e
            copies.write(extent, raw[done:], offset + done, "dma")
            return


def _store_window(extent: Extent, raw: np.ndarray[Any, Any], offset: int, done: int, end: int) -> int:
    """Store bytes ``done`` to ``end`` of ``raw``, as far as one window goes; how many it took."""
    piece = piece_of(extent)
    at = base(extent) + offset
    with entered(piece, at + done, at + end) as slot:
        count = min(end - done, slot.start + slot.length - (at + done))
        code = slot.store(at + done, copies.address_of(raw) + done, count)
    copies.done(code, extent, "writing to")
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


def _from_both_ends(extent: Extent, raw: np.ndarray[Any, Any], offset: int) -> None:
    """A large write: window by window from the start, by DMA from the end, until both meet.

    The first store to a page of a new mapping costs a walk of the page tables, or more in a virtual
    machine, and every page of every window is new: mapped stores alone reach three quarters of what
    they reach where the array is mapped whole. DMA has nothing to map, and half of the speed.
    """
    ends, failed = _Ends(raw.nbytes), []

    def by_dma() -> None:
        try:
            while (part := ends.last(DMA_PART))[0] < part[1]:
                copies.write(extent, raw[slice(*part)], offset + part[0], "dma")
        except Exception as e:  # told by who asked for the write
            failed.append(e)

    thread = threading.Thread(target=by_dma, name="gpudirect DMA", daemon=True)
    with contextlib.suppress(RuntimeError):  # the system gives none: window by window to the end
        thread.start()
    try:
        width = OnDemand.of(piece_of(extent)).width
        while (part := ends.first(width))[0] < part[1]:
            done, end = part
            try:
                while done < end:
                    done += _store_window(extent, raw, offset, done, end)
            except ApertureError:
                copies.write(extent, raw[done:end], offset + done, "dma")
    finally:
        if thread.ident is not None:
            thread.join()
    if failed:
        raise failed[0]


def _rather_dma(extent: Extent, windows: OnDemand, offset: int, count: int) -> bool:
    """Whether to spare the mapping: a first small write, and no kernel that DMA might wait for."""
    start = windows.find(base(extent) + offset)
    if count >= TOUCH or start in windows.slots or extent.memory.device.working():
        return False
    if start in windows.touched:
        del windows.touched[start]
        return False
    windows.touched[start] = None
    if len(windows.touched) > 16:
        windows.touched.pop(next(iter(windows.touched)), None)
    return True


def read(extent: Extent, out: np.ndarray[Any, Any], offset: int, via: str | None) -> None:
    """``copies.read`` for a contiguous extent that is not mapped whole.

    DMA, unless via is "map" or a small part is mapped already, or a courier is faster.
    """
    piece = piece_of(extent)
    if via in (None, "courier") and copies.by_courier(extent, out, offset, via == "courier"):
        return
    windows = OnDemand.of(piece)
    at = base(extent) + offset
    if via is None:
        start = windows.find(at)
        here = start in windows.slots and at + out.nbytes <= start + windows.width
        limits = paths.of(piece.device, piece.bridge).limits
        via = limits.path("read_pageable", out.nbytes) if here else "dma"
    if via == "dma":
        copies.read(extent, out, offset, via)
        return
    done = 0
    while done < out.nbytes:
        with entered(piece, at + done, at + out.nbytes) as slot:
            into = at + done - slot.start
            count = min(out.nbytes - done, slot.length - into)
            code = _native.lib.gd_read(
                _native.ffi.cast("char *", copies.address_of(out) + done),
                slot.host + into,
                count,
                slot.flags,
            )
        copies.done(code, extent, "reading from")
        done += count


def write_nd(extent: Extent, source: np.ndarray[Any, Any], via: str | None) -> None:
    """Write a strided extent that is not mapped whole, from data of its shape."""
    copies.check_strided(via)
    if not copies.spread(extent, source, via == "courier", write=True):
        _strided(extent, source, copies.write_nd)


def read_nd(extent: Extent, out: np.ndarray[Any, Any], via: str | None) -> None:
    """Read a strided extent that is not mapped whole."""
    copies.check_strided(via)
    if not copies.spread(extent, out, via == "courier", write=False):
        _strided(extent, out.reshape(extent.shape), copies.read_nd)


def _strided(extent: Extent, other: np.ndarray[Any, Any],
             copy: Callable[[Extent, np.ndarray[Any, Any]], None]) -> None:
    """Map what the extent reaches, if that is little enough, and else go along a dimension."""
    piece = piece_of(extent)
    low, high = extent.span()
    count = extent.shape[0]
    if high - low > OnDemand.of(piece).width and extent.ndim > 1:
        for i in range(count):
            _strided(extent.row(i), other[i], copy)
        return
    try:
        part = Part(piece, low - piece.ptr, high - low)
    except ApertureError:
        if count < 2:
            raise
        half = count // 2
        _strided(extent.rows(0, half), other[:half], copy)
        _strided(extent.rows(half, count), other[half:], copy)
        return
    shown = extent.on(part)
    if not shown.contiguous:
        copy(shown, other)
    elif copy is copies.write_nd:  # a row of one that is not
        copies.write(shown, np.ascontiguousarray(other), 0, None)
    else:
        whole = np.ascontiguousarray(other)
        copies.read(shown, whole, 0, None)
        if whole is not other:
            other[...] = whole
