"""Scattered stores: many small pieces in one call, each straight from where it lies."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from .. import _native
from .._host import HostView
from ..arguments import as_source, index, overlap
from ..errors import ApertureError, ArgumentError, DTypeError, RangeError
from ..extent import Extent, check_mapped
from . import copies, couriers, ondemand, paths


def scatter(extent: Extent, places: Any, items: Any, via: str | None = None) -> None:
    """``Array.scatter``."""
    if via is not None and (not isinstance(via, str) or via not in ("map", "courier")):
        raise ArgumentError(f"via={via!r}: scatter() goes by 'map', 'courier' or None for the faster one")
    check_mapped(extent.memory)
    if not extent.contiguous:
        raise ArgumentError("scatter() counts elements of a contiguous array; this one has strides: "
                            "use .host[...] = values")  # fmt: skip
    if items is None:
        if via == "courier":
            raise ArgumentError("a courier scatters items of one length: give indices and items")
        _pieces(extent, *_described(extent, places))
    else:
        _items(extent, _indices(places), items, via)


def _indices(places: Any) -> np.ndarray[Any, Any]:
    try:
        found = np.asarray(places)
    except ValueError as e:
        raise DTypeError(f"indices are whole numbers in one dimension: {e}") from None
    if found.size == 0:
        return np.empty(0, np.int64)
    if found.dtype.kind not in "iu" or found.ndim != 1:
        raise DTypeError(
            f"indices are whole numbers in one dimension; given {found.dtype} of shape "
            f"{found.shape}"
        )
    if found.dtype == np.uint64 and int(found.max()) >> 63:
        raise RangeError(f"an index of {int(found.max())} is outside any array")
    return np.ascontiguousarray(found, np.int64)


def _items(extent: Extent, indices: np.ndarray[Any, Any], items: Any, via: str | None) -> None:
    source = as_source(items, extent.dtype, "items")
    if source.ndim == 0:
        source = np.broadcast_to(source, indices.shape)
    if len(source) != len(indices):
        raise ArgumentError(
            f"{len(indices)} indices and items of shape {source.shape}: give one item for each "
            "index along the first dimension, or one value for all"
        )
    source = np.ascontiguousarray(source)
    each = source.size // len(indices) if len(indices) else 0  # elements of an item
    if each == 0:
        return
    low, high = int(np.minimum.reduce(indices)), int(np.maximum.reduce(indices))
    if low < 0 or high + each > extent.size:
        at = low if low < 0 else high
        raise RangeError(f"{each} elements from {at} on are not inside an array of {extent.size}; "
                         "nothing was stored")  # fmt: skip
    size = each * extent.itemsize
    if via != "map" and _by_courier(extent, indices, source, size, via == "courier"):
        return
    if not extent.mapped:
        offsets = indices * extent.itemsize
        starts = np.arange(len(offsets), dtype=np.uint64) * np.uint64(size)
        rows = np.empty((len(offsets), 3), np.uint64)
        rows[:, 0], rows[:, 1] = offsets, size
        rows[:, 2] = starts + np.uint64(copies.address_of(source))
        _windowed(extent, rows)
        return
    ffi = _native.ffi
    source = _outside(extent, source)
    code = _native.lib.gd_scatter_elements(
        extent.host, extent.nbytes, extent.itemsize, ffi.cast("int64_t *", copies.address_of(indices)),
        len(indices), ffi.cast("char *", copies.address_of(source)), size, extent.flags,
    )  # fmt: skip
    copies.done(code, extent, "scattering to")


def _by_courier(extent: Extent, indices: np.ndarray[Any, Any], source: np.ndarray[Any, Any], size: int,
                forced: bool) -> bool:
    """Whether a courier has stored them: where it is faster, or forced."""
    memory = extent.memory
    if not forced and (
        couriers.running(extent) is None
        or len(indices) < paths.of(memory.device, memory.bridge).limits.courier_scatter
    ):
        return False
    source, cast = _outside(extent, source), _native.ffi.cast
    places = cast("int64_t *", copies.address_of(indices))
    return couriers.errand(
        extent, forced, source,
        lambda courier, how, left: _native.lib.gd_courier_scatter(
            courier, extent.address, extent.size, extent.itemsize, places, len(indices),
            cast("char *", copies.address_of(source)), size, how, left,
        ),
    )  # fmt: skip


def _outside(extent: Extent, source: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The source, copied first if it lies in the memory that is about to be written."""
    piece = extent.memory
    if piece.host and source.nbytes and overlap(source, piece.host, piece.nbytes):
        return source.view(HostView).fetch()
    return source


