"""y = A x, and before each product the CPU changes scattered entries of the sparse matrix A."""

import numpy as np

import gpudirect as gd

SOURCE = """
__global__ void multiply(const int *starts, const int *columns, const float *values,
                         const float *x, float *y, int n)
{
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= n)
        return;
    float sum = 0;
    for (int i = starts[row]; i < starts[row + 1]; i++)
        sum += values[i] * x[columns[i]];
    y[row] = sum;
}
"""
FLOW = "scattered updates"
UPDATE = True
SIZES = (1 << 12, 1 << 16, 1 << 20)  # rows, of 16 entries in the mean
SMALL = 300
KINDS = ("16 entries", "256 entries", "4096 entries")  # changed in each step
CHUNKS = (512, 2048, 8192, 32768)  # bytes of packed updates, 8 each
TOLERANCE = 1e-5
ROUNDS = 4


class Work:
    """The matrix in CSR form, and ``changes``: for each round which entries get which values."""

    def __init__(self, n: int, kind: str = KINDS[0], values: np.ndarray | None = None) -> None:
        rng = np.random.default_rng(2)
        self.n = n
        self.starts = np.zeros(n + 1, "i4")
        np.cumsum(rng.integers(1, 32, n), out=self.starts[1:])
        entries = int(self.starts[-1])
        self.columns = rng.integers(0, n, entries, "i4")
        self.values = rng.random(entries, "f4") if values is None else values
        if len(self.values) != entries or not np.isfinite(self.values).all():
            raise gd.ArgumentError(f"give {entries} finite values, one for each entry")
        self.x = rng.random(n, "f4")
        count = min(int(kind.split()[0]), entries)
        self.changes = [(rng.choice(entries, count, replace=False), rng.random(count, "f4"))
                        for _ in range(ROUNDS)]  # fmt: skip
        self.nbytes = 4 * count

    def host_traffic(self, version: str) -> int:
        everything, packed, back = 4 * len(self.values), 2 * self.nbytes, 4 * self.n
        return {
            "copy, pageable": self.nbytes + 3 * everything,
            "copy, pinned": self.nbytes + everything,
            "double-buffered": 2 * packed,
            "direct": 0,
        }[version] + back


def sequential(work):
    values = work.values.copy()

    def update(r):
        places, new = work.changes[r]
        values[places] = new

    def run():
        return np.add.reduceat(values * work.x[work.columns], work.starts[:-1])

    return update, run


def product(work, values):
    """The launch that all versions share: y comes back in page-locked memory."""
    starts, columns, x = gd.asarray(work.starts), gd.asarray(work.columns), gd.asarray(work.x)
    y = gd.pinned(work.n)
    multiply = gd.kernel(SOURCE, "multiply")

    def run():
        multiply[-(-work.n // 128), 128](starts, columns, values, x, y, work.n)
        gd.synchronize()
        return y

    return run


def copy(work, host=np.empty):
    values, gpu = gd.empty(len(work.values)), gd.device()
    host_values = host(len(work.values), "f4")
    host_values[:] = work.values

    def update(r):
        places, new = work.changes[r]
        host_values[places] = new
        gpu.copy_in(values.ptr, host_values.ctypes.data, values.nbytes)

    return update, product(work, values)


PUT = """
struct change { int place; float value; };
__global__ void put(const change *changes, int n, float *values)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        values[changes[i].place] = changes[i].value;
}
"""
CHANGE = np.dtype([("place", "i4"), ("value", "f4")])


def double_buffered(work, chunk):
    values = gd.asarray(work.values)
    count = chunk // CHANGE.itemsize
    buffers = [(gd.pinned(count, CHANGE), gd.empty(count, CHANGE)) for _ in range(2)]
    put, gpu = gd.kernel(PUT, "put"), gd.device()
    stream = gpu.default_stream  # which the product runs on
    free = [stream.record() for _ in range(2)]

    def update(r):
        places, new = work.changes[r]
        for i, start in enumerate(range(0, len(places), count)):
            staging, changes = buffers[i % 2]
            m = min(count, len(places) - start)
            free[i % 2].sync()
            staging["place"][:m] = places[start : start + m]
            staging["value"][:m] = new[start : start + m]
            gpu.copy_in(changes.ptr, staging.ptr, m * CHANGE.itemsize, stream)
            put[-(-m // 128), 128](changes, m, values)
            free[i % 2] = stream.record(timing=False)

    return update, product(work, values)


def direct(work):
    values = gd.asarray(work.values)

    def update(r):
        places, new = work.changes[r]
        values.host[places] = new
        values.flush()

    return update, product(work, values)


def courier(work):
    values = gd.asarray(work.values)
    worker = gd.Courier().start()

    def update(r, worker=worker):  # it stops with the last reference
        values.scatter(*work.changes[r])

    return update, product(work, values)
