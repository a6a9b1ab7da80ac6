"""``pingpong``: the CPU stores a number in device memory, a resident kernel answers in host memory."""

from __future__ import annotations

import ctypes
import time

import gpudirect as gd

from ..devices import Device
from ..errors import Error
from . import _native
from .measure import Figure, figure
from .progress import Tell, silent

NAME = "pingpong"
NOTE = "One round: store, fence, the kernel sees it, stores its answer, the CPU sees that."
TIMEOUT = 5_000_000_000  # ns
PATIENCE = 10_000_000_000  # clock ticks, a little longer
KERNEL = """
/* Answers every number once. Gives up after `patience` clock ticks without one. */
__global__ void pong(const volatile unsigned *bell, volatile unsigned *answer, unsigned first,
                     unsigned rounds, long long patience)
{
    for (unsigned v = first; v != first + rounds; v++) {
        long long start = clock64();
        while (*bell != v)
            if (clock64() - start > patience)
                return;
        *answer = v;
    }
}
"""


def run(device: Device, quick: bool = False, tell: Tell = silent) -> list[Figure]:
    """Measure on the default bridge of ``device``. Raises Error when the kernel does not answer."""
    lib, ffi = _native.lib, _native.ffi
    rounds = 200 if device.emulated else 2_000 if quick else 50_000
    python_rounds = min(rounds, 20_000)
    samples = 200 if quick else 2000
    stream = device.stream()
    host = device.host_allocate(4096)
    ctypes.memset(host.ptr, 0, 4096)
    try:
        with gd.zeros(64, "u4", device=device, mapped=True) as memory:
            gd.synchronize(device)
            bell = memory.host_ptr
            loads = ffi.new("double[]", samples)
            kind, word = lib.gd_bare_find(b"word-load"), ffi.new("char[]", 64)
            lib.gd_bare_time(kind, bell, word, 4, 1, samples, loads)
            tell("from C", 0, 2)
            gd.kernel(KERNEL, "pong", device=device)[1, 1, stream](
                memory, host.ptr, 1, rounds + python_rounds, PATIENCE
            )
            ns = ffi.new("double[]", rounds)
            _check(lib.gd_time_pingpong(bell, host.ptr, 1, rounds, ns, TIMEOUT))
            tell("from Python", 1, 2)
            one, clock = ffi.new("double[]", 1), time.perf_counter_ns
            call, answer = lib.gd_time_pingpong, host.ptr
            took = []
            for v in range(rounds + 1, rounds + python_rounds + 1):
                start = clock()
                code = call(bell, answer, v, 1, one, TIMEOUT)
                took.append(clock() - start)
                if code < 0:
                    break
            _check(code)
            lib.gd_bare_time(kind, bell, word, 4, 1, samples, loads)
    finally:
        stream.close()
        host.free()
    skip = rounds // 10  # until the clocks have risen
    return [
        figure(NAME, "load 4: C", 4, list(loads), 1, "a round"),
        figure(NAME, "round: C", 0, list(ns)[skip:], 1, "a round"),
        figure(NAME, "round: Python", 0, took[skip // 2 :], 1, "a round"),
    ]


def _check(code: int) -> None:
    if code < 0:
        raise Error(f"the resident kernel did not answer within {TIMEOUT // 10**9} s (errno {-code})")
