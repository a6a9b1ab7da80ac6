"""Page-locked host memory as NumPy arrays: ``pinned``.

    c = gd.pinned(n)                    ordinary to NumPy, and the device reads and writes it
    kernel[grid, block](a, c, n)        accepted where an Array is
    a.write(c); a.read(c)               DMA at full speed
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from . import _native, devices
from ._heap import Block, Heap, Piece
from ._keeper import patient
from .arguments import as_shape
from .devices import Device
from .dtypes import as_dtype
from .errors import ArgumentError


class PinnedHeap(Heap):
    """Allocator of page-locked host memory for one device, with the pool's rules.

    shared: in files that another process can be given. Nothing of the user's lies in them.
    """

    def __init__(self, device: Device, shared: bool = False) -> None:
        super().__init__(device, None)
        self.shared = shared

    def _new_block(self, size: int, mapped: bool) -> Block:
        memory = self.device.host_allocate(size, shared=self.shared)
        block = Block(memory, None, None, memory.ptr)
        self._blocks.add(block)
        # what one emulated device has, no other reaches
        owner = self.device.ordinal + 1 if self.device.emulated else 0
        _native.lib.gd_locked_add(memory.ptr, memory.size, owner)
        return block

    def _release(self, block: Block) -> None:
        self._blocks.discard(block)
        _native.lib.gd_locked_remove(block.memory.ptr)
        block.memory.free()


class _Locked:
    """Lets NumPy make an array whose base keeps the memory alive."""

    __slots__ = ("__array_interface__", "piece")

    def __init__(self, piece: Piece, nbytes: int) -> None:
        self.piece = piece
        self.__array_interface__ = {
            "version": 3, "data": (piece.ptr, False), "shape": (nbytes,), "typestr": "|u1",
        }  # fmt: skip


class PinnedArray(np.ndarray[Any, Any]):
    """A NumPy array in page-locked host memory, or a view of one. Made by ``pinned``.

    What NumPy computes from it is an ordinary array. The memory goes back when the last view of it
    is gone and kernels and copies queued until then have finished.
    """

    @property
    def ptr(self) -> int:
        """Address of the first element, for the CPU and the device alike.

        Raises ArgumentError for an array that was computed from a pinned one.
        """
        piece_of(self)
        return int(self.__array_interface__["data"][0])

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        if array is self:  # it was given as ``out``
            return self
        return array[()] if return_scalar else array.view(np.ndarray)

    def copy(self, order: Any = "C") -> Any:
        return np.array(self.view(np.ndarray), order=order)

    def __reduce__(self) -> Any:
        return self.copy().__reduce__()


def locked_piece(array: np.ndarray[Any, Any]) -> Piece | None:
    """The memory under an array that ``pinned`` made, or a view of one; None for any other."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base.piece if isinstance(base, _Locked) else None


def piece_of(array: PinnedArray) -> Piece:
    """The memory under an array. Raises ArgumentError where it is ordinary memory."""
    piece = locked_piece(array)
    if piece is None:
        raise ArgumentError(
            "this array was computed from a pinned one, and is ordinary memory: copy it into one "
            "that gpudirect.pinned made"
        )
    return piece


_heaps: dict[tuple[Device, bool], PinnedHeap] = {}


def heap(device: Device, shared: bool = False) -> PinnedHeap:
    """The heap of a device's page-locked memory, or of that which other processes can be given."""
    key = device, shared
    return _heaps.get(key) or _heaps.setdefault(key, PinnedHeap(device, shared))


def pinned(
    shape: int | Sequence[int], dtype: DTypeLike = "f4", *, device: Device | str | int | None = None
) -> PinnedArray:
    """A new array in page-locked host memory, not initialised.

    shape: elements along each dimension. dtype: any without Python objects, "f4" by default.
    device: whose kernels and copies will use it; None chooses as everywhere.
    Kernels and services take it where they take an Array; their loads and stores go over the link.
    Raises ArgumentError, DTypeError, OutOfMemoryError, DeviceNotFoundError.
    """
    return _pinned(heap(devices.get(device)), as_dtype(dtype), as_shape(shape))


def polled(dtype: DTypeLike, device: Device) -> PinnedArray:
    """One element in shared memory, not initialised: what the device tells, and the CPU polls."""
    return _pinned(heap(device, shared=True), as_dtype(dtype), (1,))


def _pinned(heap: PinnedHeap, kind: np.dtype[Any], extents: tuple[int, ...]) -> PinnedArray:
    nbytes = kind.itemsize * math.prod(extents)
    piece = heap.take(max(nbytes, 1))
    found = np.asarray(_Locked(piece, nbytes))
    if not nbytes:
        found = found[:0]
    return found.view(kind).reshape(extents).view(PinnedArray)


def trim() -> None:
    """Give all unused page-locked memory back."""
    for found in tuple(_heaps.values()):
        found.trim()
    patient.settle()


def _after_fork_in_child() -> None:
    _heaps.clear()
    _native.lib.gd_locked_forget()


os.register_at_fork(after_in_child=_after_fork_in_child)

__all__ = ["PinnedArray", "pinned"]
