"""Several devices at once: arrays on each, one buffer split over them, copy threads, services and couriers."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
from waiting import LONG

import gpudirect as gd
from gpudirect import _distribute
from gpudirect._native import lib
from gpudirect._transfer import paths

HOW_MANY = 3


@pytest.fixture(autouse=True)
def several(monkeypatch):
    monkeypatch.setenv("GPUDIRECT_EMULATED_DEVICES", str(HOW_MANY))


@pytest.fixture
def arrays():
    made = [gd.zeros((4, 1000), "i4", device=f"emulated:{i}") for i in range(HOW_MANY)]
    yield made
    for a in made:
        a.close()


@pytest.fixture
def small(monkeypatch):
    """However small: one thread a device."""
    monkeypatch.setattr(_distribute, "ALONE", 0)


# -- distribute ------------------------------------------------------------------------------------


@pytest.mark.parametrize("alone", [0, 1 << 40])
def test_each_device_gets_its_part(arrays, monkeypatch, alone):
    monkeypatch.setattr(_distribute, "ALONE", alone)
    data = np.arange(12_000, dtype="i4").reshape(12, 1000)
    gd.distribute(data, arrays)
    for i, a in enumerate(arrays):
        assert np.array_equal(a.read(), data[4 * i : 4 * i + 4])
    gd.distribute(data[::-1], [a[:] for a in arrays[::-1]], via="dma")  # non-contiguous, and another order
    assert np.array_equal(arrays[2].read(), data[::-1][:4]) and np.array_equal(arrays[0].read(), data[3::-1])


def test_parts_of_different_sizes_and_several_on_a_device(arrays, small):
    a, b, _ = arrays
    data = np.arange(4000 + 7 + 1000, dtype="i4")
    with gd.zeros(7, "i4", device="emulated:0") as c, gd.zeros(0, "i4", device="emulated:1") as none:
        gd.distribute(data, [a, c, none, b[2]])
        assert np.array_equal(a.read().reshape(-1), data[:4000]) and np.array_equal(c.read(), data[4000:4007])
        assert np.array_equal(b.read()[2], data[4007:]) and not b.read()[[0, 1, 3]].any()


@pytest.mark.parametrize("data", [
    bytes(range(240)), bytearray(range(240)), list(range(60)), memoryview(bytes(240)).cast("i"),
], ids=lambda d: type(d).__name__)  # fmt: skip
def test_what_write_takes(data, small):
    with gd.zeros(20, "i4", device="emulated:0") as a, gd.zeros(40, "i4", device="emulated:1") as b:
        gd.distribute(data, (a, b))
        whole = np.concatenate([a.read(), b.read()])
    wanted = np.array(data, "i4") if isinstance(data, list) else np.frombuffer(data, "i4")
    assert np.array_equal(whole, wanted)


def test_the_devices_are_written_at_the_same_time(arrays, small, monkeypatch):
    """Each waits for the others in the middle of its write: one after the other, none would end."""
    together = threading.Barrier(HOW_MANY, timeout=LONG)
    whole, names = _distribute._write, []

    def write(parts, via):
        names.append(threading.current_thread().name)
        together.wait()
        whole(parts, via)

    monkeypatch.setattr(_distribute, "_write", write)
    gd.distribute(np.ones(12_000, "i4"), arrays)
    assert all((a.read() == 1).all() for a in arrays)
    assert sorted(n.split("_")[0] for n in names) == [f"gpudirect to emulated:{i}" for i in range(HOW_MANY)]


def test_its_threads_run_near_their_devices(arrays, small, monkeypatch):
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("one CPU is no choice")
    found = {}
    whole = _distribute._write

    def write(parts, via):
        found[parts[0][0].device.ordinal] = sorted(os.sched_getaffinity(0))
        whole(parts, via)

    monkeypatch.setattr(_distribute, "_write", write)
    monkeypatch.setattr(_distribute, "_workers", {})
    for i, a in enumerate(arrays):
        monkeypatch.setattr(a.device, "near_cpus", lambda i=i: [cpus[i % 2]])
    gd.distribute(np.ones(12_000, "i4"), arrays)
    assert found == {0: [cpus[0]], 1: [cpus[1]], 2: [cpus[0]]}
    assert sorted(os.sched_getaffinity(0)) == cpus  # the caller stays where it was


@pytest.mark.parametrize(("data", "which", "error", "words"), [
    (np.zeros(11_999, "i4"), None, gd.ArgumentError, "11999 elements, and the 3 arrays have 12000"),
    (np.zeros(12_000, "f8"), None, gd.DTypeError, "f"), (5, None, gd.ArgumentError, "1 elements"),
    (np.zeros(1), [], gd.ArgumentError, "no list of arrays"), (np.zeros(1), 5, gd.ArgumentError, "no list"),
    (np.zeros(1), [1], gd.DTypeError, r"arrays\[0\] is int"), (object(), None, gd.DTypeError, "object"),
])  # fmt: skip
def test_wrong_ways(arrays, data, which, error, words):
    for a in arrays:
        a.fill(3)
    with pytest.raises(error, match=words):
        gd.distribute(data, arrays if which is None else which)
    assert all((a.read() == 3).all() for a in arrays)


def test_wrong_arrays(arrays):
    a, b, _ = arrays
    with pytest.raises(gd.ArgumentError, match=r"arrays\[0\] and arrays\[2\] share memory"):
        gd.distribute(np.zeros(9000, "i4"), [a, b, a[1]])
    with pytest.raises(gd.ArgumentError, match="no list of arrays"):
        gd.distribute(np.zeros(4000, "i4"), a)
    with pytest.raises(gd.ArgumentError, match=r"arrays\[1\] is non-contiguous"):
        gd.distribute(np.zeros(6000, "i4"), [a, b[:, ::2]])
    with gd.zeros(4, "f4") as f, pytest.raises(gd.DTypeError, match=r"arrays\[1\] has dtype float32"):
        gd.distribute(np.zeros(4004, "i4"), [a, f])
    with pytest.raises(gd.ArgumentError, match="via"):
        gd.distribute(np.zeros(8000, "i4"), [a, b], via="post")
    b.close()
    with pytest.raises(gd.ClosedError):
        gd.distribute(np.ones(8000, "i4"), [a, b])
    assert not a.read().any()


def test_one_that_fails_does_not_keep_the_others_from_theirs(arrays, small, monkeypatch):
    whole = _distribute._write

    def write(parts, via):
        if parts[0][0].device.ordinal != 1:
            return whole(parts, via)
        raise gd.RevokedError("of this one")

    monkeypatch.setattr(_distribute, "_write", write)
    with pytest.raises(gd.RevokedError, match="of this one"):
        gd.distribute(np.ones(12_000, "i4"), arrays)
    assert [int(a.read().sum()) for a in arrays] == [4000, 0, 4000]
    monkeypatch.undo()
    gd.distribute(np.ones(8000, "i4"), [a for a in arrays if a.device.ordinal != 1])


def test_an_interruption_waits_for_the_copies_that_run(arrays, small, monkeypatch):
    """They read the caller's memory."""
    begun, gate, whole = threading.Event(), threading.Event(), _distribute._write

    def write(parts, via):
        begun.set()
        gate.wait(LONG)
        whole(parts, via)

    waits = []

    def wait(futures):
        waits.append(len(futures))
        assert begun.wait(LONG)
        if len(waits) == 1:
            raise KeyboardInterrupt
        gate.set()
        return _wait(futures)

    _wait = _distribute.wait
    monkeypatch.setattr(_distribute, "_write", write)
    monkeypatch.setattr(_distribute, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        gd.distribute(np.ones(12_000, "i4"), arrays)
    assert waits == [3, 3] and all((a.read() == 1).all() for a in arrays)


def test_many_threads_distribute(small):
    failed = []

    def work(value):
        made = [gd.zeros(500, "i4", device=f"emulated:{i}") for i in range(2)]
        for k in range(20):
            gd.distribute(np.full(1000, value * 100 + k, "i4"), made)
            if any((a.read() != value * 100 + k).any() for a in made):
                failed.append((value, k))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [t.start() for t in threads], [t.join(LONG) for t in threads]
    assert not failed


# -- copy threads --------------------------------------------------------------------------------------


def test_a_device_has_copy_threads_of_its_own(arrays, monkeypatch):
    told = []
    monkeypatch.setattr(paths._native, "lib", types.SimpleNamespace(
        GD_TURNS=6, GD_TEAMS=16, gd_threads_configure_team=lambda team, *more: told.append(team) or 0,
    ))  # fmt: skip
    for a in arrays:
        paths.Paths(a.device, gd.Limits())
    monkeypatch.undo()
    assert told == [0, 1, 2]
    teams = [a._flags >> lib.GD_TEAM_SHIFT & lib.GD_TEAMS - 1 for a in arrays]
    assert teams == [0, 1, 2]


TEAMS = """
import os, threading
import numpy as np
from gpudirect._native import ffi, lib

size = 4 << 20
sizes = ffi.new("struct gd_thresholds *", [4096] * 4)
data, target = np.ones(size, "u1"), np.zeros((2, size), "u1")

def write(team, to, source):
    flags = team << lib.GD_TEAM_SHIFT
    assert lib.gd_write(to.ctypes.data, ffi.cast("char *", source.ctypes.data), size, flags) == 0

def helpers():
    tasks = "/proc/self/task"
    return [open(f"{tasks}/{t}/comm").read().strip() for t in os.listdir(tasks)].count("gpudirect-copy")

assert lib.gd_threads_configure_team(lib.GD_TEAMS, 2, ffi.NULL, 0, sizes) == -22
for team in (5, 6):
    assert lib.gd_threads_configure_team(team, 3, ffi.NULL, 0, sizes) == 0
for team, to, there in zip((5, 6), target, (2, 4)):
    write(team, to, data)
    assert to.all() and helpers() == there  # two each, beside the callers
right = []

def copy(team, to):
    for k in range(20):
        write(team, to, np.full(size, k, "u1"))
        assert (to == k).all()
    right.append(team)

threads = [threading.Thread(target=copy, args=(t, to)) for t, to in zip((5, 6), target)]
[t.start() for t in threads], [t.join() for t in threads]
pid = os.fork()
if not pid:
    assert helpers() == 0
    write(6, target[0], data)
    os._exit(0 if target[0].all() and helpers() == 2 else 1)
print(sorted(right), helpers(), os.waitpid(pid, 0)[1])
"""


def test_teams_of_copy_threads_are_apart():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", TEAMS], capture_output=True, text=True,
                          timeout=LONG)  # fmt: skip
    assert done.stdout == "[5, 6] 4 0\n", done.stderr


