"""Arrays on device memory that others allocated."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from .. import bridges, devices
from ..arguments import as_shape, index
from ..devices import Device
from ..dtypes import as_dtype
from ..errors import ArgumentError, DTypeError, Error, RangeError
from ..extent import Shape, distinct, packed
from ..memory import Registration
from . import _dlpack
from ._array import Array
from ._factories import ADDRESS_BITS


def register(
    memory: Any,
    nbytes: int | None = None,
    *,
    shape: int | Sequence[int] | None = None,
    dtype: DTypeLike | None = None,
    device: Device | str | int | None = None,
    bridge: str | None = None,
) -> Array:
    """Map device memory that another library allocated, and make an Array of it.

    memory: an object with ``__cuda_array_interface__`` or ``__dlpack__`` (PyTorch, CuPy, JAX, Numba,
        ...), a cuda.core ``Buffer``, or a device address, with ``nbytes`` then.
    shape, dtype: how to see it; by default as the object sees itself, an address as bytes.
    device: None finds the one that holds the memory.
    The owner must keep the memory alive (what an object lends here is referred to). It may start
    anywhere in a physical block and span several.
    Raises NotMappableError, with the bridge that could, when this one cannot map the memory.
    """
    found = _describe(memory, nbytes)
    ptr, extents, strides, kind = found.ptr, found.shape, found.strides, found.dtype
    if found.readonly:
        raise ArgumentError(f"{type(memory).__name__} is read-only; its memory is not ours to map")
    if dtype is not None or shape is not None:
        if strides is not None:
            raise ArgumentError("a non-contiguous object keeps its own shape and dtype")
        total = kind.itemsize * math.prod(extents)
        kind = kind if dtype is None else as_dtype(dtype)
        extents = (total // kind.itemsize,) if shape is None else as_shape(shape)
        if kind.itemsize * math.prod(extents) > total:
            raise RangeError(
                f"shape {extents} of {kind} needs {kind.itemsize * math.prod(extents)} bytes; the "
                f"memory has {total}"
            )
    actual = strides or packed(extents, kind.itemsize)
    if any(s < 0 for s in actual):
        raise ArgumentError(f"negative strides {actual} cannot be registered")
    span = sum((n - 1) * s for n, s in zip(extents, actual, strict=True)) + kind.itemsize
    if math.prod(extents) == 0 or span <= 0:
        raise ArgumentError("there is nothing to map in memory of no bytes")
    if isinstance(memory, Array) and device is None:
        device = memory.device
    chosen = devices.get(device)
    if device is None and not chosen.holds(ptr):
        same = (d for d in devices.available() if d.kind == chosen.kind)
        chosen = next((d for d in same if d.holds(ptr)), chosen)
    piece = Registration(chosen, bridges.choose(chosen, bridge), ptr, span, found.keep)
    return Array._make(piece, ptr, extents, strides, kind)


class _Found(NamedTuple):
    """Somebody's device memory."""

    ptr: int
    shape: Shape
    strides: Shape | None
    dtype: np.dtype[Any]
    readonly: bool
    keep: object
    """Whoever refers to it keeps the memory."""


def _describe(memory: Any, nbytes: int | None) -> _Found:
    if isinstance(memory, Array):
        extent = memory._extent()
        return _Found(extent.address, extent.shape, extent.distinct, extent.dtype, False, extent.memory)
    byte = np.dtype(np.uint8)
    array = hasattr(type(memory), "__cuda_array_interface__") or hasattr(memory, "__cuda_array_interface__")
    if not array and hasattr(memory, "handle") and hasattr(memory, "size"):
        # a cuda.core Buffer: bytes, which its DLPack tells as int8
        return _Found(int(memory.handle), (int(memory.size),), None, byte, False, memory)
    if array or hasattr(type(memory), "__dlpack__"):
        return _lent(memory)
    try:
        ptr = operator.index(memory)
    except TypeError:
        raise DTypeError(
            f"{type(memory).__name__} is no device memory: give an object with "
            "__cuda_array_interface__ or __dlpack__, a cuda.core Buffer, or an address and nbytes"
        ) from None
    if nbytes is None:
        raise ArgumentError("an address alone is not enough: give nbytes as well")
    size = index(nbytes, "nbytes")
    if size <= 0 or ptr <= 0 or (ptr + size) >> ADDRESS_BITS:
        raise ArgumentError(f"{size} bytes at {ptr:#x} are no range of device memory")
    return _Found(ptr, (size,), None, byte, False, None)


def _lent(memory: Any) -> _Found:
    """By the array interface, or by DLPack where that cannot say what the elements are."""
    name, found, why = type(memory).__name__, None, "it lends nothing"
    try:
        interface = getattr(memory, "__cuda_array_interface__", None)
        if interface is not None:
            found = _of_interface(interface, memory)
    except Error:
        raise
    except Exception as e:  # somebody else's code
        why = f"its __cuda_array_interface__ makes no sense: {e}"
    if found is not None and (found.dtype.kind != "V" or found.dtype.names):
        return found
    try:
        lent = _dlpack.borrow(memory)
    except Error:
        raise
    except Exception as e:
        lent, why = None, f"{why}; its __dlpack__ refuses: {e}"
    if lent is not None:
        keep, ptr, shape, strides, dtype = lent
        return _Found(ptr, shape, distinct(strides, shape, dtype.itemsize), dtype, False, keep)
    if found is None:
        raise DTypeError(f"{name} cannot be registered: {why}")
    return found


def _of_interface(interface: dict[str, Any], memory: object) -> _Found:
    (ptr, readonly), shape = interface["data"], as_shape(interface["shape"])
    typestr, descr = str(interface["typestr"]), interface.get("descr") or []
    kind = as_dtype(list(descr) if typestr.startswith("|V") and len(descr) > 1 else typestr)
    strides = interface.get("strides")
    if strides is not None:
        strides = tuple(operator.index(s) for s in strides)
        if len(strides) != len(shape):
            raise ValueError(f"strides {strides} of a shape {shape}")
        strides = distinct(strides, shape, kind.itemsize)
    return _Found(operator.index(ptr), shape, strides, kind, bool(readonly), memory)
