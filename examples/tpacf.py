"""Two-point angular correlation: how often are two points of the sky at which angle to each other?

Catalogues come as right ascension and declination; the CPU makes unit vectors of them.
"""

import numpy as np
from _c import library, pointer

import gpudirect as gd

BINS = 16
SOURCE = """
// histograms of the scalar products of all points of a catalogue with all of the observed one
// and with all of its own
__global__ void correlate(const short *observed, const short *points, int n, const int *edges,
                          unsigned long long *counts)
{
    __shared__ unsigned own[16];
    const short *a = points, *b = blockIdx.z ? points : observed;
    int i = blockIdx.x * blockDim.x + threadIdx.x, span = (n + gridDim.y - 1) / gridDim.y;
    int first = blockIdx.y * span, end = first + span < n ? first + span : n;
    if (threadIdx.x < 16)
        own[threadIdx.x] = 0;
    __syncthreads();
    if (i < n)
        for (int j = first; j < end; j++) {
            int product = a[i] * b[j] + a[n + i] * b[n + j] + a[2 * n + i] * b[2 * n + j];
            int bin = 0;
            for (int half = 8; half; half /= 2)
                if (product < edges[bin + half])
                    bin += half;
            atomicAdd(&own[bin], 1u);
        }
    __syncthreads();
    if (threadIdx.x < 16 && own[threadIdx.x])
        atomicAdd(&counts[blockIdx.z * 16 + threadIdx.x], (unsigned long long)own[threadIdx.x]);
}
"""
FLOW = "CPU to GPU"
SIZES = (512, 2048, 8192)  # points in a catalogue
SMALL = 48
KINDS = ("all pairs",)
TOLERANCE = 0
SETS = 6  # catalogues: the observed one, and random ones to compare it with
SCALE = 16000  # of the unit vectors, which are whole numbers, so that all counts are exact


class Work:
    """SETS catalogues of n points, as angles in radians."""

    def __init__(self, n: int, kind: str = KINDS[0], angles: np.ndarray | None = None) -> None:
        rng = np.random.default_rng(5)
        if angles is None:
            ascension = rng.uniform(0, 2 * np.pi, (SETS, n))
            declination = np.arcsin(rng.uniform(-1, 1, (SETS, n)))
            angles = np.stack([ascension, declination], 1).astype("f4")
        if angles.shape != (SETS, 2, n):
            raise gd.ArgumentError(f"angles are {angles.shape}: give {(SETS, 2, n)}")
        if not np.isfinite(angles).all():
            wrong = int((~np.isfinite(angles)).sum())
            raise gd.ArgumentError(f"{wrong} angles are no numbers: a NaN belongs to no bin, and "
                                   "would silently be counted in one")  # fmt: skip
        self.n, self.angles = n, angles
        self.nbytes, self.results = SETS * 6 * n, SETS * 2 * BINS * 8
        spread = np.cos(np.linspace(0, np.pi, BINS + 1)[:-1])
        self.edges = np.rint(SCALE**2 * spread).astype("i4")

    def produce(self, points: np.ndarray, s: int, start: int = 0) -> None:
        """x, y, z of points start... of catalogue s."""
        ascension, declination = self.angles[s, :, start : start + points.shape[1]]
        flat = np.cos(declination) * np.float32(SCALE)
        np.multiply(flat, np.cos(ascension), out=points[0], casting="unsafe")
        np.multiply(flat, np.sin(ascension), out=points[1], casting="unsafe")
        np.multiply(np.sin(declination), np.float32(SCALE), out=points[2], casting="unsafe")

    def alone(self, empty):
        """One step's production by itself, into arrays that ``empty`` makes."""
        points = empty((3, self.n), "i2")
        return lambda: [self.produce(points, s) for s in range(SETS)]


