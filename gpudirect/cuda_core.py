"""cuda.core: buffers in memory that the CPU writes directly.

    resource = gd.cuda_core.resource()
    buffer = resource.allocate(4096, stream=stream)
    gd.host(buffer)[17] = 3                    # bytes, straight to the GPU
"""

from __future__ import annotations

import functools
from typing import Any

from . import _allocator, bridges, devices
from ._frameworks import load
from .devices import Device
from .errors import ArgumentError


def resource(device: Device | str | int | None = None) -> Any:
    """A ``cuda.core.MemoryResource`` whose memory comes from here.

    device: as everywhere. Where memory runs out gd.OutOfMemoryError is raised, a MemoryError.
    Raises FrameworkError, DeviceNotFoundError, BridgeUnavailableError.
    """
    core = load("cuda.core", "cuda-core", "MemoryResource", "Buffer.from_handle", since="1.0")
    there = devices.get(device)
    bridges.choose(there, None)
    return _resource_type(core)(there)


@functools.cache
def _resource_type(core: Any) -> Any:
    """The class, made when cuda.core is there."""

    class MappedMemoryResource(core.MemoryResource):  # type: ignore[misc]
        """Memory of gpudirect: mapped, and given back in the order of a stream."""

        def __init__(self, device: Device) -> None:
            self._loans = _allocator.Loans(device)

        def allocate(self, size: int, *, stream: Any) -> Any:
            """A buffer of ``size`` bytes; when it is closed, work on ``stream`` may still use it."""
            if size < 0:
                raise ArgumentError(f"a buffer of {size} bytes: give at least 0")
            ptr = self._loans.take(size)
            piece = self._loans.piece(ptr)
            try:
                return core.Buffer.from_handle(ptr, size, mr=self, stream=stream)
            except BaseException:
                self._loans.undo(ptr, piece)  # it may have done so itself
                raise

        def deallocate(self, ptr: Any, size: int, *, stream: Any) -> None:
            self._loans.give(int(ptr), stream)

        @property
        def is_device_accessible(self) -> bool:
            return True

        @property
        def is_host_accessible(self) -> bool:
            return False  # by loads that take 1 us each: gd.host says so, cuda.core could not

        @property
        def is_managed(self) -> bool:
            return False

        @property
        def device_id(self) -> int:
            return self._loans.device.ordinal

        def __repr__(self) -> str:
            return f"<MappedMemoryResource of {self._loans.device.id}>"

    return MappedMemoryResource


__all__ = ["resource"]
