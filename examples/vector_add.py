"""c = a + b, the hello world: the CPU makes a and b, the GPU adds them, the CPU gets c."""

import numpy as np

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
        self.nbytes, self.results = 2 * 4 * n, 4 * n  # bytes to the device in one step, and back
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
    add, gpu = gd.kernel(SOURCE, "add"), gd.device()

    def step():
        work.produce(host_a, host_b)
        gpu.copy_in(a.ptr, host_a.ctypes.data, a.nbytes)
        gpu.copy_in(b.ptr, host_b.ctypes.data, b.nbytes)
        add[-(-n // 256), 256](a, b, c, n)
        gpu.copy_out(host_c.ctypes.data, c.ptr, c.nbytes)
        return host_c

    return step


def double_buffered(work, chunk):
    n, size = work.n, min(work.n, chunk // 8)
    a, b, c = (gd.empty(n) for _ in "abc")
    buffers = [(gd.stream(), gd.pinned(size), gd.pinned(size)) for _ in range(2)]
    result = gd.pinned(n)
    add, gpu = gd.kernel(SOURCE, "add"), gd.device()

    def step():
        for i, start in enumerate(range(0, n, size)):
            stream, host_a, host_b = buffers[i % 2]
            m, at = min(size, n - start), 4 * start
            stream.synchronize()  # the buffers are free again
            work.produce(host_a[:m], host_b[:m], start)
            gpu.copy_in(a.ptr + at, host_a.ptr, 4 * m, stream)
            gpu.copy_in(b.ptr + at, host_b.ptr, 4 * m, stream)
            add[-(-m // 256), 256, stream](a.ptr + at, b.ptr + at, c.ptr + at, m)
            gpu.copy_out(result.ptr + at, c.ptr + at, 4 * m, stream)
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
