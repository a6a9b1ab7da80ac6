"""PyTorch's tensors in memory of ours: what it allocates is mapped, given back, and refused in its own
words. PyTorch itself is feigned; tests/gpu/test_frameworks.py has the real one."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time

import numpy as np
import pytest
from feigned_torch import Feigned, OutOfMemoryError

import gpudirect as gd
from gpudirect import _allocator, _native, aperture

SEGMENT = 2 << 20


@pytest.fixture
def torch(monkeypatch):
    gd.use(device="emulated", bridge="emulated")
    feigned = Feigned()
    monkeypatch.setitem(sys.modules, "torch", feigned)
    monkeypatch.setattr(gd.torch, "_device", lambda index: gd.device("emulated"))
    monkeypatch.setattr(gd.torch, "_idle", {})
    monkeypatch.setattr(gd.torch, "_allocators", [])
    gd.trim()
    before = held()
    yield feigned
    gc.collect()
    feigned.empty_cache()
    settled(lambda: held() == before)
    gd.use()


def held() -> tuple[int, int]:
    """Bytes lent and bytes of aperture registered."""
    device = gd.device("emulated")
    registered = {u.device: u.registered for u in aperture.use()}
    return _allocator.statistics(device)["bytes"], registered.get(device.id, 0)


def settled(reached, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < until
        time.sleep(1e-3)


def test_what_pytorch_makes_is_mapped(torch):
    with gd.torch.mapped():
        x, y = torch.empty(1000), torch.empty(3, 4, dtype="i4")
    view = gd.host(x)
    assert isinstance(view, gd.HostView) and view.shape == (1000,) and view.dtype == np.float32
    view[:] = np.arange(1000)
    gd.host(y)[1] = 7
    double = gd.kernel(
        "__global__ void f(float *x, int *y) { x[threadIdx.x] *= 2; if (!threadIdx.x) y[11] = y[4]; }", "f")
    double[1, 1000](x, y)
    assert np.array_equal(gd.register(x).read(), 2.0 * np.arange(1000))
    assert gd.register(y).read().tolist() == [[0] * 4, [7] * 4, [0, 0, 0, 7]]


def test_both_sides_have_one_address_and_a_block_is_mapped_once(torch):
    with gd.torch.mapped():
        tensors = [torch.empty(100) for _ in range(10)]
    assert held() == (SEGMENT, 0)  # mapped when somebody asks
    arrays = [gd.register(t) for t in tensors]
    assert all(a.unified and a.ptr == t.data_ptr() for a, t in zip(arrays, tensors, strict=True))
    assert held() == (SEGMENT, SEGMENT)
    assert arrays[3].pages[0].emulated and not arrays[0].bridge == ""


def test_the_view_keeps_the_tensor(torch):
    with gd.torch.mapped():
        x = torch.empty(100)
    view = gd.host(x)
    view[:] = 5
    del x
    gc.collect()
    torch.empty_cache()
    assert held()[0] == SEGMENT and view.fetch()[99] == 5
    del view
    gc.collect()
    torch.empty_cache()
    settled(lambda: held() == (0, 0))


def test_memory_that_was_never_mapped_goes_at_once(torch):
    with gd.torch.mapped():
        x = torch.empty(3 << 20)
    assert held() == (12 << 20, 0)
    del x
    torch.empty_cache()
    assert held() == (0, 0)


def test_tensors_of_threads(torch):
    wrong, done = [], []

    def work(seed: int) -> None:
        for i in range(50):
            with gd.torch.mapped():
                x = torch.empty(5000, dtype="i4")
            gd.host(x)[:] = seed + i
            if not (gd.host(x).fetch() == seed + i).all():
                wrong.append((seed, i))
            if i % 10 == 0:
                torch.empty_cache()
        done.append(seed)

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not wrong and len(done) == 4 and not torch.recording


def test_a_block_within_a_block(torch):
    with gd.torch.mapped(), gd.torch.mapped("cuda:0"):
        x = torch.empty(10)
        with pytest.raises(KeyError), gd.torch.mapped():
            raise KeyError
        y = torch.empty(10)
    gd.host(x)[:], gd.host(y)[:] = 1, 2
    assert len(torch.pools) == 1 and not torch.recording


def test_only_the_thread_in_the_block_allocates_here(torch):
    with gd.torch.mapped():
        other = threading.Thread(target=lambda: seen.append(getattr(torch.local, "pool", None)))
        seen: list = []
        other.start()
        other.join(60)
    assert seen == [None] and torch.local.pool is None


def test_out_of_memory_is_pytorchs_own_and_then_it_works_again(torch, monkeypatch):
    device = gd.device("emulated")
    free, total = device.memory()
    monkeypatch.setattr(device, "_total", total - free + (16 << 20))
    with gd.torch.mapped():
        kept = torch.empty(1 << 20)  # 4 MiB
        gd.host(kept)[:] = 3
        with pytest.raises(OutOfMemoryError, match="out of memory"):
            torch.empty(4 << 20)
        assert _allocator.statistics(device)["refused"] and _allocator.statistics(device)["code"] == 2
        large = torch.empty(3 << 20)  # all the rest
        gd.host(large)[-1] = 1
        assert gd.host(kept).fetch()[7] == 3
        del large
    torch.empty_cache()  # nothing waits: what was mapped may be on its way back
    with gd.torch.mapped():
        again = torch.empty(5 << 19)
        gd.host(again)[:] = 4


def test_what_our_pool_keeps_goes_where_memory_runs_out(torch, monkeypatch):
    device = gd.device("emulated")
    with gd.torch.mapped():
        torch.empty(1)
    gd.empty(8 << 20, "u1").close()  # kept mapped, for the next
    free, total = device.memory()
    monkeypatch.setattr(device, "_total", total - free)
    with gd.torch.mapped():
        x = torch.empty(8 << 20, dtype="u1")
    assert gd.host(x).shape == (8 << 20,)


def test_nothing_waits_for_pythons_lock_with_its_own_held(torch):
    """A thread that has Python's lock waits for the allocator's: nothing may want Python's then."""
    with gd.torch.mapped():
        x = torch.empty(100)
    gd.host(x)
    del x
    gc.collect()
    lib = _native.lib
    (address,) = torch.pools[0].segments
    size = torch.pools[0].segments.pop(address)[0]
    free = torch.pools[0].allocator.free
    from ctypes import PyDLL, c_int, c_size_t, c_void_p

    with_the_lock = PyDLL(_native.library).gpudirect_free  # called without letting Python's lock go
    with_the_lock.argtypes, with_the_lock.restype = [c_void_p, c_size_t, c_int, c_void_p], None
    with_the_lock(address, size, 0, None)
    free(address, size, 0, None)  # twice: nothing happens
    settled(lambda: held() == (0, 0))
    found = _native.ffi.new("struct gd_block *")
    assert lib.gd_allocator_hold(address, found) == 0


