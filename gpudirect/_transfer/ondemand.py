"""Windows mapped on demand: ``write`` and ``read`` of an array that is not mapped whole.

They start at multiples of their width, which is a quarter of what the aperture's budget leaves, so
that one is written, the next is being mapped, and the others wait for the next access: those used
most recently are kept.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import _native
from ..aperture import AUTOMATIC, Account, charge
from ..bridges import Bridge, Mapping
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
    """One window mapped on demand. Its methods are called by who holds the account."""

    __slots__ = ("flags", "host", "length", "mapping", "of", "size", "start", "users")

    def __init__(self, of: OnDemand, start: int, length: int, mapping: Mapping) -> None:
        self.of = of
        self.start = start  # bytes from the start of the block
        self.length = length
        self.mapping: Mapping | None = mapping
        self.host = mapping.address
        self.flags = _native.lib.GD_GUARDED if mapping.revocable else 0  # of copies through it
        self.size = charge(start, length)
        self.users = 0

    def store(self, offset: int, source: int, count: int) -> int:
        """Copy bytes from an address to byte ``offset`` of the block; what the engine answers."""
        return int(
            _native.lib.gd_write(
                self.host + offset - self.start, _native.ffi.cast("char *", source), count, self.flags
            )
        )

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
                thread = threading.Thread(target=self._run, name="gpudirect windows", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the system gives none: whoever writes maps by himself
                    return
                self._thread = thread
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
def entered(piece: Piece, offset: int, end: int) -> Iterator[Slot]:
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
    if slot := windows.hit(at, raw.nbytes):
        try:
            code = slot.store(at, copies.address_of(raw), raw.nbytes)
        finally:
            slot.leave()
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

    DMA, unless via is "map" or a small part is mapped already.
    """
    piece = piece_of(extent)
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


def write_nd(extent: Extent, source: np.ndarray[Any, Any]) -> None:
    """Write a strided extent that is not mapped whole, from data of its shape."""
    _strided(extent, source, copies.write_nd)


def read_nd(extent: Extent, out: np.ndarray[Any, Any]) -> None:
    """Read a strided extent that is not mapped whole."""
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
