"""A program that runs another library beside services: run by test_neighbours.py, in a process of its own.

    python neighbour.py LIBRARY SERVICES LOAD SLICE

LIBRARY: torch, cupy, jax, or matmul (PyTorch's, beside an idle service). SERVICES: 1, or 3 of different
teams. LOAD: "idle" but awake, "napping", "parked", or "calls" from a thread without pause. SLICE: seconds.
Prints one JSON object: seconds of each operation, and what the services tell.
"""

from __future__ import annotations

import faulthandler
import json
import statistics
import sys
import threading
import time

import numpy as np

import gpudirect as gd
from gpudirect import _native
from gpudirect.bench import _native as bench

faulthandler.dump_traceback_later(100, exit=True)  # only a hang takes so long

SOURCE = """
__device__ int add(int a, int b) { return a + b; }
__device__ unsigned block_rank(unsigned *out) { out[gd_rank()] = gd_rank(); return gd_size(); }
__device__ unsigned grid_size(unsigned *out) { atomicAdd(out, 1); gd_sync(); return gd_size(); }
"""
TEAMS = ({"add": "thread"}, {"add": "thread", "block_rank": "block"}, {"add": "thread", "grid_size": "grid"})


NAP_AFTER = 2e-3  # seconds


class Load:
    """Calls all services in turn, without pause and without the interpreter's lock."""

    ROUNDS = 100

    def __init__(self, services: list[gd.Service]) -> None:
        self._lanes = [(s.lend(1), s.functions["add"].number) for s in services]
        self._end = threading.Event()
        self.calls, self.slowest = 0, 0.0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        ffi = _native.ffi
        times = ffi.new("double[]", self.ROUNDS)
        while not self._end.is_set():
            for lane, number in self._lanes:
                done = bench.lib.gd_lane_time_calls(
                    bench.lane(lane), number, bytes(8), 8, self.ROUNDS, times, 60_000_000_000
                )
                assert done == self.ROUNDS, done
                self.calls += self.ROUNDS
                self.slowest = max(self.slowest, *times)

    def stop(self) -> None:
        self._end.set()
        self._thread.join()


found: dict[str, object] = {}


