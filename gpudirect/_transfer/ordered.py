"""Copies in a stream's order: after what was queued on it, before what is queued on it next.

A mapped store is in no stream: it happens at once. So where a stream is idle, data is stored through
the mapping as ever, and is there before anything can be queued; where it is busy, the device copies,
queued on the stream, from page-locked memory: the source itself, or a copy of it made here. What is too
large for that waits for the stream first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _native
from .._pinned import locked_piece, pinned
from ..devices import Now, Queue, Stream
from ..errors import ArgumentError
from ..extent import Extent
from ..limits import PATHS
from ..memory import Piece
from . import copies

STAGED = 4 << 20
"""Bytes: more than this is not copied to page-locked memory first; the write waits for the stream."""
PATTERN = 64 << 10
"""Bytes of a pattern that are made here; the device doubles them until the array is full."""


def _page_locked(array: np.ndarray[Any, Any], extent: Extent) -> bool:
    """Whether the device can copy from and to an array while the program goes on."""
    if not array.flags.c_contiguous:
        return False
    device = extent.memory.device
    if (piece := locked_piece(array)) is not None:
        return piece.device is device
    functions = device.driver_functions()
    if functions is None:
        return False
    address = _native.ffi.cast("char *", copies.address_of(array))
    return bool(_native.lib.gd_driver_pinned(functions, address))


def _keep(queue: Queue, extent: Extent, other: np.ndarray[Any, Any] | None = None) -> None:
    """Hold what the device is about to touch, where no heap of ours sees to that by itself: it gives
    nothing back that was in use while work was queued."""
    held: list[object] = []
    if not isinstance(extent.memory, Piece):
        held.append(extent.memory)
    if other is not None and locked_piece(other) is None:
        held.append(other)
    if held:
        queue.keep(*held)


def waited(stream: Stream, doing: str) -> None:
    """Wait for what is queued on a stream; raises what went wrong in it.

    Raises ArgumentError while the stream is being captured: it does nothing then.
    """
    now = stream.queue.now()
    if now is Now.CAPTURED:
        raise ArgumentError(
            f"{doing}: the stream is being captured, so it cannot be waited for; what is captured "
            "copies from and to page-locked memory (gpudirect.pinned), read(synchronize=False) too"
        )
    if now is Now.BUSY:
        stream.synchronize()


def write(extent: Extent, source: np.ndarray[Any, Any], offset: int, via: str | None,
          stream: Stream) -> bool:
    """Queue a copy to byte ``offset`` of a contiguous extent on a stream. False: the stream is idle,
    or was waited for, and the caller shall write as ever, at once. The range was checked."""
    copies.check_via(via)
    copies.refuse_courier(via)
    queue = stream.queue
    now = queue.now()
    here = via in ("map", "courier")  # by whoever calls, after the stream
    locked = not here and _page_locked(source, extent)
    if now is Now.CAPTURED and not locked:
        raise ArgumentError(
            f"writing to {extent}: the stream is being captured, and a graph copies from page-locked "
            "memory that stays what it is: give an array of gpudirect.pinned"
        )
    if now is Now.IDLE:
        queued = via == "dma" or (locked and copies.choose(extent, source, write=True) == PATHS[1])
    else:
        queued = not here
    if not queued or not (locked or source.nbytes <= STAGED):
        waited(stream, f"writing to {extent}")
        return False
    copies.check_alive(extent.usable(), "writing to")
    if not locked:
        staged = pinned(source.shape, source.dtype, device=extent.memory.device)
        np.copyto(staged, source)
        source = staged
    if now is not Now.CAPTURED:
        _keep(queue, extent, source)
    _native.lib.gd_fence()  # mapped stores made before the copy come first
    device = extent.memory.device
    device.copy_in(extent.address + offset, copies.address_of(source), source.nbytes, stream)
    return True


def read(extent: Extent, out: np.ndarray[Any, Any], offset: int, stream: Stream) -> None:
    """Queue a copy from byte ``offset`` of a contiguous extent to page-locked memory, and do not wait
    for it. The range was checked."""
    if not _page_locked(out, extent):
        raise ArgumentError(
            "read(stream=..., synchronize=False) returns before the data is there, so out must be "
            "page-locked and contiguous: an array of gpudirect.pinned for this device, or none"
        )
    copies.check_alive(extent.usable(), "reading from")
    queue = stream.queue
    if queue.now() is not Now.CAPTURED:
        _keep(queue, extent, out)
    _native.lib.gd_fence()  # stores of ours that are still on their way come first
    device = extent.memory.device
    device.copy_out(copies.address_of(out), extent.address + offset, out.nbytes, stream)


def copy(to: Extent, source: Extent, stream: Stream) -> None:
    """Queue a copy within the device, of a contiguous extent to another one of as many bytes."""
    copies.check_alive(source.usable(), "copying")
    if stream.queue.now() is not Now.CAPTURED:
        _keep(stream.queue, source)
    _native.lib.gd_fence()
    source.memory.device.copy_within(to.address, source.address, source.nbytes, stream)


def fill(extent: Extent, element: bytes, stream: Stream) -> None:
    """Queue the filling of a contiguous extent with an element."""
    copies.check_alive(extent.usable(), "filling")
    queue, device = stream.queue, extent.memory.device
    captured = queue.now() is Now.CAPTURED
    if not captured:
        _keep(queue, extent)
    _native.lib.gd_fence()  # earlier stores first
    size, address = extent.nbytes, extent.address
    for width in (1, 2, 4):  # what the device can repeat by itself
        if len(element) % width or address % width:
            continue
        if element == element[:width] * (len(element) // width):
            device.fill(address, int.from_bytes(element[:width], "little"), size, stream, width)
            return
    if captured:
        raise ArgumentError(
            f"filling {extent}: the stream is being captured, and a graph fills with patterns of 1, 2 "
            "or 4 bytes"
        )
    count = min(size // len(element), max(PATTERN // len(element), 1))
    some = pinned(count * len(element), "u1", device=device)
    some[:] = np.tile(np.frombuffer(element, np.uint8), count)
    device.copy_in(address, some.ptr, some.nbytes, stream)
    done = some.nbytes
    while done < size:
        more = min(done, size - done)
        device.copy_within(address + done, address, more, stream)
        done += more
