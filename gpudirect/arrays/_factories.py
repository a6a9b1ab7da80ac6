"""New arrays of device memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import devices
from ..arguments import as_shape, flag
from ..devices import Device
from ..dtypes import as_dtype
from ..errors import ArgumentError, DTypeError
from ..extent import packed
from ..memory import heap
from ._array import Array

ADDRESS_BITS = 63


def empty(
    shape: int | Sequence[int],
    dtype: DTypeLike = "f4",
    *,
    order: str = "C",
    device: Device | str | int | None = None,
    bridge: str | None = None,
    mapped: bool | None = None,
    pool: bool = True,
    shareable: bool = False,
) -> Array:
    """A new array of device memory, not initialised, already mapped.

    shape: elements along each dimension. dtype: any without Python objects, structured included;
        f4 where none is given, here and in ``zeros``, ``ones`` and ``full`` (NumPy takes f8).
    order: "C" or "F", as in NumPy.
    device: "cuda:0", "emulated", an ordinal, a UUID or a PCI address; None chooses.
    bridge: "p2pmod", "dmabuf", "gdrdrv", "rm" or "emulated"; None chooses the first that works.
    mapped: None maps the whole array, unless the aperture's budget ($GPUDIRECT_APERTURE, or all of
        BAR1) has no room for it: ``window``, ``write``, ``read`` and ``writer`` then map parts, and
        its repr says "not mapped". True insists on it. False takes no aperture at all.
    pool: False bypasses the pool: a block of its own, given back to the device at once.
    shareable: True makes it a block of its own that ``share`` can give to other processes.
    Raises ArgumentError, DTypeError, OutOfMemoryError, ApertureError, DeviceNotFoundError,
    BridgeUnavailableError.
    """
    kind = as_dtype(dtype)
    if not isinstance(order, str) or order not in ("C", "F"):
        raise ArgumentError(f"order is {order!r}: give 'C' or 'F'")
    if bridge is not None and not isinstance(bridge, str):
        raise ArgumentError(f"bridge is {bridge!r}: give a bridge's name")
    extents = (shape,) if type(shape) is int and shape >= 0 else as_shape(shape)
    nbytes = kind.itemsize * math.prod(extents)
    if nbytes >> ADDRESS_BITS:
        raise ArgumentError(f"an array of shape {extents} and {kind} would be {nbytes} bytes")
    if mapped is not None and mapped is not True:
        mapped = flag(mapped, "mapped")
    if pool is not True or shareable is not False:
        shareable = flag(shareable, "shareable")
        pool = flag(pool, "pool") and not shareable
    source = heap(devices.get(device), bridge)
    piece = source.take(max(nbytes, 1), mapped=mapped, pool=pool)
    if shareable:
        piece.block.shareable = True
    strides = None if order == "C" else packed(extents[::-1], kind.itemsize)[::-1]
    return Array._make(piece, piece.ptr, extents, strides, kind)


def zeros(
    shape: int | Sequence[int],
    dtype: DTypeLike = "f4",
    *,
    order: str = "C",
    device: Device | str | int | None = None,
    bridge: str | None = None,
    mapped: bool | None = None,
    pool: bool = True,
    shareable: bool = False,
) -> Array:
    """A new array of zeros, set on the device. Arguments and errors as ``empty``."""
    array = empty(shape, dtype, order=order, device=device, bridge=bridge, mapped=mapped, pool=pool,
                  shareable=shareable)  # fmt: skip
    if array.nbytes:
        stream = array.device.default_stream
        array.device.fill(array.ptr, 0, array.nbytes, stream)
        stream.synchronize()  # and no other: kernels elsewhere do not use this memory
    return array


def ones(
    shape: int | Sequence[int],
    dtype: DTypeLike = "f4",
    *,
    order: str = "C",
    device: Device | str | int | None = None,
    bridge: str | None = None,
    mapped: bool | None = None,
    pool: bool = True,
    shareable: bool = False,
) -> Array:
    """A new array of ones. Arguments and errors as ``empty``."""
    return full(shape, 1, dtype, order=order, device=device, bridge=bridge, mapped=mapped, pool=pool,
                shareable=shareable)  # fmt: skip


def full(
    shape: int | Sequence[int],
    value: Any,
    dtype: DTypeLike = "f4",
    *,
    order: str = "C",
    device: Device | str | int | None = None,
    bridge: str | None = None,
    mapped: bool | None = None,
    pool: bool = True,
    shareable: bool = False,
) -> Array:
    """A new array with every element ``value``. Arguments and errors as ``empty``."""
    array = empty(shape, dtype, order=order, device=device, bridge=bridge, mapped=mapped, pool=pool,
                  shareable=shareable)  # fmt: skip
    array.fill(value)
    return array


def empty_like(
    prototype: Array | ArrayLike,
    dtype: DTypeLike | None = None,
    *,
    shape: int | Sequence[int] | None = None,
    order: str = "K",
    device: Device | str | int | None = None,
    bridge: str | None = None,
    mapped: bool | None = None,
    pool: bool = True,
    shareable: bool = False,
) -> Array:
    """A new array not initialised, with the shape and dtype of another, on its device.

    order: "C", "F", or as in the other array: "K" (and "A"), where its elements lie in F order.
    Other arguments and errors as ``empty``.
    """
    shape, dtype, device, order = _alike(prototype, shape, dtype, device, order)
    return empty(shape, dtype, order=order, device=device, bridge=bridge, mapped=mapped,
                 pool=pool, shareable=shareable)  # fmt: skip


def zeros_like(
    prototype: Array | ArrayLike,
    dtype: DTypeLike | None = None,
    *,
    shape: int | Sequence[int] | None = None,
    order: str = "K",
    device: Device | str | int | None = None,
    bridge: str | None = None,
    mapped: bool | None = None,
    pool: bool = True,
    shareable: bool = False,
) -> Array:
    """A new array of zeros, with the shape and dtype of another, on its device.

    order: "C", "F", or as in the other array: "K" (and "A"), where its elements lie in F order.
    Other arguments and errors as ``empty``.
    """
    shape, dtype, device, order = _alike(prototype, shape, dtype, device, order)
    return zeros(shape, dtype, order=order, device=device, bridge=bridge, mapped=mapped,
                 pool=pool, shareable=shareable)  # fmt: skip


def ones_like(
    prototype: Array | ArrayLike,
    dtype: DTypeLike | None = None,
    *,
    shape: int | Sequence[int] | None = None,
    order: str = "K",
    device: Device | str | int | None = None,
    bridge: str | None = None,
    mapped: bool | None = None,
    pool: bool = True,
    shareable: bool = False,
) -> Array:
    """A new array of ones, with the shape and dtype of another, on its device.

    order: "C", "F", or as in the other array: "K" (and "A"), where its elements lie in F order.
    Other arguments and errors as ``empty``.
    """
    shape, dtype, device, order = _alike(prototype, shape, dtype, device, order)
    return ones(shape, dtype, order=order, device=device, bridge=bridge, mapped=mapped,
                pool=pool, shareable=shareable)  # fmt: skip


def full_like(
    prototype: Array | ArrayLike,
    value: Any,
    dtype: DTypeLike | None = None,
    *,
    shape: int | Sequence[int] | None = None,
    order: str = "K",
    device: Device | str | int | None = None,
    bridge: str | None = None,
    mapped: bool | None = None,
    pool: bool = True,
    shareable: bool = False,
) -> Array:
    """A new array with every element ``value``, with the shape and dtype of another, on its device.

    order: "C", "F", or as in the other array: "K" (and "A"), where its elements lie in F order.
    Other arguments and errors as ``empty``.
    """
    shape, dtype, device, order = _alike(prototype, shape, dtype, device, order)
    return full(shape, value, dtype, order=order, device=device, bridge=bridge, mapped=mapped,
                pool=pool, shareable=shareable)  # fmt: skip


def _alike(
    prototype: Any, shape: Any, dtype: DTypeLike | None, device: Device | str | int | None, order: str
) -> tuple[Any, Any, Any, str]:
    """What an array like another one has, where nothing else was asked for."""
    try:
        like = prototype if hasattr(prototype, "dtype") else np.asarray(prototype)
    except (TypeError, ValueError, OverflowError) as e:
        raise DTypeError(f"{type(prototype).__name__} has no shape: {e}") from None
    if device is None and isinstance(like, Array):
        device = like.device
    if isinstance(order, str) and order in ("K", "A"):
        order = "F" if shape is None and _in_f_order(like) else "C"
    return (
        like.shape if shape is None else shape,
        like.dtype if dtype is None else dtype,
        device,
        order,
    )


def _in_f_order(like: Any) -> bool:
    """Whether the elements of an array lie one after the other in F order, and not in C order."""
    if isinstance(like, Array):
        return not like.contiguous and like.T.contiguous
    flags: Any = getattr(like, "flags", None)
    return bool(getattr(flags, "f_contiguous", False) and not flags.c_contiguous)


def asarray(
    data: ArrayLike,
    dtype: DTypeLike | None = None,
    *,
    device: Device | str | int | None = None,
    bridge: str | None = None,
    mapped: bool | None = None,
    pool: bool = True,
    shareable: bool = False,
) -> Array:
    """``data`` in device memory: an Array that is there already as it is, anything else copied.

    dtype: None takes the data's; conversions are NumPy's. Other arguments and errors as ``empty``.
    """
    kind = None if dtype is None else as_dtype(dtype)
    if isinstance(data, Array) and (kind is None or kind == data.dtype):
        there = device is None or devices.get(device) is data.device
        if there and bridge in (None, data.bridge) and mapped in (None, bool(data._open().host)):
            return data
    try:
        host = np.asarray(data, kind)
    except (TypeError, ValueError, OverflowError) as e:
        raise DTypeError(f"{type(data).__name__} cannot be an array: {e}") from None
    array = empty(host.shape, host.dtype, device=device, bridge=bridge, mapped=mapped, pool=pool,
                  shareable=shareable)  # fmt: skip
    if array.nbytes:
        array.write(np.ascontiguousarray(host))
    return array
