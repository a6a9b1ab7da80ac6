"""What dtypes are called in DLPack, and what of others can be had through it.

The capsules themselves are made and consumed in C (_native/dlpack.c).
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from .. import _native
from ..errors import DTypeError

CPU, CUDA, CUDA_MANAGED = 1, 2, 13
COPIED, PADDED = 1 << 1, 1 << 2  # flags: a copy made for the consumer; small numbers, a byte each
VERSION = (1, 1)
LEGACY_STREAM = 1

_KINDS = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
_SMALL = {  # of ml_dtypes: (code, bits)
    "bfloat16": (4, 16),
    "float8_e3m4": (7, 8), "float8_e4m3": (8, 8), "float8_e4m3b11fnuz": (9, 8),
    "float8_e4m3fn": (10, 8), "float8_e4m3fnuz": (11, 8), "float8_e5m2": (12, 8),
    "float8_e5m2fnuz": (13, 8), "float8_e8m0fnu": (14, 8),
    "float6_e2m3fn": (15, 6), "float6_e3m2fn": (16, 6), "float4_e2m1fn": (17, 4),
    "int4": (0, 4), "uint4": (1, 4), "int2": (0, 2), "uint2": (1, 2),
}  # fmt: skip


def code_of(dtype: np.dtype[Any]) -> tuple[int, int]:
    """(code, bits) of a dtype. Raises DTypeError."""
    found: tuple[int, int] | None = None
    if dtype.isbuiltin == 1 and dtype.kind in _KINDS and dtype.char not in "gG":
        found = _KINDS[dtype.kind], dtype.itemsize * 8
    elif dtype.isbuiltin == 2:
        found = _SMALL.get(dtype.name)
    if found is None or not dtype.isnative:
        raise DTypeError(f"DLPack has no {dtype}; export .view('u1') instead")
    return found


def dtype_of(code: int, bits: int, lanes: int) -> np.dtype[Any]:
    """The dtype of a code. Raises DTypeError."""
    for kind, number in _KINDS.items():
        if code == number and lanes == 1 and bits in (8, 16, 32, 64, 128):
            return np.dtype(f"{kind}{bits // 8}" if kind != "b" else "?")
    name = next((n for n, known in _SMALL.items() if known == (code, bits)), None)
    if name is None or lanes != 1:
        raise DTypeError(f"a DLPack type of code {code}, {bits} bits and {lanes} lanes is unknown here")
    try:
        return np.dtype(getattr(importlib.import_module("ml_dtypes"), name))
    except (ImportError, AttributeError):
        raise DTypeError(f"the memory holds {name}, which NumPy has from ml_dtypes: install that") from None


def borrow(lender: Any) -> tuple[Any, int, tuple[int, ...], tuple[int, ...] | None, np.dtype[Any]] | None:
    """(what keeps it, device address, shape, strides in bytes or None, dtype) of memory on a GPU
    that an object lends by DLPack; None where it lends none."""
    if not hasattr(lender, "__dlpack__") or not hasattr(lender, "__dlpack_device__"):
        return None
    if lender.__dlpack_device__()[0] not in (CUDA, CUDA_MANAGED):
        return None
    try:
        capsule = lender.__dlpack__(stream=LEGACY_STREAM, max_version=VERSION)
    except TypeError:  # from before versions
        capsule = lender.__dlpack__(stream=LEGACY_STREAM)
    return unpacked(capsule)


def unpacked(capsule: Any) -> tuple[Any, int, tuple[int, ...], tuple[int, ...] | None, np.dtype[Any]]:
    """What a capsule holds, as ``borrow``. Consumes it. Raises DTypeError."""
    try:
        keeper, address, shape, strides, kind, _, flags = _native.borrow(capsule)
    except ValueError as e:
        raise DTypeError(f"the memory cannot be had by DLPack: {e}") from None
    dtype = dtype_of(*kind)
    if kind[1] < 8 and not flags & PADDED:
        raise DTypeError(f"the memory holds packed {dtype}; NumPy has them a byte each")
    steps = None if strides is None else tuple(s * dtype.itemsize for s in strides)
    return keeper, address, shape, steps, dtype