ORIGINAL = """
#include <stdint.h>
void correlate(const int16_t *a, const int16_t *b, int n, const int32_t *edges, uint64_t *counts)
{
    for (int i = 0; i < n; i++) {
        int products[n], before = n;
        for (int j = 0; j < n; j++)
            products[j] = a[i] * b[j] + a[n + i] * b[n + j] + a[2 * n + i] * b[2 * n + j];
        for (int bin = 0; bin < 16; bin++) {
            int after = 0;
            for (int j = 0; j < n; j++)
                after += bin < 15 && products[j] < edges[bin + 1];
            counts[bin] += before - after;
            before = after;
        }
    }
}
"""
DECLARATION = """void correlate(const int16_t *a, const int16_t *b, int n, const int32_t *edges,
                                uint64_t *counts);"""


def sequential(work):
    points = np.empty((SETS, 3, work.n), "i2")
    counts = np.empty((SETS, 2, BINS), "u8")
    correlate = library(DECLARATION, ORIGINAL).correlate

    def step():
        counts[:] = 0
        for s in range(SETS):
            work.produce(points[s], s)
            for i, other in enumerate((0, s)):
                correlate(pointer(points[s]), pointer(points[other]), work.n, pointer(work.edges),
                          pointer(counts[s, i]))  # fmt: skip
        return counts

    return step


def correlations(work, points):
    """What all versions do with a catalogue that has arrived: count its pairs with the observed
    one and with itself."""
    counts, edges = gd.empty((SETS, 2, BINS), "u8"), gd.asarray(work.edges)
    kernel = gd.kernel(SOURCE, "correlate")
    grid = -(-work.n // 128), min(32, -(-work.n // 64)), 2

    def correlate(s, stream=None):
        if s == 0:
            counts.device.fill(counts.ptr, 0, counts.nbytes, stream)
        kernel[grid, 128, stream](points, points.ptr + 6 * work.n * s, work.n, edges,
                                  counts.ptr + 16 * BINS * s)  # fmt: skip

    return correlate, counts


def copy(work, host=np.empty):
    points = gd.empty((SETS, 3, work.n), "i2")
    catalogue, result = host((3, work.n), "i2"), host((SETS, 2, BINS), "u8")
    gpu = gd.device()
    correlate, counts = correlations(work, points)

    def step():
        for s in range(SETS):
            work.produce(catalogue, s)
            gpu.copy_in(points[s].ptr, catalogue.ctypes.data, catalogue.nbytes)
            correlate(s)
        gpu.copy_out(result.ctypes.data, counts.ptr, counts.nbytes)
        return result

    return step


def double_buffered(work, chunk):
    n, m = work.n, max(1, min(work.n, chunk // 6))
    points = gd.empty((SETS, 3, n), "i2")
    gpu, copying, computing = gd.device(), gd.stream(), gd.stream()
    buffers = [gd.pinned((3, m), "i2") for _ in range(2)]
    free = [copying.record() for _ in range(2)]
    result = gd.pinned((SETS, 2, BINS), "u8")
    correlate, counts = correlations(work, points)

    def step():
        chunks = 0
        for s in range(SETS):
            for start in range(0, n, m):
                i, length = chunks % 2, min(m, n - start)
                chunks += 1
                free[i].sync()
                work.produce(buffers[i][:, :length], s, start)
                parts = buffers[i : i + 1] if length == n else [row[:length] for row in buffers[i]]
                for axis, part in enumerate(parts):
                    to = points.ptr + 2 * ((3 * s + axis) * n + start)
                    gpu.copy_in(to, part.ptr, part.nbytes, copying)
                free[i] = copying.record(timing=False)
            computing.wait(copying)
            correlate(s, computing)
        gpu.copy_out(result.ptr, counts.ptr, counts.nbytes, computing)
        computing.synchronize()
        return result

    return step


def direct(work):
    points = gd.empty((SETS, 3, work.n), "i2")
    result = gd.pinned((SETS, 2, BINS), "u8")
    correlate, counts = correlations(work, points)

    def step():
        for s in range(SETS):
            work.produce(points.host[s], s)
            correlate(s)
        return counts.read(result)

    return step
