"""The ways data goes between ordinary memory and an array, and the choice among them.

"map" is CPU stores or loads on the mapping, "dma" the device's copy engine. Which is faster
depends on the size, the direction and whether the host memory is page-locked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _native
from .errors import ApertureError, ArgumentError, Error, RevokedError

if TYPE_CHECKING:
    from .arrays import Array

PATHS = ("map", "dma")


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes at which the faster path changes.

    The defaults are what one H200 behind PCIe 5 showed; they are sane elsewhere, not best.
    """

    write_inline: int = 64 << 10
    """Up to here ``Array.write`` stores at once, in C, without asking any further."""
    write_pageable: int = 1 << 62
    """Up to here mapped stores beat DMA from pageable memory: always, where measured."""
    write_pinned: int = 64 << 10
    """Up to here mapped stores beat DMA from page-locked memory."""
    read: int = 4 << 10
    """Up to here mapped loads beat DMA."""


_limits = Limits()


def limits() -> Limits:
    """The limits in force."""
    return _limits


def _check_via(via: str | None) -> None:
    if via not in (None, *PATHS):
        raise ArgumentError(f"via={via!r}: give 'map', 'dma' or None for the faster one")


def _done(code: int, array: Array, doing: str) -> None:
    """Raises what a negative return of the copy engine means."""
    if code >= 0:
        return
    if code == -14:  # EFAULT
        where = _native.lib.gd_fault_address()
        raise RevokedError(
            f"{doing} {array!r}: the driver revoked the memory (access at {where:#x}). Its owner "
            "freed it, or died; nothing after that address was copied."
        )
    raise Error(f"{doing} {array!r} failed: errno {-code}")


def _address(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


def write(array: Array, source: np.ndarray[Any, Any], offset: int, via: str | None) -> None:
    """Copy ``source`` to bytes of a contiguous array. The range was checked."""
    _check_via(via)
    piece = array._open()
    if via is None:
        via = "map" if piece.host and source.nbytes <= _limits.write_pageable else "dma"
    if via == "map":
        if not piece.host:
            raise ApertureError("this array is not mapped, so via='map' cannot work; use 'dma'")
        if source.flags.c_contiguous:
            code = _native.lib.gd_write(
                array.host_ptr + offset,
                _native.ffi.cast("char *", _address(source)),
                source.nbytes,
                array._flags,
            )
        else:
            code = _nd(
                _native.lib.gd_write_nd, array.host_ptr + offset, None, source, array._flags
            )
        _done(code, array, "writing to")
        return
    source = np.ascontiguousarray(source)
    _native.lib.gd_fence()  # mapped stores made before the copy come first
    piece.device.copy_in(array.ptr + offset, _address(source), source.nbytes)


def read(array: Array, out: np.ndarray[Any, Any], offset: int, via: str | None) -> None:
    """Copy bytes of a contiguous array to ``out``. The range was checked."""
    _check_via(via)
    piece = array._open()
    if via is None:
        via = "map" if piece.host and out.nbytes <= _limits.read else "dma"
    if via == "map":
        if not piece.host:
            raise ApertureError("this array is not mapped, so via='map' cannot work; use 'dma'")
        code = _native.lib.gd_read(
            _native.ffi.cast("char *", _address(out)),
            array.host_ptr + offset,
            out.nbytes,
            array._flags,
        )
        _done(code, array, "reading from")
        return
    if piece.revocable and piece.revoked():
        raise RevokedError(f"reading from {array!r}: the driver revoked the memory")
    _native.lib.gd_fence()  # stores of ours that are still on their way come first
    piece.device.copy_out(_address(out), array.ptr + offset, out.nbytes)


def _nd(copy: Any, target: int, array: Array | None, other: np.ndarray[Any, Any],
        flags: int) -> int:
    """Call a strided copy of the engine with the geometry of ``other`` on both sides."""
    new = _native.ffi.new
    inner = new("int64_t[]", array.strides if array is not None else _packed(other))
    return int(
        copy(target, inner, _native.ffi.cast("char *", _address(other)),
             new("int64_t[]", other.strides), new("int64_t[]", other.shape), other.ndim,
             other.itemsize, flags)
    )  # fmt: skip


def _packed(array: np.ndarray[Any, Any]) -> tuple[int, ...]:
    strides, step = [], array.itemsize
    for extent in reversed(array.shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def write_nd(array: Array, source: np.ndarray[Any, Any]) -> None:
    """Copy ``source`` to a strided array of the same shape."""
    code = _nd(_native.lib.gd_write_nd, array.host_ptr, array, source, array._flags)
    _done(code, array, "writing to")


def read_nd(array: Array, out: np.ndarray[Any, Any]) -> None:
    """Copy a strided array to ``out`` of the same size."""
    new, cast = _native.ffi.new, _native.ffi.cast
    shaped = out.reshape(array.shape)
    code = _native.lib.gd_read_nd(
        cast("char *", _address(shaped)), new("int64_t[]", shaped.strides), array.host_ptr,
        new("int64_t[]", array.strides), new("int64_t[]", array.shape), array.ndim,
        array.itemsize, array._flags,
    )  # fmt: skip
    _done(code, array, "reading from")
