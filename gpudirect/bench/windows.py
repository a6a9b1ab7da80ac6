"""``windows``: an array larger than the aperture's budget, written from start to end."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

import gpudirect as gd

from .. import aperture
from .._words import exact_size
from ..devices import Device
from .measure import Figure, figure
from .progress import Tell, silent

NAME = "windows"
NOTE = ("One pass over the array; the clock stops when the last store has left the CPU. One large write "
        "under a budget uses windows and DMA together; a writer uses windows only.")  # fmt: skip
BUDGET = 64 << 20
WHOLE, PART = "fully mapped", "64 MiB budget"


def _pass(a: gd.Array, source: np.ndarray[Any, Any], chunk: int) -> float:
    start = time.perf_counter_ns()
    if chunk == source.nbytes:
        a.write(source)
    else:
        with a.writer() as file:
            for at in range(0, source.nbytes, chunk):
                file.write(source[at : at + chunk])
    return time.perf_counter_ns() - start


def run(device: Device, quick: bool = False, tell: Tell = silent) -> list[Figure]:
    """Measure on the default bridge of ``device``. Raises Error if the budget was exceeded."""
    size = 128 << 20 if device.emulated or quick else 1 << 30
    passes = 3 if quick else 9
    words = exact_size(size)
    source = np.random.default_rng(1).integers(0, 256, size, np.uint8)
    gd.trim()
    account = aperture.account(device)
    found: list[Figure] = []
    with gd.empty(size, "u1", device=device, mapped=False) as windowed:
        for step, (how, chunk) in enumerate((("", size), (", writer by 1 MiB", 1 << 20))):
            times: dict[str, list[float]] = {WHOLE: [], PART: []}
            for i in range(passes + 1):
                tell(f"{words}{how}", step * passes + i, 2 * passes)
                # the mapping of the whole lives in its own turn only: it would use up the budget
                with gd.empty(size, "u1", device=device, mapped=True, pool=False) as whole:
                    _pass(whole, source[: 1 << 24], 1 << 24)  # its page table
                    _pass(whole, source, chunk)
                    took = {WHOLE: _pass(whole, source, chunk)}
                gd.trim()
                before = account.use().total
                aperture.set_budget(before + BUDGET, device)
                try:
                    took[PART] = _pass(windowed, source, chunk)
                    if account.use().total > before + BUDGET:
                        raise gd.ApertureError(f"the budget was exceeded: {account.use()}")
                finally:
                    aperture.set_budget(None, device)
                if i:  # the first pass warms up
                    for name, ns in took.items():
                        times[name].append(ns)
            found += [figure(NAME, f"{words}{how}: {name}", size, t, 1, f"{words}{how}")
                      for name, t in times.items()]  # fmt: skip
    gd.trim()
    return found
