"""Scattered reads: single elements, wherever they are, in one call."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from .. import _native
from .._host import HostView, mapped
from ..arguments import overlap
from ..errors import ArgumentError, DTypeError, RangeError
from ..extent import Extent, Shape, check_mapped
from . import copies, couriers, ondemand, paths

AT_ONCE = 32 << 20
"""Bytes that DMA brings at once; indices that lie further apart are sorted first."""
NEAR = 128 << 10
"""Bytes between two elements from which on two DMAs take less than one over both."""


class Picked(NamedTuple):
    """Which elements of a flattened array are meant, every one of them inside it."""

    indices: np.ndarray[Any, Any]
    """int64, in one dimension; negative ones count from the end."""
    shape: Shape
    """That the indices were given in, and the elements come in."""
    low: int
    """The lowest of them, counted from the start."""
    high: int

    def counted(self, size: int) -> np.ndarray[Any, Any]:
        """The indices from the start of ``size`` elements on."""
        return np.where(self.indices < 0, self.indices + size, self.indices)


def picked(given: Any, size: int) -> Picked:
    """The indices of elements of a flattened array of ``size``, as NumPy takes one index array.

    Raises DTypeError, RangeError.
    """
    if isinstance(given, HostView):
        given = given.fetch()
    try:
        found = np.asarray(given)
    except ValueError as e:
        raise DTypeError(f"indices are whole numbers: {e}") from None
    if found.size == 0 and not hasattr(given, "dtype"):
        found = found.astype(np.int64)  # [] has no type of its own
    if found.dtype.kind == "b":
        raise DTypeError(
            "indices are whole numbers; given a mask of bool: numpy.flatnonzero(mask) tells its indices"
        )
    if found.dtype.kind not in "iu":
        raise DTypeError(f"indices are whole numbers; given {found.dtype} of shape {found.shape}")
    if found.dtype == np.uint64 and found.size and int(found.max()) >> 63:
        raise RangeError(f"an index of {int(found.max())} is outside any array; nothing was read")
    flat = np.ascontiguousarray(found, np.int64).reshape(-1)
    ends = _native.ffi.new("int64_t[2]")
    wrong = _native.lib.gd_indices_check(_int64s(flat), flat.size, size, ends, ends + 1)
    if wrong >= 0:
        raise RangeError(
            f"index {int(flat[wrong])}, number {wrong} of {flat.size}, is outside an array of {size} "
            "elements; nothing was read"
        )
    return Picked(flat, found.shape, ends[0], ends[1])


def gather(extent: Extent, chosen: Picked, out: np.ndarray[Any, Any], via: str | None) -> None:
    """``Array.gather``: the elements go to ``out``, which is contiguous and of the extent's dtype."""
    copies.check_via(via)
    piece = extent.usable().memory
    check_mapped(piece)
    if not extent.contiguous:
        raise ArgumentError("gather() counts elements of a contiguous array; this one has strides: "
                            "gather from the array that it is a part of")  # fmt: skip
    if not chosen.indices.size:
        return
    if overlap(out, piece.host or piece.ptr, piece.nbytes):
        raise ArgumentError("out is device memory, mapped: give ordinary memory")
    if via in (None, "courier") and _by_courier(extent, chosen, out, via == "courier"):
        return
    if via is None:
        via = _choose(extent, chosen)
    if via == "dma":
        _by_dma(extent, chosen, out)
    elif extent.mapped:
        code = _load(extent.host, extent.size, chosen.indices, out, extent.itemsize, extent.flags)
        copies.done(code, extent, "gathering from")
    else:
        _windowed(extent, chosen, out)


def _choose(extent: Extent, chosen: Picked) -> str:
    """The faster path: a load for each element, or DMA of all from the first to the last."""
    memory = extent.memory
    if not memory.host:
        return "dma"
    limits = paths.of(memory.device, memory.bridge).limits
    span = (chosen.high - chosen.low + 1) * extent.itemsize
    return "map" if chosen.indices.size <= limits.gather_words + span // limits.gather_span else "dma"


def _by_courier(extent: Extent, chosen: Picked, out: np.ndarray[Any, Any], forced: bool) -> bool:
    """Whether a courier has brought them: where it is the fastest, or forced."""
    memory = extent.memory
    if not forced and (
        couriers.running(extent) is None
        or chosen.indices.size < paths.of(memory.device, memory.bridge).limits.courier_gather
    ):
        return False
    to = _native.ffi.cast("char *", copies.address_of(out))
    return couriers.errand(
        extent, forced, out,
        lambda courier, how, left: _native.lib.gd_courier_gather(
            courier, to, extent.address, extent.size, _int64s(chosen.indices), chosen.indices.size,
            extent.itemsize, how, left,
        ),
    )  # fmt: skip


