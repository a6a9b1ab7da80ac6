"""Arrays on device memory that others allocated."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from .. import bridges, devices
from ..arguments import as_shape, index
from ..devices import Device
from ..dtypes import as_dtype
from ..errors import ArgumentError, DTypeError, RangeError
from ..extent import Shape, packed
from ..memory import Registration
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

    memory: an object with ``__cuda_array_interface__`` (PyTorch, CuPy, Numba, ...), a cuda.core
        ``Buffer``, or a device address, with ``nbytes`` then.
    shape, dtype: how to see it; by default as the object sees itself, an address as bytes.
    device: None finds the one that holds the memory.
    The owner must keep the memory alive (an object given here is referred to). It may start
    anywhere in a physical block and span several.
    Raises NotMappableError, with the bridge that could, when this one cannot map the memory.
    """
    ptr, extents, strides, kind, readonly = _describe(memory, nbytes)
    if readonly:
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
    # of an Array the memory itself, which stays when the array is closed
    owner = memory._open() if isinstance(memory, Array) else memory
    piece = Registration(chosen, bridges.choose(chosen, bridge), ptr, span, owner)
    return Array._make(piece, ptr, extents, strides, kind)


def _describe(memory: Any, nbytes: int | None) -> tuple[int, Shape, Shape | None, Any, bool]:
    """(address, shape, strides or None, dtype, read-only) of somebody's device memory."""
    if isinstance(memory, Array):
        memory._open()
        return memory.ptr, memory.shape, None if memory.contiguous else memory.strides, \
            memory.dtype, False  # fmt: skip
    interface = getattr(memory, "__cuda_array_interface__", None)
    if interface is not None:
        try:
            return _of_interface(interface)
        except (KeyError, TypeError, ValueError) as e:
            raise DTypeError(
                f"{type(memory).__name__} has a __cuda_array_interface__ that makes no sense: {e}"
            ) from None
    if hasattr(memory, "handle") and hasattr(memory, "size"):  # cuda.core.Buffer
        return int(memory.handle), (int(memory.size),), None, np.dtype("u1"), False
    try:
        ptr = operator.index(memory)
    except TypeError:
        raise DTypeError(
            f"{type(memory).__name__} is no device memory: give an object with "
            "__cuda_array_interface__, a cuda.core Buffer, or an address and nbytes"
        ) from None
    if nbytes is None:
        raise ArgumentError("an address alone is not enough: give nbytes as well")
    size = index(nbytes, "nbytes")
    if size <= 0 or ptr <= 0 or (ptr + size) >> ADDRESS_BITS:
        raise ArgumentError(f"{size} bytes at {ptr:#x} are no range of device memory")
    return ptr, (size,), None, np.dtype("u1"), False


def _of_interface(interface: dict[str, Any]) -> tuple[int, Shape, Shape | None, Any, bool]:
    (ptr, readonly), shape = interface["data"], as_shape(interface["shape"])
    typestr, descr = str(interface["typestr"]), interface.get("descr") or []
    kind = as_dtype(list(descr) if typestr.startswith("|V") and len(descr) > 1 else typestr)
    strides = interface.get("strides")
    if strides is not None:
        strides = tuple(operator.index(s) for s in strides)
        if len(strides) != len(shape):
            raise ValueError(f"strides {strides} of a shape {shape}")
        if strides == packed(shape, kind.itemsize):
            strides = None
    return operator.index(ptr), shape, strides, kind, bool(readonly)
