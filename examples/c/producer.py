"""Frames that programs of C store to GPU memory, without CUDA and without Python: producer.c.

    python examples/c/producer.py [FRAMES [PRODUCERS]]

This process owns the memory and a function that is resident on the GPU, and hands each producer a token for its
rows and one for a lane. The producers attach, store a frame, call the function with it, and so on, all at the
same time; the owner calls through a lane of its own.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import gpudirect as gd

SUM = """
__device__ float sum(const float *frame, int n)
{
    float found = 0;
    for (int i = 0; i < n; i++)
        found += frame[i];
    return found;
}
"""


def compiled(folder):
    """producer.c as a program, built as any C program is."""
    told = subprocess.run([sys.executable, "-m", "gpudirect", "config", "--cflags", "--libs"],
                          capture_output=True, text=True, check=True).stdout
    program = Path(folder, "producer")
    source = Path(__file__).with_name("producer.c")
    subprocess.run([*shlex.split(os.environ.get("CC", "cc")), "-O2", "-Wall", "-Wextra", "-Werror", str(source),
                    *shlex.split(told), "-o", str(program)], check=True)
    return program


SLOTS = 4  # rows of each producer, one after the other


def main(count=100, producers=1):
    """Prints what the producers say. Returns the sum of each one's last frame, as it is in the memory."""
    rows = SLOTS * producers
    with tempfile.TemporaryDirectory() as folder, gd.zeros((rows, 256), shareable=True) as frames, \
            gd.Service(SUM, ["sum"], lanes=1 + producers) as service:
        program, running = compiled(folder), []
        for i in range(producers):
            tokens = [str(frames[SLOTS * i : SLOTS * (i + 1)].share("rw")), str(service.share_lane(1 + i))]
            running.append(subprocess.Popen([program, *tokens, str(count)], text=True, stdout=subprocess.PIPE,
                                            stderr=subprocess.PIPE))  # fmt: skip
        for process in running:
            said, failed = process.communicate()
            if process.returncode:
                raise RuntimeError(failed.strip())
            print(f"{frames.device}: {said.strip()}")
        last = range((count - 1) % SLOTS, rows, SLOTS)
        return [service.sum(frames[row], 256, lane=0) for row in last]


if __name__ == "__main__":
    asked = [int(a) for a in sys.argv[1:]] or [100]
    sys.exit(any(found != (asked[0] - 1) * 256 + 128 for found in main(*asked)))
