"""DLPack export: the capsule that hands memory to another library without a copy.

Layouts are those of dlpack.h 1.0 (https://dmlc.github.io/dlpack/latest/c_api.html).
"""

from __future__ import annotations

import ctypes
import itertools
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char_p,
    c_int32,
    c_int64,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    c_void_p,
    py_object,
)
from typing import Any

import numpy as np

from ..errors import DTypeError

CPU, CUDA = 1, 2
KINDS = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}


class DLDevice(Structure):
    _fields_ = [("type", c_int32), ("id", c_int32)]


class DLDataType(Structure):
    _fields_ = [("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16)]


class DLTensor(Structure):
    _fields_ = [
        ("data", c_void_p), ("device", DLDevice), ("ndim", c_int32), ("dtype", DLDataType),
        ("shape", POINTER(c_int64)), ("strides", POINTER(c_int64)), ("byte_offset", c_uint64),
    ]  # fmt: skip


DELETER = CFUNCTYPE(None, c_void_p)


class DLManagedTensor(Structure):
    _fields_ = [("tensor", DLTensor), ("context", c_void_p), ("deleter", DELETER)]


class DLManagedTensorVersioned(Structure):
    _fields_ = [
        ("major", c_uint32), ("minor", c_uint32), ("context", c_void_p), ("deleter", DELETER),
        ("flags", c_uint64), ("tensor", DLTensor),
    ]  # fmt: skip


_alive: dict[int, tuple[object, ...]] = {}  # exports that a consumer still holds
_numbers = itertools.count(1)

_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = py_object, [c_void_p, c_char_p, c_void_p]
_valid = ctypes.pythonapi.PyCapsule_IsValid
_valid.restype, _valid.argtypes = ctypes.c_int, [c_void_p, c_char_p]
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = c_void_p, [c_void_p, c_char_p]

_NAMES = {False: b"dltensor", True: b"dltensor_versioned"}


def _delete(versioned: bool) -> Any:
    kind = DLManagedTensorVersioned if versioned else DLManagedTensor

    @DELETER  # type: ignore[untyped-decorator]
    def delete(managed: int) -> None:
        _alive.pop(kind.from_address(managed).context or 0, None)

    return delete


_DELETERS = {v: _delete(v) for v in (False, True)}


@CFUNCTYPE(None, c_void_p)  # type: ignore[untyped-decorator]
def _abandoned(capsule: int) -> None:
    """A capsule that nobody consumed (a consumer renames it) gives its export back itself."""
    for versioned, name in _NAMES.items():
        if _valid(capsule, name):
            _DELETERS[versioned](_pointer(capsule, name))


def device_of(emulated: bool, ordinal: int) -> tuple[int, int]:
    """(DLPack device type, number). Emulated memory is the CPU's, and says so."""
    return (CPU, 0) if emulated else (CUDA, ordinal)


def capsule(keep: object, address: int, shape: tuple[int, ...], strides: tuple[int, ...],
            dtype: np.dtype[Any], device: tuple[int, int], *, versioned: bool) -> object:
    """A DLPack capsule of memory that stays alive until the consumer lets go of it."""
    if dtype.kind not in KINDS or not dtype.isnative:
        raise DTypeError(f"DLPack has no {dtype}; export .view('u1') instead")
    ndim = len(shape)
    extents = (c_int64 * ndim)(*shape)
    steps = (c_int64 * ndim)(*(s // dtype.itemsize for s in strides))
    tensor = DLTensor(
        address, DLDevice(*device), ndim, DLDataType(KINDS[dtype.kind], dtype.itemsize * 8, 1),
        extents, steps, 0,
    )  # fmt: skip
    number = next(_numbers)
    managed: Structure
    if versioned:
        managed = DLManagedTensorVersioned(1, 0, number, _DELETERS[True], 0, tensor)
    else:
        managed = DLManagedTensor(tensor, number, _DELETERS[False])
    _alive[number] = (managed, extents, steps, keep)
    return _new(ctypes.addressof(managed), _NAMES[versioned], ctypes.cast(_abandoned, c_void_p))
