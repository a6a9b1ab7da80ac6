"""Plots of figures: each as a PNG for elsewhere and as an SVG to stand inside a page.

The SVG's colours are CSS variables, so that the page's light, dark and printed looks apply to the
plots too. matplotlib is needed here and nowhere else.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .._words import bandwidth_text, exact_size, time_text
from ..errors import Error

# Told apart with any colour vision, and all dark enough for white paper; the page maps them to
# lighter ones on a dark ground (report.html). Each line has dashes and a marker besides, and the
# three counts share no factor, so that many lines stay different.
COLOURS = ("#0072b2", "#c94f00", "#00805c", "#a8478a", "#5b5b5c", "#96690a", "#2f94d1")
DASHES: tuple[Any, ...] = (
    "-", (0, (5, 1.6)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)), (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1)),
)  # fmt: skip
MARKERS = "os^Dv"
INK, RULE, PAPER, ALERT = "#1b1b1c", "#d3d3d4", "#fefeff", "#b3261f"
ROLES = {INK: "ink", RULE: "rule", PAPER: "paper", ALERT: "alert"} | {
    colour: f"c{i}" for i, colour in enumerate(COLOURS)
}
WIDTH, HEIGHT = 4.7, 3.4  # inches: legible unscaled on a page and scaled down on a phone
STYLE = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9,
    "svg.fonttype": "none", "svg.hashsalt": "gpudirect", "path.simplify": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK,
    "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.grid": True, "grid.color": RULE, "grid.linewidth": 0.6, "axes.axisbelow": True,
    "axes.facecolor": "none", "axes.titlesize": 10, "axes.titlelocation": "left",
    "xtick.minor.visible": False, "ytick.minor.visible": False,
}  # fmt: skip


def matplotlib() -> Any:
    """matplotlib, drawing to files. Raises Error with what to install when it is not there."""
    try:
        import matplotlib as found
    except ImportError as e:
        raise Error(
            f"the plots of a report need matplotlib, which cannot be imported ({e}): "
            "pip install 'gpudirect[plot]'"
        ) from e
    return found


@dataclass(frozen=True)
class Plot:
    """One plot, drawn."""

    name: str
    """What it shows, for a file name: "time", say."""
    caption: str
    """What it shows, in a sentence; the text of the picture for those who cannot see it."""
    png: bytes
    svg: str


@dataclass(frozen=True)
class Series:
    """The figures of one case, by rising size."""

    label: str
    figures: Sequence[dict[str, Any]]


@contextmanager
def blank(height: float) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes in our style, kept apart from the settings of the process."""
    mpl = matplotlib()
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), dpi=200, layout="constrained")
        yield figure, figure.add_subplot()


def finished(figure: Any, name: str, caption: str, emulated: bool) -> Plot:
    """The plot of a figure, marked where it is emulated.

    By the canvases themselves: ``savefig`` draws everything once more before, to no file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    if emulated:
        figure.text(0.5, 0.5, "EMULATED\nno GPU involved", color=ALERT, alpha=0.28, fontsize=26,
                    ha="center", va="center", rotation=20, weight="bold")  # fmt: skip
    png, svg = io.BytesIO(), io.BytesIO()
    print_png: Any = FigureCanvasAgg(figure).print_png
    figure.set_facecolor("white")
    print_png(png, metadata={"Software": None})
    figure.set_layout_engine("none")  # it stays as it was laid out, which takes as long as drawing it
    print_svg: Any = FigureCanvasSVG(figure).print_svg
    figure.set_facecolor("none")
    print_svg(svg, metadata={"Date": None})
    return Plot(name, caption, png.getvalue(), svg.getvalue().decode())


def inline(svg: str, prefix: str, caption: str) -> str:
    """An SVG document as an element of a page: its own ids, the page's colours, no outside names."""
    import html

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.S)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg).replace("url(#", f"url(#{prefix}-")
    for colour, role in ROLES.items():
        svg = svg.replace(colour, f"var(--{role})")
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg)
    assert size is not None
    svg = svg.replace(size.group(0), f'role="img" aria-label="{html.escape(caption)}"', 1)
    return re.sub(r"\n\s*", "\n", svg)


# -- axes ---------------------------------------------------------------------------------------


def _micro(text: str) -> str:
    return text.replace(" us", " µs")


