"""``copybw``: bandwidth and time of write() and read() at every size, beside every other way.

"chosen" is what write() and read() do by themselves; "map" and "dma" the paths they choose from;
"cuMemcpy" the driver's synchronous copy, called from Python. "pinned": the ordinary memory is
page-locked.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import gpudirect as gd

from ..devices import Device
from . import others
from .measure import Figure, shared_out, sizes
from .progress import Tell, silent

NAME = "copybw"
NOTE = ("The clock runs in Python. A mapped write's stops when the CPU's stores have left for the device; "
        "a DMA's when the data is in device memory. Calls of 4 KiB and more come alone, 100 us apart, as in "
        "a program that does something in between: threads that help have to be woken.")  # fmt: skip
LARGEST = 16 << 20
ALONE = 4 << 10  # bytes


def _ours(memory: others.Memory, n: int, host: np.ndarray[Any, Any], write: bool,
          name: str) -> dict[str, others.Case]:
    part, ordinary = memory.array[:n], host[:n]
    call = part.write if write else part.read
    return {
        f"{name}: chosen": lambda: call(ordinary),
        f"{name}: map": lambda: call(ordinary, via="map"),
        f"{name}: dma": lambda: call(ordinary, via="dma"),
    }


def run(device: Device, quick: bool = False, tell: Tell = silent) -> list[Figure]:
    """Measure on the default bridge of ``device``, and mapped copies on the others."""
    seconds = 0.02 if quick else 0.15
    todo = sizes(1, LARGEST, 4 if quick else 40)
    found: list[Figure] = []
    with others.Memory(device, LARGEST) as memory, others.current(device) as driver:
        step, steps = 0, 4 * len(todo)
        for write in (True, False):
            for host, kind in ((memory.pageable, ""), (memory.pinned, " pinned")):
                name = ("write" if write else "read") + kind
                for n in todo:
                    tell(f"{name}, {n} bytes", step, steps)
                    step += 1
                    cases = _ours(memory, n, host, write, name)
                    cases |= others.copies(driver, memory, n, host, write, name)
                    found += shared_out(NAME, cases, n, group=name, seconds=seconds,
                                        alone=n >= ALONE)  # fmt: skip
        powers = [n for n in todo if n & (n - 1) == 0 and n >= 64]
        for n in powers:
            for write in (True, False):
                tell(f"other ways, {n} bytes", 0, 1)
                keep: list[Any] = []
                cases = others.idioms(memory, n, write, keep)
                group = f"other ways to {'write' if write else 'read'}"
                found += shared_out(NAME, cases, n, group=group, seconds=seconds,
                                    alone=n >= ALONE)  # fmt: skip
                others.release(keep)
    for bridge in others.bridges_beside(device):
        with gd.empty(LARGEST, "u1", device=device, bridge=bridge, mapped=True) as a:
            source = np.ones(LARGEST, np.uint8)
            for n in powers:
                part, here_ = a[:n], source[:n]
                cases = {f"write: map via {bridge}": lambda: part.write(here_, via="map")}  # noqa: B023
                if n <= 1 << 20:
                    cases[f"read: map via {bridge}"] = lambda: part.read(here_, via="map")  # noqa: B023
                found += shared_out(NAME, cases, n, group="other bridges", seconds=seconds)
    return found
