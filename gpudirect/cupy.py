"""CuPy: arrays in memory that the CPU writes directly.

    with gd.cupy.mapped():
        x = cupy.zeros(1024)
    gd.host(x)[17] = 3.5                       # a plain store, straight to the GPU

``cupy.cuda.set_allocator(gd.cupy.pool().malloc)`` makes it so for the whole program. Arrays made elsewhere
go in by ``gd.register(x)``, our arrays go out by ``cupy.asarray(a)``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from . import _allocator, bridges, devices
from ._frameworks import load
from .devices import Device
from .errors import OutOfMemoryError

OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation

_pools: list[Any] = []
_loans: dict[int, _allocator.Loans] = {}


def _cupy() -> Any:
    return load("cupy", "cupy-cuda13x", "cuda.MemoryPool", "cuda.UnownedMemory", "cuda.using_allocator",
                since="10")  # fmt: skip


def _device(index: int) -> Device:
    return devices.get(f"cuda:{index}")


def _malloc(nbytes: int) -> Any:
    """What CuPy's pool calls: memory on the current device, given back when CuPy drops it."""
    cupy = _cupy()
    index = int(cupy.cuda.runtime.getDevice())
    loans = _loans.get(index)
    if loans is None:
        loans = _loans.setdefault(index, _allocator.Loans(_device(index)))
    try:
        ptr, owner = loans.owned(nbytes, cupy.cuda.get_current_stream())
    except OutOfMemoryError:
        # in CuPy's own words: its pool gives back what it keeps, asks again, and then raises its own error
        raise cupy.cuda.runtime.CUDARuntimeError(OUT_OF_MEMORY) from None
    return cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(ptr, nbytes, owner, index), 0)


def pool() -> Any:
    """The ``cupy.cuda.MemoryPool`` whose memory comes from here, for all GPUs: one for the process.

    Its ``malloc`` is an allocator, ``free_all_blocks()`` gives back what is unused.
    Raises FrameworkError, DeviceNotFoundError, BridgeUnavailableError.
    """
    cupy = _cupy()
    bridges.choose(_device(int(cupy.cuda.runtime.getDevice())), None)  # raises here, not at the first array
    if not _pools:
        _pools.append(cupy.cuda.MemoryPool(_malloc))
    return _pools[0]


@contextlib.contextmanager
def mapped() -> Iterator[Any]:
    """Arrays that this thread makes in the ``with`` block are in mapped memory. Gives the pool.

    Where memory runs out CuPy raises its own ``cupy.cuda.memory.OutOfMemoryError``.
    Raises FrameworkError, DeviceNotFoundError, BridgeUnavailableError.
    """
    found = pool()
    with _cupy().cuda.using_allocator(found.malloc):
        yield found


def _after_fork_in_child() -> None:
    _left.extend([*_pools, *_loans.values()])  # the parent's: neither used nor given back here
    _pools.clear()
    _loans.clear()


_left: list[Any] = []
os.register_at_fork(after_in_child=_after_fork_in_child)

__all__ = ["mapped", "pool"]
