"""Block matching: for every 16x16 block of a video frame, where was it in the frame before?"""

import numpy as np
from _c import library, pointer

import gpudirect as gd

SOURCE = """
// one block for each 16x16 pixels, one thread for each displacement
__global__ void match(const unsigned char *before, const unsigned char *now, unsigned *best,
                      int width, int height, int reach)
{
    __shared__ unsigned least;
    int side = 2 * reach + 1, place = threadIdx.x;
    int left = 16 * blockIdx.x, top = 16 * blockIdx.y;
    int x = left + place % side - reach, y = top + place / side - reach;
    if (place == 0)
        least = 0xffffffff;
    __syncthreads();
    if (x >= 0 && y >= 0 && x + 16 <= width && y + 16 <= height) {
        unsigned sum = 0;
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 16; j++)
                sum = __sad(now[(top + i) * width + left + j],
                            before[(y + i) * width + x + j], sum);
        atomicMin(&least, sum * 512 + place);
    }
    __syncthreads();
    if (place == 0)
        best[blockIdx.y * gridDim.x + blockIdx.x] = least;
}
"""
FLOW = "CPU to GPU"
SIZES = (320, 1280, 2560)  # width in pixels; the height is 9/16 of it
SMALL = 64
KINDS = ("reach 4", "reach 8")  # pixels that a block may have moved
TOLERANCE = 0
FRAMES = 8


