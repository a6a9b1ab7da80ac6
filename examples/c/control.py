"""A control loop in C that calls a GPU function: control.c, compiled against what a wheel has.

    python examples/c/control.py [STEPS]

The GPU's part is a function that stays resident there; C stores the state to GPU memory, and calls it by one
store more. Python sets everything up and is not in the loop.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import cffi
import numpy as np

import gpudirect as gd

FORCE = """
__device__ float force(const float *state, float limit)   // keeps a pendulum upright
{
    float wanted = -40 * state[0] - 8 * state[1];
    return wanted > limit ? limit : wanted < -limit ? -limit : wanted;
}
"""
DECLARED = """
int control(void *lane, uintptr_t state, uint64_t state_on_device, int steps, float *angle, int64_t *took);
"""


def compiled(folder):
    """control.c as a library, built as any C program is."""
    told = subprocess.run([sys.executable, "-m", "gpudirect", "config", "--cflags", "--libs"],
                          capture_output=True, text=True, check=True).stdout
    library = Path(folder, "control.so")
    source = Path(__file__).with_name("control.c")
    subprocess.run([*shlex.split(os.environ.get("CC", "cc")), "-O2", "-Wall", "-Wextra", "-Werror", "-shared",
                    "-fPIC", str(source), *shlex.split(told), "-lm", "-o", str(library)], check=True)
    ffi = cffi.FFI()
    ffi.cdef(DECLARED)
    return ffi, ffi.dlopen(str(library))


def main(steps=500):
    """Prints what is left of the angle, and what a step took. Returns the angle, in radians."""
    with tempfile.TemporaryDirectory() as folder:
        ffi, library = compiled(folder)
        state = gd.zeros(2)
        took = np.zeros(steps, "i8")
        with gd.Service(FORCE, ["force"]) as service:
            lane = service.lend(0)
            angle = ffi.new("float *")
            code = library.control(lane, state.host_ptr, state.ptr, steps, angle,
                                   ffi.from_buffer("int64_t[]", took))
        if code:
            raise OSError(-code, os.strerror(-code))
    print(f"{state.device}: from 0.5 rad to {angle[0]:.4f} in {steps} steps; a step, with its "
          f"call, takes {np.median(took) / 1e3:.2f} us in the median, {np.percentile(took, 99) / 1e3:.2f} at "
          "the 99th percentile")
    return angle[0]


if __name__ == "__main__":
    sys.exit(abs(main(*map(int, sys.argv[1:]))) > 0.05)
