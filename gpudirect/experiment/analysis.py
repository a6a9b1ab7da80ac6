"""What an experiment's figures say: ratios, verdicts, tables. Nothing here measures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._words import size_text, time_text
from ..errors import ArgumentError

COPIES = ("copy, pageable", "copy, pinned")
VERSIONS = (*COPIES, "double-buffered", "direct")
COURIER = "courier"  # of some ports
# What issue-sized claims must reach: direct's time over the other's
MEDIAN_LIMIT, WORST_LIMIT, COPY_LIMIT = 1.00, 1.10, 0.90
UPDATE_FACTOR = 3.0
LINES_LIMIT = 2 / 3


@dataclass
class Table:
    """Rows of text; the first column is words, the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        self.rows.append(tuple(map(str, cells)))

    def markdown(self) -> str:
        lines = ["| " + " | ".join(self.columns) + " |",
                 "| --- |" + " ---: |" * (len(self.columns) - 1)]  # fmt: skip
        return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in self.rows])


@dataclass(frozen=True)
class Row:
    """One configuration: the median nanoseconds of each version."""

    port: str
    kind: str
    n: int
    nbytes: int
    best_chunk: int
    step: dict[str, float]
    update: dict[str, float]
    """Of the update alone; empty where data flows."""
    sweep: dict[str, float]
    """Step of the double-buffered version by the name of its chunk size."""
    traffic: dict[str, int]
    """Bytes through host memory in a step, computed."""
    produced: dict[str, float]
    """Making the data alone, by the memory it is made in: "pinned", "mapped"."""

    def ratio(self, other: str, what: str = "step") -> float:
        """Direct's time over another version's."""
        times = self.step if what == "step" else self.update
        return times["direct"] / times[other]

    def beside_best(self, what: str = "step") -> float:
        """Direct's time over that of the fastest of the others."""
        times = self.step if what == "step" else self.update
        return times["direct"] / min(times[v] for v in VERSIONS if v != "direct")

    @property
    def name(self) -> str:
        return f"{self.port}, {self.kind}, {self.n}"


class Experiment:
    """A loaded figures file of an experiment. Raises ArgumentError when it is none."""

    def __init__(self, found: dict[str, Any]) -> None:
        checks = found.get("checks", {})
        if "configurations" not in checks:
            raise ArgumentError("these figures are not of an experiment: no configurations in them")
        self.found = found
        self.machine, self.device = found["machine"], found["device"]
        self.ports: dict[str, dict[str, Any]] = checks["ports"]
        self.lines: dict[str, dict[str, int]] = checks["lines"]
        medians = {(f["bench"], f["group"], f["case"]): float(f["p50"]) for f in found["figures"]}
        self.rows = [self._row(c, medians) for c in checks["configurations"]]
        self.link = {f["case"].removesuffix(": step"): f["size"] / float(f["p50"])
                     for f in found["figures"] if f["bench"] == "link"}  # fmt: skip
        """What was measured of the link: GB/s by name."""
        self.calls = {f["case"]: float(f["p50"]) for f in found["figures"] if f["bench"] == "calls"}
        """What calls cost on next to no data: ns by name."""

    @property
    def store_rate(self) -> float:
        """GB/s of one core's stores through the mapping."""
        return self.link["stores of one core through the mapping"]

    def _row(self, c: dict[str, Any], medians: dict[tuple[str, str, str], float]) -> Row:
        group = f"{c['kind']}, {c['n']}"
        own = {case: t for (bench, g, case), t in medians.items() if (bench, g) == (c["port"], group)}

        def times(what: str) -> dict[str, float]:
            names = ("sequential", *VERSIONS, COURIER)
            return {v: own[f"{v}: {what}"] for v in names if f"{v}: {what}" in own}

        mark = " (sweep): step"
        sweep = {k.removesuffix(mark): t for k, t in own.items() if k.endswith(mark)}
        produced = {m: own[f"production, {m}: step"] for m in ("pinned", "mapped")
                    if f"production, {m}: step" in own}  # fmt: skip
        return Row(c["port"], c["kind"], c["n"], c["nbytes"], c["best_chunk"], times("step"),
                   times("update"), sweep, c["host_traffic"], produced)  # fmt: skip

    @property
    def emulated(self) -> bool:
        return bool(self.device.get("emulated"))

    def of(self, port: str) -> list[Row]:
        return [r for r in self.rows if r.port == port]

    @property
    def flows(self) -> list[str]:
        return [p for p, facts in self.ports.items() if not facts["update"]]

    @property
    def updates(self) -> list[str]:
        return [p for p, facts in self.ports.items() if facts["update"] and not facts.get("reads")]

    @property
    def reads(self) -> list[str]:
        """Those of which little is read back."""
        return [p for p, facts in self.ports.items() if facts.get("reads")]


