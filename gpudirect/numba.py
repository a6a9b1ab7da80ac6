"""Numba-CUDA: device arrays in memory that the CPU writes directly, by its plugins for memory.

    NUMBA_CUDA_MEMORY_MANAGER=gpudirect.numba python program.py
    gd.numba.install()                         # the same, before Numba first uses the GPU

    x = cuda.device_array(1024, "f4")
    gd.host(x)[17] = 3.5                       # a plain store, straight to the GPU
"""

from __future__ import annotations

import functools
import weakref
from functools import partial
from typing import Any

from . import _allocator, devices
from ._frameworks import load
from .devices import Device
from .errors import OutOfMemoryError

OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


def _cuda() -> Any:
    return load("numba.cuda", "numba-cuda", "HostOnlyCUDAMemoryManager", "MemoryPointer", "MemoryInfo",
                "set_memory_manager", since="0.14")  # fmt: skip


def _device(index: int) -> Device:
    return devices.get(f"cuda:{index}")


def install() -> None:
    """Have Numba allocate device memory here: ``numba.cuda.set_memory_manager``.

    Before Numba first uses the GPU. Raises FrameworkError.
    """
    cuda = _cuda()
    cuda.set_memory_manager(_manager(cuda))


def __getattr__(name: str) -> Any:
    if name == "_numba_memory_manager":  # what Numba looks for in the module that it was told of
        return _manager(_cuda())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _manager(cuda: Any) -> Any:
    """The class, made when Numba is there."""

    class MappedMemoryManager(cuda.HostOnlyCUDAMemoryManager):  # type: ignore[misc]
        """Numba's memory manager, version 1: device memory from gpudirect, host memory Numba's own."""

        interface_version = 1

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._loans: _allocator.Loans | None = None

        def initialize(self) -> None:
            if self._loans is None:
                self._loans = _allocator.Loans(_device(self.context.device.id))

        def memalloc(self, size: int) -> Any:
            self.initialize()
            loans = self._loans
            assert loans is not None
            ptr = self._attempt_allocation(partial(_take, cuda, loans, size))
            # Numba's streams are ordered with the default one, on which what goes back is waited for
            return cuda.MemoryPointer(weakref.proxy(self.context), ptr, size,
                                      finalizer=partial(loans.give, ptr))  # fmt: skip

        def get_memory_info(self) -> Any:
            self.initialize()
            assert self._loans is not None
            free, total = self._loans.device.memory()
            return cuda.MemoryInfo(free=free, total=total)

        def get_ipc_handle(self, memory: Any) -> Any:
            raise NotImplementedError("CUDA's legacy IPC knows no memory of cuMemCreate, which this is")

    return MappedMemoryManager


def _take(cuda: Any, loans: _allocator.Loans, size: int) -> int:
    try:
        return loans.take(size)
    except OutOfMemoryError as e:  # in Numba's own words: it gives back what it deferred, and asks again
        raise cuda.cudadrv.driver.CudaAPIError(OUT_OF_MEMORY, str(e)) from None


__all__ = ["install"]
