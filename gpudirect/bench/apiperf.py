"""``apiperf``: what each call of the public API costs from Python, and mapping through each bridge."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

import gpudirect as gd

from .. import bridges
from ..devices import Device
from . import others
from .measure import Figure, shared_out
from .progress import Tell, silent

NAME = "apiperf"
NOTE = "One call, timed from Python, what it made given back within the time."
KIB64, MIB2, MIB64 = 64 << 10, 2 << 20, 64 << 20


def _calls(a: gd.Array, device: Device) -> dict[str, others.Case]:
    line, out, small = bytes(64), np.empty(64, np.uint8), a[:64]
    places, items = np.arange(0, 12800, 128), np.ones(100, "u1")
    host = a.host
    return {
        "a.write(64 bytes)": lambda: a.write(line),
        "a.read(out), 64 bytes": lambda: small.read(out),
        "a.host[:64] = 64 bytes": lambda: host.__setitem__(slice(64), out),
        "a.flush()": a.flush,
        "a.scatter(100 places)": lambda: a.scatter(places, items),
        "a[100:200]": lambda: a[100:200],
        "a.view('f4')": lambda: a.view("f4"),
        "a.host (of a new slice)": lambda: a[100:200].host,
        "gd.empty(64 bytes), closed": lambda: gd.empty(64, "u1", device=device).close(),
        "gd.synchronize(), idle": lambda: gd.synchronize(device),
        "a.window(0, 4096), closed": lambda: a.window(0, 4096).close(),
    }


def _allocations(device: Device, driver: Any) -> dict[str, others.Case]:
    found: dict[str, others.Case] = {
        "gd.empty(2 MiB), from the pool": lambda: gd.empty(MIB2, "u1", device=device).close(),
        "gd.empty(2 MiB), pool=False": lambda: gd.empty(
            MIB2, "u1", device=device, pool=False
        ).close(),
        "np.empty(2 MiB)": lambda: np.empty(MIB2, np.uint8),
    }
    if driver is None:
        return found

    def host() -> None:
        _, ptr = driver.cuMemHostAlloc(MIB2, 0)
        driver.cuMemFreeHost(ptr)

    def plain() -> None:
        _, ptr = driver.cuMemAlloc(MIB2)
        driver.cuMemFree(ptr)

    memory = np.ones(MIB2 + 4096, np.uint8)

    def register() -> None:
        at = int(memory.ctypes.data) + 4095 & ~4095
        driver.cuMemHostRegister(at, MIB2, 0)
        driver.cuMemHostUnregister(at)

    found |= {"cuMemAlloc(2 MiB)": plain, "cuMemHostAlloc(2 MiB)": host,
              "cuMemHostRegister(2 MiB)": register}  # fmt: skip
    with contextlib.suppress(Exception):
        import cupy  # type: ignore[import-not-found,unused-ignore]

        found["cupy.empty(2 MiB), from its pool"] = lambda: cupy.empty(MIB2, cupy.uint8)
    with contextlib.suppress(Exception):
        import torch  # type: ignore[import-not-found,unused-ignore]

        found["torch.empty(2 MiB), from its pool"] = lambda: torch.empty(
            MIB2, dtype=torch.uint8, device="cuda"
        )
    return found


def _mappings(device: Device) -> dict[str, others.Case]:
    """A window opened and closed: what mapping costs through each bridge that works here."""
    found: dict[str, others.Case] = {}
    for name, standing in bridges.standings(device).items():
        if not standing.usable:
            continue
        whole = gd.empty(MIB64, "u1", device=device, bridge=name, mapped=False)
        for size, words in ((KIB64, "64 KiB"), (MIB2, "2 MiB"), (MIB64, "64 MiB")):
            found[f"map and unmap {words}: {name}"] = (
                lambda whole=whole, size=size: whole.window(0, size).close()  # type: ignore[misc]
            )
    return found


def run(device: Device, quick: bool = False, tell: Tell = silent) -> list[Figure]:
    """Measure on ``device``; mapping on every usable bridge."""
    seconds = 0.1 if quick else 0.6
    with gd.zeros(1 << 16, "u1", device=device, mapped=True) as a, others.current(device) as driver:
        found: list[Figure] = []
        for i, (group, cases) in enumerate((
            ("calls", _calls(a, device)),
            ("memory", _allocations(device, driver)),
            ("mapping", _mappings(device)),
        )):  # fmt: skip
            tell(group, i, 3)
            found += shared_out(NAME, cases, group=group, seconds=seconds)
    gd.trim()
    return found
