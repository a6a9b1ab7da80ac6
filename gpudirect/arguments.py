"""What calls are given, made into what the runtime works with: whole numbers, dtypes, shapes, data."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from . import _native
from .errors import ArgumentError, DTypeError
from .extent import Shape
from .host import HostView


def index(value: object, what: str) -> int:
    """A whole number of bytes; ``what`` names it in the error."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise DTypeError(f"{what} is {value!r}: give a whole number of bytes") from None


def as_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """A dtype that device memory can hold. Raises DTypeError."""
    try:
        kind = np.dtype(dtype)
    except TypeError as e:
        raise DTypeError(f"{dtype!r} is no dtype: {e}") from None
    if kind.hasobject:
        raise DTypeError(
            f"dtype {kind} holds Python objects, which mean nothing on a device; use a structured "
            "dtype of plain fields"
        )
    if kind.subdtype is not None:
        raise DTypeError(f"dtype {kind} has a shape of its own; put it into the array's shape")
    if kind.itemsize == 0:
        raise DTypeError(f"dtype {kind!r} has no bytes; give it a length ('S8', 'U4', 'V16')")
    return kind


def as_shape(shape: Any) -> Shape:
    """Extents, none negative. Raises DTypeError or ArgumentError."""
    parts = shape if isinstance(shape, Sequence) and not isinstance(shape, str) else (shape,)
    try:
        clean = tuple(operator.index(n) for n in parts)
    except TypeError:
        raise DTypeError(f"shape {shape!r} is not made of whole numbers") from None
    if any(n < 0 for n in clean):
        raise ArgumentError(f"shape {clean} has a negative extent")
    return clean


def overlap(source: np.ndarray[Any, Any], start: int, size: int) -> bool:
    """Whether any byte of ``source`` may lie in ``size`` bytes at ``start``."""
    low, high = np.lib.array_utils.byte_bounds(source)
    return low < start + size and start < high


def as_source(data: Any, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Data to be stored, as a NumPy array without a copy: numbers and lists become ``dtype``."""
    if isinstance(data, HostView):
        return data.fetch()  # a mapped source is read in bulk, not load by load
    if isinstance(data, _native.Mapped):
        return data.read()
    if isinstance(data, (bytes, bytearray)):
        return np.frombuffer(data, np.uint8)
    try:
        if hasattr(data, "dtype") or isinstance(data, memoryview):
            return np.asarray(data)
        try:
            return np.asarray(memoryview(data))
        except TypeError:
            return np.asarray(data, dtype)
    except (TypeError, ValueError, OverflowError) as e:
        raise DTypeError(f"{type(data).__name__} cannot be stored as {dtype}: {e}") from None


def as_bytes(data: Any) -> np.ndarray[Any, Any]:
    """Bytes-like data or a NumPy array, as bytes; copied only where it is not contiguous."""
    found = as_source(data, np.dtype(np.uint8))
    if found.dtype.hasobject:
        raise DTypeError("object arrays hold addresses of Python objects; they stay on the CPU")
    return np.ascontiguousarray(found).reshape(-1).view(np.uint8)
