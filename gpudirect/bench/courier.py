"""``courier``: reads, gathers and scatters by a worker on the device, beside loads, stores and DMA."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import gpudirect as gd

from ..devices import Device
from .measure import Figure, shared_out
from .progress import Tell, silent

NAME = "courier"
NOTE = ("All from Python. Loads and DMA are what read() and gather() do without a courier; a load each is "
        "NumPy indexing the mapping itself.")  # fmt: skip
READS = (1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20)  # bytes
WORDS = 1 << 20  # of 4 bytes, among which is gathered and scattered
COUNTS = (16, 256, 4096, 32768)
Cases = dict[str, Callable[[], Any]]
LOADED = 4096  # words, at most, that are loaded one by one: each takes up to 1 us


def _reads(a: gd.Array, device: Device, seconds: float) -> list[Figure]:
    found: list[Figure] = []
    raw = a.view("u1")
    for kind in ("read", "read pinned"):
        for n in READS:
            out = gd.pinned(n, "u1", device=device) if kind == "read pinned" else np.empty(n, "u1")
            part, ways = raw[:n], {"courier": "courier", "loads": "map", "DMA": "dma", "chosen": None}
            cases: Cases = {f"{kind}: {way}": partial(part.read, out, via=via) for way, via in ways.items()}
            found += shared_out(NAME, cases, n, group=kind, seconds=seconds)
            if not np.array_equal(out, part.read(via="dma")):
                raise gd.Error(f"bench {NAME}: a read of {n} bytes brought something else")
    return found


def _places(count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(count).choice(WORDS, count, replace=False)


def _gathers(a: gd.Array, twin: np.ndarray[Any, Any], seconds: float) -> list[Figure]:
    found: list[Figure] = []
    plain = a.host.view(np.ndarray)
    for count in COUNTS:
        at, out = _places(count), np.empty(count, "u4")
        cases: Cases = {
            f"gather: {way}": partial(a.gather, at, out, via=via)
            for way, via in {"courier": "courier", "loads": "map", "whole array by DMA": "dma"}.items()
        }
        if count <= LOADED:
            cases["gather: a load each"] = partial(plain.__getitem__, at)
        found += shared_out(NAME, cases, 4 * count, group="gather", seconds=seconds)
        if not np.array_equal(a.gather(at, via="courier"), twin[at]):
            raise gd.Error(f"bench {NAME}: a gather of {count} words brought something else")
    return found


def _scatters(a: gd.Array, seconds: float) -> list[Figure]:
    found: list[Figure] = []
    for count in COUNTS:
        at, values = _places(count), np.arange(count, dtype="u4")
        cases: Cases = {f"scatter: {way}": partial(a.scatter, at, values, via=via)
                        for way, via in {"courier": "courier", "stores": "map"}.items()}  # fmt: skip
        found += shared_out(NAME, cases, 4 * count, group="scatter", seconds=seconds)
        a.scatter(at, values[::-1].copy(), via="courier")
        if not np.array_equal(a.gather(at, via="map"), values[::-1]):
            raise gd.Error(f"bench {NAME}: a scatter of {count} words did not arrive")
    return found


def run(device: Device, quick: bool = False, tell: Tell = silent) -> list[Figure]:
    """Figures of a courier beside the other ways. Raises Error when something did not arrive."""
    seconds = 0.02 if quick else 0.3
    twin = np.random.default_rng(1).integers(0, 1 << 32, WORDS, "u4")
    with gd.asarray(twin, device=device) as a, gd.Courier(device):
        tell("reads", 0, 3)
        found = _reads(a, device, seconds)
        tell("gathers", 1, 3)
        found += _gathers(a, twin, seconds)
        tell("scatters", 2, 3)
        return found + _scatters(a, seconds)