def times(e: Experiment) -> Table:
    """The step of every version in every configuration."""
    table = Table("Time of one step", ("port, kind, size", "to the device", "sequential", *VERSIONS,
                                       "best chunk", "direct/double", "direct/pinned"))  # fmt: skip
    for r in e.rows:
        table.add(r.name, size_text(r.nbytes), time_text(r.step["sequential"]),
                  *(time_text(r.step[v]) for v in VERSIONS), size_text(r.best_chunk),
                  f"{r.ratio('double-buffered'):.2f}", f"{r.ratio('copy, pinned'):.2f}")  # fmt: skip
    return table


def updates(e: Experiment) -> Table:
    """The update alone, where little changes."""
    return _alone(e, e.updates, "The update alone, launch excluded")


def reads(e: Experiment) -> Table:
    """The read-back alone, where little is read."""
    return _alone(e, e.reads, "The read-back alone, launch excluded")


def _alone(e: Experiment, ports: list[str], title: str) -> Table:
    table = Table(title, ("port, kind, size", *VERSIONS, "pageable/direct", "pinned/direct",
                          "double/direct"))  # fmt: skip
    for port in ports:
        for r in e.of(port):
            table.add(r.name, *(time_text(r.update[v]) for v in VERSIONS),
                      *(f"{1 / r.ratio(v, 'update'):.1f}" for v in VERSIONS[:3]))  # fmt: skip
    return table


def couriers(e: Experiment) -> Table:
    """The update or read-back alone, of ports that have a version with a courier."""
    table = Table("The update or read-back alone, with a courier",
                  ("port, kind, size", *VERSIONS, COURIER, "direct/courier", "best copy/courier"))  # fmt: skip
    for r in e.rows:
        if COURIER in r.update:
            own = r.update[COURIER]
            table.add(r.name, *(time_text(r.update[v]) for v in (*VERSIONS, COURIER)),
                      f"{r.update['direct'] / own:.1f}", f"{_best_copy(r) / own:.1f}")  # fmt: skip
    return table


def _best_copy(r: Row) -> float:
    """Of the updates, or read-backs, that copy, packed or not."""
    return min(r.update[v] for v in VERSIONS if v != "direct")


def code(e: Experiment) -> Table:
    """Lines of code."""
    table = Table("Lines of code, counted mechanically",
                  ("port", "sequential", "copy", "double-buffered", "direct", "direct/copy",
                   "direct/double"))  # fmt: skip
    for port, n in e.lines.items():
        table.add(port, n["sequential"], n["copy"], n["double_buffered"], n["direct"],
                  f"{n['direct'] / n['copy']:.2f}", f"{n['direct'] / n['double_buffered']:.2f}")  # fmt: skip
    return table


def traffic(e: Experiment) -> Table:
    """Bytes through host memory in a step."""
    table = Table("Bytes through host memory in one step, computed",
                  ("port, kind, size", "to the device", *VERSIONS, "saved beside double"))  # fmt: skip
    for r in e.rows:
        saved = r.traffic["double-buffered"] - r.traffic["direct"]
        table.add(r.name, size_text(r.nbytes), *(size_text(r.traffic[v]) for v in VERSIONS),
                  size_text(saved))  # fmt: skip
    return table


def sensitivity(r: Row) -> tuple[float, int, int]:
    """What the chunk size does to double-buffered: (the worst tried over the best, how many of
    those tried are within a tenth of the best, how many were tried)."""
    times = list(r.sweep.values())
    best = min(times)
    return max(times) / best, sum(t <= 1.1 * best for t in times), len(times)


def chunking(e: Experiment) -> Table:
    """The double-buffer's chunk size, which direct has not."""
    table = Table("Double-buffered and its chunk size",
                  ("port, kind, size", "best chunk", "with it", "worst tried", "worst/best",
                   "within 10 % of best", "direct"))  # fmt: skip
    for r in e.rows:
        if len(r.sweep) > 1:
            spread, near, tried = sensitivity(r)
            table.add(r.name, size_text(r.best_chunk), time_text(min(r.sweep.values())),
                      time_text(max(r.sweep.values())), f"{spread:.1f}", f"{near} of {tried}",
                      time_text(r.step["direct"]))  # fmt: skip
    return table


