"""Relations between latencies that hold on any machine with a GPU.

On the emulated device the same code runs for correctness only: it measures, checks what arrived,
and holds no time against another.
"""

from __future__ import annotations

import numpy as np
import pytest

import gpudirect as gd
from gpudirect import bench, devices
from gpudirect.bench import others
from gpudirect.bench.measure import shared_out

SIZES = (1, 64, 1000, 4096, 40_001, 1 << 16, 1 << 18, 1 << 20)


@pytest.fixture(scope="module")
def device():
    return gd.device()


@pytest.fixture(scope="module")
def memory(device):
    with others.Memory(device, 1 << 20) as found:
        yield found


@pytest.fixture
def below(device, record_property):
    """below(a, factor, b): time a is at most factor times b. On the emulated device: both are times."""

    def hold(a: float, factor: float, b: float, words: str) -> None:
        record_property(words, a / b)
        assert a > 0 and b > 0
        if not device.emulated:
            assert a <= factor * b, f"{words}: {a:.0f} ns against {b:.0f} ns, {a / b:.2f} times"

    return hold


def medians(cases, size=0):
    return {f.case: f.p50 for f in shared_out("latency", cases, size, seconds=0.2)}


def test_a_small_write_is_far_below_a_cudamemcpy(memory, device, below):
    data = bytes(range(64))
    with others.current(device) as driver:
        cases = others.copies(driver, memory, 64, memory.pageable, True, "write")
        cases |= others.copies(driver, memory, 64, memory.pinned, True, "write pinned")
        if not cases:  # the emulated device has no driver: its own copy
            cases = {"copy_in": lambda: memory.device.copy_in(
                memory.array.ptr, int(memory.pageable.ctypes.data), 64)}  # fmt: skip
        found = medians({"mapped": lambda: memory.array.write(data), **cases})
    mapped = found.pop("mapped")
    below(mapped, 0.25, min(found.values()), "a write of 64 bytes beside the driver's fastest copy")
    memory.array.write(data)
    assert memory.array[:64].read(via="dma").tobytes() == data


def test_a_small_read_is_below_a_cudamemcpy(memory, device, below):
    out, part = np.empty(64, np.uint8), memory.array[:64]
    part.write(bytes(range(64)))
    with others.current(device) as driver:
        cases = others.copies(driver, memory, 64, memory.pageable.copy(), False, "read") or {
            "dma": lambda: part.read(out, via="dma")
        }
        found = medians({"mapped": lambda: part.read(out, via="map"), **cases})
    mapped = found.pop("mapped")
    below(mapped, 1.0, min(found.values()), "a read of 64 bytes beside the driver's fastest copy")
    assert out.tobytes() == bytes(range(64))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", ["pageable", "pinned"])
@pytest.mark.parametrize("way", ["write", "read"])
def test_the_chosen_path_is_never_much_above_the_best(memory, way, kind, n, below):
    part, host = memory.array[:n], getattr(memory, kind)[:n]
    call = part.write if way == "write" else part.read
    found = medians({
        "chosen": lambda: call(host),
        "map": lambda: call(host, via="map"),
        "dma": lambda: call(host, via="dma"),
    }, n)  # fmt: skip
    best = min(found["map"], found["dma"])
    below(found["chosen"], 1.25, best, f"{way} of {n} {kind} bytes: chosen beside the best path")
    assert np.array_equal(part.read(via="dma"), host)


def test_a_flush_costs_less_than_a_small_read(memory, below):
    out, part = np.empty(4, np.uint8), memory.array[:4]
    found = medians({"flush": memory.array.flush, "read": lambda: part.read(out)})
    below(found["flush"], 1.0, found["read"], "a flush beside a read of 4 bytes")


def test_a_ping_pong_is_within_a_small_factor_of_one_load_over_the_link(device, below):
    found = {f.case: f.p50 for f in bench.load("pingpong").run(device, True)}
    below(found["round: C"], 2.5, found["load 4: C"], "a round beside a load of 4 bytes")
    below(found["round: Python"], 3.5, found["load 4: C"], "a round from Python beside a load")


def test_stores_before_a_launch_add_little_to_it(device, below):
    source = "__global__ void add(float *a) { a[0] = a[0] + a[1]; }"
    with gd.zeros(16, "f4", device=device, mapped=True) as a:
        stream = device.stream()
        kernel, host = gd.kernel(source, "add", device=device)[1, 1, stream], a.host

        def launched() -> None:
            kernel(a)
            stream.synchronize()

        def stored() -> None:
            host[:2] = 1.5
            launched()

        found = medians({"launch": launched, "store and launch": stored})
        below(found["store and launch"], 1.3, found["launch"], "a launch with stores before it")
        stored()
        assert a.read()[0] == 3.0
        stream.close()


def test_a_gpu_is_measured_where_one_is_asked_for(device):
    """So that a run on a GPU machine cannot pass on the emulated device unnoticed."""
    import os

    if os.environ.get("GPUDIRECT_DEVICE", "").startswith("cuda"):
        assert not device.emulated and devices.cuda_reason() is None
