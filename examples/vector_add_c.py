"""vector_add in C with the driver's own calls: what is left of the differences without Python."""

import numpy as np
from _c import driver_calls, library, pointer

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
KINDS = ("degree 1", "degree 32", "degree 256")  # of the polynomial that makes a
TOLERANCE = 1e-6  # the compiler may fuse a product and a sum
TYPES = """
struct calls {  // cuMemcpyHtoDAsync, cuMemcpyDtoHAsync, cuStreamSynchronize, cuLaunchKernel
    int (*copy_in)(unsigned long long ptr, const void *host, size_t n, void *stream);
    int (*copy_out)(void *host, unsigned long long ptr, size_t n, void *stream);
    int (*wait)(void *stream);
    int (*launch)(void *kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                  unsigned bz, unsigned shared, void *stream, void **arguments, void **extra);
};
"""
PRODUCE = """
static inline void some(const float *restrict x, float *restrict a, float *restrict b, int n,
                        int degree)
{
    float sum[64];
    for (int i = 0; i < n; i++)
        sum[i] = 3 * x[i];
    for (int k = 1; k < degree; k++)
        for (int i = 0; i < n; i++)
            sum[i] = sum[i] * x[i] + 0.5f;
    for (int i = 0; i < n; i++)
        a[i] = sum[i];
    for (int i = 0; i < n; i++)
        b[i] = x[i] - 0.5f;
}

// the same machine code for all versions: else the compiler's moods would be measured
__attribute__((noinline))
static void produce(const float *x, float *a, float *b, long n, int degree)
{
    long i = 0;
    for (; i + 64 <= n; i += 64)
        some(x + i, a + i, b + i, 64, degree);
    some(x + i, a + i, b + i, n - i, degree);
}

int alone(const float *x, float *a, float *b, long n, int degree)
{
    produce(x, a, b, n, degree);
    return 0;
}

static int launch(const struct calls *gpu, void *kernel, unsigned long long a, unsigned long long b,
                  unsigned long long c, int n, void *stream)
{
    void *arguments[] = {&a, &b, &c, &n};
    return gpu->launch(kernel, (n + 255) / 256, 1, 1, 256, 1, 1, 0, stream, arguments, 0);
}
"""


class Work:
    """n numbers of each."""

    def __init__(self, n: int, kind: str = KINDS[0]) -> None:
        if n < 1:
            raise gd.ArgumentError(f"n is {n}: give at least 1")
        self.n, self.degree = n, int(kind.split()[1])
        self.nbytes, self.results = 2 * 4 * n, 4 * n
        self.signal = np.random.default_rng(9).random(n, "f4")

    def alone(self, empty):
        """One step's production by itself, into arrays that ``empty`` makes."""
        a, b = empty(self.n, "f4"), empty(self.n, "f4")
        step = function("alone", "const void *x, void *a, void *b, long n, int degree", "")
        return lambda: step(pointer(self.signal), pointer(a), pointer(b), self.n, self.degree)


def function(name, parameters, body):
    """A C function, with what all versions share before it."""
    c = library(f"int {name}({parameters});", "#include <stddef.h>" + TYPES + PRODUCE + body)
    return getattr(c, name)


def checked(code):
    """Raises gd.DeviceError for what a driver call returned."""
    if code:
        raise gd.DeviceError(f"a driver call in C returned {code}", code)


SEQUENTIAL = """
int sequential(const float *x, float *a, float *b, float *c, long n, int degree)
{
    produce(x, a, b, n, degree);
    for (long i = 0; i < n; i++)
        c[i] = a[i] + b[i];
    return 0;
}
"""


def sequential(work):
    a, b, c = (np.empty(work.n, "f4") for _ in "abc")
    parameters = "void *x, void *a, void *b, void *c, long n, int degree"
    add = function("sequential", parameters, SEQUENTIAL)

    def step():
        add(*map(pointer, (work.signal, a, b, c)), work.n, work.degree)
        return c

    return step


