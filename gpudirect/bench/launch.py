"""``launch``: what it costs to start a kernel, and to wait for it, from Python."""

from __future__ import annotations

import contextlib
from typing import Any

import gpudirect as gd

from ..devices import Device
from . import others
from .measure import Figure, shared_out
from .progress import Tell, silent

NAME = "launch"
NOTE = ("A kernel of one thread that does nothing, with a pointer and a number as arguments. Queued: the "
        "clock stops when the call returns. Synchronised: when the stream is idle again.")  # fmt: skip
SOURCE = "__global__ void nothing(float *p, int n) { if (n < 0) p[0] = 1; }"


def _driver_cases(device: Device, memory: others.Memory, driver: Any) -> dict[str, others.Case]:
    """Copy in, launch, copy out: what a call of the GPU costs without a mapping."""
    if driver is None:
        return {}
    kernel = gd.kernel(SOURCE, "nothing", device=device)[1, 1]
    a, address = memory.array, int(memory.pinned.ctypes.data)

    def round_trip() -> None:
        driver.cuMemcpyHtoD(a.ptr, address, 4)
        kernel(a.ptr, 1)
        driver.cuMemcpyDtoH(address, a.ptr, 4)

    return {"cuMemcpy in + launch + cuMemcpy out, 4 bytes each": round_trip}


def _cupy(keep: list[Any]) -> dict[str, others.Case]:
    import cupy  # type: ignore[import-not-found,unused-ignore]

    kernel = cupy.RawKernel('extern "C" ' + SOURCE, "nothing")
    there = cupy.empty(16, cupy.float32)
    keep += [kernel, there]
    one, wait = cupy.int32(1), cupy.cuda.get_current_stream().synchronize
    return {
        "CuPy RawKernel, queued": lambda: kernel((1,), (1,), (there, one)),
        "CuPy RawKernel, synchronised": lambda: (kernel((1,), (1,), (there, one)), wait()),
    }


def _numba(keep: list[Any]) -> dict[str, others.Case]:
    from numba import cuda  # type: ignore[import-not-found,unused-ignore]

    @cuda.jit("void(float32[:], int32)")  # type: ignore[misc,untyped-decorator,unused-ignore]
    def nothing(p: Any, n: int) -> None:
        if n < 0:
            p[0] = 1

    there = cuda.device_array(16, "f4")
    kernel = nothing[1, 1]
    return {
        "Numba, queued": lambda: kernel(there, 1),
        "Numba, synchronised": lambda: (kernel(there, 1), cuda.synchronize()),
    }


def run(device: Device, quick: bool = False, tell: Tell = silent) -> list[Figure]:
    """Measure on ``device``."""
    seconds = 0.1 if quick else 1.0
    keep: list[Any] = []
    with others.Memory(device, 4096) as memory, others.current(device) as driver:
        array = memory.array[:64].view("f4")
        queued = gd.kernel(SOURCE, "nothing", device=device)[1, 1]
        alone = gd.kernel(SOURCE, "nothing", device=device)[1, 1, memory.stream]
        wait = memory.stream.synchronize

        def launched() -> None:
            alone(array, 1)
            wait()

        def three() -> None:
            array.host[:4] = 1.0
            launched()

        cases: dict[str, others.Case] = {
            "gpudirect, synchronised": launched,
            "gpudirect, 16 bytes stored, launched, synchronised": three,
            **_driver_cases(device, memory, driver),
        }
        often: dict[str, others.Case] = {"gpudirect, queued": lambda: queued(array, 1)}
        if not device.emulated:
            for library in (_cupy, _numba):
                with contextlib.suppress(Exception):  # not installed, or not for this driver
                    found = library(keep)
                    cases |= {k: v for k, v in found.items() if "synchronised" in k}
                    often |= {k: v for k, v in found.items() if "queued" in k}
        tell("launched and synchronised", 0, 2)
        figures = shared_out(NAME, cases, group="synchronised", seconds=seconds, most=1000)
        gd.synchronize(device)
        tell("queued", 1, 2)
        figures += shared_out(NAME, often, group="queued", seconds=seconds, most=300)
        gd.synchronize(device)
    return figures
