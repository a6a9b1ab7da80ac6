"""Scattered stores: many small pieces in one call, each straight from where it lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import _native, memory, ondemand, paths
from .arguments import as_source, index, overlap
from .errors import ArgumentError, DTypeError, RangeError
from .host import HostView

if TYPE_CHECKING:
    from .arrays import Array


def scatter(array: Array, places: Any, items: Any) -> None:
    """``Array.scatter``."""
    piece = array._open()
    memory.check_mapped(piece)
    if not array.contiguous:
        raise ArgumentError("scatter() counts bytes from the start of a contiguous array; this one "
                            "has strides: use .host[...] = values")  # fmt: skip
    if items is None:
        _pieces(array, *_described(array, places))
    else:
        _items(array, _offsets(places), items)


def _offsets(places: Any) -> np.ndarray[Any, Any]:
    found = np.asarray(places)
    if found.size == 0:
        return np.empty(0, np.int64)
    if found.dtype.kind not in "iu" or found.ndim != 1:
        raise DTypeError(
            f"offsets are whole numbers of bytes in one dimension; given {found.dtype} of shape "
            f"{found.shape}"
        )
    if found.dtype == np.uint64 and int(found.max()) >> 63:
        raise RangeError(f"an offset of {int(found.max())} bytes is outside any array")
    return np.ascontiguousarray(found, np.int64)


def _items(array: Array, offsets: np.ndarray[Any, Any], items: Any) -> None:
    source = as_source(items, array.dtype)
    if source.dtype != array.dtype:
        raise DTypeError(f"items of dtype {source.dtype} would be taken for {array.dtype}: convert "
                         f"them with .astype({array.dtype.str!r})")  # fmt: skip
    if source.ndim == 0 or len(source) != len(offsets):
        raise ArgumentError(
            f"{len(offsets)} offsets and items of shape {source.shape}: give one item for each "
            "offset along the first dimension"
        )
    source = np.ascontiguousarray(source)
    size = source.nbytes // len(offsets) if len(offsets) else 0
    if size == 0:
        return
    low, high = int(offsets.min()), int(offsets.max())
    if low < 0 or high + size > array.nbytes:
        at = low if low < 0 else high
        raise RangeError(f"{size} bytes at offset {at} are not inside an array of {array.nbytes} "
                         "bytes; nothing was stored")  # fmt: skip
    if not array._open().host:
        starts = np.arange(len(offsets), dtype=np.uint64) * np.uint64(size)
        rows = np.empty((len(offsets), 3), np.uint64)
        rows[:, 0], rows[:, 1] = offsets, size
        rows[:, 2] = starts + np.uint64(paths._address(source))
        _windowed(array, rows)
        return
    ffi = _native.ffi
    source = _outside(array, source)
    code = _native.lib.gd_scatter_items(
        array.host_ptr, array.nbytes, ffi.cast("int64_t *", paths._address(offsets)), len(offsets),
        ffi.cast("char *", paths._address(source)), size, array._flags,
    )  # fmt: skip
    paths._done(code, array, "scattering to")


def _outside(array: Array, source: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The source, copied first if it lies in the memory that is about to be written."""
    piece = array._open()
    if piece.host and source.nbytes and overlap(source, piece.host, piece.nbytes):
        return source.view(HostView).fetch()
    return source


def _described(array: Array, pieces: Any) -> tuple[np.ndarray[Any, Any], list[Any]]:
    """The table of struct gd_piece, and what keeps the sources alive."""
    limit = array.nbytes
    sources, table = [], []
    try:
        listed = enumerate(pieces)
    except TypeError:
        raise ArgumentError(
            f"scatter({pieces!r}): give a list of (offset in bytes, bytes-like), or offsets and items"
        ) from None
    for number, entry in listed:
        try:
            offset, data = entry
        except (TypeError, ValueError):
            raise DTypeError(
                f"piece {number} is {entry!r}: give (offset in bytes, bytes-like)"
            ) from None
        offset = index(offset, f"the offset of piece {number}")
        source, address, size = _piece(array, number, data)
        if offset < 0 or offset + size > limit:
            raise RangeError(
                f"piece {number}, {size} bytes at offset {offset}, is not inside an array of "
                f"{limit} bytes; nothing was stored"
            )
        sources.append(source)
        table.append((offset, size, address))
    return np.array(table, np.uint64).reshape(-1, 3), sources


def _piece(array: Array, number: int, data: Any) -> tuple[object, int, int]:
    """(what keeps it alive, address, bytes) of one piece of data."""
    if type(data) is bytes or type(data) is bytearray:
        held = _native.ffi.from_buffer(data)
        return held, int(_native.ffi.cast("uintptr_t", held)), len(data)
    source = as_source(data, array.dtype)
    if source.dtype != array.dtype and source.dtype not in (np.uint8, np.int8, np.dtype("S1")):
        raise DTypeError(
            f"piece {number} of dtype {source.dtype} would be taken for {array.dtype}: convert it "
            f"with .astype({array.dtype.str!r}), or give its bytes with .view('u1')"
        )
    source = _outside(array, np.ascontiguousarray(source))
    return source, paths._address(source), source.nbytes


def _pieces(array: Array, table: np.ndarray[Any, Any], sources: list[Any]) -> None:
    if not len(table):
        return
    if not array._open().host:
        _windowed(array, table)
        return
    code = _call(array.host_ptr, array.nbytes, table, array._flags)
    paths._done(code, array, "scattering to")


def _call(host: int, size: int, table: np.ndarray[Any, Any], flags: int) -> int:
    pieces = _native.ffi.cast("struct gd_piece *", paths._address(table))
    return int(_native.lib.gd_scatter(host, size, pieces, len(table), flags))


def _windowed(array: Array, table: np.ndarray[Any, Any]) -> None:
    """Scatter into an array that is not mapped whole: window by window, in order within each."""
    piece: Any = array._open()
    base = ondemand.base(array, piece)
    table = table[table[:, 1] > 0]
    while len(table):
        at = int(table[0, 0])
        with ondemand.entered(piece, base + at, 0) as slot:
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
        paths._done(code, array, "scattering to")
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