def test_a_child_of_fork_leaves_the_parents_memory_alone(torch):
    with gd.torch.mapped():
        x = torch.empty(100)
    gd.host(x)[:] = 6
    allocator = torch.pools[0].allocator
    child = os.fork()
    if not child:
        code = 1
        try:
            assert not allocator.alloc(SEGMENT, 0, None)
            allocator.free(x.data_ptr(), SEGMENT, 0, None)
            assert not gd.torch._idle
            try:
                gd.host(x)
            except gd.Error:
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert gd.host(x).fetch()[50] == 6


def test_memory_of_somebody_else_is_registered(torch):
    class Theirs:
        def __init__(self, array):
            self.array = array
            self.__cuda_array_interface__ = {"shape": array.shape, "typestr": "<f4", "version": 3,
                                             "data": (array.ptr, False), "strides": None}  # fmt: skip

    a = gd.zeros(100)
    view = gd.host(Theirs(a))
    view[3] = 4
    assert a.read()[3] == 4 and gd.host(a) is a.host
    for wrong in (3.5, "x"):
        with pytest.raises(gd.DTypeError, match="no device memory"):
            gd.host(wrong)
    with pytest.raises(gd.DTypeError, match="its memory is the CPU's"):
        gd.host(np.zeros(3))


def test_a_block_that_the_budget_has_no_room_for(torch):
    with gd.torch.mapped():
        x = torch.empty(4 << 20, dtype="u1")
    device = gd.device("emulated")
    gd.trim()
    aperture.set_budget(1 << 20, device)
    try:
        with pytest.raises(gd.ApertureError, match="budget"):
            gd.host(x)
    finally:
        aperture.set_budget(None, device)
    gd.host(x)[0] = 1


@pytest.mark.parametrize("broken, said", [
    ("missing", "torch is not installed: pip install torch"),
    ("old", "torch 1.0 has no torch.cuda.MemPool: install torch 2.6 or newer"),
])  # fmt: skip
def test_a_missing_or_old_pytorch_is_told_in_one_sentence(torch, monkeypatch, broken, said):
    if broken == "missing":
        monkeypatch.setitem(sys.modules, "torch", None)
    else:
        monkeypatch.delattr(torch.cuda, "MemPool")
        monkeypatch.setattr(torch, "__version__", "1.0", raising=False)
    with pytest.raises(gd.FrameworkError) as e, gd.torch.mapped():
        pass
    assert str(e.value) == said


def test_devices_as_pytorch_names_them(torch):
    for device in (None, 0, "cuda", "cuda:0", gd.device("emulated")):
        with gd.torch.mapped(device):
            torch.empty(1)
    assert len(torch.pools) == 1 and len(torch.pools[0].segments) == 1
    assert gd.torch.pool() is not gd.torch.pool()
    with pytest.raises(gd.ArgumentError, match="cpu"), gd.torch.mapped("cpu"):
        pass


def test_importing_gpudirect_imports_no_framework(torch):
    import subprocess

    run = subprocess.run(
        [sys.executable, "-c", "import sys, gpudirect as gd; gd.torch, gd.zeros; "
         "print([m for m in ('torch', 'cupy', 'rmm', 'numba', 'jax') if m in sys.modules])"],
        capture_output=True, text=True, timeout=60, env={**os.environ, "GPUDIRECT_DEVICE": "emulated"},
    )  # fmt: skip
    assert (run.stdout.strip(), run.returncode) == ("[]", 0), run.stderr