def decades(axis: Any, low: float, high: float, text: Callable[[float], str]) -> None:
    """A logarithmic axis with ticks that name units; finer ones where it spans little."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

    span = math.log10(high / low)
    if span < 0.6:
        ticks = [
            float(t) for t in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= t <= high
        ]
    else:
        steps = (1, 2, 5) if span < 2.5 else (1,)
        every = 1 if span < 8 else 2
        ticks = [
            s * 10.0**e
            for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for s in steps
            if e % every == 0 and low * 0.999 <= s * 10.0**e <= high * 1.001
        ]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _micro(text(value))))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def size_axis(axes: Any, sizes: Sequence[int]) -> None:
    """A horizontal axis of sizes in bytes, with ticks at round ones."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    first, last = math.log2(min(sizes)), math.log2(max(sizes))
    step = max(1, math.ceil((last - first) / 5))
    exponents = range(math.ceil(first), math.floor(last) + 1, step)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([2.0**e for e in exponents]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: exact_size(round(value))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("size of one call")


def _apart(wanted: Sequence[float], heights: Sequence[float], floor: float = -math.inf) -> list[float]:
    """Centres for labels of these heights as near as can be to those ``wanted``, in their order.

    None overlaps another, and no centre lies below ``floor``.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    # blocks of labels that touch: each label's distance from the first, and where that would be
    blocks: list[tuple[list[int], list[float], float]] = []
    for i in order:
        members, offsets, start = [i], [0.0], max(wanted[i], floor)
        while blocks:
            below, low, first = blocks[-1]
            step = low[-1] + (heights[below[-1]] + heights[members[0]]) / 2
            if start >= first + step:
                break
            blocks.pop()
            members, offsets = below + members, low + [step + o for o in offsets]
            start = sum(wanted[m] - o for m, o in zip(members, offsets, strict=True)) / len(members)
            start = max(start, floor)
        blocks.append((members, offsets, start))
    places = [0.0] * len(wanted)
    for members, offsets, start in blocks:
        for m, offset in zip(members, offsets, strict=True):
            places[m] = start + offset
    return places


def _label_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each line's name right of its end (x, y, name, colour), none over another."""
    import textwrap

    low, high = (math.log(v) for v in axes.get_ylim())
    names = [textwrap.wrap(name, 17) or [""] for _, _, name, _ in ends]
    wanted = [(math.log(y) - low) / (high - low) for _, y, _, _ in ends]
    places = _apart(wanted, [0.008 + 0.05 * len(lines) for lines in names], floor=0.02)
    right = max(x for x, _, _, _ in ends)
    for (x, y, _, colour), lines, place in zip(ends, names, places, strict=True):
        axes.annotate(
            "\n".join(lines), xy=(x, y), xycoords="data", xytext=(1.035, place), textcoords="axes fraction",
            color=colour, va="center", ha="left", fontsize=8.5, linespacing=1.05, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6,
                        "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5)},
        )  # fmt: skip
    axes.set_xlim(right=right)


def _curves(
    name: str, title: str, caption: str, series: Sequence[Series], emulated: bool,
    values: Callable[[Series], tuple[list[float], list[float], list[float]]],
    text: Callable[[float], str], floor: float | None = None,
) -> Plot:  # fmt: skip
    """Lines over sizes, each with its band; ``values`` gives (low, middle, high) by size."""
    with blank(HEIGHT) as (figure, axes):
        found = [values(s) for s in series]
        sizes = sorted({f["size"] for s in series for f in s.figures})
        axes.set_yscale("log")
        ends = []
        for i, (s, (low, middle, high)) in enumerate(zip(series, found, strict=True)):
            x = [f["size"] for f in s.figures]
            colour = COLOURS[i % len(COLOURS)]
            axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
            axes.plot(
                x, middle, color=colour, linestyle=DASHES[i % len(DASHES)], linewidth=1.6,
                marker=MARKERS[i % len(MARKERS)], markersize=3.6, markeredgewidth=0,
                markevery=max(1, len(x) // 8), zorder=3,
            )  # fmt: skip
            ends.append((float(x[-1]), middle[-1], s.label, colour))
        bottom = min(v for low, _, _ in found for v in low)
        top = max(v for _, _, high in found for v in high)
        bottom = bottom if floor is None else floor
        top = max(top, bottom * 1.5)  # lines that are all alike need an axis as well
        room = (top / bottom) ** 0.03
        axes.set_ylim(bottom / room, top * room)
        axes.set_xlim(left=min(sizes))
        size_axis(axes, sizes)
        decades(axes.yaxis, bottom / room, top * room, text)
        _label_ends(axes, ends)
        axes.set_title(title)
        return finished(figure, name, caption, emulated)


# -- the plots ----------------------------------------------------------------------------------


def time(series: Sequence[Series], emulated: bool) -> Plot:
    """Size against time."""

    def values(s: Series) -> tuple[list[float], list[float], list[float]]:
        low, middle, high = ([max(f[k], 1e-3) for f in s.figures] for k in ("p0", "p50", "p99"))
        return low, middle, high

    caption = "Time of one call at each size: the line is the median, the band goes from the best to p99."
    return _curves("time", "Time of one call (lower is better)", caption, series, emulated, values, time_text)


def bandwidth(series: Sequence[Series], emulated: bool) -> Plot:
    """Size against bandwidth."""

    def values(s: Series) -> tuple[list[float], list[float], list[float]]:
        low, middle, high = (
            [f["size"] * 1e9 / max(f[k], 1e-3) for f in s.figures] for k in ("p99", "p50", "p0")
        )
        return low, middle, high

    caption = (
        "Bytes moved in a second at each size: the line is at the median time, the band from p99 to the best."
    )
    return _curves(
        "bandwidth", "Bandwidth (higher is better)", caption, series, emulated, values, bandwidth_text
    )  # fmt: skip


def relative(series: Sequence[Series], emulated: bool) -> Plot:
    """Size against the time beside the fastest of all at that size: where lines cross, and by how much."""
    best: dict[int, float] = {}
    for s in series:
        for f in s.figures:
            best[f["size"]] = min(best.get(f["size"], math.inf), max(f["p50"], 1e-3))

    def values(s: Series) -> tuple[list[float], list[float], list[float]]:
        middle = [max(f["p50"], 1e-3) / best[f["size"]] for f in s.figures]
        return middle, middle, middle

    caption = "Median time at each size, divided by that of the fastest at the same size: 1 is the fastest."
    return _curves(
        "relative", "Median time beside the fastest (1 is the fastest)", caption, series, emulated, values,
        lambda value: f"{value:g} x", floor=1.0,
    )  # fmt: skip


def histogram(rows: Sequence[tuple[str, dict[str, Any]]], emulated: bool, what: str = "") -> Plot:
    """How the samples of each case are spread: a row for each, all over one logarithmic axis."""
    import numpy as np

    height = 1.0 + 0.62 * len(rows)
    with blank(height) as (figure, axes):
        low = max(min(min([f["p0"], *f["values"]]) for _, f in rows), 1e-3)
        high = max(max([f["p999"], *f["values"]]) for _, f in rows)
        low, high = low / 1.06, max(high, low * 1.3) * 1.06
        edges = np.geomspace(low, high, 91)
        axes.set_xscale("log")
        for i, (label, f) in enumerate(rows):
            base, colour = float(len(rows) - 1 - i), COLOURS[i % len(COLOURS)]
            counts, _ = np.histogram(np.maximum(f["values"], low), bins=edges)
            tops = base + 0.62 * counts / max(1, counts.max())
            axes.stairs(tops, edges, baseline=base, fill=True, color=colour, alpha=0.75, linewidth=0)
            axes.plot([low, high], [base, base], color=RULE, linewidth=0.6, zorder=1)
            for value, mark, dashes in ((f["p50"], 0.66, "-"), (f["p99"], 0.4, (0, (2, 1.4)))):
                axes.plot([value, value], [base, base + mark], color=INK, linewidth=1.1, linestyle=dashes)
            told = f" {label}: {_micro(time_text(f['p50']))}, p99 {_micro(time_text(f['p99']))}"
            axes.text(low, base + 0.7, told, color=colour, fontsize=8.5, va="bottom", ha="left")
        axes.set_ylim(-0.06, len(rows) + 0.02)
        axes.set_xlim(low, high)
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        decades(axes.xaxis, low, high, time_text)
        axes.set_xlabel("time of one call")
        axes.set_title(f"How the samples are spread{what}")
        caption = (
            f"How the samples are spread{what}: one row for each case, all over the same logarithmic axis. "
            "The solid mark is the median, the dashed one p99."
        )
        return finished(figure, f"spread{what}", caption, emulated)