def timed(name: str, operation: object, rounds: int = 1) -> object:
    """Seconds of an operation: once, or the median and the worst of some rounds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = operation()  # type: ignore[operator]
        times.append(time.perf_counter() - start)
    found[name] = times[0] if rounds == 1 else [statistics.median(times), max(times)]
    print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    return result


def with_torch() -> None:
    import torch

    def first() -> None:
        a = torch.randn(512, 512, device="cuda")
        assert torch.isfinite((a @ a).sum()).item()

    timed("first operations", first)
    timed("synchronize", torch.cuda.synchronize, 200)
    layer = torch.nn.Conv2d(3, 8, 3).cuda()
    image = torch.rand(1, 3, 64, 64, device="cuda")
    timed("conv2d", lambda: layer(image).sum().item())
    timed("empty_cache", torch.cuda.empty_cache)
    x = torch.zeros(1024, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x.add_(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()

    def capture() -> None:
        with torch.cuda.graph(graph):
            x.add_(1)

    timed("graph capture", capture)

    def replay() -> None:
        for _ in range(1000):
            graph.replay()
        torch.cuda.current_stream().synchronize()

    before = float(x[0])
    timed("a thousand replays", replay)
    assert float(x[0]) == before + 1000
    streams = [torch.cuda.Stream() for _ in range(64)]

    def on_each() -> None:
        for stream in streams:
            with torch.cuda.stream(stream):
                x.add_(0)
        for stream in streams:
            stream.synchronize()

    timed("64 streams", on_each, 20)


def with_cupy() -> None:
    import cupy

    def first() -> None:
        a = cupy.random.rand(256, 256)
        assert cupy.isfinite((a @ a).sum()).get()

    timed("first operations", first)
    runtime = cupy.cuda.runtime
    timed("cudaMalloc and cudaFree", lambda: runtime.free(runtime.malloc(1 << 20)), 50)
    timed("cudaDeviceSynchronize", runtime.deviceSynchronize, 200)

    def module(n: int = 0) -> None:
        code = f"extern \"C\" __global__ void k(int *a) {{ *a = {n + time.time_ns()}; }}"
        loaded = cupy.RawModule(code=code)
        out = cupy.zeros(1, "i4")
        loaded.get_function("k")((1,), (1,), (out,))
        out.get()

    timed("module loading", module, 5)


def with_jax() -> None:
    import jax
    import jax.numpy as jnp

    def first() -> None:
        a = jnp.ones((256, 256))
        assert float((a @ a)[0, 0]) == 256

    timed("first operations", first)
    add = jax.jit(lambda a: a + 1)
    timed("jit", lambda: add(jnp.zeros(16)).block_until_ready())


def matmuls(slice: float) -> None:
    """A loop of 4096 matmuls beside an idle service of each kind, to the same loop alone, in pairs."""
    import torch

    a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    b = torch.randn_like(a)
    stream = torch.cuda.Stream()

    def loop() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(stream):
            for _ in range(20):
                a @ b
            start.record()
            for _ in range(200):
                a @ b
            end.record()
        end.synchronize()
        return start.elapsed_time(end)

    kinds = {"one launch": {"slice": None}, "awake": {"slice": slice, "nap_after": None},
             "napping": {"slice": slice, "nap_after": 1e-3, "park_after": None}}  # fmt: skip
    for kind, options in kinds.items():
        pairs = []
        for _ in range(20):
            alone = loop()
            with gd.Service(SOURCE, TEAMS[0], lifetime=90, **options):
                time.sleep(5e-3)
                pairs.append(loop() / alone)
        found[f"4096 matmul beside {kind}, to alone"] = statistics.median(pairs)


def main() -> None:
    if sys.argv[1] == "matmul":
        matmuls(float(sys.argv[4]))
        print(json.dumps(found))
        return
    library, count, load, slice = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
    options = {"lanes": 2, "slice": slice, "nap_after": NAP_AFTER if load in ("napping", "parked") else None,
               "park_after": 2 * NAP_AFTER if load == "parked" else None}  # fmt: skip
    services = [gd.Service(SOURCE, teams, lifetime=90, **options).start() for teams in TEAMS[:count]]
    # beside three services a courier; it never parks, so not where all shall
    courier = gd.Courier().start() if count > 1 and load != "parked" else None
    end = time.monotonic() + 20
    while load == "parked" and any(s.info.state != "parked" for s in services):
        assert time.monotonic() < end, [s.info for s in services]
        time.sleep(1e-3)
    caller = Load(services) if load == "calls" else None
    try:
        {"torch": with_torch, "cupy": with_cupy, "jax": with_jax}[library]()
    finally:
        if caller:
            caller.stop()
    for service in services:
        assert service.call("add", 2, 3, timeout=60) == 5
    infos = [service.info for service in services]
    if courier:
        words = np.arange(5000, dtype="u4")
        with gd.asarray(words) as a:
            assert np.array_equal(a.read(via="courier"), words)
        courier.stop()
    for service in services:
        service.stop()
    found["slices"] = [i.slices for i in infos]
    found["late"] = [i.late for i in infos]
    if caller:
        found["calls"], found["slowest call"] = caller.calls, caller.slowest * 1e-9
    times = []
    with gd.Service(SOURCE, TEAMS[0], slice=slice, lifetime=90) as service:
        for n in range(100000):
            start = time.perf_counter()
            service.call("add", n, 1)
            times.append(time.perf_counter() - start)
    found["call us p50, p99, p99.9"] = [float(np.percentile(times, p)) * 1e6 for p in (50, 99, 99.9)]
    print(json.dumps(found))


main()
