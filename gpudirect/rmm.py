"""RMM, the memory manager of RAPIDS: cuDF, cuML and who else allocates by it, in mapped memory.

    rmm.mr.set_current_device_resource(gd.rmm.resource())
    rmm.mr.PoolMemoryResource(gd.rmm.resource())          # or below a pool of RMM's
"""

from __future__ import annotations

from typing import Any

from . import _allocator, bridges, devices
from ._frameworks import load
from .devices import Device


def resource(device: Device | str | int | None = None) -> Any:
    """An ``rmm.mr.CallbackMemoryResource`` whose memory comes from here.

    device: as everywhere. Where memory runs out RMM raises ``MemoryError``.
    Raises FrameworkError, DeviceNotFoundError, BridgeUnavailableError.
    """
    rmm = load("rmm", "rmm-cu13", "mr.CallbackMemoryResource", since="23.02")
    there = devices.get(device)
    bridges.choose(there, None)
    loans = _allocator.Loans(there)

    def allocate(nbytes: int, stream: Any = None) -> int:
        return loans.take(nbytes)

    def deallocate(ptr: int, nbytes: int, stream: Any = None) -> None:
        loans.give(ptr, _number(stream))

    return rmm.mr.CallbackMemoryResource(allocate, deallocate)


def _number(stream: Any) -> Any:
    """A stream of RMM's as ours takes it: of late by __cuda_stream__, before by value()."""
    if stream is None or hasattr(stream, "__cuda_stream__"):
        return stream
    return stream.value() if hasattr(stream, "value") else stream


__all__ = ["resource"]
