"""The experiment as one self-contained HTML page, and its plots."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..bench import pages, plots
from ..bench.report import facts_section
from ..errors import ArgumentError
from . import analysis
from .analysis import COPIES, VERSIONS, Experiment, Row

COLOURS = dict(zip(VERSIONS, (plots.COLOURS[1], plots.COLOURS[5], plots.COLOURS[4],
                              plots.COLOURS[0]), strict=True))  # fmt: skip


def _strips(
    e: Experiment, name: str, title: str, axis: str, caption: str, ports: Sequence[str],
    versions: Sequence[str], value: Callable[[Row, str], float],
) -> plots.Plot:  # fmt: skip
    """A row for each port, a dot for each of its configurations, on a logarithmic axis."""
    with plots.blank(1.2 + 0.5 * len(ports)) as (figure, axes):
        axes.set_xscale("log")
        low = high = 1.0
        for i, port in enumerate(ports):
            for j, version in enumerate(versions):
                found = [value(r, version) for r in e.of(port)]
                low, high = min(low, *found), max(high, *found)
                height = len(ports) - 1 - i + 0.2 * ((len(versions) - 1) / 2 - j)
                axes.scatter(found, [height] * len(found), s=16, color=COLOURS[version], alpha=0.75,
                             label=None if i else version, zorder=3)  # fmt: skip
        axes.axvline(1.0, color=plots.INK, linewidth=1)
        axes.set_yticks(range(len(ports)), list(reversed(ports)))
        axes.set_xlim(low / 1.1, high * 1.1)
        plots.decades(axes.xaxis, low / 1.1, high * 1.1, lambda v: f"{v:g}")
        if high / low < 20:  # finer than decades
            _ticks(axes.xaxis, [t for t in TICKS if low / 1.1 <= t <= high * 1.1])
        axes.set_xlabel(axis)
        axes.set_title(title)
        figure.legend(fontsize=7.5, frameon=False, loc="outside lower center", ncols=len(versions),
                      columnspacing=1, handletextpad=0.2)  # fmt: skip
        return plots.finished(figure, name, caption, e.emulated)


TICKS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5)


def _ticks(axis: Any, places: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator

    axis.set_major_locator(FixedLocator(list(places)))


def relative(e: Experiment) -> plots.Plot:
    """Every version's step beside the double-buffered one's."""
    return _strips(
        e, "relative", "Time of a step beside double-buffered", "times double-buffered (less is better)",
        "Where data flows from CPU to GPU: the median time of one step, divided by that of the "
        "double-buffered version with its best chunk size. A dot is one size and kind.",
        e.flows, (*COPIES, "direct"), lambda r, v: r.step[v] / r.step["double-buffered"],
    )  # fmt: skip


def factors(e: Experiment) -> plots.Plot:
    """How much faster the update is."""
    return _strips(
        e, "updates", "How many times faster a direct update is", "times as long as direct",
        "Where little changes: the time of the update alone, launch excluded, divided by that of "
        "the direct version. A dot is one size and kind.",
        e.updates, VERSIONS[:3], lambda r, v: 1 / r.ratio(v, "update"),
    )  # fmt: skip


def chunk_curves(e: Experiment) -> plots.Plot:
    """The double-buffer's sensitivity to its chunk size, and direct, which has none."""
    with plots.blank(plots.HEIGHT) as (figure, axes):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        highest, sizes = 1.0, []
        for i, port in enumerate(e.flows):
            r = max(e.of(port), key=lambda r: r.nbytes)
            x = [_chunk(name) for name in r.sweep]
            y = [t / r.step["direct"] for t in r.sweep.values()]
            sizes += x
            highest = max(highest, *y)
            axes.plot(x, y, color=plots.COLOURS[i], linestyle=plots.DASHES[i], linewidth=1.6,
                      marker=plots.MARKERS[i % 5], markersize=3.6, label=r.name)  # fmt: skip
        axes.axhline(1.0, color=plots.INK, linewidth=1.2)
        axes.annotate("direct, no chunks", (min(sizes), 1.0), (0, -12), textcoords="offset points",
                      fontsize=8.5)  # fmt: skip
        axes.set_ylim(0.7, highest * 1.15)
        plots.decades(axes.yaxis, 0.7, highest * 1.15, lambda v: f"{v:g}")
        plots.size_axis(axes, sizes)
        axes.set_xlabel("chunk size of the double-buffered version")
        axes.set_title("Time of a double-buffered step beside direct")
        axes.legend(fontsize=7.5, frameon=False)
        caption = (
            "The median time of one double-buffered step with each chunk size tried, divided by that "
            "of the direct version, at the largest size of each port."
        )
        return plots.finished(figure, "chunks", caption, e.emulated)