# -- kernels, services, couriers -----------------------------------------------------------------------


def test_services_and_couriers_on_each_device_at_once(arrays):
    source = """
    __device__ int sum(const int *a, int n) { int s = 0; for (int i = 0; i < n; i++) s += a[i]; return s; }
    """
    gd.distribute(np.arange(12_000, dtype="i4"), arrays)
    with contextlib.ExitStack() as running:
        services = [running.enter_context(gd.Service(source, "sum", device=a.device)) for a in arrays]
        for _ in range(3):
            futures = [s.submit("sum", a, 100) for s, a in zip(services, arrays, strict=True)]
            sums = [sum(range(4000 * i, 4000 * i + 100)) for i in range(HOW_MANY)]
            assert [f.result(LONG) for f in futures] == sums
        with pytest.raises(gd.DTypeError, match="emulated:1"):
            services[0].call("sum", arrays[1], 5)
    with contextlib.ExitStack() as running:
        for a in arrays:
            running.enter_context(gd.Courier(device=a.device))
        for i, a in enumerate(arrays):
            assert np.array_equal(a.read(via="courier").reshape(-1), np.arange(4000 * i, 4000 * i + 4000))


class Tensor:
    def __init__(self, array):
        self.__cuda_array_interface__ = {"shape": array.shape, "typestr": array.dtype.str, "version": 3,
                                         "data": (array.ptr, False)}  # fmt: skip


