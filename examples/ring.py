"""Sums and copies around a ring of GPUs, which the CPU moves: all-reduce, and all-gather.

    python examples/ring.py [PICTURE]

Each GPU has a vector. All-reduce: every GPU ends with the sum of all vectors; each piece of it goes around
the ring, and every GPU adds its own to what comes. All-gather: every GPU ends with what each of them has. A
piece is read from one GPU and stored to the next one's memory, for all GPUs at the same time, by a thread each;
a kernel adds. No GPU needs to reach another. GPUDIRECT_EMULATED_DEVICES=4 makes four GPUs of software.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from _show import histogram, where

import gpudirect as gd
from gpudirect.devices import cuda, emulated

PIECE = 4096  # elements of each GPU's piece
ROUNDS = 30
ADD = """
__global__ void add(float *a, const float *b, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        a[i] += b[i];
}
"""


class Ring:
    """Every GPU's vector has a piece for each of them."""

    def __init__(self, devices):
        self.size = len(devices)
        self.vectors = [gd.empty((self.size, PIECE), device=d) for d in devices]
        self.arrived = [gd.empty(PIECE, device=d) for d in devices]  # a place for what comes
        self.passing = [gd.pinned(PIECE, device=d) for d in devices]  # read, and not stored yet
        self.adds = [gd.kernel(ADD, "add", device=d)[-(-PIECE // 256), 256] for d in devices]
        self.threads = ThreadPoolExecutor(self.size)

    def everywhere(self, what):
        """Run it for each GPU at the same time, and wait for all."""
        list(self.threads.map(what, range(self.size)))

    def pass_on(self, piece_of, to):
        """Each GPU's piece goes to the next one: to an array there."""

        def read(i):
            self.vectors[i][piece_of(i)].read(self.passing[i])

        def store(i):
            to((i + 1) % self.size, piece_of(i)).write(self.passing[i])

        self.everywhere(read)  # all have been read before any is stored over
        self.everywhere(store)

    def all_reduce(self):
        for step in range(self.size - 1):
            def piece_of(i, step=step):
                return (i - step) % self.size

            def add(i, step=step):  # what came is the piece before the one passed on
                self.adds[i](self.vectors[i][(i - 1 - step) % self.size], self.arrived[i], PIECE)

            self.pass_on(piece_of, lambda i, piece: self.arrived[i])
            self.everywhere(add)
        self.all_gather(first=1)  # GPU i has the whole sum of piece i + 1 now

    def all_gather(self, first=0):
        """GPU i's own piece is number i + first."""
        for step in range(self.size - 1):
            self.pass_on(lambda i, step=step: (i + first - step) % self.size,
                         lambda i, piece: self.vectors[i][piece])  # fmt: skip


def main():
    kind = gd.device().kind
    if kind == "emulated":
        os.environ.setdefault("GPUDIRECT_EMULATED_DEVICES", "3")
    count = {"cuda": cuda.count, "emulated": emulated.count}[kind]()
    ring = Ring([gd.device(f"{kind}:{i}") for i in range(count)])
    data = np.random.default_rng(1).integers(-99, 99, (count, count, PIECE)).astype("f4")
    took = []
    for _ in range(ROUNDS):
        gd.distribute(data, ring.vectors)
        start = time.perf_counter()
        ring.all_reduce()
        took.append(time.perf_counter() - start)
        assert all(np.array_equal(v.read(), data.sum(0)) for v in ring.vectors)
    gd.distribute(data, ring.vectors)
    ring.all_gather()
    own = np.stack([data[i, i] for i in range(count)])
    assert all(np.array_equal(v.read(), own) for v in ring.vectors)
    print(f"{count} devices: the sum of all is on each, and the piece of each on all")
    histogram(took, f"an all-reduce of {count * PIECE * 4 / 1024:g} KiB on {where()}")


if __name__ == "__main__":
    main()
