"""Samples and their statistics. Times are nanoseconds; nothing here knows what is measured."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

KEPT = 200  # samples kept in a figures file, evenly picked from the sorted ones


@dataclass(frozen=True)
class Figure:
    """One measured case."""

    bench: str
    """Which benchmark: "alloc", "copylat", ..."""
    case: str
    """What was timed, in words."""
    size: int
    """Bytes moved by one call, or 0."""
    samples: int
    """How many samples."""
    batch: int
    """Calls in each sample; a sample is the time of one call, the mean of its batch."""
    p0: float
    p50: float
    p99: float
    p999: float
    mean: float
    """Nanoseconds of one call."""
    values: list[float]
    """Samples in rising order, thinned to at most 200."""
    group: str = ""
    """Cases of one group answer one question, and are drawn together."""

    @property
    def bandwidth(self) -> float:
        """Bytes a second at the median."""
        return self.size / self.p50 * 1e9 if self.p50 else 0.0

    def as_dict(self) -> dict[str, Any]:
        found = asdict(self)
        found["values"] = [round(v, 1) for v in self.values]
        return found


def figure(
    bench: str, case: str, size: int, times: Any, batch: int = 1, group: str = ""
) -> Figure:
    """A figure from samples in nanoseconds."""
    ordered = np.sort(np.asarray(times, float))
    p0, p50, p99, p999 = np.percentile(ordered, [0, 50, 99, 99.9])
    kept = ordered[np.linspace(0, len(ordered) - 1, min(KEPT, len(ordered))).astype(int)]
    return Figure(
        bench, case, size, len(ordered), batch, float(p0), float(p50), float(p99), float(p999),
        float(ordered.mean()), [float(v) for v in kept], group,
    )  # fmt: skip


def interleaved(
    cases: dict[str, Callable[[], Any]], *, samples: int = 200, batch: int = 1, warmup: int = 5
) -> dict[str, np.ndarray]:
    """Time several calls in turn, so that a drift of the machine meets all of them alike.

    Returns for each case its samples: nanoseconds of one call, the mean of ``batch`` calls.
    """
    for call in cases.values():
        for _ in range(warmup):
            call()
    times = {name: np.empty(samples) for name in cases}
    clock = time.perf_counter_ns
    rounds = range(batch)
    for i in range(samples):
        for name, call in cases.items():
            start = clock()
            for _ in rounds:
                call()
            times[name][i] = (clock() - start) / batch
    return times


SAMPLE = 20_000.0  # ns: a sample lasts at least so long, or the clock itself would be measured
PAUSE = 100_000  # ns: copy threads and the driver's own are asleep then, as in a program


def shared_out(
    bench: str, cases: dict[str, Callable[[], Any]], size: int = 0, *, group: str = "",
    seconds: float = 0.1, least: int = 15, most: int = 400, alone: bool = False,
) -> list[Figure]:
    """Time several calls in turn, in an order drawn anew each round, within ``seconds`` in all.

    Each has its own batch, so that a sample lasts at least 20 us, and three calls before it that are
    not timed. least and most: samples of each.
    alone: one call a sample, and 100 us before each in which the CPU does something else: what was
    woken up for the call before sleeps again, as it would between the copies of a program.
    Cases that take too long for ``least`` samples within ten times their share get fewer, at
    least 5.
    """
    clock = time.perf_counter_ns
    batches: dict[str, int] = {}
    for name, call in cases.items():
        once = SAMPLE
        for _ in range(6):
            start = clock()
            call()
            once = max(1, min(once, clock() - start))
        batches[name] = 1 if alone else max(1, min(500, round(SAMPLE / once)))
        for _ in range(batches[name]):
            call()  # warm
    times: dict[str, list[float]] = {name: [] for name in cases}
    dice, start = random.Random(1), clock()
    order = list(cases)
    for i in range(most):
        spent = (clock() - start) / 1e9
        if (i >= least and spent > seconds) or (i >= 5 and spent > 10 * seconds):
            break
        dice.shuffle(order)
        for name in order:
            call, rounds = cases[name], range(batches[name])
            if alone:
                begin = clock()
                while clock() - begin < PAUSE:
                    pass
            else:
                for _ in range(3):  # the case before may have pushed this one's data out of caches
                    call()
            begin = clock()
            for _ in rounds:
                call()
            times[name].append((clock() - begin) / batches[name])
    return [figure(bench, name, size, times[name], batches[name], group) for name in cases]


def sizes(smallest: int = 1, largest: int = 16 << 20, odd: int = 40) -> list[int]:
    """Powers of two, and odd sizes spread evenly over the doublings; the same ones each time."""
    dice = random.Random(1)
    low, high = smallest.bit_length() - 1, largest.bit_length() - 1
    found = {1 << i for i in range(low, high + 1)}
    wanted = len(found) + odd
    while len(found) < wanted:
        found.add(int(2 ** dice.uniform(max(1, low), high)) | 1)
    return sorted(found)