def why(e: Experiment, r: Row) -> str:
    """Where direct wins or loses, and what limits it, from what was measured beside it."""
    ratio = r.ratio("double-buffered")
    slower = r.produced["mapped"] / r.produced["pinned"]
    share = r.produced["mapped"] / r.step["direct"]
    rate = r.nbytes / r.step["direct"]
    verdict = "wins" if ratio < 0.98 else "loses" if ratio > 1.02 else "as fast"
    if verdict == "loses" and slower > 1.05:
        return f"{verdict}: making the data in the mapping takes {slower:.2f} of page-locked memory"
    if rate > 0.8 * e.store_rate:
        return f"{verdict}: at the limit of one core's stores, {rate:.1f} of {e.store_rate:.1f} GB/s"
    told = f"{share:.0%}" if share < 0.95 else "nearly all"
    if share > 0.7:
        return f"{verdict}: the producer is {told} of the step, and hides the transfer"
    return f"{verdict}: the producer is {told} of the step; launches and kernels are the rest"


def reasons(e: Experiment) -> Table:
    """Why direct wins or loses where data flows."""
    table = Table("Why: making the data, by the memory it is made in",
                  ("port, kind, size", "direct/double", "in page-locked", "in the mapping",
                   "mapping/page-locked", "verdict"))  # fmt: skip
    for port in e.flows:
        for r in e.of(port):
            made = r.produced
            table.add(r.name, f"{r.ratio('double-buffered'):.2f}", time_text(made["pinned"]),
                      time_text(made["mapped"]), f"{made['mapped'] / made['pinned']:.2f}",
                      why(e, r))  # fmt: skip
    return table


def link(e: Experiment) -> Table:
    """What the link gave in this run."""
    table = Table("The link, and calls on next to no data, in this run", ("what", ""))
    for name, rate in e.link.items():
        table.add(name, f"{rate:.1f} GB/s")
    for name, t in e.calls.items():
        table.add(name, time_text(t))
    return table


@dataclass(frozen=True)
class Verdict:
    """One claim and whether the figures bear it out."""

    claim: str
    held: bool
    detail: str


def verdicts(e: Experiment) -> list[Verdict]:
    """The claims, port by port."""
    found = []
    for port in e.flows:
        rows = e.of(port)
        double = [r.ratio("double-buffered") for r in rows]
        pinned = [r.ratio("copy, pinned") for r in rows]
        pageable = [r.ratio("copy, pageable") for r in rows]
        median, worst = float(np.median(double)), max(double)
        found.append(Verdict(
            f"{port}: direct takes at most {MEDIAN_LIMIT:.2f} of double-buffered in the median, "
            f"{WORST_LIMIT:.2f} at worst", median <= MEDIAN_LIMIT and worst <= WORST_LIMIT,
            f"median {median:.2f}, worst {worst:.2f} ({rows[double.index(worst)].name})",
        ))  # fmt: skip
        for name, ratios in (("pageable", pageable), ("pinned", pinned)):
            found.append(Verdict(
                f"{port}: direct takes at most {COPY_LIMIT:.2f} of copy from {name} memory",
                max(ratios) <= COPY_LIMIT,
                f"median {np.median(ratios):.2f}, worst {max(ratios):.2f} "
                f"({rows[ratios.index(max(ratios))].name})",
            ))  # fmt: skip
    for port in (*e.updates, *e.reads):
        rows, what = e.of(port), "read-back" if port in e.reads else "update"
        for name in COPIES:
            factors = [1 / r.ratio(name, "update") for r in rows]
            found.append(Verdict(
                f"{port}: the {what} is {UPDATE_FACTOR:.0f} times faster than {name}",
                min(factors) >= UPDATE_FACTOR,
                f"median {np.median(factors):.1f}, least {min(factors):.1f} "
                f"({rows[factors.index(min(factors))].name})",
            ))  # fmt: skip
        if helped := [r for r in rows if COURIER in r.update]:
            factors = [_best_copy(r) / r.update[COURIER] for r in helped]
            found.append(Verdict(
                f"{port}: with a courier the {what} beats packing and copying at every size",
                min(factors) > 1,
                f"median {np.median(factors):.1f}, least {min(factors):.1f} "
                f"({helped[factors.index(min(factors))].name})",
            ))  # fmt: skip
    for port, n in e.lines.items():
        found.append(Verdict(
            f"{port}: direct needs no more lines than copy, at most two thirds of double-buffered",
            n["direct"] <= n["copy"] and n["direct"] <= LINES_LIMIT * n["double_buffered"],
            f"{n['direct']} lines; copy {n['copy']}, double-buffered {n['double_buffered']}",
        ))  # fmt: skip
    return found


def judged(e: Experiment) -> Table:
    """The verdicts as a table."""
    table = Table("Claims", ("claim", "held", "detail"))
    for v in verdicts(e):
        table.add(v.claim, "yes" if v.held else "NO", v.detail)
    return table


def tables(e: Experiment) -> list[Table]:
    """All tables there is something to say in."""
    found = [times(e), reasons(e), updates(e), reads(e), couriers(e), chunking(e), code(e), traffic(e),
             link(e), judged(e)]  # fmt: skip
    return [t for t in found if t.rows]
