"""Measure on this machine which path is faster at which size, and keep the answer.

    gpudirect calibrate            # a few seconds for each GPU, once
    gd.calibrate(); gd.get_limits()

The answer is kept (limits.py says where) and used by every later process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from . import _native, bridges
from ._transfer import copies, paths
from .arrays import empty
from .courier import Courier
from .devices import Device
from .errors import ServiceError
from .limits import COURIER, DIRECTIONS, NEVER, THRESHOLDS, Limits, file_of, store

SMALLEST, LARGEST = 256, 16 << 20
STEPS = 4  # sizes measured in each doubling
PAUSE = 100e-6  # seconds
TURN_COST = 0.2  # a turn must save as much as 20% at one size, or 5% at four, or it is noise


def sizes(smallest: int = SMALLEST, largest: int = LARGEST, steps: int = STEPS) -> list[int]:
    """Sizes to measure, evenly spread over the doublings."""
    count = round(np.log2(largest / smallest) * steps)
    return [int(smallest * 2 ** (i / steps)) & ~15 for i in range(count + 1)]


def turns(measured: Sequence[tuple[int, float, float]]) -> tuple[int, ...]:
    """Where the faster path changes: bytes, rising, the mapping first.

    measured: (bytes, time through the mapping, time by DMA). The path through the sizes that loses
    least, where every change costs TURN_COST: a single noisy size does not make a turn.
    """
    costs = [(0.0, 0.0)]  # of the best path that ends in (map, dma)
    steps: list[tuple[int, int]] = []
    for _, mapped, dma in measured:
        best = min(mapped, dma)
        before = costs[-1]
        come_from = tuple(
            way if before[way] <= before[1 - way] + TURN_COST else 1 - way for way in (0, 1)
        )
        steps.append((come_from[0], come_from[1]))
        costs.append((
            before[come_from[0]] + TURN_COST * (come_from[0] != 0) + float(np.log(mapped / best)),
            before[come_from[1]] + TURN_COST * (come_from[1] != 1) + float(np.log(dma / best)),
        ))  # fmt: skip
    way = int(costs[-1][1] < costs[-1][0])
    ways = []
    for step in reversed(steps):
        ways.append(way)
        way = step[way]
    ways.reverse()
    found = [0] if ways and ways[0] else []
    for i in range(1, len(ways)):
        if ways[i] != ways[i - 1]:
            found.append(_crossing(measured[i - 1], measured[i]))
    return tuple(found[: _native.lib.GD_TURNS])


def _crossing(low: tuple[int, float, float], high: tuple[int, float, float]) -> int:
    """Between two sizes, where both paths take as long; straight lines in log-log."""
    a, b = np.log(low[1] / low[2]), np.log(high[1] / high[2])
    part = 0.5 if a * b >= 0 else a / (a - b)
    return int(low[0] * (high[0] / low[0]) ** part)


def threshold(measured: Sequence[tuple[int, float, float]]) -> int:
    """The smallest size from which several threads are faster at every larger one.

    measured: (bytes, time with one thread, time with several).
    """
    found = NEVER
    for nbytes, one, several in reversed(measured):
        if several > one:
            break
        found = nbytes
    return found


def best_range(measured: Sequence[tuple[int, float, float]]) -> tuple[int, int]:
    """From and up to which size the second of two ways gains most in all; (NEVER, 0): nowhere.

    measured: (size, time of the first way, time of the second), sizes rising.
    """
    best, found = 0.0, (NEVER, 0)
    gained, start = 0.0, 0
    for size, first, second in measured:
        if gained <= 0:
            gained, start = 0.0, size
        gained += float(np.log(first / second))
        if gained > best:
            best, found = gained, (start, size)
    return found


def _medians(calls: Sequence[Callable[[], Any]], budget: float, pause: float = PAUSE) -> list[float]:
    """Median seconds of each call, all taken in turn. budget: seconds for all of it.

    Before each the CPU is busy for ``pause``, so that copy threads are asleep, as they would be
    between the copies of a program: back to back they help from much smaller sizes on.
    """
    clock = time.perf_counter
    took: list[list[float]] = [[] for _ in calls]
    end = clock() + budget
    for i in range(200):
        for times, call in zip(took, calls, strict=True):
            start = clock()
            while clock() - start < pause:
                pass
            start = clock()
            call()
            times.append(clock() - start)
        if i >= 6 and clock() > end:
            break
    return [statistics.median(times[1:]) for times in took]


class _Bench:
    """Memory on both sides, for the measurements."""

    def __init__(self, device: Device, bridge: str | None, budget: float) -> None:
        self.budget = budget
        self.array = empty(LARGEST, "u1", device=device, bridge=bridge, mapped=True)
        self.pageable = np.ones(LARGEST, np.uint8)
        self.locked = device.host_allocate(LARGEST)
        self.pinned = _native.bytes_at(self.locked.ptr, LARGEST)
        self.pinned[:] = 1

    def close(self) -> None:
        self.array.close()
        self.locked.free()

    def direction(self, name: str) -> list[tuple[int, float, float]]:
        """(bytes, time through the mapping, by DMA); the better of two passes, up and down, so that
        what disturbs the machine for a moment makes no turn."""
        up = [self._pair(name, n) for n in sizes()]
        down = [self._pair(name, n) for n in reversed(sizes())]
        return [
            (n, min(a[0], b[0]), min(a[1], b[1]))
            for n, a, b in zip(sizes(), up, reversed(down), strict=True)
        ]

    def _pair(self, name: str, n: int) -> tuple[float, float]:
        other = self.pinned if name.endswith("pinned") else self.pageable
        part, ordinary = self.array[:n], other[:n]
        call = part.write if name.startswith("write") else part.read
        mapped, dma = _medians(
            [lambda: call(ordinary, via="map"), lambda: call(ordinary, via="dma")], self.budget / 2
        )
        return mapped, dma

    def gathering(self) -> dict[str, int]:
        """What a load for each element costs beside DMA over all of them: GATHERING."""
        words, few, many, near, far = self.array.view("u4"), 64, 1024, 16 << 10, 4 << 20  # bytes
        draw = np.random.default_rng(1)
        out = np.empty(many, "u4")

        def call(count: int, span: int, via: str) -> Callable[[], Any]:
            indices = draw.integers(0, span // 4, count)
            indices[:2] = 0, span // 4 - 1
            return lambda: words.gather(indices, out[:count], via=via)

        cases = (few, far, "map"), (many, far, "map"), (few, near, "dma"), (few, far, "dma")
        least, most, brief, long = _medians([call(*case) for case in cases], 4 * self.budget)
        each = max(most - least, 1e-9) / (many - few)
        byte = max(long - brief, 1e-9) / (far - near)
        return {"gather_words": max(0, round((brief - least) / each) + few),
                "gather_span": max(1, round(each / byte))}  # fmt: skip

    def courier(self) -> dict[str, Any]:
        """From where on a courier is faster than all else: COURIER and ERRANDS."""
        found: dict[str, Any] = {}
        for name in COURIER:
            other = self.pinned if name.endswith("pinned") else self.pageable
            found[name] = best_range(
                [self._beside(self.array[:n].read, other[:n]) for n in sizes(256, 4 << 20, 2)]
            )
        words = self.array.view("u4")
        draw = np.random.default_rng(1)
        gathered, scattered = [], []
        for n in sizes(16, 8 << 10, 1):
            at = draw.integers(0, words.size // 4, n)
            items = at.astype("u4")
            gathered.append(
                self._beside(lambda out, at=at, **how: words.gather(at, out, **how), np.empty(n, "u4"))
            )
            stored, couriers = _medians(
                [lambda at=at, items=items, via=via: words.scatter(at, items, via=via)  # type: ignore[misc]
                 for via in ("map", "courier")], self.budget
            )  # fmt: skip
            scattered.append((n, stored, couriers))
        return {**found, "courier_gather": threshold(gathered), "courier_scatter": threshold(scattered)}

    def _beside(self, call: Callable[..., Any], out: np.ndarray[Any, Any]) -> tuple[int, float, float]:
        """(elements, time of the better of mapping and DMA, of the courier)."""
        mapped, dma, couriers = _medians(
            [lambda via=via: call(out, via=via) for via in ("map", "dma", "courier")], self.budget  # type: ignore[misc]
        )
        return out.size, min(mapped, dma), couriers

    def threads(self, write: bool, pause: float) -> list[tuple[int, float, float]]:
        """(bytes, time with one thread, with several) for copies that come ``pause`` seconds apart."""
        lib, found = _native.lib, []
        at, other = self.array.host_ptr, _native.ffi.cast("char *", copies.address_of(self.pageable))
        for n in sizes(4 << 10, 4 << 20, 2):
            if write:
                calls = [lambda f=f: lib.gd_write(at, other, n, f)  # noqa: B023
                         for f in (lib.GD_ONE_THREAD, 0)]  # fmt: skip
            else:
                calls = [lambda f=f: lib.gd_read(other, at, n, f)  # noqa: B023
                         for f in (lib.GD_ONE_THREAD, 0)]  # fmt: skip
            one, several = _medians(calls, self.budget, pause)
            found.append((n, one, several))
        return found


def measure(
    device: Device, bridge: str | None = None, *, progress: Callable[[str], None] | None = None,
    budget: float = 0.02,
) -> Limits:
    """Find this machine's limits. They are not put into force, nor stored.

    budget: seconds for each size. Interrupting it changes nothing.
    """
    tell = progress or (lambda text: None)
    bench = _Bench(device, bridge, budget)
    choice = paths.of(device, bench.array._open().bridge)
    before = choice.limits
    try:
        tell("threads")
        # everything that may use several threads does, while their gain is measured
        choice.limits = Limits(**dict.fromkeys(THRESHOLDS, 1))  # type: ignore[arg-type]
        found: dict[str, Any] = {
            name: threshold(
                bench.threads(name.startswith("write"), PAUSE if name.endswith("alone") else 0)
            )
            for name in THRESHOLDS
        }
        choice.limits = Limits(**found)
        for name in DIRECTIONS:
            tell(name.replace("_", ", "))
            found[name] = turns(bench.direction(name))
        tell("gather")
        found |= bench.gathering()
        tell("courier")
        with suppress(ServiceError), Courier(device):  # it may promise no order, or have no room
            found |= bench.courier()
    finally:
        choice.limits = before
        bench.close()
    return Limits(**found, source="calibrated")


def calibrate(device: Device, bridge: str | None = None, *,
              progress: Callable[[str], None] | None = None) -> tuple[Limits, Path]:
    """Measure, put into force and keep: (the limits, where they are kept).

    Raises ArgumentError when they cannot be kept; they are in force then. On an interruption
    nothing has changed.
    """
    name = bridges.choose(device, bridge).name
    limits = measure(device, name, progress=progress)
    for (on, through), choice in paths.known().items():
        if on is device and through.name == name:
            choice.limits = limits
    path = file_of(device, name)
    store(limits, path)
    return limits, path
