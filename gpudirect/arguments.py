"""What calls are given, made into what the runtime works with: whole numbers, shapes, data."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from . import _native
from ._host import HostView
from .dtypes import become, elements, written
from .errors import ArgumentError, DTypeError, Error, RangeError
from .extent import Shape

MAX_DIMS = 64  # NumPy's


def index(value: object, what: str) -> int:
    """A whole number; ``what`` names it in the error. Raises DTypeError."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise DTypeError(f"{what} is {value!r}: give a whole number") from None


def flag(value: object, what: str) -> bool:
    """Whether something is true; ``what`` names it in the error. Raises ArgumentError."""
    try:
        return bool(value)
    except (TypeError, ValueError):
        raise ArgumentError(f"{what} is {value!r}: give True or False") from None


REFUSALS = (IndexError, TypeError, ValueError, OverflowError)
"""What NumPy raises for what it does not take."""


def refusal(e: Exception, doing: str) -> Error:
    """One of them as an error of ours, which is still of NumPy's kind."""
    if isinstance(e, Error):
        return e
    kinds = ((IndexError, RangeError), (TypeError, DTypeError), (Exception, ArgumentError))
    kind: type[Error] = next(ours for theirs, ours in kinds if isinstance(e, theirs))
    return kind(f"{doing}: {e}")


def as_shape(shape: Any) -> Shape:
    """Extents, none negative. Raises DTypeError or ArgumentError."""
    parts = shape if isinstance(shape, (Sequence, np.ndarray)) and not isinstance(shape, str) else (shape,)
    try:
        clean = tuple(operator.index(n) for n in parts)
    except TypeError:
        raise DTypeError(f"shape {shape!r} is not made of whole numbers") from None
    if any(n < 0 for n in clean):
        raise ArgumentError(f"shape {clean} has a negative extent")
    if len(clean) > MAX_DIMS:
        raise ArgumentError(f"a shape of {len(clean)} dimensions: NumPy has {MAX_DIMS} at most")
    return clean


_NOW = {
    "offset": "positions count elements: write start=, or move bytes through a.view('u1')",
    "nbytes": "sizes count elements: write count=, or move bytes through a.view('u1')",
    "size": "sizes count elements: write count=, or move bytes through a.view('u1')",
}


def refuse_keywords(call: str, given: dict[str, Any]) -> NoReturn:
    """Raises for keywords that a call does not have; those it had once are answered with what to
    write now."""
    for name in given:
        if name in _NOW:
            raise ArgumentError(f"{call}() has no {name}=: {_NOW[name]}")
    raise DTypeError(f"{call}() has no keyword {next(iter(given))!r}")


def overlap(source: np.ndarray[Any, Any], start: int, size: int) -> bool:
    """Whether any byte of ``source`` may lie in ``size`` bytes at ``start``."""
    if source.flags.c_contiguous:
        low = _native.address_of(source)
        return low < start + size and start < low + source.nbytes
    low, high = np.lib.array_utils.byte_bounds(source)
    return low < start + size and start < high


def raw_bytes(data: Any) -> memoryview | None:
    """Bytes that have no dtype: of bytes, bytearray, mmap, a memoryview of bytes. None for others."""
    if hasattr(data, "dtype"):
        return None
    try:
        view = memoryview(data)
    except TypeError:
        return None
    except ValueError as e:  # a memoryview that was released, a closed mmap
        raise ArgumentError(f"{type(data).__name__}: {e}") from None
    return view if view.format.lstrip("<=@") in ("B", "c") else None


def as_source(data: Any, dtype: np.dtype[Any], what: str = "data") -> np.ndarray[Any, Any]:
    """Data to be stored, as an array of ``dtype``; copied only where that takes a conversion.

    Raises DTypeError, or ArgumentError for bytes that hold no whole number of elements.
    """
    if type(data) is np.ndarray:
        return become(data, dtype, what)
    if isinstance(data, HostView):
        return become(data.fetch(), dtype, what)  # a mapped source is read in bulk
    if isinstance(data, _native.Mapped):
        return become(data.read(), dtype, what)
    raw = raw_bytes(data)
    if raw is not None:
        return elements(np.asarray(raw).view(np.uint8), dtype)
    try:
        if hasattr(data, "dtype"):
            found = np.asarray(data)
        else:
            try:
                found = np.asarray(memoryview(data))
            except TypeError:
                found = np.asarray(data, dtype)
    except (TypeError, ValueError, OverflowError) as e:
        raise DTypeError(f"{type(data).__name__} cannot be stored as {dtype}: {e}") from None
    return become(found, dtype, what)


def as_bytes(data: Any) -> np.ndarray[Any, Any]:
    """Bytes-like data or a NumPy array, as bytes; copied only where it is not contiguous."""
    if isinstance(data, HostView):
        found = data.fetch()
    elif isinstance(data, _native.Mapped):
        found = data.read()
    else:
        try:
            found = np.asarray(data if hasattr(data, "dtype") else memoryview(data))
        except (TypeError, ValueError) as e:
            raise DTypeError(f"{type(data).__name__} has no bytes to store: {e}") from None
    if found.dtype.hasobject:
        raise DTypeError("object arrays hold addresses of Python objects; they stay on the CPU")
    return np.ascontiguousarray(found).reshape(-1).view(np.uint8)


def as_element(value: Any, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """One value as an array of no dimensions. Raises DTypeError."""
    found = np.zeros((), dtype)
    try:
        found[()] = value
    except (TypeError, ValueError, OverflowError) as e:
        raise DTypeError(f"{value!r} is no {written(dtype)}: {e}") from None
    return found
