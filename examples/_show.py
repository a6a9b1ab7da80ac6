"""What the short examples print at the end: where it ran, and how long each round took.

With the name of a file as its argument (``python examples/control.py control.png``) an example draws its
histogram there as well, by Matplotlib.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

import gpudirect as gd

WIDTH, ROWS = 40, 12


def where() -> str:
    """The device, and that its times are its own if it is emulated."""
    device = gd.device()
    return f"{device.id}, {device.name}{' (no GPU is involved: no times of one)' if device.emulated else ''}"


def histogram(seconds: Sequence[float], what: str, deadline: float | None = None) -> None:
    """Print a histogram of times on a logarithmic scale, and where the deadline is."""
    us = np.asarray(seconds) * 1e6
    half, most = np.percentile(us, (50, 99))
    print(f"{what}, {len(us)} times: median {half:.1f} us, 99 % under {most:.1f} us, worst {us.max():.1f} us")
    edges = np.geomspace(us.min(), us.max() * 1.0001, ROWS + 1)
    counts = np.histogram(us, edges)[0]
    for low, n in zip(edges, counts, strict=False):
        print(f"{low:10.1f} us |{'#' * int(np.ceil(WIDTH * n / counts.max())):<{WIDTH}}| {n}")
    if deadline is not None:
        late = int((us > deadline * 1e6).sum())
        print(f"{late} of {len(us)} missed the deadline of {deadline * 1e3:g} ms")
    for file in sys.argv[1:2]:
        _draw(us, edges, what, deadline, file)


def _draw(us: np.ndarray, edges: np.ndarray, what: str, deadline: float | None, file: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure((6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.hist(us, np.geomspace(edges[0], edges[-1], 60))
    axes.set(xscale="log", yscale="log", xlabel=f"{what}, us", ylabel="times", title=where())
    if deadline is not None:
        axes.axvline(deadline * 1e6, color="tab:red", label="deadline")
        axes.legend()
    figure.savefig(file, dpi=150)