def test_another_librarys_array_on_the_wrong_device(arrays):
    """On a GPU the kernel would fault, and the context with it."""
    tensor = Tensor(arrays[1])
    kernel = gd.kernel("__global__ void k(int *p) { p[0] = 1; }", "k", device="emulated:0")
    with pytest.raises(gd.DTypeError, match="it is on emulated:1, the kernel on emulated:0"):
        kernel[1, 1](tensor)
    with gd.Service("__device__ void put(int *p) { p[0] = 7; }", "put", device="emulated:0") as svc:
        with pytest.raises(gd.DTypeError, match="emulated:1"):
            svc.put(tensor)
        svc.put(Tensor(arrays[0]))
    assert arrays[0].read()[0, 0] == 7 and not arrays[1].read().any()
    registered = gd.register(tensor)
    assert registered.device is arrays[1].device


class Driver:
    """cuPointerGetAttribute of a machine with two GPUs."""

    class CUpointer_attribute:
        CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_IS_MANAGED = 2, 8
        CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9

    def __init__(self, kind=2, managed=False, ordinal=1, code=0):
        self.told = {2: kind, 8: managed, 9: ordinal}
        self.code = code

    def cuPointerGetAttribute(self, attribute, ptr):
        assert ptr == 4096
        return self.code, self.told[attribute]


@pytest.mark.parametrize(("driver", "wanted"), [
    (Driver(), "cuda:1"), (Driver(ordinal=0), ""), (Driver(kind=1), ""), (Driver(managed=True), ""),
    (Driver(code=1), ""),
])  # fmt: skip
def test_whose_memory_it_is_the_driver_tells(monkeypatch, driver, wanted):
    from gpudirect.devices.cuda import device as module

    gpu = object.__new__(module.CudaDevice)
    gpu.ordinal = 0
    monkeypatch.setattr(gpu, "current", contextlib.nullcontext)
    monkeypatch.setattr(module, "driver", lambda: driver)
    monkeypatch.setattr(module, "count", lambda: 2)
    assert gpu.elsewhere(4096) == wanted