COPY = """
int copy(const struct calls *gpu, void *kernel, const float *x, float *a, float *b, float *c,
         unsigned long long *device, int n, int degree)
{
    int bad = 0;
    produce(x, a, b, n, degree);
    bad |= gpu->copy_in(device[0], a, 4L * n, 0);
    bad |= gpu->copy_in(device[1], b, 4L * n, 0);
    bad |= launch(gpu, kernel, device[0], device[1], device[2], n, 0);
    bad |= gpu->copy_out(c, device[2], 4L * n, 0);
    return bad | gpu->wait(0);
}
"""
COPY_PARAMETERS = """void *gpu, void *kernel, void *x, void *a, void *b, void *c, void *device,
                     int n, int degree"""


def copy(work, host=np.empty):
    arrays = [gd.empty(work.n) for _ in "abc"]
    device = np.array([a.ptr for a in arrays], "u8")
    a, b, c = (host(work.n, "f4") for _ in "abc")
    add = function("copy", COPY_PARAMETERS, COPY)
    gpu, kernel = driver_calls(gd.kernel(SOURCE, "add"), TYPES)

    def step():
        checked(add(gpu, kernel, *map(pointer, (work.signal, a, b, c, device)), work.n,
                    work.degree))  # fmt: skip
        return c

    step.keeps = arrays  # their memory is used by address
    return step


DOUBLE = """
int double_buffered(const struct calls *gpu, void *kernel, const float *x, float **a, float **b,
                    float *c, unsigned long long *device, void **streams, int n, int degree,
                    int size)
{
    int bad = 0;
    for (int i = 0, start = 0; start < n; i ^= 1, start += size) {
        int m = n - start < size ? n - start : size;
        unsigned long long at = 4L * start;
        bad |= gpu->wait(streams[i]); /* the buffers are free again */
        produce(x + start, a[i], b[i], m, degree);
        bad |= gpu->copy_in(device[0] + at, a[i], 4L * m, streams[i]);
        bad |= gpu->copy_in(device[1] + at, b[i], 4L * m, streams[i]);
        bad |= launch(gpu, kernel, device[0] + at, device[1] + at, device[2] + at, m, streams[i]);
        bad |= gpu->copy_out(c + start, device[2] + at, 4L * m, streams[i]);
    }
    return bad | gpu->wait(streams[0]) | gpu->wait(streams[1]);
}
"""
DOUBLE_PARAMETERS = """void *gpu, void *kernel, void *x, void *a, void *b, void *c, void *device,
                       void *streams, int n, int degree, int size"""


def double_buffered(work, chunk):
    size = min(work.n, chunk // 8)
    arrays = [gd.empty(work.n) for _ in "abc"]
    device = np.array([a.ptr for a in arrays], "u8")
    streams = gd.stream(), gd.stream()
    handles = np.array([s.handle for s in streams], "u8")
    buffers = [[gd.pinned(size) for _ in range(2)] for _ in "ab"]
    a, b = (np.array([x.ctypes.data for x in pair], "u8") for pair in buffers)
    c = gd.pinned(work.n)
    add = function("double_buffered", DOUBLE_PARAMETERS, DOUBLE)
    gpu, kernel = driver_calls(gd.kernel(SOURCE, "add"), TYPES, streams)

    def step():
        checked(add(gpu, kernel, *map(pointer, (work.signal, a, b, c, device, handles)), work.n,
                    work.degree, size))  # fmt: skip
        return c

    step.keeps = arrays, buffers, streams  # used by address, and by handle
    return step


DIRECT = """
int direct(const struct calls *gpu, void *kernel, const float *x, float *a, float *b, float *c,
           unsigned long long *device, int n, int degree)
{
    produce(x, a, b, n, degree);
    __sync_synchronize(); /* the stores have left this core */
    int bad = launch(gpu, kernel, device[0], device[1], device[2], n, 0);
    return bad | gpu->wait(0);
}
"""


def direct(work):
    a, b, c = gd.empty(work.n), gd.empty(work.n), gd.pinned(work.n)
    device = np.array([a.ptr, b.ptr, c.ctypes.data], "u8")
    add = function("direct", COPY_PARAMETERS, DIRECT)
    gpu, kernel = driver_calls(gd.kernel(SOURCE, "add"), TYPES)

    def step():
        checked(add(gpu, kernel, *map(pointer, (work.signal, a.host, b.host, c, device)), work.n,
                    work.degree))  # fmt: skip
        return c

    return step
