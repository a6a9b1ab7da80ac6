"""``alloc``: what it costs to get, map, write and give back device memory, from Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpudirect as gd

from ..devices import Device
from .measure import Figure, figure, interleaved

NAME = "alloc"
MIB2 = 2 << 20


def _driver_cases(device: Device) -> dict[str, Callable[[], Any]]:
    """The driver's own calls, as a user of cuda-python would make them."""
    if device.emulated:
        return {}
    import numpy as np
    from cuda.bindings import driver

    source = np.arange(64, dtype=np.uint8)
    address = source.ctypes.data
    _, target = driver.cuMemAlloc(4096)

    def allocate() -> None:
        _, ptr = driver.cuMemAlloc(64 << 10)
        driver.cuMemFree(ptr)

    return {
        "cuMemAlloc + cuMemFree, 64 KiB": allocate,
        "cuMemcpyHtoD, 64 bytes": lambda: driver.cuMemcpyHtoD(target, address, 64),
    }


def run(device: Device, quick: bool = False) -> list[Figure]:
    """Measure on the default bridge of ``device``."""
    data = bytes(range(64))
    with gd.empty(4096, "u1", device=device) as a, device_context(device):
        cases = {
            "empty + close, 2 MiB, pooled": lambda: gd.empty(MIB2, "u1", device=device).close(),
            "empty + close, 2 MiB, no pool": lambda: gd.empty(
                MIB2, "u1", device=device, pool=False
            ).close(),
            "empty + close, 64 bytes, pooled": lambda: gd.empty(64, "u1", device=device).close(),
            "write, 64 bytes": lambda: a.write(data),
            **_driver_cases(device),
        }
        fast = {"write, 64 bytes"}
        samples = 50 if quick else 400
        times = interleaved({k: c for k, c in cases.items() if k not in fast}, samples=samples)
        times |= interleaved(
            {k: c for k, c in cases.items() if k in fast or "HtoD" in k}, samples=samples, batch=50
        )
    sizes = {"write, 64 bytes": 64, "cuMemcpyHtoD, 64 bytes": 64}
    return [
        figure(NAME, name, sizes.get(name, 0), t, 50 if name in fast or "HtoD" in name else 1)
        for name, t in times.items()
    ]


def device_context(device: Device) -> Any:
    """The device's context made current, so that the driver's own calls work."""
    import contextlib

    return contextlib.nullcontext() if device.emulated else device.current()  # type: ignore[attr-defined]