def _described(extent: Extent, pieces: Any) -> tuple[np.ndarray[Any, Any], list[Any]]:
    """The table of struct gd_piece, and what keeps the sources alive."""
    sources, table = [], []
    try:
        listed = enumerate(pieces)
    except TypeError:
        raise ArgumentError(
            f"scatter({pieces!r}): give a list of (index, data), or indices and items"
        ) from None
    for number, entry in listed:
        try:
            at, data = entry
        except (TypeError, ValueError):
            raise DTypeError(f"piece {number} is {entry!r}: give (index, data)") from None
        at = index(at, f"the index of piece {number}")
        source, address, size = _piece(extent, number, data)
        offset = at * extent.itemsize
        if at < 0 or offset + size > extent.nbytes:
            raise RangeError(
                f"piece {number}, {size // extent.itemsize} elements from {at} on, is not inside an "
                f"array of {extent.size}; nothing was stored"
            )
        sources.append(source)
        table.append((offset, size, address))
    return np.array(table, np.uint64).reshape(-1, 3), sources


def _piece(extent: Extent, number: int, data: Any) -> tuple[object, int, int]:
    """(what keeps it alive, address, bytes) of one piece of data."""
    if (type(data) is bytes or type(data) is bytearray) and len(data) % extent.itemsize == 0:
        held = _native.ffi.from_buffer(data)
        return held, int(_native.ffi.cast("uintptr_t", held)), len(data)
    source = as_source(data, extent.dtype, f"piece {number}")
    source = _outside(extent, np.ascontiguousarray(source))
    return source, copies.address_of(source), source.nbytes


def _pieces(extent: Extent, table: np.ndarray[Any, Any], sources: list[Any]) -> None:
    if not len(table):
        return
    if not extent.mapped:
        _windowed(extent, table)
        return
    code = _call(extent.host, extent.nbytes, table, extent.flags)
    copies.done(code, extent, "scattering to")


def _call(host: int, size: int, table: np.ndarray[Any, Any], flags: int) -> int:
    pieces = _native.ffi.cast("struct gd_piece *", copies.address_of(table))
    return int(_native.lib.gd_scatter(host, size, pieces, len(table), flags))


def _windowed(extent: Extent, table: np.ndarray[Any, Any]) -> None:
    """Scatter into an array that is not mapped whole: window by window, in order within each."""
    piece = ondemand.piece_of(extent)
    base = ondemand.base(extent)
    table = table[table[:, 1] > 0]
    while len(table):
        at = int(table[0, 0])
        with contextlib.ExitStack() as held:
            try:
                slot = held.enter_context(ondemand.entered(piece, base + at, 0))
            except ApertureError:
                _by_dma(extent, table)
                return
            first = slot.start - base
            end = first + slot.length
            starts, ends = table[:, 0].astype(np.int64), (table[:, 0] + table[:, 1]).astype(np.int64)
            low, high = np.maximum(starts, first), np.minimum(ends, end)
            here = low < high
            part = np.empty((int(here.sum()), 3), np.uint64)
            part[:, 0] = (low - first)[here]
            part[:, 1] = (high - low)[here]
            part[:, 2] = table[here, 2] + (low - starts)[here].astype(np.uint64)
            flags = slot.flags
            code = _call(slot.host, slot.length, part, flags)
        copies.done(code, extent, "scattering to")
        # what reaches out of this window on either side is left for others
        before, after = starts < first, ends > end
        rest = []
        if before.any():
            left = table[before].copy()
            left[:, 1] = (np.minimum(ends, first) - starts)[before].astype(np.uint64)
            rest.append(left)
        if after.any():
            right = table[after].copy()
            cut = np.maximum(starts, end)[after]
            right[:, 0] = cut
            right[:, 1] = (ends[after] - cut).astype(np.uint64)
            right[:, 2] += (cut - starts[after]).astype(np.uint64)
            rest.append(right)
        table = np.concatenate(rest) if rest else table[:0]


def _by_dma(extent: Extent, table: np.ndarray[Any, Any]) -> None:
    """The rest of a scatter where the aperture has no room for a window: slower, in order."""
    for offset, length, source in table.tolist():
        copies.write(extent, _native.bytes_at(source, length), offset, "dma")
