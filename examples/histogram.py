"""Counts over a sliding window, in a histogram on the GPU of which the CPU reads some after each step."""

import itertools

import numpy as np

import gpudirect as gd

SOURCE = """
__global__ void slide(const int *entering, const int *leaving, int n, unsigned *counts)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n)
        return;
    atomicAdd(&counts[entering[i]], 1u);
    atomicSub(&counts[leaving[i]], 1u);
}
"""
FLOW = "scattered read-back"
UPDATE = True
READS = True
SIZES = (1 << 12, 1 << 16, 1 << 20)  # bins
SMALL = 300
KINDS = ("16 entries", "256 entries", "4096 entries")  # read after each step
CHUNKS = (512, 2048, 8192, 32768)  # bytes of places and what is found there, 8 each
TOLERANCE = 0.0
ROUNDS = 4
WINDOW = 2  # batches that are counted
BATCH = 4096  # keys that enter in a step


class Work:
    """``batches``: the keys that enter in each round; ``asked``: whose counts the CPU reads then."""

    def __init__(self, n: int, kind: str = KINDS[0], batches: np.ndarray | None = None) -> None:
        rng = np.random.default_rng(4)
        if n < 1:
            raise gd.ArgumentError(f"{n} bins: give at least 1")
        self.n = n
        self.batches = (n * rng.random((ROUNDS, BATCH)) ** 3).astype("i4") if batches is None else batches
        if len(self.batches) != ROUNDS or self.batches.min() < 0 or self.batches.max() >= n:
            raise gd.ArgumentError(f"give {ROUNDS} batches of keys from 0 to {n - 1}")
        self.counts = np.bincount(self.batches[-WINDOW:].ravel(), minlength=n).astype("u4")
        self.asked = [rng.choice(n, min(int(kind.split()[0]), n), replace=False) for _ in range(ROUNDS)]
        self.nbytes = 4 * len(self.asked[0])

    def host_traffic(self, version: str) -> int:
        everything, packed = 4 * self.n, 2 * self.nbytes
        return {
            "copy, pageable": 3 * everything + self.nbytes,
            "copy, pinned": everything + self.nbytes,
            "double-buffered": 2 * packed,
            "direct": 0,
        }[version] + self.nbytes


def sequential(work):
    counts, found = work.counts.copy(), np.empty(len(work.asked[0]), "u4")
    turns = itertools.cycle(range(ROUNDS))

    def read(r):
        found[:] = counts[work.asked[r]]

    def run():
        r = next(turns)
        np.add.at(counts, work.batches[r], 1)
        np.subtract.at(counts, work.batches[r - WINDOW], 1)
        return found

    return read, run


def window(work):
    """What all versions share: the counts, where the CPU finds what it asked for, and the launch."""
    counts, found = gd.asarray(work.counts), np.empty(len(work.asked[0]), "u4")
    batches = [gd.asarray(b) for b in work.batches]
    turns = itertools.cycle(range(ROUNDS))
    slide = gd.kernel(SOURCE, "slide")

    def run():
        r, n = next(turns), batches[0].size
        slide[-(-n // 128), 128](batches[r], batches[r - WINDOW], n, counts)
        gd.synchronize()
        return found

    return counts, found, run


def copy(work, host=np.empty):
    counts, found, run = window(work)
    everything, gpu = host(work.n, "u4"), gd.device()

    def read(r):
        gpu.copy_out(everything.ctypes.data, counts.ptr, counts.nbytes)
        np.take(everything, work.asked[r], out=found)

    return read, run


PICK = """
__global__ void pick(const int *places, int n, const unsigned *counts, unsigned *found)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        found[i] = counts[places[i]];
}
"""


class Half:
    """One of two buffers: places on their way to the device, and counts on their way back."""

    def __init__(self, count):
        self.places, self.found = gd.pinned(count, "i4"), gd.pinned(count, "u4")
        self.places_there, self.found_there = gd.empty(count, "i4"), gd.empty(count, "u4")
        self.stream = gd.stream()


def double_buffered(work, chunk):
    counts, found, run = window(work)
    pick, gpu, count = gd.kernel(PICK, "pick"), gd.device(), chunk // 8
    halves = [Half(count) for _ in range(2)]

    def ask(half, places):
        n = len(places)
        half.places[:n] = places
        gpu.copy_in(half.places_there.ptr, half.places.ptr, 4 * n, half.stream)
        pick[-(-n // 128), 128, half.stream](half.places_there, n, counts, half.found_there)
        gpu.copy_out(half.found.ptr, half.found_there.ptr, 4 * n, half.stream)

    def take(half, to):
        half.stream.synchronize()
        to[:] = half.found[: len(to)]

    def read(r):
        starts = range(0, len(found), count)
        for i, start in enumerate(starts):
            if i > 1:
                take(halves[i % 2], found[starts[i - 2] :][:count])
            ask(halves[i % 2], work.asked[r][start : start + count])
        for i, start in list(enumerate(starts))[-2:]:
            take(halves[i % 2], found[start : start + count])

    return read, run


def direct(work):
    counts, found, run = window(work)

    def read(r):
        counts.gather(work.asked[r], found)

    return read, run


def courier(work):
    worker, (counts, found, run) = gd.Courier().start(), window(work)

    def read(r, worker=worker):  # it stops with the last reference
        counts.gather(work.asked[r], found)

    return read, run
