"""Device memory for other libraries: the CUDA array interface and DLPack."""

from __future__ import annotations

import contextlib
from typing import Any

from .. import _native
from ..extent import Extent
from . import _dlpack


def array_interface(extent: Extent) -> dict[str, Any]:
    """``__cuda_array_interface__``, version 3. Raises AttributeError for emulated memory."""
    if extent.memory.device.emulated:
        raise AttributeError("this memory is emulated: no CUDA library can use it (np.asarray can)")
    extent.memory.exported = True
    _native.lib.gd_fence()  # the consumer launches without us
    found = {
        "version": 3,
        "data": (extent.address, False),
        "shape": extent.shape,
        "strides": extent.distinct,
        "typestr": extent.dtype.str,
        "stream": 1,
    }
    with contextlib.suppress(ValueError):  # fields that overlap have no description
        found["descr"] = extent.dtype.descr
    return found


def dlpack_device(extent: Extent) -> tuple[int, int]:
    """(DLPack device type, number)."""
    device = extent.memory.device
    return _dlpack.device_of(device.emulated, device.ordinal)


def dlpack(
    extent: Extent,
    max_version: tuple[int, int] | None,
    dl_device: tuple[int, int] | None,
    copy: bool | None,
) -> object:
    """A DLPack capsule that keeps the memory. Raises BufferError, DTypeError."""
    memory, device = extent.memory, dlpack_device(extent)
    if copy:
        raise BufferError("this exporter shares memory; copy=True is for the consumer to do")
    if dl_device is not None and tuple(dl_device) != device:
        raise BufferError(f"the memory is on {memory.device.id}, not on {dl_device}")
    memory.exported = True
    _native.lib.gd_fence()
    address = extent.host if memory.device.emulated else extent.address
    return _dlpack.capsule(
        memory, address, extent.shape, extent.strides, extent.dtype, device,
        versioned=max_version is not None and max_version[0] >= 1,
    )  # fmt: skip
