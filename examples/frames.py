"""Frames streamed to a kernel: a camera's driver writes into GPU memory while older frames are worked on.

There are a few places for frames. A frame is stored once, where the kernel reads it; an event says when
its place is free again. Here the kernel finds the brightest spot of each frame: a comet that passes.
"""

import time

import numpy as np
from _show import histogram, where

import gpudirect as gd

SOURCE = """
// the brightest pixel: its value and its place in one number
__global__ void brightest(const unsigned char *frame, int n, unsigned long long *spot)
{
    unsigned long long own = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        unsigned long long seen = (unsigned long long)frame[i] << 32 | i;
        own = own < seen ? seen : own;
    }
    atomicMax(spot, own);
}
"""
HEIGHT, WIDTH, FRAMES, PLACES = 240, 320, 120, 3


class Camera:
    """Looks at a noisy sky."""

    def __init__(self) -> None:
        self.noise = np.random.default_rng(4).integers(0, 90, (HEIGHT + 64, WIDTH), "u1")

    def comet(self, t: int) -> tuple[int, int]:
        x = (WIDTH - 20) * t // FRAMES + 10
        return int(HEIGHT * (0.2 + 0.6 * (x / WIDTH - 0.3) ** 2)), x

    def take(self, frame: gd.HostView, t: int) -> None:
        """Store frame t, as a driver's read() into a buffer of ours would."""
        frame[:] = self.noise[t * 7 % 64 :][:HEIGHT]
        y, x = self.comet(t)
        frame[y - 1 : y + 2, x - 1 : x + 2] = 200
        frame[y, x] = 255


def main():
    camera, stream = Camera(), gd.stream()
    frames = gd.empty((PLACES, HEIGHT, WIDTH), "u1")
    spots = gd.pinned(FRAMES, "u8")
    spots[:] = 0
    brightest = gd.kernel(SOURCE, "brightest")
    done, took = [stream.record() for _ in range(PLACES)], []
    begun = time.perf_counter()
    for t in range(FRAMES):
        place, start = t % PLACES, time.perf_counter()
        done[place].sync()  # nobody reads the frame that was here any more
        camera.take(frames.host[place], t)
        brightest[8, 128, stream](frames[place], HEIGHT * WIDTH, spots[t:])
        done[place] = stream.record()
        took.append(time.perf_counter() - start)
    stream.synchronize()
    passed = time.perf_counter() - begun

    found = [divmod(int(spot & 0xFFFFFFFF), WIDTH) for spot in spots]
    assert found == [camera.comet(t) for t in range(FRAMES)]
    print(f"{FRAMES} frames of {WIDTH}x{HEIGHT}, {FRAMES / passed:.0f}/s, on {where()}; the comet's path:")
    for y in range(0, HEIGHT // 2, 12):
        print("".join("*" if any(y <= a < y + 12 and x <= b < x + 5 for a, b in found) else "."
                      for x in range(0, WIDTH, 5)))  # fmt: skip
    histogram(took, "A frame, from the wait for its place to its launch")


if __name__ == "__main__":
    main()
