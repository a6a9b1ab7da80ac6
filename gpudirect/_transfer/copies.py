"""Copies between ordinary memory and an extent that is mapped whole: stores, loads, or DMA."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import _native
from ..arguments import overlap
from ..errors import ApertureError, ArgumentError, Error, RevokedError
from ..extent import Extent, check_mapped, packed
from ..limits import PATHS
from . import couriers, paths


def check_via(via: str | None) -> None:
    if via is not None and (not isinstance(via, str) or via not in PATHS):
        raise ArgumentError(f"via={via!r}: give 'map', 'dma', 'courier' or None for the fastest one")


def refuse_courier(via: str | None) -> None:
    """Raises ArgumentError where a courier is asked for what it does not do."""
    if via == "courier":
        raise ArgumentError(
            "a courier writes strided arrays and scatters; data in one piece goes by 'map' or 'dma'"
        )


def done(code: int, extent: Extent, doing: str) -> None:
    """Raises what a negative return of the copy engine means."""
    if code >= 0:
        return
    if code == -14:  # EFAULT
        where = _native.lib.gd_fault_address()
        raise RevokedError(
            f"{doing} {extent}: the driver revoked the memory (access at {where:#x}). Its owner "
            "freed it, or died; nothing after that address was copied."
        )
    if code == -22:  # EINVAL
        raise ArgumentError(
            f"{doing} {extent}: source and destination overlap in memory; copy one of them first"
        )
    raise Error(f"{doing} {extent} failed: errno {-code}")


def check_alive(extent: Extent, doing: str) -> None:
    """For DMA, which would not notice. Raises RevokedError."""
    memory = extent.memory
    if memory.revocable and memory.revoked():
        raise RevokedError(f"{doing} {extent}: the driver revoked the memory")


address_of = _native.address_of


def choose(extent: Extent, other: np.ndarray[Any, Any], write: bool) -> str:
    """The faster path for a contiguous extent that is mapped whole."""
    memory = extent.usable().memory
    if not memory.host:
        return "dma"
    struct = paths.of(memory.device, memory.bridge).struct
    pointer = _native.ffi.cast("char *", address_of(other))
    return PATHS[_native.lib.gd_path(struct, int(write), pointer, other.nbytes)]


def write(extent: Extent, source: np.ndarray[Any, Any], offset: int, via: str | None) -> None:
    """Copy ``source`` to bytes of a contiguous extent. The range was checked."""
    check_via(via)
    refuse_courier(via)
    memory = extent.usable().memory
    if via is None:
        via = choose(extent, source, write=True)
    if via == "map":
        if not memory.host:
            raise ApertureError("this array is not mapped, so via='map' cannot work; use 'dma'")
        if source.flags.c_contiguous:
            code = _native.lib.gd_write(
                extent.host + offset,
                _native.ffi.cast("char *", address_of(source)),
                source.nbytes,
                extent.flags,
            )
        else:
            code = _nd(_native.lib.gd_write_nd, extent.host + offset, None, source, extent.flags)
        done(code, extent, "writing to")
        return
    source = np.ascontiguousarray(source)
    check_alive(extent, "writing to")
    _native.lib.gd_fence()  # mapped stores made before the copy come first
    memory.device.copy_in(extent.address + offset, address_of(source), source.nbytes)


def read(extent: Extent, out: np.ndarray[Any, Any], offset: int, via: str | None) -> None:
    """Copy bytes of a contiguous extent to ``out``. The range was checked."""
    check_via(via)
    memory = extent.usable().memory
    if via in (None, "courier"):
        if by_courier(extent, out, offset, via == "courier"):
            return
        via = choose(extent, out, write=False)
    if via == "map":
        if not memory.host:
            raise ApertureError("this array is not mapped, so via='map' cannot work; use 'dma'")
        code = _native.lib.gd_read(
            _native.ffi.cast("char *", address_of(out)),
            extent.host + offset,
            out.nbytes,
            extent.flags,
        )
        done(code, extent, "reading from")
        return
    check_alive(extent, "reading from")
    _native.lib.gd_fence()  # stores of ours that are still on their way come first
    memory.device.copy_out(address_of(out), extent.address + offset, out.nbytes)


def by_courier(extent: Extent, out: np.ndarray[Any, Any], offset: int, forced: bool) -> bool:
    """Whether a courier has read it: where it is the fastest, or forced."""
    lib, to = _native.lib, _native.ffi.cast("char *", address_of(out))
    memory = extent.memory
    if forced:
        if memory.revocable:
            check_mapped(memory)
    elif couriers.running(extent) is None or (
        lib.gd_path_courier(paths.of(memory.device, memory.bridge).struct, to, out.nbytes, 0) < 0
    ):
        return False
    if memory.host and overlap(out, memory.host, memory.nbytes):
        done(-22, extent, "reading from")
    return couriers.errand(
        extent, forced, out,
        lambda courier, how, left: lib.gd_courier_read(
            courier, to, extent.address + offset, out.nbytes, how, left
        ),
    )  # fmt: skip


def _nd(copy: Any, target: int, extent: Extent | None, other: np.ndarray[Any, Any],
        flags: int) -> int:
    """Call a strided copy of the engine with the geometry of ``other`` on both sides."""
    new = _native.ffi.new
    inner = new("int64_t[]", extent.strides if extent is not None else packed(other.shape, other.itemsize))
    return int(
        copy(target, inner, _native.ffi.cast("char *", address_of(other)),
             new("int64_t[]", other.strides), new("int64_t[]", other.shape), other.ndim,
             other.itemsize, flags)
    )  # fmt: skip


def write_nd(extent: Extent, source: np.ndarray[Any, Any], via: str | None = None) -> None:
    """Copy ``source`` to a strided extent of the same shape."""
    check_strided(via)
    if spread(extent, source, via == "courier", write=True):
        return
    code = _nd(_native.lib.gd_write_nd, extent.host, extent, source, extent.flags)
    done(code, extent, "writing to")


def read_nd(extent: Extent, out: np.ndarray[Any, Any], via: str | None = None) -> None:
    """Copy a strided extent to ``out`` of the same size."""
    check_strided(via)
    if spread(extent, out, via == "courier", write=False):
        return
    new, cast = _native.ffi.new, _native.ffi.cast
    shaped = out.reshape(extent.shape)
    code = _native.lib.gd_read_nd(
        cast("char *", address_of(shaped)), new("int64_t[]", shaped.strides), extent.host,
        new("int64_t[]", extent.strides), new("int64_t[]", extent.shape), extent.ndim,
        extent.itemsize, extent.flags,
    )  # fmt: skip
    done(code, extent, "reading from")


def check_strided(via: str | None) -> None:
    check_via(via)
    if via == "dma":
        raise ArgumentError("DMA copies arrays in one piece; this one has strides: use 'map' or 'courier'")


def spread(extent: Extent, other: np.ndarray[Any, Any], forced: bool, write: bool) -> bool:
    """Whether a courier has moved the elements of a strided extent: where it is faster, or forced."""
    lib, memory = _native.lib, extent.memory
    if forced:
        if memory.revocable:
            check_mapped(memory)
    elif couriers.running(extent) is None:
        return False
    described = strided(extent)
    if described is None:
        if forced:
            raise ArgumentError(
                f"via='courier': these strides do not merge into {lib.GD_COURIER_DIMS} dimensions"
            )
        return False
    struct, rows = described
    if not forced:
        limits = paths.of(memory.device, memory.bridge).limits
        if rows < (limits.courier_scatter if write else limits.courier_gather):
            return False
    packed_other = np.ascontiguousarray(other)
    at = _native.ffi.cast("char *", address_of(packed_other))
    if write:
        return couriers.errand(
            extent, forced, packed_other,
            lambda courier, how, left: lib.gd_courier_unpack(courier, struct, at, how, left),
        )  # fmt: skip
    if not couriers.errand(
        extent, forced, packed_other,
        lambda courier, how, left: lib.gd_courier_pack(courier, at, struct, how, left),
    ):  # fmt: skip
        return False
    if packed_other is not other:
        other[...] = packed_other
    return True


def strided(extent: Extent) -> tuple[Any, int] | None:
    """A ``struct gd_strided *`` of an extent, and of how many rows it is; None: of too many dimensions,
    or too many words.

    A row is what lies in one piece. Its elements become words, as wide as everything allows.
    """
    most = _native.lib.GD_COURIER_DIMS
    dims: list[tuple[int, int]] = []  # (extent, stride), the outermost first
    row = extent.itemsize
    for n, stride in zip(extent.shape, extent.strides, strict=True):
        if n == 1:
            continue
        if dims and dims[-1][1] == n * stride:
            dims[-1] = (dims[-1][0] * n, stride)
        else:
            dims.append((n, stride))
    while dims and dims[-1][1] == row:
        row *= dims.pop()[0]
    rows = math.prod(n for n, _ in dims)
    all_bits = extent.address | row
    for _, stride in dims:
        all_bits |= abs(stride)
    word = min(all_bits & -all_bits, 16)
    if row > word:
        dims.append((row // word, word))
    if len(dims) > most or rows * (row // word) >> 32:
        return None
    dims = [(1, 0)] * (most - len(dims)) + dims
    return _native.ffi.new("struct gd_strided *", {
        "device": extent.address, "word": word, "dims": most,
        "shape": [n for n, _ in dims], "strides": [stride for _, stride in dims],
    }), rows  # fmt: skip
