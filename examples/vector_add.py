"""c = a + b, the hello world: the CPU makes a and b, the GPU adds them, the CPU gets c."""

import numpy as np
from _cuda import address, copy_in, copy_out, download, host_traffic, pinned, upload

import gpudirect as gd

SOURCE = """
__global__ void add(const float *a, const float *b, float *c, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        c[i] = a[i] + b[i];
}
"""
FLOW = "CPU to GPU, and as much back"
SIZES = (1 << 16, 1 << 20, 1 << 23)  # elements
SMALL = 10_007
KINDS = ("scale", "sqrt", "sine")  # how a is made from a signal, cheap to dear
TOLERANCE = 0.0  # one addition, rounded the same on both sides


class Work:
    """n numbers of each; the CPU's share of the work is ``produce``."""

    def __init__(self, n: int, kind: str = "scale", signal: np.ndarray | None = None) -> None:
        if n < 1:
            raise gd.ArgumentError(f"n is {n}: give at least 1")
        self.n = n
        self.nbytes = 2 * 4 * n  # to the device in one step
        self.make = {"scale": lambda x, out: np.multiply(x, np.float32(3), out=out),
                     "sqrt": np.sqrt, "sine": np.sin}[kind]  # fmt: skip
        self.signal = np.random.default_rng(1).random(n, "f4") if signal is None else signal

    def produce(self, a: np.ndarray, b: np.ndarray, start: int = 0) -> None:
        x = self.signal[start : start + len(a)]
        self.make(x, out=a)
        np.subtract(x, np.float32(0.5), out=b)

    def alone(self, empty):
        """One step's production by itself, into arrays that ``empty`` makes."""
        a, b = empty(self.n, "f4"), empty(self.n, "f4")
        return lambda: self.produce(a, b)

    def host_traffic(self, version: str) -> int:
        return host_traffic(version, self.nbytes, results=4 * self.n)


def sequential(work):
    a, b, c = (np.empty(work.n, "f4") for _ in "abc")

    def step():
        work.produce(a, b)
        return np.add(a, b, out=c)

    return step


def copy(work, host=np.empty):
    n = work.n
    a, b, c = (gd.empty(n) for _ in "abc")
    host_a, host_b, host_c = (host(n, "f4") for _ in "abc")
    add = gd.kernel(SOURCE, "add")

    def step():
        work.produce(host_a, host_b)
        upload(a, host_a)
        upload(b, host_b)
        add[-(-n // 256), 256](a, b, c, n)
        return download(host_c, c)

    return step


def double_buffered(work, chunk):
    n, size = work.n, min(work.n, chunk // 8)
    a, b, c = (gd.empty(n) for _ in "abc")
    buffers = [(gd.stream(), pinned(size), pinned(size)) for _ in range(2)]
    result = pinned(n)
    add = gd.kernel(SOURCE, "add")

    def step():
        for i, start in enumerate(range(0, n, size)):
            stream, host_a, host_b = buffers[i % 2]
            m = min(size, n - start)
            at = 4 * start
            stream.synchronize()  # the buffers are free again
            work.produce(host_a[:m], host_b[:m], start)
            copy_in(a.ptr + at, address(host_a), 4 * m, stream)
            copy_in(b.ptr + at, address(host_b), 4 * m, stream)
            add[-(-m // 256), 256, stream](a.ptr + at, b.ptr + at, c.ptr + at, m)
            copy_out(address(result) + at, c.ptr + at, 4 * m, stream)
        for stream, _, _ in buffers:
            stream.synchronize()
        return result

    return step


def direct(work):
    n = work.n
    a, b, c = gd.empty(n), gd.empty(n), gd.pinned(n)
    add = gd.kernel(SOURCE, "add")

    def step():
        work.produce(a.host, b.host)
        add[-(-n // 256), 256](a, b, c, n)
        gd.synchronize()
        return c

    return step
