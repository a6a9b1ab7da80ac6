"""As much of PyTorch as our allocator meets: pools, a caching allocator with a lock of its own, tensors.

What it does is what torch 2.11 did on an H200: a segment is asked for with the allocator's lock held and
without Python's; a pool serves one block at a time; inside such a block nothing cached is given back, and
where a segment is refused, memory is out.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import types
from typing import Any

import numpy as np

SMALL, ROUND = 2 << 20, 2 << 20  # kSmallBuffer, kRoundLarge


class OutOfMemoryError(RuntimeError):
    pass


class CUDAPluggableAllocator:
    """By path and names, as torch.cuda.memory has it."""

    def __init__(self, path: str, alloc: str, free: str) -> None:
        library = ctypes.CDLL(path)
        self.alloc, self.free = getattr(library, alloc), getattr(library, free)
        self.alloc.restype = ctypes.c_void_p
        self.alloc.argtypes = [ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
        self.free.restype = None
        self.free.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]

    def allocator(self) -> CUDAPluggableAllocator:
        return self


class MemPool:
    def __init__(self, allocator: CUDAPluggableAllocator) -> None:
        self.allocator = allocator
        self.segments: dict[int, list[int]] = {}  # address -> [size, tensors in it, bytes given]


class Tensor:
    """A contiguous tensor; its block goes back to the cache when it dies."""

    def __init__(self, torch: Feigned, ptr: int, shape: tuple[int, ...], dtype: str, give: Any) -> None:
        self.shape, self.dtype, self.device = shape, np.dtype(dtype), "cuda:0"
        self._ptr, self._give = ptr, give

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self._ptr, False), "version": 2,
                "strides": None}  # fmt: skip

    def data_ptr(self) -> int:
        return self._ptr

    def __del__(self) -> None:
        self._give()


class Feigned(types.ModuleType):
    """The module."""

    __version__ = "2.11.0"
    Tensor = Tensor

    def __init__(self) -> None:
        super().__init__("torch")
        self.lock = threading.Lock()
        self.local = threading.local()
        self.pools: list[MemPool] = []
        self.recording: list[MemPool] = []
        self.cuda = types.ModuleType("torch.cuda")
        self.cuda.memory = types.ModuleType("torch.cuda.memory")
        self.cuda.memory.CUDAPluggableAllocator = CUDAPluggableAllocator
        self.cuda.MemPool = self._pool
        self.cuda.use_mem_pool = self.use_mem_pool
        self.cuda.current_device = lambda: 0
        self.cuda.device = lambda index: contextlib.nullcontext()
        self.cuda.OutOfMemoryError = OutOfMemoryError
        self.cuda.empty_cache = self.empty_cache
        self.cuda.current_stream = lambda device=None: None

    def device(self, name: object) -> Any:
        kind, _, number = str(name).partition(":")
        return types.SimpleNamespace(type=kind, index=int(number) if number else None)

    def _pool(self, allocator: CUDAPluggableAllocator) -> MemPool:
        self.pools.append(MemPool(allocator))
        return self.pools[-1]

    @contextlib.contextmanager
    def use_mem_pool(self, pool: MemPool, device: object = None):
        before = getattr(self.local, "pool", None)
        with self.lock:
            if pool in self.recording:
                raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
            self.recording.append(pool)
        self.local.pool = before or pool  # the first that was begun takes what both could
        try:
            yield
        finally:
            self.local.pool = before
            with self.lock:
                self.recording.remove(pool)

    def empty(self, *shape: int, dtype: str = "f4") -> Tensor:
        pool = self.local.pool
        size = max(np.dtype(dtype).itemsize * int(np.prod(shape)), 1)
        size = -(-size // 512) * 512
        with self.lock:
            address, segment = self._room(pool, size)
            ptr = address + segment[2]
            segment[1] += 1
            segment[2] += size
        return Tensor(self, ptr, shape, dtype, lambda: self._give(segment))

    def _room(self, pool: MemPool, size: int) -> tuple[int, list[int]]:
        for address, segment in pool.segments.items():
            if segment[0] - segment[2] >= size:
                return address, segment
        whole = SMALL if size <= 1 << 20 else -(-size // ROUND) * ROUND
        address = pool.allocator.alloc(whole, 0, None)
        if not address:
            raise OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
        pool.segments[address] = [whole, 0, 0]
        return address, pool.segments[address]

    def _give(self, segment: list[int]) -> None:
        with self.lock:
            segment[1] -= 1
            if not segment[1]:
                segment[2] = 0

    def _release(self, pool: MemPool) -> None:
        for address in [a for a, s in pool.segments.items() if not s[1]]:
            pool.allocator.free(address, pool.segments.pop(address)[0], 0, None)

    def empty_cache(self) -> None:
        with self.lock:
            for pool in self.pools:
                if pool not in self.recording:
                    self._release(pool)
