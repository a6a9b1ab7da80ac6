"""``doorbell``: a call of a device function through a lane, beside what one would do otherwise."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import gpudirect as gd

from .. import _native
from ..devices import Device, HostMemory
from ..service._layout import PACKET
from ..service._resident import Resident
from . import _native as _bench
from .measure import Figure, figure, interleaved
from .others import current
from .progress import Tell, silent

NAME = "doorbell"
NOTE = ("A device function is called by storing a packet to its memory; a resident kernel runs it and "
        "answers in host memory. N: bytes of arguments. One 4-byte load from the mapping is the yardstick: "
        "no call is quicker than the way there and back.")  # fmt: skip
LOAD = "load 4: C"
SIZES = (1, 8, 56)
MAIN = 56  # the size that a case without a number has
LANES = (1, 2, 4, 8)
TIMEOUT = 2_000_000_000  # ns
LIFETIME = 60.0  # seconds: a run that breaks off leaves nothing behind

SOURCE = """
__device__ unsigned char f1(unsigned char a) { return a; }
__device__ unsigned long long f8(unsigned long long a) { return a; }
__device__ unsigned long long f56(unsigned long long a, unsigned long long b, unsigned long long c,
                                  unsigned long long d, unsigned long long e, unsigned long long f,
                                  unsigned long long g) { return a ^ b ^ c ^ d ^ e ^ f ^ g; }
struct many { unsigned v[64]; };
__device__ unsigned long long f256(many a) { return a.v[0] ^ a.v[63]; }
__device__ float reads(const float *a, int i) { return a[i]; }
__device__ void writes(float *a, int i) { a[i] = i; }
"""
KERNEL = """
__global__ void k1(unsigned char a, unsigned long long *out) { *out = a; }
__global__ void k8(unsigned long long a, unsigned long long *out) { *out = a; }
__global__ void k56(unsigned long long a, unsigned long long b, unsigned long long c,
                    unsigned long long d, unsigned long long e, unsigned long long f,
                    unsigned long long g, unsigned long long *out) { *out = a ^ b ^ c ^ d ^ e ^ f ^ g; }