def _load(host: int, size: int, indices: np.ndarray[Any, Any], out: np.ndarray[Any, Any],
          itemsize: int, flags: int) -> int:
    to = _native.ffi.cast("char *", copies.address_of(out))
    return int(
        _native.lib.gd_gather_items(to, host, size, _int64s(indices), indices.size, itemsize, flags)
    )


def _int64s(indices: np.ndarray[Any, Any]) -> Any:
    return _native.ffi.cast("int64_t *", copies.address_of(indices))


def _by_dma(extent: Extent, chosen: Picked, out: np.ndarray[Any, Any]) -> None:
    """Bring all from the first to the last, or what lies together, and pick from that."""
    indices, flat = chosen.counted(extent.size), out.reshape(-1)
    if (chosen.high - chosen.low + 1) * extent.itemsize <= AT_ONCE:
        _bring(extent, chosen.low, chosen.high, indices, flat)
        return
    order = np.argsort(indices, kind="stable")
    for start, stop in _together(indices[order], extent.itemsize):
        here = order[start:stop]
        found = np.empty(stop - start, extent.dtype)
        _bring(extent, int(indices[here[0]]), int(indices[here[-1]]), indices[here], found)
        flat[here] = found


def _together(rising: np.ndarray[Any, Any], itemsize: int) -> list[tuple[int, int]]:
    """Parts of rising indices, each to be brought by one DMA: no longer than AT_ONCE, and without a
    gap of NEAR."""
    near, most = NEAR // itemsize, max(AT_ONCE // itemsize, 1)
    cuts = [0, *(np.flatnonzero(np.diff(rising) > near) + 1).tolist(), len(rising)]
    found = []
    for start, stop in itertools.pairwise(cuts):
        while start < stop:
            end = min(int(np.searchsorted(rising, rising[start] + most)), stop)
            found.append((start, end))
            start = end
    return found


def _bring(extent: Extent, low: int, high: int, indices: np.ndarray[Any, Any],
           out: np.ndarray[Any, Any]) -> None:
    """Elements ``low`` to ``high`` by DMA, and those of ``indices`` from them."""
    found = np.empty(high - low + 1, extent.dtype)
    copies.read(extent, found, low * extent.itemsize, "dma")
    np.take(found, indices - low, out=out, mode="clip")  # they are inside; "raise" buffers


def _windowed(extent: Extent, chosen: Picked, out: np.ndarray[Any, Any]) -> None:
    """By loads where the array is not mapped whole: window by window."""
    piece, base, itemsize = ondemand.piece_of(extent), ondemand.base(extent), extent.itemsize
    indices, flat = chosen.counted(extent.size), out.reshape(-1)
    order = np.argsort(indices, kind="stable")
    rising = indices[order]
    done = 0
    while done < len(rising):
        at = base + int(rising[done]) * itemsize
        with ondemand.entered(piece, at, at + itemsize) as slot:
            end = slot.start + slot.length - base  # of the window, in bytes of the extent
            stop = int(np.searchsorted(rising, end // itemsize))
            if stop > done:
                here = np.ascontiguousarray(rising[done:stop] - rising[done])
                found = np.empty(len(here), extent.dtype)
                size = int(here[-1]) + 1
                code = _load(slot.host + at - slot.start, size, here, found, itemsize, slot.flags)
                copies.done(code, extent, "gathering from")
        if stop == done:  # an element that two windows show in part
            stop, found = done + 1, np.empty(1, extent.dtype)
            ondemand.read(extent, found, int(rising[done]) * itemsize, "map")
        flat[order[done:stop]] = found
        done = stop


def checked_out(out: Any) -> None:
    """Raises ArgumentError for a destination on the device."""
    if isinstance(out, _native.Mapped) or hasattr(out, "__cuda_array_interface__"):
        raise ArgumentError(
            f"out is a {type(out).__name__} on a device: give ordinary or page-locked memory "
            "(gpudirect.pinned), or gather in a kernel"
        )
    if isinstance(out, np.ndarray) and mapped(out):
        raise ArgumentError("out is device memory, mapped: give ordinary memory")


__all__ = ["Picked", "checked_out", "gather", "picked"]
