"""``alloc``: what it costs to get, map, write and give back device memory, from Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpudirect as gd

from ..devices import Device
from .measure import Figure, figure, interleaved
from .others import current
from .progress import Tell, silent

NAME = "alloc"
NOTE = "One call from Python, what it made given back within the time."
MIB2 = 2 << 20


def _driver_cases(device: Device) -> dict[str, Callable[[], Any]]:
    """The driver's own calls, as a user of cuda-python would make them."""
    if device.emulated:
        return {}
    from cuda.bindings import driver

    def allocate() -> None:
        _, ptr = driver.cuMemAlloc(64 << 10)
        driver.cuMemFree(ptr)

    return {"cuMemAlloc + cuMemFree, 64 KiB": allocate}


def _copy_case(device: Device, target: int, data: bytes) -> dict[str, Callable[[], Any]]:
    if device.emulated:
        return {}
    import numpy as np
    from cuda.bindings import driver

    source = np.frombuffer(bytearray(data), np.uint8)
    address = source.ctypes.data
    keep = source  # alive as long as the case
    return {COPY: lambda: (driver.cuMemcpyHtoD(target, address, 64), keep)}


WRITE, COPY, SMALL = "write, 64 bytes", "cuMemcpyHtoD, 64 bytes", "empty + close, 64 bytes, pooled"
HELD = "cuMemAlloc + cuMemFree, 64 KiB, beside another held"
BATCH = 50


def run(device: Device, quick: bool = False, tell: Tell = silent) -> list[Figure]:
    """Measure on the default bridge of ``device``."""
    data = bytes(range(64))
    samples = 50 if quick else 400
    with gd.empty(4096, "u1", device=device) as a, current(device):
        # the driver cuts small allocations from a block it keeps while another one is held, so
        # both are told: alone, and beside another
        alone = {
            "empty + close, 2 MiB, pooled": lambda: gd.empty(MIB2, "u1", device=device).close(),
            "empty + close, 2 MiB, no pool": lambda: gd.empty(
                MIB2, "u1", device=device, pool=False
            ).close(),
            **_driver_cases(device),
        }
        times = interleaved(alone, samples=samples)
        often: dict[str, Callable[[], Any]] = {
            SMALL: lambda: gd.empty(64, "u1", device=device).close(),
            WRITE: lambda: a.write(data),
            **_copy_case(device, a.ptr, data),
        }
        times |= interleaved(often, samples=samples, batch=BATCH)
        if not device.emulated:
            from cuda.bindings import driver

            _, held = driver.cuMemAlloc(4096)
            case = next(iter(_driver_cases(device).values()))
            times |= interleaved({HELD: case}, samples=samples)
            driver.cuMemFree(held)
    return [
        figure(NAME, name, 64 if name in (WRITE, COPY) else 0, t, BATCH if name in often else 1)
        for name, t in times.items()
    ]