__global__ void from_memory(const unsigned char *in, int n, unsigned long long *out)
{
    unsigned long long x = 0;
    for (int i = 0; i < n; i++)
        x ^= (unsigned long long)in[i] << i % 8 * 8;
    *out = x;
}
"""
FUNCTIONS = {1: "f1", 8: "f8", 56: "f56", 256: "f256"}
MEMORY = {"reads an array": "reads", "writes an array": "writes"}


class _InHost(Resident):
    """A resident kernel that polls packets in page-locked host memory: each poll crosses the link."""

    @functools.cached_property
    def _ring_memory(self) -> HostMemory:  # asked for while the resident is being made
        layout = self.layout
        found = self.stream.device.host_allocate(layout.lanes * layout.slots * PACKET)
        _native.ffi.memmove(_native.ffi.cast("char *", found.ptr), bytes(found.size), found.size)
        return found

    def packets(self) -> tuple[int, int]:
        return self._ring_memory.ptr, self._ring_memory.ptr

    def give_back(self) -> None:
        super().give_back()
        self._ring_memory.free()


class _HostRing(gd.Service):
    _kind = _InHost


class _Samples:
    """An array that C fills with nanoseconds."""

    def __init__(self, count: int) -> None:
        self.values = np.empty(count)
        self.c = _native.ffi.cast("double *", self.values.ctypes.data)

    def checked(self, code: int, what: str) -> np.ndarray[Any, Any]:
        if code != len(self.values):
            raise gd.Error(f"bench doorbell: {what} broke off with {code}")
        return self.values.copy()


def _words(size: int) -> bytes:
    return bytes(i % 255 + 1 for i in range(size))


def _arguments(size: int) -> tuple[int, ...]:
    data = _words(size)
    return (data[0],) if size == 1 else tuple(np.frombuffer(data, "<u8").tolist())


def timed_calls(service: gd.Service, lane: Any, size: int, count: int) -> np.ndarray[Any, Any]:
    return _timed(service, lane, FUNCTIONS[size], _words(size), count)


def _timed(
    service: gd.Service, lane: Any, name: str, arguments: bytes, count: int
) -> np.ndarray[Any, Any]:
    samples = _Samples(count)
    number = service.functions[name].number
    code = _bench.lib.gd_lane_time_calls(
        _bench.lane(lane), number, arguments, len(arguments), count, samples.c, TIMEOUT
    )
    return samples.checked(code, f"calls of {name}")


def _pipeline(service: gd.Service, lane: Any, size: int, count: int, depth: int) -> float:
    """ns of a call."""
    number = service.functions[FUNCTIONS[size]].number
    total = _native.ffi.new("double *")
    code = _bench.lib.gd_lane_time_pipeline(
        _bench.lane(lane), number, _words(size), size, count, depth, total, TIMEOUT
    )
    if code != count:
        raise gd.Error(f"bench doorbell: pipelined calls of {size} bytes broke off with {code}")
    return float(total[0]) / count


def _together(works: list[Callable[[], Any]]) -> list[Any]:
    """Run each in a thread of its own, all at once; their results."""
    results: list[Any] = [None] * len(works)
    gate = threading.Barrier(len(works))

    def run(i: int, work: Callable[[], Any]) -> None:
        gate.wait()
        results[i] = work()

    threads = [threading.Thread(target=run, args=(i, w)) for i, w in enumerate(works)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if None in [r if not isinstance(r, np.ndarray) else 0 for r in results]:
        raise gd.Error("bench doorbell: a thread broke off")
    return results


class _Launches:
    """The driver's own ways, as C code calls them one after the other."""

    def __init__(self, device: Device) -> None:
        from cuda.bindings import driver

        self.d = driver
        self.stream = device.stream()
        self.out = gd.zeros(1, "u8", device=device)
        self.input = gd.zeros(64, "u1", device=device)
        memory = np.zeros(128, np.uint8)
        self.host = memory.ctypes.data
        self.keep: list[Any] = [memory]
        self.kernels = {n: gd.kernel(KERNEL, f"k{n}", device=device) for n in SIZES}
        self.from_memory = gd.kernel(KERNEL, "from_memory", device=device)

    def _function(self, name: bytes) -> int:
        code, address, *_ = self.d.cuGetProcAddress(name, 12000, 0)
        if int(code) or not int(address):
            raise gd.Error(f"the driver has no {name.decode()}")
        return int(address)

    def _step(self, name: bytes, *arguments: int) -> dict[str, Any]:
        return {"function": self._function(name), "arguments": list(arguments)}

    def _launch(
        self, kernel: gd.Kernel, *arguments: Any, stream: int | None = None, blocks: int = 1,
        threads: int = 1,
    ) -> dict[str, Any]:  # fmt: skip
        import ctypes

        block = kernel.pack(arguments)
        size = ctypes.c_size_t(len(block))
        buffer = ctypes.create_string_buffer(block, len(block))
        # CU_LAUNCH_PARAM_BUFFER_POINTER, _BUFFER_SIZE, _END of cuda.h
        extra = (ctypes.c_void_p * 5)(
            1, ctypes.addressof(buffer), 2, ctypes.addressof(size), 0
        )
        self.keep += [size, buffer, extra]
        queue = self.stream.handle if stream is None else stream
        return self._step(b"cuLaunchKernel", kernel.handle, blocks, 1, 1, threads, 1, 1, 0, queue, 0,
                          ctypes.addressof(extra))  # fmt: skip

    def _wait(self) -> dict[str, Any]:
        return self._step(b"cuStreamSynchronize", self.stream.handle)

    def launch(self, size: int) -> list[dict[str, Any]]:
        return self.launch_of(self.kernels[size], (*_arguments(size), self.out))

    def launch_of(
        self, kernel: gd.Kernel, arguments: tuple[Any, ...], blocks: int = 1, threads: int = 1
    ) -> list[dict[str, Any]]:
        return [self._launch(kernel, *arguments, blocks=blocks, threads=threads), self._wait()]

    def graph(self, size: int) -> list[dict[str, Any]]:
        return self.graph_of(self.kernels[size], (*_arguments(size), self.out))

    def graph_of(
        self, kernel: gd.Kernel, arguments: tuple[Any, ...], blocks: int = 1, threads: int = 1
    ) -> list[dict[str, Any]]:
        d = self.d
        mode = d.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        d.cuStreamBeginCapture(self.stream.handle, mode)
        kernel[blocks, threads, self.stream](*arguments)
        _, graph = d.cuStreamEndCapture(self.stream.handle)
        code, ready = d.cuGraphInstantiate(graph, 0)
        if int(code):
            raise gd.Error(f"no graph of a launch: {code.name}")
        self.keep += [graph, ready]
        return [self._step(b"cuGraphLaunch", int(ready), self.stream.handle), self._wait()]

    def copies(self, size: int) -> list[dict[str, Any]]:
        # as one writes it: the driver sends small copies along with its own commands, which is
        # quicker than asynchronous ones from page-locked memory
        launch = self._launch(self.from_memory, self.input, size, self.out, stream=0)
        return [
            self._step(b"cuMemcpyHtoD", self.input.ptr, self.host, size),
            launch,
            self._step(b"cuMemcpyDtoH", self.host + 64, self.out.ptr, 8),
        ]

    def time(self, steps: list[dict[str, Any]], count: int, what: str) -> np.ndarray[Any, Any]:
        samples = _Samples(count)
        array = _bench.ffi.new("struct gd_step[]", steps)
        code = _bench.lib.gd_time_steps(array, len(steps), count, samples.c)
        return samples.checked(code, what)

    def close(self) -> None:
        self.stream.close()


def _case(what: str, size: int) -> str:
    return f"{what}: C" if size == MAIN else f"{what} {size}: C"


def _service(device: Device, lanes: int, kind: type[gd.Service] = gd.Service) -> gd.Service:
    names = [*FUNCTIONS.values(), *MEMORY.values()]
    return kind(SOURCE, names, lanes=lanes, device=device, lifetime=LIFETIME)


