"""What a dtype may become: the one place that decides it, for every way in and out.

Numbers and lists become the array's dtype as NumPy has it. What has a dtype keeps its values or is
refused: only the byte order may change. Bytes without a dtype are elements as they lie in memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from .errors import ArgumentError, DTypeError

_NUMBERS = frozenset("bBhHiIlLqQefdg?")  # dtype.char of what a struct format names in one letter


def as_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """A dtype that device memory can hold. Raises DTypeError."""
    try:
        kind = np.dtype(dtype)
    except (TypeError, ValueError) as e:
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


def written(dtype: np.dtype[Any]) -> str:
    """A dtype as one writes it in a program."""
    return str(dtype) if dtype.kind == "V" else repr(dtype.str)


def typestr(dtype: np.dtype[Any]) -> str:
    """A dtype in an array interface: fields, titles and dtypes of others go as bytes, since they
    do not survive it."""
    return dtype.str if dtype.names is None and dtype.isbuiltin != 2 else f"|V{dtype.itemsize}"


def letter(dtype: np.dtype[Any]) -> str | None:
    """The struct format letter of a number in this machine's byte order; None for all else."""
    char = dtype.char  # which dtypes of others (ml_dtypes) use again
    return char if char in _NUMBERS and dtype.isnative and dtype.isbuiltin == 1 else None


def same_values(found: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Whether two dtypes differ in nothing but the order of bytes."""
    return found == wanted or np.can_cast(found, wanted, "equiv")


def refuse(found: np.dtype[Any], wanted: np.dtype[Any], what: str = "data") -> DTypeError:
    """The error for data of a dtype that would have to be taken for another."""
    if found.hasobject:
        return DTypeError(
            f"{what} is an object array, of addresses of Python objects; they stay on the CPU"
        )
    return DTypeError(
        f"{what} of dtype {found} would be taken for {wanted}: convert it with "
        f".astype({written(wanted)}), or move bytes through a.view('u1')"
    )


def become(source: np.ndarray[Any, Any], dtype: np.dtype[Any], what: str = "data") -> np.ndarray[Any, Any]:
    """The same values in another dtype, copied where the byte order differs. Raises DTypeError."""
    if source.dtype == dtype:
        return source
    if source.dtype.hasobject or not same_values(source.dtype, dtype):
        raise refuse(source.dtype, dtype, what)
    return source.astype(dtype)


def elements(raw: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Bytes without a dtype as elements, without a copy. Raises ArgumentError for part of one."""
    if dtype.itemsize == 1 and dtype.names is None:
        return raw.view(dtype)
    flat = np.ascontiguousarray(raw).reshape(-1)
    if flat.size % dtype.itemsize:
        raise ArgumentError(
            f"{flat.size} bytes are no whole number of {dtype} ({dtype.itemsize} bytes each); "
            "a.view('u1') takes any number"
        )
    return flat.view(dtype)


def pointee(dtype: np.dtype[Any]) -> str:
    """Kind and size of a number as compilers have them, "f4" say; '' for what they have not."""
    return dtype.kind + str(dtype.itemsize) if dtype.kind in "iufb" else ""


def why_no_pointer(dtype: np.dtype[Any], wanted: str) -> str:
    """Why elements of a dtype cannot be handed to code as a pointer to ``wanted`` ("f4" say; void and
    what is no number take anything); '' where they can."""
    if not wanted or wanted[0] not in "iufb":
        return ""
    own = pointee(dtype)
    if own and own != wanted:
        return f"its elements are {own}; use .view() if that is meant"
    if not dtype.isnative:
        return (
            f"its elements are {dtype.str}, in the other byte order than the device's; convert "
            "them, or give .view('u1')"
        )
    return ""
