"""``stream=`` beside other libraries' streams and graphs, on a real GPU. Where it is only ours, the tests
of tests/unit/test_stream_copies.py say what holds."""

from __future__ import annotations

import time

import numpy as np
import pytest

import gpudirect as gd
from gpudirect import devices
from gpudirect.devices import Now

pytestmark = pytest.mark.gpu

SLOW = """
__global__ void slow(const unsigned *from, unsigned *to, unsigned n, unsigned long long ns)
{
    unsigned long long now, end;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    for (end = now + ns; now < end;)
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    for (unsigned i = threadIdx.x; i < n; i += blockDim.x)
        to[i] = from[i];
}
"""
LONG = 200_000_000  # ns


@pytest.fixture(autouse=True)
def needs_a_gpu():
    if reason := devices.cuda_reason():
        pytest.fail(f"these tests need a GPU: {reason}")


def streams():
    yield "ours", gd.stream("cuda")
    torch = pytest.importorskip("torch")
    yield "torch", torch.cuda.Stream()
    cupy = pytest.importorskip("cupy")
    yield "cupy", cupy.cuda.Stream(non_blocking=True)
    core = pytest.importorskip("cuda.core")
    device = core.Device(0)
    device.set_current()
    yield "cuda.core", device.create_stream()


def test_the_order_of_every_library_s_stream():
    n = 100_000
    slow = gd.kernel(SLOW, "slow", device="cuda")
    names = []
    for name, stream in streams():
        a, before, after = (gd.zeros(n, "u4", device="cuda") for _ in range(3))
        gd.synchronize("cuda")
        source = np.full(n, 7, "u4")
        slow[1, 256, stream](a, before, n, LONG)
        start = time.perf_counter()
        a.write(source, stream=stream)
        source[:] = 9
        slow[1, 256, stream](a, after, n, 0)
        a.fill(11, stream=stream)
        late = a.read(stream=stream, synchronize=False)
        twin = a.copy(stream=stream)
        assert time.perf_counter() - start < 0.15, f"{name}: something waited"
        assert (a.read(stream=stream) == 11).all(), name
        assert time.perf_counter() - start > 0.15
        assert not before.read().any() and (after.read() == 7).all(), name
        assert (late == 11).all() and (twin.read() == 11).all(), name
        names.append(name)
    assert "ours" in names


@pytest.mark.parametrize(("dtype", "value"), [("u1", 7), ("i2", -3), ("f4", 1.5), ("f8", 0.1), ("S3", b"abc")])
def test_fills_of_every_width(dtype, value):
    stream = gd.stream("cuda")
    with gd.zeros(1_000_003, dtype, device="cuda") as a:
        a[1:].fill(value, stream=stream)
        want = np.full(a.size, value, dtype)
        want[0] = np.zeros((), dtype)
        assert np.array_equal(a.read(stream=stream), want)


def test_a_graph_repeats_what_was_captured():
    from cuda.bindings import driver

    stream = gd.stream("cuda")
    a = gd.zeros(1000, device="cuda")
    locked, out = gd.pinned(1000, device="cuda"), gd.pinned(1000, device="cuda")
    locked[:], out[:] = 2, 0
    with a.device.current():
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        assert not int(driver.cuStreamBeginCapture(stream.handle, mode)[0])
        assert stream.queue.now() is Now.CAPTURED
        with pytest.raises(gd.ArgumentError, match="captured"):
            a.write([1.0], stream=stream)
        with pytest.raises(gd.ArgumentError, match="captured"):
            a.read(stream=stream)
        a.write(locked, stream=stream)
        a.read(out, stream=stream, synchronize=False)
        code, graph = driver.cuStreamEndCapture(stream.handle)
        assert not int(code), code
        code, ready = driver.cuGraphInstantiate(graph, 0)
        for value in (3, 4):
            locked[:] = value
            assert not int(driver.cuGraphLaunch(ready, stream.handle)[0])
            stream.synchronize()
            assert (out == value).all()


def test_what_a_write_in_a_stream_costs(record_property):
    """On an idle stream and on a busy one; printed, for the docs."""
    stream = gd.stream("cuda")
    slow = gd.kernel(SLOW, "slow", device="cuda")
    with gd.zeros(1 << 20, "u1", device="cuda") as a, gd.zeros(1, "u4", device="cuda") as b:
        for size in (64, 4096, 65536, 1 << 20):
            data = np.ones(size, "u1")
            for busy in (False, True):
                took = []
                for _ in range(30):
                    stream.synchronize()
                    if busy:
                        slow[1, 1, stream](b, b, 1, 5_000_000)
                    start = time.perf_counter_ns()
                    a.write(data, stream=stream)
                    took.append(time.perf_counter_ns() - start)
                stream.synchronize()
                print(f"write({size} bytes, stream=) {'busy' if busy else 'idle'}: {np.median(took)} ns")
                record_property(f"{size} {'busy' if busy else 'idle'}", float(np.median(took)))
