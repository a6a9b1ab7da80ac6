"""A network run as a CUDA graph, with many small pieces of its weights changed between two runs."""

import numpy as np

import gpudirect as gd

SOURCE = """
__global__ void layer(const float *weights, const float *in, float *out, int n)
{
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    float sum = 0;
    if (row < n)
        for (int i = lane; i < n; i += 32)
            sum += weights[row * n + i] * in[i];
    for (int step = 16; step; step /= 2)
        sum += __shfl_down_sync(0xffffffff, sum, step);
    if (row < n && lane == 0)
        out[row] = sum > 0 ? sum : 0;
}
"""
FLOW = "scattered updates"
UPDATE = True
SIZES = (128, 512, 1024)  # width of a layer
SMALL = 32
KINDS = ("4 pieces", "32 pieces", "256 pieces")  # of PIECE floats, changed between two runs
PIECE = 16
LAYERS = 4
CHUNKS = (2048, 8192, 32768)  # bytes of packed pieces
TOLERANCE = 1e-4
ROUNDS = 4


class Work:
    """The weights, an input, and ``changes``: for each round the pieces (by number) and values."""

    def __init__(self, n: int, kind: str = KINDS[0], weights: np.ndarray | None = None) -> None:
        rng = np.random.default_rng(3)
        self.n = n
        shape = (LAYERS, n, n)
        scale = np.float32(np.sqrt(2 / n))
        self.weights = scale * rng.standard_normal(shape, "f4") if weights is None else weights
        if self.weights.shape != shape or not np.isfinite(self.weights).all():
            raise gd.ArgumentError(f"the weights must be {shape} and finite: a NaN in one layer "
                                   "would be the whole answer")  # fmt: skip
        self.input = rng.random(n, "f4")
        pieces = self.weights.size // PIECE
        count = min(int(kind.split()[0]), pieces)
        self.changes = [
            (rng.choice(pieces, count, replace=False),
             scale * rng.standard_normal((count, PIECE), "f4"))
            for _ in range(ROUNDS)
        ]  # fmt: skip
        self.nbytes = count * PIECE * 4

    def host_traffic(self, version: str) -> int:
        each = {"copy, pageable": 4, "copy, pinned": 2, "double-buffered": 2, "direct": 0}[version]
        return each * self.nbytes + 4 * self.n


def sequential(work):
    weights = work.weights.copy()

    def update(r):
        places, new = work.changes[r]
        weights.reshape(-1, PIECE)[places] = new

    def run():
        x = work.input
        for w in weights:
            x = np.maximum(w @ x, 0)
        return x

    return update, run


def network(work, weights, stream):
    """The graph that all versions share: the answer comes back in page-locked memory."""
    layer = gd.kernel(SOURCE, "layer")
    result = gd.pinned(work.n)
    between = [gd.asarray(work.input), *(gd.empty(work.n) for _ in range(LAYERS - 1))]
    between.append(result)

    def launches(stream):
        for i in range(LAYERS):
            layer[-(-work.n // 4), 128, stream](weights[i], between[i], between[i + 1], work.n)

    launch = graph(launches, stream)

    def run():
        launch()
        stream.synchronize()
        return result

    return run


def graph(launches, stream):
    """Launches captured once and replayed as one, by cuda.core; without a GPU, made one by one."""
    if gd.device().emulated:
        return lambda: launches(stream)
    from cuda.core import Device, Stream

    Device(gd.device().ordinal).set_current()
    core = Stream.from_handle(stream.handle)
    building = core.create_graph_builder().begin_building()
    launches(stream)
    made = building.end_building().complete()
    return lambda: made.launch(core)


def copy(work, host=np.empty):
    weights, stream = gd.asarray(work.weights), gd.stream()
    mirror = host(work.weights.shape, "f4").reshape(-1, PIECE)
    size, base, gpu = 4 * PIECE, mirror.ctypes.data, gd.device()

    def update(r):
        places, new = work.changes[r]
        mirror[places] = new
        for at in (size * places).tolist():
            gpu.copy_in(weights.ptr + at, base + at, size, stream)

    return update, network(work, weights, stream)


PUT = """
__global__ void put(const int *places, const float *pieces, float *weights, int n)
{
    if (blockIdx.x < n)
        weights[places[blockIdx.x] * blockDim.x + threadIdx.x] =
            pieces[blockIdx.x * blockDim.x + threadIdx.x];
}
"""


def double_buffered(work, chunk):
    weights, stream = gd.asarray(work.weights), gd.stream()
    count = chunk // (4 * PIECE + 4)
    buffers = [[make((PIECE + 1) * count) for make in (gd.pinned, gd.empty)] for _ in range(2)]
    free = [stream.record() for _ in range(2)]
    put, gpu = gd.kernel(PUT, "put"), gd.device()

    def update(r):
        places, new = work.changes[r]
        for i, start in enumerate(range(0, len(places), count)):
            staging, packed = buffers[i % 2]
            m = min(count, len(places) - start)
            free[i % 2].sync()
            staging[:m].view("i4")[:] = places[start : start + m]
            staging[m : m + m * PIECE].reshape(m, PIECE)[:] = new[start : start + m]
            gpu.copy_in(packed.ptr, staging.ptr, 4 * m * (PIECE + 1), stream)
            put[m, PIECE, stream](packed.ptr, packed.ptr + 4 * m, weights, m)
            free[i % 2] = stream.record(timing=False)

    return update, network(work, weights, stream)


def direct(work):
    weights, stream = gd.asarray(work.weights), gd.stream()

    def update(r):
        places, new = work.changes[r]
        weights.host.reshape(-1, PIECE)[places] = new
        weights.flush()

    return update, network(work, weights, stream)