class Work:
    """A camera that moves over a picture: FRAMES frames, each made by the CPU when it is due."""

    def __init__(self, n: int, kind: str = KINDS[0], picture: np.ndarray | None = None) -> None:
        if n < 32 or n % 16:
            raise gd.ArgumentError(f"a width of {n} pixels: give a multiple of 16, at least 32")
        self.width, self.height = n, max(32, n * 9 // 16 // 16 * 16)
        self.reach = int(kind.split()[1])
        rng = np.random.default_rng(4)
        shape = self.height + 64, self.width + 64
        self.picture = rng.integers(0, 256, shape, "u1") if picture is None else picture
        if self.picture.shape != shape or self.picture.dtype != np.uint8:
            raise gd.ArgumentError(f"the picture must be {shape} of u1, it is "
                                   f"{self.picture.shape} of {self.picture.dtype}")  # fmt: skip
        self.noise = rng.integers(0, 4, (self.height, self.width), "u1")
        self.path = rng.integers(0, 64, (FRAMES, 2))
        moves = np.cumsum(rng.integers(-3, 4, (FRAMES - 1, 2)), 0)
        self.path[1:] = np.clip(self.path[0] + moves, 0, 64)
        self.blocks = self.width // 16, self.height // 16
        self.nbytes = FRAMES * self.width * self.height
        self.results = 4 * (FRAMES - 1) * self.blocks[0] * self.blocks[1]

    def produce(self, frame: np.ndarray, t: int, top: int = 0) -> None:
        """Rows top... of frame t: what the camera sees, with noise."""
        y, x = self.path[t]
        rows = slice(y + top, y + top + len(frame))
        seen = self.picture[rows, x : x + self.width]
        np.bitwise_xor(seen, self.noise[top : top + len(frame)], out=frame)

    def alone(self, empty):
        """One step's production by itself, into arrays that ``empty`` makes."""
        frame = empty((self.height, self.width), "u1")
        return lambda: [self.produce(frame, t) for t in range(FRAMES)]


def new(make, work):
    """Where the matches of all frames go: least sum of differences * 512 + displacement."""
    return make((FRAMES - 1, work.blocks[1], work.blocks[0]), "u4")


ORIGINAL = """
#include <stdint.h>
#include <stdlib.h>
void match(const uint8_t *before, const uint8_t *now, uint32_t *best, int width, int height,
           int reach)
{
    for (int top = 0; top < height; top += 16)
        for (int left = 0; left < width; left += 16) {
            uint32_t least = UINT32_MAX, place = 0;
            for (int y = top - reach; y <= top + reach; y++)
                for (int x = left - reach; x <= left + reach; x++, place++) {
                    if (x < 0 || y < 0 || x + 16 > width || y + 16 > height)
                        continue;
                    uint32_t sum = 0;
                    for (int i = 0; i < 16; i++)
                        for (int j = 0; j < 16; j++)
                            sum += abs(now[(top + i) * width + left + j] -
                                       before[(y + i) * width + x + j]);
                    if (sum * 512 + place < least)
                        least = sum * 512 + place;
                }
            *best++ = least;
        }
}
"""
DECLARATION = """void match(const uint8_t *before, const uint8_t *now, uint32_t *best, int width,
                            int height, int reach);"""


def sequential(work):
    frames = np.empty((2, work.height, work.width), "u1")
    best = new(np.empty, work)
    match = library(DECLARATION, ORIGINAL).match

    def step():
        for t in range(FRAMES):
            work.produce(frames[t % 2], t)
            if t:
                match(pointer(frames[(t - 1) % 2]), pointer(frames[t % 2]), pointer(best[t - 1]),
                      work.width, work.height, work.reach)  # fmt: skip
        return best

    return step


def shape(work):
    return work.blocks, (2 * work.reach + 1) ** 2


def copy(work, host=np.empty):
    frames = gd.empty((2, work.height, work.width), "u1")
    best, result = new(gd.empty, work), new(host, work)
    frame = host((work.height, work.width), "u1")
    match, gpu = gd.kernel(SOURCE, "match"), gd.device()

    def step():
        for t in range(FRAMES):
            work.produce(frame, t)
            gpu.copy_in(frames[t % 2].ptr, frame.ctypes.data, frame.nbytes)
            if t:
                match[shape(work)](frames[(t - 1) % 2], frames[t % 2], best[t - 1],
                                   work.width, work.height, work.reach)  # fmt: skip
        gpu.copy_out(result.ctypes.data, best.ptr, best.nbytes)
        return result

    return step


def double_buffered(work, chunk):
    height, width = work.height, work.width
    rows = max(1, min(height, chunk // width))
    copying, computing = gd.stream(), gd.stream()
    frames, used = gd.empty((3, height, width), "u1"), [computing.record() for _ in range(3)]
    buffers = [gd.pinned((rows, width), "u1") for _ in range(2)]
    free = [copying.record() for _ in range(2)]
    best, result = new(gd.empty, work), new(gd.pinned, work)
    match, gpu = gd.kernel(SOURCE, "match"), gd.device()

    def step():
        chunks = 0
        for t in range(FRAMES):
            copying.wait(used[t % 3])
            for top in range(0, height, rows):
                i, m = chunks % 2, min(rows, height - top)
                chunks += 1
                free[i].sync()
                work.produce(buffers[i][:m], t, top)
                to = frames.ptr + (t % 3 * height + top) * width
                gpu.copy_in(to, buffers[i].ptr, m * width, copying)
                free[i] = copying.record(timing=False)
            computing.wait(copying)
            if t:
                match[(*shape(work), computing)](frames[(t - 1) % 3], frames[t % 3], best[t - 1],
                                                 width, height, work.reach)  # fmt: skip
                used[(t - 1) % 3] = computing.record(timing=False)
        gpu.copy_out(result.ptr, best.ptr, best.nbytes, computing)
        computing.synchronize()
        return result

    return step


def direct(work):
    frames = gd.empty((FRAMES, work.height, work.width), "u1")
    best = new(gd.pinned, work)
    match = gd.kernel(SOURCE, "match")

    def step():
        for t in range(FRAMES):
            work.produce(frames.host[t], t)
            if t:
                match[shape(work)](frames[t - 1], frames[t], best[t - 1],
                                   work.width, work.height, work.reach)  # fmt: skip
        gd.synchronize()
        return best

    return step
