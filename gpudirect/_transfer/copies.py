"""Copies between ordinary memory and an extent that is mapped whole: stores, loads, or DMA."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _native
from ..errors import ApertureError, ArgumentError, Error, RevokedError
from ..extent import Extent, packed
from ..limits import PATHS
from . import paths


def check_via(via: str | None) -> None:
    if via not in (None, *PATHS):
        raise ArgumentError(f"via={via!r}: give 'map', 'dma' or None for the faster one")


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


def address_of(array: np.ndarray[Any, Any]) -> int:
    """Address of the first element of an array in ordinary memory."""
    return int(array.__array_interface__["data"][0])


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
    if memory.revocable and memory.revoked():
        raise RevokedError(f"writing to {extent}: the driver revoked the memory")
    _native.lib.gd_fence()  # mapped stores made before the copy come first
    memory.device.copy_in(extent.address + offset, address_of(source), source.nbytes)


def read(extent: Extent, out: np.ndarray[Any, Any], offset: int, via: str | None) -> None:
    """Copy bytes of a contiguous extent to ``out``. The range was checked."""
    check_via(via)
    memory = extent.usable().memory
    if via is None:
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
    if memory.revocable and memory.revoked():
        raise RevokedError(f"reading from {extent}: the driver revoked the memory")
    _native.lib.gd_fence()  # stores of ours that are still on their way come first
    memory.device.copy_out(address_of(out), extent.address + offset, out.nbytes)


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


def write_nd(extent: Extent, source: np.ndarray[Any, Any]) -> None:
    """Copy ``source`` to a strided extent of the same shape."""
    code = _nd(_native.lib.gd_write_nd, extent.host, extent, source, extent.flags)
    done(code, extent, "writing to")


def read_nd(extent: Extent, out: np.ndarray[Any, Any]) -> None:
    """Copy a strided extent to ``out`` of the same size."""
    new, cast = _native.ffi.new, _native.ffi.cast
    shaped = out.reshape(extent.shape)
    code = _native.lib.gd_read_nd(
        cast("char *", address_of(shaped)), new("int64_t[]", shaped.strides), extent.host,
        new("int64_t[]", extent.strides), new("int64_t[]", extent.shape), extent.ndim,
        extent.itemsize, extent.flags,
    )  # fmt: skip
    done(code, extent, "reading from")
