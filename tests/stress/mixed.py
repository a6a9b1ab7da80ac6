#!/usr/bin/env python3
"""Threads that allocate, write, read, launch, call and close at random, checked against a model.

  tests/stress/mixed.py [--seconds 60] [--seed 1] [--threads 4] [--device emulated]

Each thread has arrays, and beside each what NumPy says it must hold. What is read must be that, to
the byte; at the end memory, descriptors and threads are as many as before. Prints what was done, as JSON.
Exit 1 at the first difference, with the seed; a hang ends the program with every thread's stack.
"""

from __future__ import annotations

import _thread
import argparse
import faulthandler
import gc
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import gpudirect as gd  # noqa: E402

KERNEL = """
__global__ void add(int *p, int n, int by)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) p[i] += by;
}"""
SERVICE = """
__device__ long long sum(const int *p, int n)
{
    long long s = 0;
    for (int i = 0; i < n; i++) s += p[i];
    return s;
}
__device__ int plus(int a, int b) { return a + b; }
"""
SIZES = (1, 16, 63, 64, 300, 1000, 20_000)  # elements
MOST = 12  # arrays of a thread
SLACK = 100  # seconds beyond the end after which a thread hangs


class Worker:
    """One thread: its arrays, and the model of each."""

    def __init__(self, number: int, seed: int, service: gd.Service, kernel: gd.Kernel) -> None:
        self.draw = random.Random(f"{seed}/{number}")
        self.arrays: list[tuple[gd.Array, np.ndarray]] = []
        self.service, self.kernel = service, kernel
        self.stream = gd.stream()
        self.done: Counter[str] = Counter()

    def allocate(self) -> None:
        n = self.draw.choice(SIZES)
        kind = self.draw.random()
        if kind < 0.1:
            a = gd.zeros(n * 64, "i4", mapped=False)
        elif kind < 0.2:
            a = gd.zeros(n, "i4", pool=False)
        else:
            a = gd.zeros(n, "i4")
        self.arrays.append((a, np.zeros(a.size, "i4")))

    def pick(self) -> tuple[gd.Array, np.ndarray]:
        return self.draw.choice(self.arrays)

    def span(self, size: int) -> tuple[int, int]:
        start = self.draw.randrange(size)
        return start, self.draw.randint(1, min(size - start, 500))

    def write(self) -> None:
        a, model = self.pick()
        start, count = self.span(a.size)
        data = np.arange(count, dtype="i4") * self.draw.randrange(1 << 16)
        via = self.draw.choice([None, None, None, "map", "dma"])
        a.write(data, start, via=via)
        model[start : start + count] = data

    def store(self) -> None:
        a, model = self.pick()
        if a.device and a._piece.host:  # type: ignore[union-attr]
            start, count = self.span(a.size)
            value = self.draw.randrange(1 << 30)
            a.host[start : start + count] = value
            model[start : start + count] = value

    def fill(self) -> None:
        a, model = self.pick()
        value = self.draw.randrange(1 << 30)
        a.fill(value)
        model[:] = value

    def read(self) -> None:
        a, model = self.pick()
        if self.draw.random() < 0.5:
            found, wanted = a.read(via=self.draw.choice([None, "map", "dma"])), model
        else:
            start, count = self.span(a.size)
            found, wanted = a.read(start=start, count=count), model[start : start + count]
        if not np.array_equal(found, wanted):
            i = int(np.flatnonzero(found != wanted)[0])
            raise AssertionError(f"{a!r}: element {i} is {found[i]}, not {wanted[i]}")

    def launch(self) -> None:
        a, model = self.pick()
        by = self.draw.randrange(1000)
        self.kernel[-(-a.size // 128), 128, self.stream](a, a.size, by)
        model += np.int32(by)
        self.stream.synchronize()

    def launch_and_drop(self) -> None:
        """Memory must not be handed out again before the kernel has ended."""
        a = gd.zeros(self.draw.choice(SIZES), "i4")
        self.kernel[-(-a.size // 128), 128, self.stream](a, a.size, 1)

    def call(self) -> None:
        a, model = self.pick()
        self.stream.synchronize()
        n = min(a.size, 300)
        found = self.service.call("sum", a, n, timeout=60)
        assert found == int(model[:n].sum(dtype="i8")), f"{a!r}: a sum of {found}"

    def submit(self) -> None:
        draw = self.draw.randrange
        pairs = [(draw(1000), draw(1000)) for _ in range(draw(20) + 1)]
        futures = [self.service.submit("plus", *p, timeout=60) for p in pairs]
        if self.draw.random() < 0.2:
            return  # dropped unread
        assert [f.result(timeout=60) for f in futures] == [sum(p) for p in pairs]

    def window(self) -> None:
        a, model = self.pick()
        start, count = self.span(a.size)
        with a.window(start, count) as w:
            w.write(np.full(count, 7, "i4"))
        model[start : start + count] = 7

    def slice(self) -> None:
        a, model = self.pick()
        step = self.draw.randint(1, 5)
        part, wanted = a[::step], model[::step]
        assert np.array_equal(part.read(), wanted), f"{part!r} of {a!r}"

    def close(self) -> None:
        a, _ = self.arrays.pop(self.draw.randrange(len(self.arrays)))
        if self.draw.random() < 0.5:
            a.close()

    def bell(self) -> None:
        with gd.Doorbell() as bell:
            bell.ring(1)
            bell.wait(0, timeout=60)

    def trim(self) -> None:
        gd.trim()

    def step(self) -> None:
        if len(self.arrays) < 2:
            what: Callable[[], None] = self.allocate
        elif len(self.arrays) >= MOST:
            what = self.close
        else:
            what = self.draw.choices(
                [self.allocate, self.write, self.store, self.fill, self.read, self.launch,
                 self.launch_and_drop, self.call, self.submit, self.window, self.slice, self.close,
                 self.bell, self.trim],
                [8, 12, 6, 2, 14, 6, 3, 6, 4, 3, 4, 6, 0.5, 0.2],
            )[0]  # fmt: skip
        what()
        self.done[what.__name__] += 1

    def end(self) -> None:
        for a, model in self.arrays:
            assert np.array_equal(a.read(), model), f"{a!r} at the end"
        self.arrays.clear()
        self.stream.close()


def held() -> dict[str, int]:
    """What the process holds now."""
    gc.collect()
    gd.synchronize()
    gd.trim()
    return {
        "device_bytes": sum(s.reserved for s in gd.statistics()),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": _thread._count(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--device")
    given = parser.parse_args()
    gd.use(device=given.device)
    faulthandler.dump_traceback_later(given.seconds + SLACK, exit=True)
    kernel = gd.kernel(KERNEL, "add")
    failures: list[str] = []
    done: Counter[str] = Counter()

    def once(seconds: float, seed: int) -> None:
        end = time.monotonic() + seconds
        with gd.Service(SERVICE, ["sum", "plus"], lanes=2) as service:
            workers = [Worker(n, seed, service, kernel) for n in range(given.threads)]

            def run(worker: Worker) -> None:
                try:
                    while time.monotonic() < end and not failures:
                        worker.step()
                    worker.end()
                except BaseException as e:
                    failures.append(f"{type(e).__name__}: {e}")
                    raise

            threads = [threading.Thread(target=run, args=(w,)) for w in workers]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            for w in workers:
                done.update(w.done)

    once(min(2.0, given.seconds), given.seed)  # everything that is started once is
    before = held()
    once(given.seconds, given.seed + 1)
    after = held()
    if not failures and after != before:
        failures.append(f"not everything came back: {before} before, {after} after")
    print(json.dumps({
        "device": repr(gd.device()), "seconds": given.seconds, "seed": given.seed, "threads": given.threads,
        "operations": sum(done.values()), "of": dict(done.most_common()), "held": after,
        "failures": failures,
    }, indent=1))  # fmt: skip
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
