"""Times the versions of one port in turn, and checks every result against the sequential one."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

import gpudirect as gd

from ..bench.measure import Figure, figure, interleaved
from ..devices import Device
from ..errors import Error
from .ports import COURIER, Port, Step, chunked

SMALLEST_CHUNK, LARGEST_CHUNK = 16 << 10, 16 << 20  # bytes
MOST_CHUNKS = 512  # of one step: smaller ones are far from the best
LEAST, MOST = 7, 200  # samples of a case
KEPT = 40  # of them in a figures file
ROUNDS = 4  # different updates, taken in turn

UPDATE, STEP, PRODUCTION, LINK, CALLS = "update", "step", "production", "link", "calls"
MEMORIES: dict[str, Callable[..., Any]] = {
    "pinned": gd.pinned,
    "mapped": lambda shape, dtype: gd.empty(shape, dtype).host,
}
"""Where a producer may put its data: a name -> what makes an array there."""


class WrongResultError(Error):
    """A version's result is not the sequential one."""


@dataclass(frozen=True)
class Configuration:
    """One port at one size and intensity, and what is known of it beside its times."""

    port: str
    kind: str
    n: int
    nbytes: int
    """Bytes that one step brings to the device."""
    best_chunk: int
    """Bytes of the double-buffered version's best chunk."""
    host_traffic: dict[str, int]
    """Bytes that each version moves through host memory in a step, computed (see analysis)."""

    @property
    def group(self) -> str:
        return f"{self.kind}, {self.n}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def chunks(nbytes: int) -> tuple[int, ...]:
    """The sizes that are tried: powers of two, and one that takes all at once if that is near."""
    least = max(SMALLEST_CHUNK, nbytes // MOST_CHUNKS)
    tried = [1 << k for k in range(30) if least <= 1 << k <= LARGEST_CHUNK]
    fitting = [c for c in tried if c < nbytes]
    more = [c for c in tried if c >= nbytes][:1]
    return tuple(fitting + more)


def stepper(port: Port, made: Any) -> Step:
    """A version as a function of the round."""
    if not port.update:
        return lambda round_: (made(), 0)
    update, run = made
    clock = time.perf_counter_ns

    def step(round_: int) -> tuple[Any, int]:
        start = clock()
        update(round_ % ROUNDS)
        middle = clock()
        return run(), middle - start

    return step


def expected(port: Port, work: Any) -> list[Any]:
    """The sequential results: of each round once all rounds have been; of one step otherwise."""
    step = stepper(port, port.module.sequential(work))
    if not port.update:
        return [np.copy(step(0)[0])]
    for r in range(ROUNDS):
        step(r)
    return [np.copy(step(r)[0]) for r in range(ROUNDS)]


class Runner:
    """Versions of one configuration, stepped in turn."""

    def __init__(self, port: Port, work: Any, results: list[Any]) -> None:
        self.port, self.work, self.results = port, work, results
        self.steps: dict[str, Step] = {}
        self.rounds: dict[str, int] = {}

    def add(self, name: str, make: Callable[[Any], Any]) -> None:
        self.steps[name] = stepper(self.port, make(self.work))
        self.rounds[name] = 0
        for _ in range(ROUNDS if self.port.update else 1):  # warm, and every round once
            self.one(name)
        self.check(name)

    def one(self, name: str) -> tuple[int, int]:
        """One step: (nanoseconds of the step, of the update)."""
        r = self.rounds[name]
        self.rounds[name] = r + 1
        step = self.steps[name]
        start = time.perf_counter_ns()
        _, update = step(r)
        return time.perf_counter_ns() - start, update

    def check(self, name: str) -> None:
        """Step once more and compare. Raises WrongResultError."""
        r = self.rounds[name]
        self.rounds[name] = r + 1
        result, _ = self.steps[name](r)
        if not self.port.same(result, self.results[r % len(self.results)]):
            raise WrongResultError(
                f"{self.port.name}, {self.work.n}, {name}: the result differs from the sequential "
                f"one, {_difference(result, self.results[r % len(self.results)])}"
            )

    def times(self, names: list[str], seconds: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Samples of each version, taken in turn until the time is up: (steps, updates)."""
        taken: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
        end = time.perf_counter() + seconds
        collecting = gc.isenabled()
        gc.disable()  # a collection in one version's step would count for it alone
        try:
            for i in range(MOST):
                if i >= LEAST and time.perf_counter() > end:
                    break
                for name in names[i % len(names):] + names[: i % len(names)]:
                    taken[name].append(self.one(name))
        finally:
            if collecting:
                gc.enable()
        for name in names:
            self.check(name)
        return {
            name: (np.array([t for t, _ in values]), np.array([u for _, u in values]))
            for name, values in taken.items()
        }


def _difference(found: Any, wanted: Any) -> str:
    found, wanted = np.asarray(found), np.asarray(wanted)
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return f"{found.dtype} {found.shape} instead of {wanted.dtype} {wanted.shape}"
    wrong = np.flatnonzero((found != wanted).ravel())
    first = int(wrong[0]) if len(wrong) else 0
    return (
        f"{len(wrong)} of {found.size} elements, first at {first}: {found.ravel()[first]!r} "
        f"instead of {wanted.ravel()[first]!r}"
    )


def _thin(f: Figure) -> Figure:
    """The figure with some of its samples: there are a thousand figures in a file."""
    kept = np.linspace(0, len(f.values) - 1, min(KEPT, len(f.values))).astype(int)
    return replace(f, values=[f.values[i] for i in kept])


def _production(port: Port, work: Any, group: str, seconds: float) -> list[Figure]:
    """What making the data of one step takes, by the memory that it is made in."""
    cases = {f"{PRODUCTION}, {name}": work.alone(empty) for name, empty in MEMORIES.items()}
    start = time.perf_counter()
    for call in cases.values():
        call()
    once = time.perf_counter() - start
    samples = max(LEAST, min(MOST, int(0.2 * seconds / once)))
    taken = interleaved(cases, samples=samples, warmup=1)
    return [figure(port.name, f"{name}: {STEP}", work.nbytes, t, group=group)
            for name, t in taken.items()]  # fmt: skip


def link(device: Device) -> list[Figure]:
    """What one core's stores and the DMA engine bring to the device, beside ordinary memory."""
    size = (1 << 20) if device.emulated else (64 << 20)
    data = np.ones(size, np.uint8)
    page_locked = gd.pinned(size, "u1", device=device)
    page_locked[:] = data
    with gd.empty(size, "u1", device=device) as a:
        host = a.host
        cases: dict[str, Callable[[], Any]] = {
            "stores of one core through the mapping": lambda: np.copyto(host, data),
            "stores of one core to page-locked memory": lambda: np.copyto(page_locked, data),
            "DMA from page-locked memory": lambda: a.write(page_locked, via="dma"),
            "DMA from pageable memory": lambda: a.write(data, via="dma"),
        }
        taken = interleaved(cases, samples=LEAST, warmup=1)
    return [figure(LINK, name, size, t, group="link") for name, t in taken.items()] + _calls(device)


def _calls(device: Device) -> list[Figure]:
    """What the calls cost that the versions differ in, on next to no data."""
    source = '__global__ void nothing(int *p) {}'
    nothing = gd.kernel(source, "nothing", device=device)
    page_locked, data = gd.pinned(64, "u1", device=device), bytes(64)
    with gd.empty(64, "u1", device=device) as a:

        def waited_for() -> None:
            nothing[1, 32](a.ptr)
            gd.synchronize(device)

        cases: dict[str, Callable[[], Any]] = {
            "a launch, waited for": waited_for,
            "cuMemcpyHtoD of 64 bytes": lambda: a.write(page_locked, via="dma"),
            "write of 64 bytes, fenced": lambda: a.write(data),
        }
        taken = interleaved(cases, samples=MOST, warmup=LEAST)
    return [figure(CALLS, name, 0, t, group="calls") for name, t in taken.items()]


def host_traffic(work: Any, version: str) -> int:
    """Bytes that a version moves through host memory in a step, computed.

    Counted once for each time a byte is written to host memory or read from it, caches aside: the
    producer writes it, the DMA engine reads it; from pageable memory the driver first reads it and
    writes it to a page-locked buffer. Stores through the mapping touch no host memory. A Work whose
    versions send other things has a ``host_traffic(version)`` of its own; else ``nbytes`` go to the
    device, ``results`` come back, and ``sources`` are read by the system before.
    """
    if hasattr(work, "host_traffic"):
        return int(work.host_traffic(version))
    each = {"copy, pageable": 4, "copy, pinned": 2, "double-buffered": 2, "direct": 0}[version]
    back = {"copy, pageable": 3}.get(version, 1)
    return int(each * work.nbytes + back * work.results + getattr(work, "sources", 0))


def run(port: Port, n: int, kind: str, seconds: float) -> tuple[list[Figure], Configuration]:
    """Measure one configuration for about ``seconds``. Raises WrongResultError."""
    work = port.work(n, kind)
    runner = Runner(port, work, expected(port, work))
    tried = tuple(getattr(port.module, "CHUNKS", chunks(work.nbytes)))
    made = port.versions(tried)
    figures: list[Figure] = []
    group = f"{kind}, {n}"

    def keep(
        name: str, steps: np.ndarray, updates: np.ndarray, purpose: str = "", case: str = ""
    ) -> None:
        label = f"{case or name}{purpose}"
        figures.append(_thin(figure(port.name, f"{label}: {STEP}", work.nbytes, steps, group=group)))
        if port.update:
            found = figure(port.name, f"{label}: {UPDATE}", work.nbytes, updates, group=group)
            figures.append(_thin(found))

    sweep = [chunked(c) for c in tried]
    for name in sweep:
        runner.add(name, made[name])
    swept = runner.times(sweep, seconds * 0.4)
    for name, (steps, updates) in swept.items():
        keep(name, steps, updates, " (sweep)")
    best = min(sweep, key=lambda name: float(np.median(swept[name][0])))
    for name in sweep:
        if name != best:
            del runner.steps[name]
    gc.collect()

    final = ["copy, pageable", "copy, pinned", best, "direct"]
    for name in final:
        if name != best:
            runner.add(name, made[name])
    for name, (steps, updates) in runner.times(final, seconds * 0.6).items():
        keep(name, steps, updates, case="double-buffered" if name == best else name)
    if COURIER in made:  # by itself: its blocks would be in the way of the others' kernels
        runner.add(COURIER, made[COURIER])
        keep(COURIER, *runner.times([COURIER], seconds * 0.2)[COURIER])
        del runner.steps[COURIER]
        gc.collect()
    runner.add("sequential", made["sequential"])
    alone = [runner.one("sequential")]
    while len(alone) < LEAST and sum(t for t, _ in alone) < seconds * 2e8:
        alone.append(runner.one("sequential"))
    keep("sequential", np.array([t for t, _ in alone]), np.array([u for _, u in alone]))

    if not port.update:
        figures += _production(port, work, group, seconds)
    best_chunk = tried[sweep.index(best)]
    traffic = {v: host_traffic(work, v) for v in ("copy, pageable", "copy, pinned",
                                                  "double-buffered", "direct")}  # fmt: skip
    return figures, Configuration(port.name, kind, n, work.nbytes, best_chunk, traffic)
