"""PyTorch: tensors in memory that the CPU writes directly.

    with gd.torch.mapped():
        x = torch.zeros(1024, device="cuda")
    gd.host(x)[17] = 3.5                       # a plain store, straight to the GPU

Tensors made elsewhere go in by ``gd.register(x)``, our arrays go out by ``torch.from_dlpack(a)``.

    inputs = gd.torch.Inputs({"ids": (64, torch.int32), "tables": ((64, 128), torch.int32)}, ahead=1)
    with torch.cuda.graph(graph):
        inputs.take()
        logits = model(**inputs.tensors)
    inputs["ids"][:n] = ids
    inputs.replay(graph)
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from . import _allocator, _inputs, _native, bridges, devices
from ._frameworks import load
from .devices import Device, Stream
from .errors import ArgumentError, DTypeError

NEEDS = ("cuda.MemPool", "cuda.use_mem_pool", "cuda.memory.CUDAPluggableAllocator")

_allocators: list[Any] = []
_idle: dict[int, list[Any]] = {}
"""The pools of each GPU that no thread uses now."""
_here = threading.local()


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
    """A new ``torch.cuda.MemPool`` of a GPU whose memory comes from here, for ``torch.cuda.use_mem_pool``
    by hand: by one thread at a time, as PyTorch has it.

    device: as PyTorch takes it; None is its current one.
    Raises FrameworkError, DeviceNotFoundError, BridgeUnavailableError.
    """
    torch = _torch()
    index = _index(torch, device)
    there = _device(index)
    bridges.choose(there, None)  # raises here, and not at the first view
    _allocator.open_for(there)
    # kept for ever: PyTorch refers to it by address from every block
    if not _allocators:
        _allocators.append(torch.cuda.memory.CUDAPluggableAllocator(
            _native.library, "gpudirect_alloc", "gpudirect_free"))  # fmt: skip
    with torch.cuda.device(index):  # a pool is of the device that is current
        return torch.cuda.MemPool(_allocators[0].allocator())


@contextlib.contextmanager
def mapped(device: object = None) -> Iterator[None]:
    """Tensors that this thread makes in the ``with`` block are in memory that ``gd.host`` maps.

    device: as PyTorch takes it; None is its current one. Threads may be in such a block at once.
    PyTorch caches the memory and hands it out again as it does its own, for later blocks only. A block of
    memory (2 MiB, or what a large tensor needs) is mapped when ``gd.host`` or ``gd.register`` first asks for
    a tensor in it, and takes aperture from then on.
    Where memory runs out PyTorch raises its own ``torch.cuda.OutOfMemoryError``; it keeps
    what such a pool has cached, ``torch.cuda.empty_cache()`` as well: only a ``pool()`` of your own that is
    dropped gives its memory back.
    Raises FrameworkError, DeviceNotFoundError, BridgeUnavailableError.
    """
    torch = _torch()
    index = _index(torch, device)
    if index in _entered():
        yield  # this thread does so already
        return
    idle = _idle.setdefault(index, [])
    try:
        found = idle.pop()
    except IndexError:
        found = pool(index)
    try:
        with torch.cuda.use_mem_pool(found, device=index):
            _entered().add(index)
            try:
                yield
            finally:
                _entered().discard(index)
    finally:
        idle.append(found)  # a pool serves one thread at a time


def _entered() -> set[int]:
    """Devices of the ``mapped`` blocks that this thread is in."""
    found: set[int] | None = getattr(_here, "entered", None)
    if found is None:
        found = _here.entered = set()
    return found


class Inputs(_inputs.Inputs):
    """``gd.Inputs`` for graphs of PyTorch: named inputs of a captured step, written by the CPU.

    fields: {name: (shape, dtype)} with dtypes of NumPy or PyTorch, or a tensor for a value. They start as 0.
    ahead: how many steps may be queued behind the one that runs before ``replay`` waits.
    device: as PyTorch takes it; None is its current one.

    ``inputs[name]`` is a NumPy array in ordinary memory: the values of the next step. ``tensors[name]`` is
    what the graph reads. ``take()`` comes first in what is captured; ``replay(graph)`` gives the step its
    values and replays it, on PyTorch's current stream.
    Raises FrameworkError, and what ``gd.Inputs`` raises.
    """

    def __init__(self, fields: Mapping[str, Any], *, ahead: int = 0, device: object = None,
                 bridge: str | None = None) -> None:
        torch = load("torch", "torch", "from_dlpack", since="2.0")
        there = device if isinstance(device, Device) else _device(_index(torch, device))
        named = {name: _field(field) for name, field in fields.items()} if isinstance(fields, Mapping) \
            else fields  # fmt: skip
        self._raw = None if there.emulated else _raw_stream(torch, there.ordinal)
        self._current: tuple[int, Stream] = 0, there.default_stream
        super().__init__(named, ahead=ahead, device=there, bridge=bridge)
        self.tensors: Mapping[str, Any] = MappingProxyType(
            {name: torch.from_dlpack(array) for name, array in self.arrays.items()}
        )
        """What the graph reads, by name: at the same addresses always."""

    def _stream(self, stream: Any) -> Stream:
        if stream is not None or self._raw is None:
            return super()._stream(stream)
        number = self._raw()
        if number != self._current[0]:
            self._current = number, self.device.adopt_stream(number)
        return self._current[1]

    def close(self) -> None:
        """Give the memory back, once what was replayed is done and ``tensors`` are gone. Safe twice."""
        self.tensors = MappingProxyType({})
        super().close()


def _raw_stream(torch: Any, index: int) -> Any:
    """A function that gives the number of PyTorch's current stream."""
    quick = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return (lambda: quick(index)) if quick else (lambda: torch.cuda.current_stream(index).cuda_stream)


def _field(field: Any) -> Any:
    """An input's shape and dtype in NumPy's words."""
    if hasattr(field, "shape") and hasattr(field, "dtype"):
        field = tuple(field.shape), field.dtype
    if isinstance(field, tuple) and len(field) == 2 and str(field[1]).startswith("torch."):
        return field[0], _dtype(str(field[1]).removeprefix("torch."))
    return field


def _dtype(name: str) -> np.dtype[Any]:
    with contextlib.suppress(TypeError):
        return np.dtype(name)
    try:
        return np.dtype(getattr(importlib.import_module("ml_dtypes"), name))
    except (ImportError, AttributeError):
        raise DTypeError(f"torch.{name} is no dtype of NumPy's: install ml_dtypes, which has more") from None


def _after_fork_in_child() -> None:
    # what they are belongs to the parent: neither used nor destroyed here
    _left.extend([*_allocators, *_idle.values()])
    _allocators.clear()
    _idle.clear()


_left: list[Any] = []
os.register_at_fork(after_in_child=_after_fork_in_child)

__all__ = ["Inputs", "mapped", "pool"]
