"""The ports: every version of each gives the sequential result, and bad input is refused."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import gpudirect as gd
from gpudirect._keeper import patient
from gpudirect.experiment import measure, ports

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
VERSIONS = ("copy, pageable", "copy, pinned", "direct")


@pytest.fixture(autouse=True)
def emulated():
    gd.use(device="emulated")
    yield
    gd.synchronize()
    gd.use()


@pytest.fixture(params=[n for n in ports.NAMES if (EXAMPLES / f"{n}.py").exists()])
def port(request: pytest.FixtureRequest) -> ports.Port:
    return ports.load(request.param)


def test_every_version_of_every_kind_gives_the_sequential_result(port):
    for kind in port.kinds:
        work = port.work(port.small, kind)
        runner = measure.Runner(port, work, measure.expected(port, work))
        tried = getattr(port.module, "CHUNKS", measure.chunks(work.nbytes))
        made = port.versions(tried)
        more = [name for name in made if name == ports.COURIER]
        for name in (*VERSIONS, *more, ports.chunked(tried[0]), ports.chunked(tried[-1])):
            runner.add(name, made[name])  # compares its result
            runner.one(name)
            runner.check(name)


def test_a_wrong_result_is_found():
    port = ports.load("vector_add")
    work = port.work(port.small, "scale")
    expected = measure.expected(port, work)
    expected[0][17] += 1
    runner = measure.Runner(port, work, expected)
    with pytest.raises(measure.WrongResultError, match="1 of 10007 elements, first at 17"):
        runner.add("direct", port.module.direct)


def test_vector_add_carries_nan_and_refuses_sizes_of_nothing():
    port = ports.load("vector_add")
    signal = np.array([1, np.nan, 3], "f4")
    result = port.module.direct(port.module.Work(3, "scale", signal))()
    assert np.isnan(result[1]) and not np.isnan(result[[0, 2]]).any()
    with pytest.raises(gd.ArgumentError, match="at least 1"):
        port.work(0, "scale")




@pytest.mark.parametrize("name, n, kind, more", [
    ("stencil3d", 8, "product", {"amplitude": np.nan}),
    ("stencil3d", 2, "product", {}),
    ("sad", 100, "reach 4", {}),
    ("sad", 64, "reach 4", {"picture": np.zeros((3, 3), "f4")}),
    ("tpacf", 4, "all pairs", {"angles": np.full((6, 2, 4), np.nan, "f4")}),
    ("tpacf", 4, "all pairs", {"angles": np.zeros((2, 4), "f4")}),
    ("spmv_updates", 4, "16 entries", {"values": np.array([1, np.nan], "f4")}),
    ("histogram", 0, "16 entries", {}),
    ("histogram", 8, "16 entries", {"batches": np.full((4, 9), 8, "i4")}),
    ("histogram", 8, "16 entries", {"batches": np.zeros((3, 9), "i4")}),
    ("linked", 40, "4 edits", {}),
    ("inference_params", 32, "4 pieces", {"weights": np.full((4, 32, 32), np.inf, "f4")}),
    ("steering", 4, "new table", {"tables": np.full((4, 4), np.nan, "f4")}),
])  # fmt: skip
def test_bad_input_is_refused_in_words(name, n, kind, more):
    with pytest.raises(gd.ArgumentError, match=r"give|must be|NaN"):
        ports.load(name).module.Work(n, kind, **more)


LARGE = {"vector_add": 1 << 21, "vector_add_c": 1 << 21, "stencil3d": 128, "sad": 2560, "tpacf": 200_000,
         "spmv_updates": 1 << 17, "histogram": 1 << 21, "linked": 17, "daq": 1024, "inference_params": 1024,
         "steering": 1 << 21}  # fmt: skip
"""Sizes that need more device memory than ROOM."""
ROOM = 6 << 20


def test_a_size_beyond_memory_is_refused_and_leaves_the_device_usable(port, monkeypatch):
    work = port.work(LARGE[port.name], port.kinds[0])
    device = gd.device()
    gc.collect()
    patient.settle()  # a courier that the test before has dropped is stopped there
    gd.trim()
    free, total = device.memory()
    monkeypatch.setattr(device, "_total", total - free + ROOM)
    made = port.versions((1 << 20,))
    for name in (*VERSIONS, ports.chunked(1 << 20)):
        with pytest.raises(gd.OutOfMemoryError, match="asked for"):
            made[name](work)
        gc.collect()
        gd.trim()
        assert device.memory()[0] == ROOM, f"{name} kept memory when it failed"
    assert gd.zeros(10).read().sum() == 0


def packets(n: int, cut: int = 0, **spoiled: int) -> bytes:
    module = ports.load("daq").module
    data = np.frombuffer(bytes(module.Work(n).data), "u1").copy()
    for name, value in spoiled.items():
        data[module.PACKET : module.PACKET + module.HEADER.itemsize].view(module.HEADER)[name] = value
    return data.tobytes()[: len(data) - cut]


@pytest.mark.parametrize("kind", ["file", "socket"])
def test_packets_that_end_early_raise_with_the_place(kind):
    module = ports.load("daq").module
    for make in (module.sequential, module.copy, module.direct, lambda w: module.double_buffered(w, 16384)):
        work = module.Work(4, kind, packets(4, cut=5000))
        with pytest.raises(gd.Error, match=r"the packets end after .* bytes, in packet"):
            make(work)()


@pytest.mark.parametrize("spoiled", [{"length": 4096}, {"magic": 7}])
def test_a_packet_of_the_wrong_size_or_kind_is_named(spoiled):
    module = ports.load("daq").module
    for make in (module.sequential, module.copy, module.direct, lambda w: module.double_buffered(w, 16384)):
        step = make(module.Work(4, "file", packets(4, **spoiled)))
        with pytest.raises(gd.Error, match="1 of 4 packets are bad, the first is 1"):
            step()


def test_a_simulation_that_does_not_answer_is_given_up(monkeypatch):
    module = ports.load("steering").module
    monkeypatch.setattr(module, "LIMIT", 0.05)
    with pytest.raises(gd.KernelError, match="no report of table 1"):
        module.Simulation(module.Work(4)).wait(1)  # nobody wrote that table


DRIVER = """
#include <stddef.h>
#include <string.h>
typedef unsigned long long u64;
int cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t n, void *stream)
{
    memcpy((void *)to, from, n);
    return 0;
}
int cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t n, void *stream)
{
    memcpy(to, (void *)from, n);
    return 0;
}
int cuStreamSynchronize(void *stream) { return 0; }
int cuLaunchKernel(void *kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **arguments, void **extra)
{
    const float *a = *(float **)arguments[0], *b = *(float **)arguments[1];
    float *c = *(float **)arguments[2];
    int n = *(int *)arguments[3];

    if (kernel != (void *)77 || gx * bx < (unsigned)n || gx * bx >= n + bx)
        return 400; /* CUDA_ERROR_INVALID_HANDLE */
    for (int i = 0; i < n; i++)
        c[i] = a[i] + b[i];
    return 0;
}
"""


def test_c_code_calls_the_driver_itself_where_there_is_one(tmp_path, monkeypatch):
    """On a driver that is feigned: device memory is where the emulated device's is mapped."""
    port = ports.load("vector_add_c")
    helper = sys.modules["_c"]
    source, library = tmp_path / "cuda.c", tmp_path / "libcuda.so.1"
    source.write_text(DRIVER)
    subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-o", library, source], check=True)
    current = []
    core = types.SimpleNamespace(Device=lambda n: types.SimpleNamespace(set_current=lambda: current.append(n)))
    load = helper.ctypes.CDLL
    with monkeypatch.context() as m:
        m.setitem(sys.modules, "cuda.core", core)
        m.setattr(helper.ctypes, "CDLL", lambda name: load(str(library) if "cuda" in name else name))
        m.setattr(gd.Kernel, "handle", 77)
        work = port.work(port.small, "degree 1")
        expected = port.module.sequential(work)().copy()
        m.setattr(gd, "device", lambda: types.SimpleNamespace(emulated=False, ordinal=3))
        for make in (port.module.copy, port.module.direct, lambda w: port.module.double_buffered(w, 16384)):
            assert np.allclose(make(work)(), expected, rtol=1e-6)
    assert current == [3] * 3


@pytest.mark.parametrize("name, how", [("spmv_updates", "scatter"), ("histogram", "gather")])
def test_a_port_with_a_courier_gives_it_its_updates_and_read_backs(monkeypatch, name, how):
    port = ports.load(name)
    work = port.work(port.small, "4096 entries")
    asked, really = [], getattr(gd.Array, how)
    monkeypatch.setattr(
        gd.Array, how, lambda *a, **k: asked.append(1) or really(*a, **{**k, "via": "courier"})
    )
    update, run = port.module.courier(work)
    wanted, sequential = port.module.sequential(work)
    for r in range(measure.ROUNDS):
        update(r)
        wanted(r)
        assert len(asked) == r + 1 and port.same(run(), sequential())


def test_a_histogram_is_read_as_it_was_before_the_launch():
    port = ports.load("histogram")
    work = port.work(50, "4096 entries")
    for make in port.versions(port.module.CHUNKS).values():
        read, run = make(work)
        for r in range(2 * measure.ROUNDS):
            before = np.bincount(work.batches[[(r - 1) % 4, (r - 2) % 4]].ravel(), minlength=50)
            read(r % measure.ROUNDS)
            assert np.array_equal(run(), before[work.asked[r % measure.ROUNDS]])
