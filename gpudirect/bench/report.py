"""A figures file as a page: plots, tables, bars and facts, for a reader who has not seen the code.

The page stands alone in one file; the same plots lie beside it as PNG.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from .._words import bandwidth_text, exact_size, size_text, time_text
from ..errors import ArgumentError
from . import bars, check, pages, plots
from .check import HOLDS, MISSING, Outcome

PAGE, PLOTS = "index.html", "plots"
SWEEP = 3
"""So many sizes make a curve."""
ROWS = 10
"""At most so many histograms in one plot."""
HISTOGRAM_SIZES = (64, 1 << 20)
"""Of a sweep, the spread is shown at the sizes nearest to these, in bytes."""

RETIRED = "CPU store retired: the stores and their fence are done, and the bytes on their way."
RETURNED = "The call has returned."
THERE_AND_BACK = "Visible to the GPU, and its answer visible to the CPU."
ABOUT: dict[str, tuple[str, str, str]] = {
    "engine": (
        "The copy engine, beside bare loops",
        "C loops that move bytes between ordinary memory and the mapping, without Python: gpudirect's "
        "copy engine beside the simplest loop for each instruction set, and libc's memcpy.",
        f"Writes: {RETIRED} Reads: the bytes are in ordinary memory.",
    ),
    "copybw": (
        "write() and read(), by every path",
        "What a program sees: gpudirect's write() and read() with the path they choose, each path on its "
        "own (the mapping, DMA), and the other ways to move the same bytes. Pinned means that the "
        "ordinary memory was locked for DMA.",
        f"Writes through the mapping: {RETIRED} By DMA: visible to the GPU. Reads: the bytes are in "
        "ordinary memory.",
    ),
    "copylat": (
        "Small copies, from C and from Python",
        "What one small write, read or fence costs in C, what the Python call around it adds, and what "
        "other ways cost.",
        f"Writes through the mapping: {RETIRED}",
    ),
    "apiperf": (
        "Other calls",
        "What the calls around the data cost: allocating, mapping, registering.",
        RETURNED,
    ),
    "pingpong": (
        "There and back: a running kernel answers",
        "The CPU stores a number to GPU memory; a kernel that is already running sees it and answers. "
        "Beside it the time of one 4-byte load over the link, which no answer can beat by much.",
        THERE_AND_BACK,
    ),
    "launch": ("Launching kernels", "What it costs to start a kernel, and to wait for it.", ""),
    "alloc": (
        "Getting and giving back memory",
        "What a Python program pays to get GPU memory that the CPU can write, to write 64 bytes to it, "
        "and to give it back, beside the driver's own calls.",
        f"{RETURNED} For the write: {RETIRED}",
    ),
    "windows": (
        "Windows: more memory than can be mapped at once",
        "One large array written from start to end: all of it mapped, and through windows that may "
        "together map only a small part at a time.",
        RETIRED,
    ),
    "doorbell": (
        "Doorbell calls",
        "Calling a function on the GPU by storing its arguments to the memory of a resident kernel, "
        "beside launching a kernel for it.",
        THERE_AND_BACK,
    ),
    "slices": (
        "A service that makes way",
        "Calls of a service whose kernel ends every millisecond so that other libraries can go on, calls that "
        "wake one that has left the GPU, and how long those wait who wait for the GPU.",
        THERE_AND_BACK,
    ),
    "courier": (
        "Couriers",
        "Reads, gathers and scatters by a worker beside the GPU's memory, beside the CPU's loads and stores "
        "and the GPU's copy engine.",
        RETURNED,
    ),
    "grids": (
        "Functions run by the whole device",
        "A function that blocks on all multiprocessors run together, called through a lane, beside a launch of "
        "the same blocks.",
        THERE_AND_BACK,
    ),
    "experiment": (
        "Ports: does avoiding DMA pay?",
        "The same programs with copies, with double buffers, and writing GPU memory directly.",
        "The program's result is complete.",
    ),
}
"""By bench: a title, what it does, and what the clock stopped on."""
FACTS = {
    "name": "GPU", "cpu": "CPU", "cpus": "CPUs", "pci_address": "PCI address", "uuid": "UUID",
    "bar1_bytes": "PCI aperture (BAR1)", "bar1_used_bytes": "PCI aperture in use",
    "cuda_driver": "CUDA version of the driver", "numpy": "NumPy", "python": "Python",
    "bridge": "bridge that was used", "load": "load before the run",
}  # fmt: skip
WORDS = (
    ("mapping", "GPU memory that appears in the CPU's address space, through the GPU's PCI aperture. Plain "
     "CPU stores to it travel to the GPU."),
    ("bridge", "the way in which that is arranged with the driver."),
    ("fence", "an instruction that makes the CPU send all earlier stores on their way."),
    ("DMA", "the GPU's own copying hardware fetches or stores the bytes; what cudaMemcpy uses."),
    ("median, p50", "half of the samples took less time, half took more."),
    ("best, p99, p99.9", "the shortest sample; one in a hundred took longer than p99, one in a thousand longer "
     "than p99.9."),
)  # fmt: skip


# -- text ---------------------------------------------------------------------------------------


def _text(words: object) -> str:
    """Words as HTML; a number keeps its unit on its line."""
    text = escape(str(words))
    text = re.sub(r"(?<=\d) us\b", " µs", text)
    return re.sub(r"(?<=\d) (?=(?:ns|µs|ms|s|B|[KMG]iB|[kMG]?B/s|x)\b)", "\N{NO-BREAK SPACE}", text)


def _time(ns: float) -> str:
    return _text(time_text(ns))


def _moment(time: Any) -> str:
    """ "2026-11-21T06:52:49+00:00" as one would say it, on one line."""
    said = str(time or "unknown time").replace("T", " ").replace("+00:00", " UTC")
    return said.replace(" ", "\N{NO-BREAK SPACE}")


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "x"


# -- parts of the page --------------------------------------------------------------------------


def _fact(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "not known"
    if key.endswith("_bytes"):
        return _text(size_text(value))
    if key == "cuda_driver" and isinstance(value, int):
        return f"{value // 1000}.{value % 1000 // 10}"
    if key == "load" and isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values()):
        return "<br>".join(
            f"<b>{_text(k)}</b>: {'usable' if v.get('usable') else 'not usable'}; {_text(v.get('reason', ''))}"
            for k, v in value.items()
        )
    if isinstance(value, dict):
        return ", ".join(f"{_text(k.replace('_', ' '))}: {_fact(k, v)}" for k, v in value.items())
    return _text(value)


def facts_section(found: dict[str, Any]) -> str:
    """The device's and the machine's facts, as tables."""
    parts = []
    for key, caption in (("device", "The device"), ("machine", "The machine")):
        rows = [
            (_text(FACTS.get(k, k.removesuffix("_bytes").replace("_", " "))), _fact(k, v))
            for k, v in found[key].items()
        ]
        parts.append(pages.table(caption, (), rows, "facts"))
    return "\n".join(parts)


def _bars(outcomes: Sequence[Outcome], emulated: bool) -> str:
    """The bars: what was asked, and what came out."""
    judged = [o for o in outcomes if o.state != MISSING]
    missing = [o for o in outcomes if o.state == MISSING]
    held = sum(o.state == HOLDS for o in judged)
    mark = "emulated: " if emulated else ""
    told = (
        f"{held} of {len(outcomes)} bars hold, {len(judged) - held} fall short, {len(missing)} were not "
        "measured in this file."
    )
    if emulated:
        told += " On the emulated device that says nothing about a GPU."
    lines = [f"<p><strong>{told}</strong> A bar compares figures of this run with each other.</p>"]
    if judged:
        marks = {True: ("holds", "✓ holds"), False: ("short", "✗ falls short")}
        rows = []
        for o in sorted(judged, key=lambda o: o.state == HOLDS):
            kind, word = marks[o.state == HOLDS]
            told = f"{o.bar.id}. {o.where_text}"
            rows.append((
                f"{_text(o.bar.words)}<small>{_text(told)}</small>",
                f'<span class="{"missing" if emulated else kind}">{mark}{word}</span><br>{_text(o.figure_text)}'
                f"<small>{_text(o.limit_text)}</small>",
            ))  # fmt: skip
        lines.append(pages.table("", ("bar, and its worst case", "figure"), rows, "bars"))
        asked = dict.fromkeys(o.bar.asked for o in judged if o.state != HOLDS)
        if asked:
            items = "".join(f"<li>“{_text(sentence)}”</li>" for sentence in asked)
            lines.append(f"<p>What was asked, where it falls short:</p><ul>{items}</ul>")
    if missing:
        items = "".join(
            f"<li>{_text(o.bar.words)} ({_text(o.limit_text)}): "
            f'<span class="missing">{_text(o.reason)}</span></li>'
            for o in missing
        )
        lines.append(
            f"<details><summary>The {len(missing)} not measured here</summary><ul>{items}</ul></details>"
        )
    return "\n".join(lines)


class _Group:
    """Cases that answer one question, and are drawn together."""

    def __init__(self, bench: str, name: str, found: Sequence[dict[str, Any]], emulated: bool) -> None:
        self.bench, self.name, self.emulated = bench, name, emulated
        self.cases: dict[str, list[dict[str, Any]]] = {}
        for f in found:
            self.cases.setdefault(f["case"], []).append(f)
        for figures in self.cases.values():
            figures.sort(key=lambda f: f["size"])
        self.swept = {
            c: figures for c, figures in self.cases.items() if len(figures) >= SWEEP and figures[0]["size"]
        }
        self.single = {c: fs for c, fs in self.cases.items() if c not in self.swept}
        self.slug = _slug(f"{bench} {name}")
        heads = {case.partition(": ")[0] for case in self.cases}
        head = heads.pop()
        same = not heads and (len(self.cases) > 1 or head in name)
        self.common = f"{head}: " if same else ""

    def label(self, case: str) -> str:
        """A case's name without what all of the group have in common."""
        return case.removeprefix(self.common)

    def sizes(self) -> list[int]:
        return sorted({f["size"] for figures in self.swept.values() for f in figures})

    def at(self, size: int) -> dict[str, dict[str, Any]]:
        """The swept cases measured at a size."""
        return {c: f for c, figures in self.swept.items() for f in figures if f["size"] == size}

    def nearest(self, wanted: int) -> int:
        return min(self.sizes(), key=lambda s: abs(math.log2(s / wanted)))

    def plots(self) -> list[plots.Plot]:
        drawn = []
        if self.swept:
            series = [plots.Series(self.label(c), figures) for c, figures in self.swept.items()]
            drawn = [plots.time(series, self.emulated), plots.bandwidth(series, self.emulated)]
            if len(series) > 1:
                drawn.append(plots.relative(series, self.emulated))
            for size in dict.fromkeys(map(self.nearest, HISTOGRAM_SIZES)):
                rows = [(self.label(c), f) for c, f in self.at(size).items()]
                drawn.append(plots.histogram(rows, self.emulated, f" at {exact_size(size)}"))
        if self.single:
            rows = [(self._named(c, f), f) for c, figures in self.single.items() for f in figures]
            step = -(-len(rows) // -(-len(rows) // ROWS))  # plots of about the same height
            drawn += [plots.histogram(rows[i : i + step], self.emulated) for i in range(0, len(rows), step)]
        return drawn

    def _named(self, case: str, f: dict[str, Any]) -> str:
        several = len(self.cases[case]) > 1
        return self.label(case) + (f", {exact_size(f['size'])}" if several else "")

    def sentences(self) -> str:
        """What the curves say, in words, at a small size and at the largest."""
        told = []
        for size in dict.fromkeys((self.nearest(HISTOGRAM_SIZES[0]), self.sizes()[-1])) if self.swept else ():
            times = sorted((f["p50"], self.label(c)) for c, f in self.at(size).items())
            (low, fastest), (high, slowest) = times[0], times[-1]
            if len(times) < 2 or not low:
                continue
            ratio = high / low
            if ratio < 1.05:
                told.append(f"At {exact_size(size)} all are within 5%: {time_text(low)}.")
            else:
                told.append(
                    f"At {exact_size(size)} {fastest} takes least, {time_text(low)}; {slowest} takes most, "
                    f"{time_text(high)}, {ratio:.3g} times as long."
                )
        return f"<p>{_text(' '.join(told))}</p>" if told else ""

    def tables(self) -> str:
        mark = "EMULATED. " if self.emulated else ""
        parts = []
        if self.swept:
            parts.append(self._overview(mark))
            rows = [self._row(f) for figures in self.swept.values() for f in figures]
            table = pages.table(f"{mark}Times of one call", self.HEAD, rows)
            parts.append(f"<details><summary>All {len(rows)} figures</summary>{table}</details>")
        if self.single:
            rows = [self._row(f) for figures in self.single.values() for f in figures]
            parts.append(pages.table(f"{mark}Times of one call", self.HEAD, rows))
        return "\n".join(parts)

    HEAD = ("case", "size", "best (p0)", "median (p50)", "p99", "p99.9", "bandwidth", "samples")

    def _row(self, f: dict[str, Any]) -> tuple[str, ...]:
        size, batch = f["size"], f["batch"]
        return (
            _text(self.label(f["case"])), _text(exact_size(size)) if size else "",
            *(_time(f[k]) for k in ("p0", "p50", "p99", "p999")),
            _text(bandwidth_text(size * 1e9 / f["p50"])) if size and f["p50"] else "",
            f"{f['samples']}" + (f"<small>of {batch} calls</small>" if batch > 1 else ""),
        )  # fmt: skip

    def _overview(self, mark: str) -> str:
        """Medians at a few sizes, all cases side by side."""
        sizes = [s for s in self.sizes() if s & (s - 1) == 0]
        few = sizes[:: -(-len(sizes) // 9)] if sizes else self.sizes()[:9]
        if sizes and sizes[-1] not in few:
            few.append(sizes[-1])
        rows = []
        for size in few:
            there = self.at(size)
            best = min(f["p50"] for f in there.values())
            row = [_text(exact_size(size))]
            for case in self.swept:
                f = there.get(case)
                if f is None:
                    row.append("")
                    continue
                time = f"<b>{_time(f['p50'])}</b>" if f["p50"] == best else _time(f["p50"])
                row.append(f"{time}<small>{_time(f['p0'])} to {_time(f['p99'])}</small>")
            rows.append(row)
        head = ("size", *(_text(self.label(c)) for c in self.swept))
        caption = f"{mark}Median time of one call (best to p99); the arrow marks the fastest"
        return pages.table(caption, head, rows)


def _groups(found: dict[str, Any]) -> dict[str, list[_Group]]:
    """By bench its groups, in the order of the file."""
    sorted_out: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for f in found["figures"]:
        sorted_out.setdefault(f["bench"], {}).setdefault(f.get("group", ""), []).append(f)
    emulated = bool(found["device"].get("emulated"))
    return {
        bench: [_Group(bench, name, figures, emulated) for name, figures in by_name.items()]
        for bench, by_name in sorted_out.items()
    }


def _about(bench: str, found: dict[str, Any]) -> tuple[str, str, str]:
    """A bench's title, what it does, and what the clock stopped on, with the file's own note."""
    title, what, clock = ABOUT.get(bench, (bench, "", ""))
    notes = found.get("notes")
    told = str(notes.get(bench, "")) if isinstance(notes, dict) else ""
    return title, what, f"{clock} {told}".strip() or "The file does not say on what the clock stopped."


EMULATED = (
    'EMULATED DEVICE. No GPU was involved: these times say nothing about a '
    "GPU, and no bar is met by them. The page shows only that measuring works."
)
HOW = (
    "Every case was timed many times; where it can be done, cases that are compared were timed in turn, so "
    "that a drift of the machine meets all of them alike. Each time is that of one call. Where a sample is "
    "the mean of a batch of calls (the tables say so), a single slow call in it is averaged away: its p99 is "
    "that of batches. Both axes of a curve are logarithmic: equal distances are equal factors. The pale band "
    "around a line goes from the best sample to p99; where bands overlap, the difference of the lines may be "
    f"chance. The plots also lie beside this page as PNG, in the folder {PLOTS}."
)


def _link(anchor: str, words: str) -> str:
    return f'<li><a href="#{anchor}">{_text(words)}</a></li>'


def build(found: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """The page, and the plots by file name, of a figures file that was read by ``check.read``.

    Raises Error where matplotlib is not installed.
    """
    plots.matplotlib()
    machine, device = found["machine"], found["device"]
    emulated = bool(device.get("emulated"))
    groups = _groups(found)
    images: dict[str, bytes] = {}
    links, sections = [_link("bars", "In short"), _link("how", "How to read this")], []
    for bench, members in groups.items():
        title, what, clock = _about(bench, found)
        links.append(_link(_slug(bench), title))
        sections.append(
            f'<section id="{_slug(bench)}"><h2>{_text(title)} <small>({_text(bench)})</small></h2>\n'
            f'<p>{_text(what)}</p>\n<p class="note">What was asked of the clock: {_text(clock)}</p>'
        )
        for group in members:
            sections += _section(group, images)
        sections.append("</section>")
    links.append(_link("facts", "The machine"))
    words = "".join(f"<dt>{_text(w)}</dt><dd>{_text(means)}</dd>" for w, means in WORDS)
    outcomes = check.judge(found, bars.load())
    body = "\n".join([
        "<p>gpudirect lets CPU code write GPU memory as if it were its own: stores go straight over the link, "
        "without a copy call. This page shows what that costs on one machine, beside what one would "
        "otherwise use, measured in the same run.</p>",
        f"<nav><ul>{''.join(links)}</ul></nav>",
        '<section id="bars"><h2>In short: what was asked, and what came out</h2>', _bars(outcomes, emulated),
        "</section>", f'<section id="how"><h2>How to read this</h2><p>{HOW}</p><dl>{words}</dl></section>',
        *sections, '<section id="facts"><h2>The machine</h2>', facts_section(found), "</section>",
    ])  # fmt: skip
    name = str(device.get("name", "an unknown device"))
    heading = f"gpudirect on {name}" + (" (EMULATED)" if emulated and "emulated" not in name.lower() else "")
    where = (
        f"{machine.get('cpu', 'unknown CPU')}, driver {machine.get('driver') or 'none'}, "
        f"bridge {device.get('bridge')}, commit {machine.get('commit') or 'unknown'}, "
        f"{_moment(machine.get('time'))}"
    )
    page = pages.page(heading, _text(where), EMULATED if emulated else "", body)
    return page, images


def _section(group: _Group, images: dict[str, bytes]) -> list[str]:
    """A group's part of the page; its plots are added to ``images``."""
    figures = []
    for plot in group.plots():
        stem = f"{group.slug}-{_slug(plot.name)}"
        while f"{stem}.png" in images:  # too many rows for one, or names that differ in signs only
            stem += "-more"
        images[f"{stem}.png"] = plot.png
        svg = plots.inline(plot.svg, stem, plot.caption)
        figures.append(f"<figure>{svg}<figcaption>{_text(plot.caption)}</figcaption></figure>")
    title = [f"<h3>{_text(group.name[:1].upper() + group.name[1:])}</h3>"] if group.name else []
    return [
        *title, group.sentences(), f'<div class="plots">{"".join(figures)}</div>', group.tables(),
    ]  # fmt: skip


def write(file: Path, folder: Path) -> tuple[Path, int]:
    """Make the page of a figures file in a folder; its path, and how many plots lie beside it.

    Raises ArgumentError for a file that holds no figures or a folder that cannot be written.
    """
    page, images = build(check.read(file))
    try:
        (folder / PLOTS).mkdir(parents=True, exist_ok=True)
        for name, png in images.items():
            (folder / PLOTS / name).write_bytes(png)
        (folder / PAGE).write_text(page, encoding="utf-8")
    except OSError as e:
        raise ArgumentError(
            f"the report cannot be written to {folder}: {e.strerror}; name another folder with --out"
        ) from e
    return folder / PAGE, len(images)
