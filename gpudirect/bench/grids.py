"""``grids``: a function run by blocks on every multiprocessor, called through a lane and launched."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import numpy as np

import gpudirect as gd

from ..devices import Device
from .doorbell import LIFETIME, _Launches, _timed
from .measure import Figure, figure, interleaved
from .others import current
from .progress import Tell, silent

NAME = "grids"
NOTE = ("A function is run by blocks of 256 threads, one for each multiprocessor, all of which store a word "
        "that the call brings along: called through a lane of a service, and as a kernel that is launched "
        "and waited for.")  # fmt: skip
MULTIPROCESSORS = 16  # CUDA's number of this attribute
SIZE = 12  # bytes of arguments
ROUNDS = 10  # that visit all cases in turn
SOURCE = """
__device__ void fill(unsigned *a, unsigned v) { a[gd_rank()] = v; }
__device__ unsigned same(unsigned v, unsigned, unsigned) { return v; }
"""
KERNEL = """
__global__ void fill(unsigned *a, unsigned v) { a[blockIdx.x * blockDim.x + threadIdx.x] = v; }
"""


def run(device: Device, quick: bool = False, tell: Tell = silent) -> list[Figure]:
    """Figures of calls and launches of the same grid. Raises Error when a call did not do its work."""
    blocks = 3 if device.emulated else device.attribute(MULTIPROCESSORS) or 1
    threads = 64 if device.emulated else 256
    each = 10 if device.emulated else 50 if quick else 2000
    found: dict[str, list[np.ndarray[Any, Any]]] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(current(device))
        array = stack.enter_context(gd.zeros(blocks * threads, "u4", device=device))
        ways: dict[str, list[dict[str, Any]]] = {}
        if not device.emulated:
            launches = _Launches(device)
            stack.callback(launches.close)
            kernel = gd.kernel(KERNEL, "fill", device=device)
            ways["launch + sync: C"] = launches.launch_of(kernel, (array, 1), blocks, threads)
            ways["graph launch + sync: C"] = launches.graph_of(kernel, (array, 1), blocks, threads)
        service = gd.Service(SOURCE, {"fill": "grid", "same": "grid"}, blocks=blocks, threads=threads,
                             device=device, lifetime=LIFETIME)  # fmt: skip
        for i in range(ROUNDS + 1):
            tell("one call", i, ROUNDS + 1)
            for way, steps in ways.items():
                found.setdefault(way, []).append(launches.time(steps, each, way))
            with service:
                call = service.call
                found.setdefault("call: Python", []).append(
                    interleaved({"": functools.partial(call, "fill", array, i)}, samples=each)[""]
                )
                if not (array.read() == i).all():
                    raise gd.Error(f"bench {NAME}: a call by {blocks} blocks did not fill the array")
                lane = service.lend(0)
                for case, name, arguments in (
                    ("call: C", "fill", (array, 1)), ("call, writes nothing: C", "same", (1, 2, 3)),
                ):  # fmt: skip
                    times = _timed(service, lane, name, service._pack(name, arguments)[0], each)
                    found.setdefault(case, []).append(times)
            if i == 0:
                found.clear()  # the clocks have risen
    return [figure(NAME, case, SIZE, np.concatenate(t), group="grids") for case, t in found.items()]