def run(device: Device, quick: bool = False, tell: Tell = silent) -> list[Figure]:
    """Measure on the default bridge of ``device``. Raises Error when a call is not answered."""
    slow = 100 if device.emulated else 1
    count = (500 if quick else 20_000) // slow
    rounds = 2 if quick or device.emulated else 10  # that visit all cases in turn
    each, batch = max(count // rounds, 1), (2_000 if quick else 50_000) // slow
    found: dict[tuple[str, int], list[np.ndarray[Any, Any]]] = {}
    figures: list[Figure] = []

    def add(case: str, size: int, times: np.ndarray[Any, Any]) -> None:
        found.setdefault((case, size), []).append(times)

    with contextlib.ExitStack() as stack, gd.zeros(64, "f4", device=device) as word:
        stack.enter_context(current(device))
        ways: dict[tuple[str, int], list[dict[str, Any]]] = {}
        if not device.emulated:
            launches = _Launches(device)
            stack.callback(launches.close)
            for size in SIZES:
                ways["launch + sync", size] = launches.launch(size)
                ways["graph launch + sync", size] = launches.graph(size)
                ways["copy + launch + copy", size] = launches.copies(size)
        service, in_host = _service(device, 2), _service(device, 1, _HostRing)
        for i in range(rounds + 1):
            tell("single calls", i, rounds + 1)
            for (way, size), steps in ways.items():  # while no kernel is resident
                add(_case(way, size), size, launches.time(steps, each, way))
            with service, in_host:
                _single_calls(service, in_host, word, each, add)
            if i == 0:
                found.clear()  # the clocks have risen
        figures += [
            figure(NAME, case, size, np.concatenate(t), group="one call")
            for (case, size), t in found.items()
        ]
        with service:
            lane = service.lend(0)
            for i, size in enumerate(SIZES):
                tell("pipelined", i, len(SIZES))
                times = [_pipeline(service, lane, size, batch, service.slots // 2) for _ in range(10)]
                figures.append(figure(NAME, f"pipelined {size}: C", size, times, batch, "pipelined"))
            figures.append(_map(service, 8, max(batch // 10, 10)))
    for i, lanes in enumerate(LANES[: 2 if device.emulated else len(LANES)]):
        tell("lanes", i, len(LANES))
        figures += _lanes(device, lanes, count, batch)
    return figures


def _single_calls(service: gd.Service, in_host: gd.Service, word: gd.Array, count: int,
                  add: Callable[[str, int, np.ndarray[Any, Any]], None]) -> None:  # fmt: skip
    """One call after the other, by every way through a lane."""
    lane, host_lane = service.lend(0), in_host.lend(0)
    samples = _Samples(count)
    code = _bench.lib.gd_time_loads(word.host_ptr, count, samples.c)
    add(LOAD, 4, samples.checked(code, "loads"))
    for size in SIZES:
        add(f"call {size}: C", size, timed_calls(service, lane, size, count))
        add(f"call {size}, packets in host memory: C", size, timed_calls(in_host, host_lane, size, count))
        call = _python_call(service, FUNCTIONS[size], _arguments(size))
        add(f"call {size}: Python", size, interleaved({"": call}, samples=count)[""])
    add("call 256, by reference: C", 256, timed_calls(service, lane, 256, count))
    for words, name in MEMORY.items():
        arguments = service._pack(name, (word, 3))[0]
        add(f"call 12, {words}: C", 12, _timed(service, lane, name, arguments, count))


def _python_call(service: gd.Service, name: str, arguments: tuple[int, ...]) -> Callable[[], Any]:
    call = service.call
    if len(arguments) == 1:
        (a,) = arguments
        return lambda: call(name, a)
    a, b, c, d, e, f, g = arguments
    return lambda: call(name, a, b, c, d, e, f, g)


def _map(service: gd.Service, size: int, batch: int) -> Figure:
    times = []
    for _ in range(5):
        start = time.perf_counter_ns()
        total = sum(service.map(FUNCTIONS[size], range(batch)))
        times.append((time.perf_counter_ns() - start) / batch)
        if total != batch * (batch - 1) // 2:
            raise gd.Error(f"bench doorbell: map() gave {total}")
    return figure(NAME, f"pipelined {size}: Python", size, times, batch, "pipelined")


def _lanes(device: Device, lanes: int, count: int, batch: int) -> list[Figure]:
    """A thread for each lane, all at once. Pipelined: the time from one reply to the next of any."""
    words = f"{MAIN}, {lanes} lane{'s' if lanes > 1 else ''}: C"
    with _service(device, lanes) as service:
        lent = [service.lend(n) for n in range(lanes)]
        times = _together([
            functools.partial(timed_calls, service, lane, MAIN, count) for lane in lent
        ])  # fmt: skip
        rates = [
            _together([
                functools.partial(_pipeline, service, lane, MAIN, batch, service.slots // 2)
                for lane in lent
            ])
            for _ in range(5)
        ]  # fmt: skip
    together = [1 / sum(1 / t for t in r) for r in rates]
    return [
        figure(NAME, f"call {words}", MAIN, np.concatenate(times), group="lanes"),
        figure(NAME, f"pipelined {words}", MAIN, together, batch, "lanes"),
    ]
