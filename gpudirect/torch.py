"""PyTorch: tensors in memory that the CPU writes directly.

    with gd.torch.mapped():
        x = torch.zeros(1024, device="cuda")
    gd.host(x)[17] = 3.5                       # a plain store, straight to the GPU

Tensors made elsewhere go in by ``gd.register(x)``, our arrays go out by ``torch.from_dlpack(a)``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from . import _allocator, _native, bridges, devices
from ._frameworks import load
from .devices import Device
from .errors import ArgumentError

NEEDS = ("cuda.MemPool", "cuda.use_mem_pool", "cuda.memory.CUDAPluggableAllocator")

_allocators: dict[str, Any] = {}
_pools: dict[int, Any] = {}


def _torch() -> Any:
    return load("torch", "torch", *NEEDS, since="2.6")


def _device(index: int) -> Device:
    """PyTorch's device of a number. Raises DeviceNotFoundError."""
    return devices.get(f"cuda:{index}")


def _index(torch: Any, device: object) -> int:
    """A device as PyTorch takes it: None, a number, "cuda:1", a torch.device, a Device of ours."""
    if isinstance(device, Device):
        return device.ordinal
    if device is None:
        return int(torch.cuda.current_device())
    if isinstance(device, int):
        return device
    found = torch.device(device)
    if found.type != "cuda":
        raise ArgumentError(f"the device is {device!r}: memory is mapped from GPUs, as in 'cuda:0'")
    return int(torch.cuda.current_device() if found.index is None else found.index)


def pool(device: object = None) -> Any:
    """The ``torch.cuda.MemPool`` of a GPU whose memory comes from here: for ``torch.cuda.use_mem_pool``
    by hand. One for each GPU, made by the first call.

    device: as PyTorch takes it; None is its current one.
    Raises FrameworkError, DeviceNotFoundError, BridgeUnavailableError.
    """
    torch = _torch()
    index = _index(torch, device)
    there = _device(index)
    bridges.choose(there, None)  # raises here, and not at the first view
    _allocator.open_for(there)
    if index not in _pools:
        with torch.cuda.device(index):  # a pool is of the device that is current
            if not _allocators:
                _allocators["torch"] = torch.cuda.memory.CUDAPluggableAllocator(
                    _native.library, "gpudirect_alloc", "gpudirect_free"
                )
            # kept for ever: PyTorch refers to it by address from every block
            _pools[index] = torch.cuda.MemPool(_allocators["torch"].allocator())
    return _pools[index]


@contextlib.contextmanager
def mapped(device: object = None) -> Iterator[Any]:
    """Tensors that this thread makes in the ``with`` block are in memory that ``gd.host`` maps.

    device: as PyTorch takes it; None is its current one. Gives the ``torch.cuda.MemPool``.
    PyTorch caches the memory and hands it out again as it does its own; ``torch.cuda.empty_cache()``
    gives back what is unused. A block (2 MiB, or what a large tensor needs) is mapped when ``gd.host``
    or ``gd.register`` first asks for a tensor in it, and takes aperture from then on.
    Where memory runs out PyTorch raises its own ``torch.cuda.OutOfMemoryError``.
    Raises FrameworkError, DeviceNotFoundError, BridgeUnavailableError.
    """
    torch = _torch()
    index = _index(torch, device)
    found = pool(index)
    with torch.cuda.use_mem_pool(found, device=index):
        yield found


def _after_fork_in_child() -> None:
    # what they are belongs to the parent: neither used nor destroyed here
    _left.extend([dict(_pools), dict(_allocators)])
    _pools.clear()
    _allocators.clear()


_left: list[Any] = []
os.register_at_fork(after_in_child=_after_fork_in_child)

__all__ = ["mapped", "pool"]
