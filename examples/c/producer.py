"""Frames that a program of C stores to GPU memory, without CUDA and without Python: producer.c.

    python examples/c/producer.py [FRAMES]

This process owns the memory and a function that is resident on the GPU, and hands out a token for each. The
other one attaches, stores a frame, calls the function with it, and so on.
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


def main(count=100):
    """Prints what the producer says. Returns the sum of the last frame, as it is in the memory."""
    with tempfile.TemporaryDirectory() as folder, gd.zeros((4, 256), shareable=True) as frames, \
            gd.Service(SUM, ["sum"], lanes=2) as service:
        program = compiled(folder)
        tokens = [str(frames.share("rw")), str(service.share_lane(1))]
        done = subprocess.run([program, *tokens, str(count)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        print(f"{frames.device}: {done.stdout.strip()}")
        return service.sum(frames[(count - 1) % 4], 256)  # the owner calls through the other lane


if __name__ == "__main__":
    asked = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    sys.exit(main(asked) != (asked - 1) * 256 + 128)
