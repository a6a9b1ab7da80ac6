"""``engine``: the copy engine in C, held against bare loops, each with its fence.

One thread over every size, aligned and not; and with as many threads as the engine likes, beside
the best that any number of bare threads reaches. The stopwatch is in C (_native/bare.c).
"""

from __future__ import annotations

import random

import numpy as np

import gpudirect as gd

from ..devices import Device
from . import _native as _bench
from .measure import Figure, figure, sizes
from .progress import Tell, silent

NAME = "engine"
NOTE = ("A write's clock stops when the CPU has stored and fenced everything; a read's when "
        "everything is in ordinary memory.")  # fmt: skip
BARE = {
    "write": {"store-avx512": "bare avx512", "store-movdir64b": "bare movdir64b",
              "store-memcpy": "libc memcpy"},
    "read": {"load-16": "bare 16", "load-32": "bare 32", "load-64": "bare 64"},
}  # fmt: skip
ENGINE = {"write": "store-engine", "read": "load-engine"}
UNALIGNED = (13, 5)  # bytes off a line, in the mapping and in ordinary memory
LARGEST = 16 << 20


def _kind(name: str) -> int:
    return int(_bench.lib.gd_bare_find(name.encode()))


def _usable(direction: str) -> list[str]:
    return [k for k in BARE[direction] if _bench.lib.gd_bare_usable(_kind(k))]


def _times(kinds: list[str], at: int, other: int, n: int, rounds: int) -> tuple[dict[str, list[float]], int]:
    """Nanoseconds of one copy by each kind, in turn, in an order drawn anew each round."""
    lib, ffi = _bench.lib, _bench.ffi
    samples = 20 if n < 1 << 20 else 5 if n < 4 << 20 else 2
    batch = max(1, min(200, (64 << 10) // n))
    ns = ffi.new("double[]", samples)
    found: dict[str, list[float]] = {k: [] for k in kinds}
    dice = random.Random(n)
    for i in range(rounds + 1):
        for k in dice.sample(kinds, len(kinds)):
            lib.gd_bare_time(_kind(k), at, ffi.cast("char *", other), n, batch, samples, ns)
            if i:  # the first round warms up
                found[k] += list(ns)
    return found, batch


def _one_thread(direction: str, at: int, other: int, n: int, unaligned: bool, rounds: int) -> list[Figure]:
    kinds = [ENGINE[direction], *_usable(direction)]
    where, what = UNALIGNED if unaligned else (0, 0)
    group = f"{direction} unaligned" if unaligned else direction
    times, batch = _times(kinds, at + where, other + what, n, rounds)
    words = {ENGINE[direction]: "gpudirect", **BARE[direction]}
    return [figure(NAME, f"{group}: {words[k]}", n, times[k], batch, group) for k in kinds]


def _threads(direction: str, at: int, other: int, n: int, rounds: int) -> list[Figure]:
    lib, ffi = _bench.lib, _bench.ffi
    group = f"{direction} threads"
    times, batch = _times([f"{ENGINE[direction]}-threads"], at, other, n, rounds)
    samples = 5 * rounds
    ns = ffi.new("double[]", samples)
    best: list[float] | None = None
    for k in _usable(direction):
        for count in (2, 3, 4, 6, 8, 12, 16):
            if lib.gd_bare_time_threads(_kind(k), at, ffi.cast("char *", other), n, count, ffi.NULL,
                                        0, samples, ns):  # fmt: skip
                continue
            if best is None or np.median(list(ns)) < np.median(best):
                best = list(ns)
    found = [figure(NAME, f"{group}: gpudirect", n, times[f"{ENGINE[direction]}-threads"], batch, group)]
    if best is not None:
        found.append(figure(NAME, f"{group}: bare best", n, best, 1, group))
    return found


def run(device: Device, quick: bool = False, tell: Tell = silent) -> list[Figure]:
    """Measure on the default bridge of ``device``."""
    rounds, odd = (2, 4) if quick else (7, 40)
    found: list[Figure] = []
    here = np.ones(LARGEST + 4096, np.uint8)
    other = int(here.ctypes.data) + -int(here.ctypes.data) % 64
    with gd.empty(LARGEST + 4096, "u1", device=device, mapped=True) as a:
        largest = 64 << 10 if quick else LARGEST
        for direction in ("write", "read"):
            todo = sizes(1, largest, odd)
            for i, n in enumerate(todo):
                tell(f"{direction} of {n} bytes", i, len(todo))
                for unaligned in (False, True):
                    found += _one_thread(direction, a.host_ptr, other, n, unaligned, rounds)
            for n in (1 << 20, 2 << 20, 4 << 20, 8 << 20, 16 << 20):
                if n <= largest and (direction == "write" or n == 1 << 20):
                    tell(f"{direction} of {n} bytes by several threads", 0, 1)
                    found += _threads(direction, a.host_ptr, other, n, rounds)
    return found