def _chunk(name: str) -> int:
    """Bytes of a chunk by the name of its case."""
    number, unit = name.removeprefix("double-buffered, ").split()
    return int(float(number) * {"KiB": 1 << 10, "MiB": 1 << 20}[unit])


def line_bars(e: Experiment) -> plots.Plot:
    """Lines of code."""
    ports = list(e.lines)
    with plots.blank(1.2 + 0.42 * len(ports)) as (figure, axes):
        for j, (version, name) in enumerate(
            (("copy", "copy, pinned"), ("double_buffered", "double-buffered"), ("direct", "direct"))
        ):
            heights = [len(ports) - 1 - i + 0.25 * (1 - j) for i in range(len(ports))]
            axes.barh(heights, [e.lines[p][version] for p in ports], 0.23, color=COLOURS[name],
                      label=version.replace("_", "-"))  # fmt: skip
        axes.set_yticks(range(len(ports)), list(reversed(ports)))
        axes.set_xlabel("lines of code")
        axes.set_title("Lines of code that each version needs")
        axes.legend(fontsize=7.5, frameon=False)
        caption = (
            "Lines of the version's function, and of whatever only it needs; what versions share "
            "counts for none. Counted mechanically, without comments and blank lines."
        )
        return plots.finished(figure, "lines", caption, e.emulated)


def drawn(e: Experiment) -> list[plots.Plot]:
    """All plots there is something to draw in."""
    made = [relative(e), chunk_curves(e)] if e.flows else []
    return [*made, *([factors(e)] if e.updates else []), line_bars(e)]


def _html(table: analysis.Table) -> str:
    rows = [tuple(map(escape, row)) for row in table.rows]
    return pages.table(escape(table.title), tuple(map(escape, table.columns)), rows)


def _plot(plot: plots.Plot) -> str:
    image = base64.b64encode(plot.png).decode()
    return (
        f'<figure><img alt="{escape(plot.caption)}" style="max-width:100%" '
        f'src="data:image/png;base64,{image}"><figcaption>{escape(plot.caption)}</figcaption></figure>'
    )


def build(found: dict[str, Any]) -> tuple[str, list[plots.Plot]]:
    """(the page of an experiment's figures, its plots). Raises ArgumentError if they are of
    something else."""
    e = Experiment(found)
    pictures = drawn(e)
    device, machine = e.device, e.machine
    emulated = (
        "EMULATED: no GPU was involved. These times say nothing about one."
        if e.emulated else ""
    )  # fmt: skip
    held, tables = sum(v.held for v in analysis.verdicts(e)), analysis.tables(e)
    parts = [
        f"<p><strong>{held} of {len(analysis.verdicts(e))} claims held in this run.</strong> Each port "
        "is one program: sequential, with copies, double-buffered with the best of the chunk sizes "
        "tried, and direct, which writes GPU memory itself. All were timed in turn in one run, and "
        "every result was compared with the sequential one.</p>",
        "<ul>" + "".join(f"<li><b>{escape(name)}</b> ({escape(p['flow'])}): {escape(p['title'])}</li>"
                         for name, p in e.ports.items()) + "</ul>",
        '<div class="plots">' + "\n".join(map(_plot, pictures)) + "</div>",
        *map(_html, [tables[-1], *tables[:-1]]),
        "<h2>The machine</h2>", facts_section(found),
    ]  # fmt: skip
    where = f"{device['name']}, {machine['cpu']}, commit {machine['commit']}, {machine['time']}"
    title = "Does avoiding DMA pay?"
    page = pages.page(title, escape(where), emulated, "\n".join(parts))
    return page, pictures


def write(found: dict[str, Any], path: Path) -> None:
    """Write the page, and beside it the plots as PNG: ``x.html``, ``x-relative.png``, ...

    Raises ArgumentError when they cannot be written, with the reason.
    """
    page, pictures = build(found)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page)
        for plot in pictures:
            path.with_name(f"{path.stem}-{plot.name}.png").write_bytes(plot.png)
    except OSError as e:
        raise ArgumentError(f"the page cannot be written to {path}: {e.strerror}") from e
