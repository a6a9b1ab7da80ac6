"""A 3D wave-like stencil whose source term the CPU makes anew in each time step."""

import numpy as np

import gpudirect as gd

SOURCE = """
__global__ void advance(const float *u, const float *source, float *after, int n)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y, z = blockIdx.z;
    if (x >= n)
        return;
    int i = (z * n + y) * n + x;
    if (x == 0 || y == 0 || z == 0 || x == n - 1 || y == n - 1 || z == n - 1) {
        after[i] = 0;
        return;
    }
    float around = u[i - 1] + u[i + 1] + u[i - n] + u[i + n] + u[i - n * n] + u[i + n * n];
    after[i] = 0.5f * u[i] + (1 / 12.0f) * around + source[i];
}
"""
FLOW = "CPU to GPU"
SIZES = (32, 80, 160)  # edge of the grid, elements
SMALL = 12
KINDS = ("product", "sine")  # how the source is made, cheap to dear
TOLERANCE = 1e-5
STEPS = 8


class Work:
    """A grid of n*n*n for STEPS time steps, from zero."""

    def __init__(self, n: int, kind: str = "product", amplitude: float = 1.0) -> None:
        if n < 3 or not np.isfinite(amplitude):
            raise gd.ArgumentError(f"n is {n}, the amplitude {amplitude}: give at least 3, finite")
        self.n, self.kind = n, kind
        self.cells = n**3
        self.nbytes, self.results = STEPS * 4 * self.cells, 4 * self.cells
        axis = np.linspace(-1, 1, n, dtype="f4")
        self.profile = np.exp(-4 * axis**2)
        plane = amplitude * np.multiply.outer(self.profile, self.profile)
        self.plane = plane.astype("f4").ravel()
        self.phases = np.empty((max(1, 65536 // n**2), n**2), "f4")
        self.pulse = np.sin(np.arange(STEPS, dtype="f4") + 1).astype("f4")

    def produce(self, source: np.ndarray, t: int, z: int = 0) -> None:
        """Planes z... of the source at time t; ``source`` is only written."""
        flat = np.asarray(source).reshape(len(source), -1)
        if self.kind == "product":
            depth = self.profile[z : z + len(source), None]
            np.multiply(self.plane * self.pulse[t], depth, out=flat)
        else:
            phase = self.pulse[t] + self.profile[z : z + len(source), None]
            several = len(self.phases)
            for k in range(0, len(flat), several):  # so few planes that they stay in the cache
                part = np.add(self.plane, phase[k : k + several],
                              out=self.phases[: len(flat) - k])  # fmt: skip
                np.sin(part, out=flat[k : k + several])

    def alone(self, empty):
        """One step's production by itself, into arrays that ``empty`` makes."""
        source = empty((self.n,) * 3, "f4")
        return lambda: [self.produce(source, t) for t in range(STEPS)]


def sequential(work):
    u, after, source = (np.zeros((work.n,) * 3, "f4") for _ in range(3))

    def step():
        a, b = u, after
        a[:] = 0
        for t in range(STEPS):
            work.produce(source, t)
            around = (a[1:-1, 1:-1, :-2] + a[1:-1, 1:-1, 2:] + a[1:-1, :-2, 1:-1]
                      + a[1:-1, 2:, 1:-1] + a[:-2, 1:-1, 1:-1] + a[2:, 1:-1, 1:-1])  # fmt: skip
            inner = (slice(1, -1),) * 3
            b[inner] = np.float32(0.5) * a[inner] + np.float32(1 / 12) * around + source[inner]
            a, b = b, a
        return a

    return step


def grid(n):
    return (-(-n // 128), n, n), 128


def copy(work, host=np.empty):
    shape = (work.n,) * 3
    start, source = gd.zeros(shape), gd.empty(shape)
    fields = gd.empty(shape), gd.empty(shape)
    host_source, result = host(shape, "f4"), host(shape, "f4")
    advance, gpu = gd.kernel(SOURCE, "advance"), gd.device()

    def step():
        u = start
        for t in range(STEPS):
            work.produce(host_source, t)
            gpu.copy_in(source.ptr, host_source.ctypes.data, source.nbytes)
            advance[grid(work.n)](u, source, fields[t % 2], work.n)
            u = fields[t % 2]
        gpu.copy_out(result.ctypes.data, u.ptr, u.nbytes)
        return result

    return step


def double_buffered(work, chunk):
    n, shape = work.n, (work.n,) * 3
    planes = max(1, min(n, chunk // (4 * n * n)))
    start, fields = gd.zeros(shape), (gd.empty(shape), gd.empty(shape))
    copying, computing = gd.stream(), gd.stream()
    sources, used = [gd.empty(shape) for _ in range(2)], [computing.record() for _ in range(2)]
    buffers, free = [gd.pinned((planes, n, n)) for _ in range(2)], [copying.record() for _ in range(2)]
    result = gd.pinned(shape)
    advance, gpu = gd.kernel(SOURCE, "advance"), gd.device()

    def step():
        u, chunks = start, 0
        for t in range(STEPS):
            source = sources[t % 2]
            copying.wait(used[t % 2])
            for z in range(0, n, planes):
                i, m = chunks % 2, min(planes, n - z)
                chunks += 1
                free[i].sync()
                work.produce(buffers[i][:m], t, z)
                gpu.copy_in(source.ptr + 4 * z * n * n, buffers[i].ptr, 4 * m * n * n, copying)
                free[i] = copying.record(timing=False)
            computing.wait(copying)
            advance[(*grid(n), computing)](u, source, fields[t % 2], n)
            used[t % 2] = computing.record(timing=False)
            u = fields[t % 2]
        gpu.copy_out(result.ptr, u.ptr, u.nbytes, computing)
        computing.synchronize()
        return result

    return step


def direct(work):
    shape = (work.n,) * 3
    start, source = gd.zeros(shape), gd.empty((STEPS, *shape))
    fields = gd.empty(shape), gd.empty(shape)
    result = gd.pinned(shape)
    advance = gd.kernel(SOURCE, "advance")

    def step():
        u = start
        for t in range(STEPS):
            work.produce(source.host[t], t)
            advance[grid(work.n)](u, source[t], fields[t % 2], work.n)
            u = fields[t % 2]
        return u.read(result)

    return step
