"""CuPy, RMM, Numba and cuda.core allocate from us: memory comes mapped, goes back in the order of a stream,
and where there is none the library's own error is raised, after which it works again.

The libraries are feigned: what they call, and in which order, is theirs. tests/gpu/test_frameworks.py
has the real ones.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import types
import weakref

import numpy as np
import pytest

import gpudirect as gd
from gpudirect import _allocator

MIB = 1 << 20


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    gd.use(device="emulated", bridge="emulated")
    for module in (gd.cupy, gd.numba):
        monkeypatch.setattr(module, "_device", lambda index: gd.device("emulated"))
    monkeypatch.setattr(gd.cupy, "_pools", [])
    monkeypatch.setattr(gd.cupy, "_loans", {})
    gc.collect()
    gd.trim()
    before = in_use()
    yield
    gc.collect()
    gd.trim()
    assert in_use() == before
    gd.use()


def in_use() -> int:
    return sum(h.in_use for h in gd.statistics() if h.device == gd.device().id)


def module(monkeypatch, name: str, **names) -> types.ModuleType:
    """A feigned module; dots in its names are modules in it."""
    found = types.ModuleType(name)
    found.__dict__.update(names)
    monkeypatch.setitem(sys.modules, name, found)
    return found


class View:
    """Device memory, as the array interface tells it."""

    def __init__(self, ptr: int, nbytes: int, keep: object) -> None:
        self.keep = keep
        self.__cuda_array_interface__ = {"shape": (nbytes // 4,), "typestr": "<f4", "version": 3,
                                         "data": (ptr, False), "stream": None}  # fmt: skip


@pytest.fixture
def tight(monkeypatch):
    """Room for so many bytes of device memory."""
    device = gd.device("emulated")

    def room(nbytes: int) -> None:
        gd.trim()
        free, total = device.memory()
        monkeypatch.setattr(device, "_total", total - free + nbytes)

    return room


# -- CuPy --------------------------------------------------------------------------------------


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int) -> None:
        super().__init__(f"cudaError {status}")
        self.status = status


class CupyOutOfMemoryError(MemoryError):
    pass


class UnownedMemory:
    def __init__(self, ptr: int, size: int, owner: object, device_id: int = -1) -> None:
        assert device_id >= 0
        self.ptr, self.size, self._owner = ptr, size, owner


class MemoryPointer:
    def __init__(self, mem: object, offset: int) -> None:
        self.mem, self.ptr = mem, mem.ptr + offset


class MemoryPool:
    """Blocks of 512 bytes, kept when they are dropped; where memory is refused all that is kept goes."""

    def __init__(self, allocator) -> None:
        self.allocator, self.free = allocator, {}

    def malloc(self, size: int) -> MemoryPointer:
        size = -(-size // 512) * 512
        kept = self.free.get(size)
        try:
            mem = kept.pop() if kept else self._new(size)
        except CUDARuntimeError as e:
            if e.status != 2:
                raise
            raise CupyOutOfMemoryError(f"Out of memory allocating {size} bytes") from None
        pointer = MemoryPointer(mem, 0)
        weakref.finalize(pointer, self.free.setdefault(size, []).append, mem)
        return pointer

    def _new(self, size: int) -> object:
        try:
            return self.allocator(size).mem
        except CUDARuntimeError:
            self.free_all_blocks()
            return self.allocator(size).mem

    def free_all_blocks(self) -> None:
        for kept in self.free.values():
            kept.clear()


@pytest.fixture
def cupy(monkeypatch):
    here = threading.local()

    @contextlib.contextmanager
    def using_allocator(allocator):
        before, here.malloc = getattr(here, "malloc", None), allocator
        try:
            yield
        finally:
            here.malloc = before

    cuda = types.SimpleNamespace(
        MemoryPool=MemoryPool, UnownedMemory=UnownedMemory, MemoryPointer=MemoryPointer,
        using_allocator=using_allocator, get_current_stream=lambda: None,
        runtime=types.SimpleNamespace(getDevice=lambda: 0, CUDARuntimeError=CUDARuntimeError),
    )  # fmt: skip
    found = module(monkeypatch, "cupy", cuda=cuda, __version__="14.2.0")

    def empty(n: int) -> View:
        pointer = here.malloc(4 * n)
        return View(pointer.ptr, 4 * n, pointer)

    found.empty = empty
    return found


def test_what_cupy_makes_is_mapped(cupy):
    with gd.cupy.mapped() as pool:
        x = cupy.empty(1000)
        assert pool is gd.cupy.pool()
    gd.host(x)[:] = np.arange(1000)
    a = gd.register(x)
    assert a.unified and np.array_equal(a.read(), np.arange(1000))
    del x
    gc.collect()
    assert a.read()[999] == 999  # the array keeps it
    del a
    gc.collect()
    assert any(pool.free.values())
    pool.free_all_blocks()


def test_cupys_own_out_of_memory_and_then_it_works_again(cupy, tight):
    tight(8 * MIB)
    with gd.cupy.mapped() as pool:
        kept = cupy.empty(MIB)
        with pytest.raises(CupyOutOfMemoryError, match="Out of memory"):
            cupy.empty(4 * MIB)
        del kept
        gc.collect()
        large = cupy.empty(2 * MIB)  # what the pool kept has gone back for it
        gd.host(large)[-1] = 3
        del large
        gc.collect()
    pool.free_all_blocks()


def test_threads_of_cupy(cupy):
    done = []

    def work(seed: int) -> None:
        with gd.cupy.mapped():
            for i in range(40):
                x = cupy.empty(100 + seed)
                gd.host(x)[:] = i
                assert (gd.host(x).fetch() == i).all()
                if i % 8 == 0:
                    gd.cupy.pool().free_all_blocks()
        done.append(seed)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert len(done) == 4
    gc.collect()
    gd.cupy.pool().free_all_blocks()


def test_memory_goes_home_after_what_its_stream_has_queued():
    device = gd.device("emulated")
    stream = gd.stream()
    loans = _allocator.Loans(device)
    write = gd.kernel("""__global__ void write(int *p)
        { for (volatile int i = 0; i < 30000000; i++) ; *p = 7; }""", "write")
    for give in ("given", "dropped"):
        if give == "given":
            ptr, owner = loans.take(4096), None
        else:
            loans_owned = _allocator.Loans.owned.__get__(loans)
            device_adopt = device.adopt_stream
            device.adopt_stream = lambda s: s
            try:
                ptr, owner = loans_owned(4096, stream)
            finally:
                device.adopt_stream = device_adopt
        write[1, 1, stream](ptr)
        if give == "given":
            loans.give(ptr, stream)
            loans.give(ptr, stream)  # twice: nothing happens
        del owner
        others = [gd.full(1024, -1, "i4") for _ in range(20)]
        stream.synchronize()
        assert all((o.read() == -1).all() for o in others) and not len(loans)
        del others


def test_a_child_of_fork_gives_nothing_back(cupy):
    with gd.cupy.mapped() as pool:
        x = cupy.empty(10)
    gd.host(x)[:] = 5
    child = os.fork()
    if not child:
        try:
            assert not gd.cupy._pools
            del x
            gc.collect()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert gd.host(x).fetch()[9] == 5
    del x
    gc.collect()
    pool.free_all_blocks()


# -- RMM ---------------------------------------------------------------------------------------


class CallbackMemoryResource:
    def __init__(self, allocate, deallocate) -> None:
        self._allocate, self._deallocate = allocate, deallocate

    def allocate(self, nbytes: int, stream=None) -> int:
        return self._allocate(nbytes, stream)

    def deallocate(self, ptr: int, nbytes: int, stream=None) -> None:
        self._deallocate(ptr, nbytes, stream)


def test_what_rmm_gives_is_mapped(monkeypatch, tight):
    module(monkeypatch, "rmm", mr=types.SimpleNamespace(CallbackMemoryResource=CallbackMemoryResource))
    resource = gd.rmm.resource()
    ptr = resource.allocate(4000)
    assert ptr % 256 == 0
    gd.host(View(ptr, 4000, None))[:] = 3
    tight(4 * MIB)
    with pytest.raises(MemoryError):
        resource.allocate(64 * MIB)
    other = resource.allocate(MIB)
    for p, n in ((ptr, 4000), (other, MIB)):
        resource.deallocate(p, n, None)
    assert gd.rmm._number(types.SimpleNamespace(value=lambda: 77)) == 77 and gd.rmm._number(None) is None


# -- Numba -------------------------------------------------------------------------------------


class CudaAPIError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code


class NumbaPointer:
    def __init__(self, context, pointer: int, size: int, owner=None, finalizer=None) -> None:
        self.device_pointer, self.size = pointer, size
        weakref.finalize(self, finalizer)


class HostOnlyCUDAMemoryManager:
    def __init__(self, *args, **kwargs) -> None:
        self.context, self.pending = kwargs.pop("context"), []

    def _attempt_allocation(self, allocator):
        try:
            return allocator()
        except CudaAPIError as e:
            if e.code != 2:
                raise
            self.pending.clear()
            return allocator()


@pytest.fixture
def numba(monkeypatch):
    chosen = []
    cuda = module(
        monkeypatch, "numba.cuda", HostOnlyCUDAMemoryManager=HostOnlyCUDAMemoryManager,
        MemoryPointer=NumbaPointer, set_memory_manager=chosen.append, chosen=chosen,
        MemoryInfo=lambda free, total: types.SimpleNamespace(free=free, total=total),
        cudadrv=types.SimpleNamespace(driver=types.SimpleNamespace(CudaAPIError=CudaAPIError)),
    )  # fmt: skip
    module(monkeypatch, "numba", cuda=cuda)
    return cuda


def test_what_numba_makes_is_mapped(numba, tight):
    gd.numba.install()
    kind = numba.chosen[0]
    assert gd.numba._numba_memory_manager is kind and kind(context=None).interface_version == 1
    context = types.SimpleNamespace(device=types.SimpleNamespace(id=0))

    class Context:
        device = context.device

    context = Context()
    manager = kind(context=context)
    manager.initialize()
    x = manager.memalloc(400)
    gd.host(View(x.device_pointer, 400, x))[:] = 2
    tight(8 * MIB)
    manager.pending.append(manager.memalloc(6 * MIB))
    y = manager.memalloc(5 * MIB)  # what it deferred goes back for it
    assert not manager.pending and manager.get_memory_info().total >= 8 * MIB
    with pytest.raises(CudaAPIError, match="asked for"):
        manager.memalloc(64 * MIB)
    with pytest.raises(NotImplementedError, match="IPC"):
        manager.get_ipc_handle(x)
    del x, y
    with pytest.raises(AttributeError):
        _ = gd.numba.nothing


# -- cuda.core ---------------------------------------------------------------------------------


class Buffer:
    failing = False

    @classmethod
    def from_handle(cls, ptr, size, mr=None, owner=None, *, stream=None):
        self = cls()
        self.handle, self.size, self.mr, self.stream = ptr, size, mr, stream
        if cls.failing:  # as 1.2 does: the half-made buffer is destroyed on the way out
            self.close()
            raise RuntimeError("no context is current")
        return self

    def close(self) -> None:
        if self.handle:
            self.mr.deallocate(self.handle, self.size, stream=self.stream)
            self.handle = 0


def test_what_cuda_core_makes_is_mapped(monkeypatch, tight):
    module(monkeypatch, "cuda.core", MemoryResource=type("MemoryResource", (), {}), Buffer=Buffer)
    resource = gd.cuda_core.resource()
    assert (resource.device_id, resource.is_device_accessible, resource.is_managed) == (0, True, False)
    stream = gd.stream()
    b = resource.allocate(1000, stream=stream)
    gd.host(b)[:] = 9
    assert gd.register(b).read().tolist() == [9] * 1000 and "emulated:0" in repr(resource)
    b.close()
    monkeypatch.setattr(Buffer, "failing", True)
    with pytest.raises(RuntimeError, match="context"):
        resource.allocate(10, stream=stream)
    monkeypatch.setattr(Buffer, "failing", False)
    tight(4 * MIB)
    with pytest.raises(MemoryError):
        resource.allocate(64 * MIB, stream=stream)
    with pytest.raises(gd.ArgumentError, match="-1 bytes"):
        resource.allocate(-1, stream=stream)
    resource.allocate(0, stream=stream).close()
    assert not len(resource._loans)


# -- missing and old ---------------------------------------------------------------------------


@pytest.mark.parametrize("name, call", [
    ("cupy", lambda: gd.cupy.pool()), ("rmm", lambda: gd.rmm.resource()), ("numba", lambda: gd.numba.install()),
    ("cuda.core", lambda: gd.cuda_core.resource()),
])  # fmt: skip
def test_a_missing_or_old_library_is_told_in_one_sentence(monkeypatch, name, call):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(gd.FrameworkError, match=r"^[\w-]+ is not installed: pip install [\w-]+$"):
        call()
    old = module(monkeypatch, name, __version__="0.1")
    if name == "numba":
        old.__path__ = []
        module(monkeypatch, "numba.cuda", __version__="0.1")
    with pytest.raises(gd.FrameworkError, match=r"^[\w-]+ 0.1 has no [\w.]+: install [\w-]+ [\d.]+ or newer$"):
        call()


def test_a_library_that_is_broken_says_why(monkeypatch, tmp_path):
    (tmp_path / "rmm.py").write_text("from numpy import row_stack_of_old")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "rmm", raising=False)
    with pytest.raises(gd.FrameworkError, match="rmm-cu13 is installed but cannot be imported: .*row_stack"):
        gd.rmm.resource()
