"""Hold a figures file against the bars: which hold, which fall short, and what was not measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._words import exact_size, significant
from ..errors import ArgumentError
from . import figures
from .bars import STATISTICS, Bar, Term, figure_text, limit_text, quantity_text

HOLDS, SHORT, MISSING = "holds", "falls short", "not measured"


@dataclass(frozen=True)
class Outcome:
    """What became of a bar."""

    bar: Bar
    state: str
    """HOLDS, SHORT or MISSING."""
    reason: str = ""
    """Why it was not measured."""
    figure: float = math.nan
    """The ratio, difference (ns) or value, at the worst size or in the median."""
    term: Term | None = None
    """The term that came closest there."""
    size: int | None = None
    """The worst size in bytes; None where sizes play no part."""
    details: str = ""
    """The figures compared there, in words."""
    judged: int = 0
    """How many sizes."""
    middle: float = math.nan
    """The median over the sizes of what ``figure`` is at the worst."""
    short: tuple[int, ...] = ()
    """Sizes at which no term holds, in bytes."""
    left_out: tuple[str, ...] = ()
    """Cases that could not be compared with everywhere, and why, in words."""

    @property
    def figure_text(self) -> str:
        """The figure, with so many digits that it does not look like a limit it is not."""
        if self.term is None:
            return "-"
        limit = figure_text(self.bar, self.term, self.term.limit)
        texts = [figure_text(self.bar, self.term, self.figure, digits) for digits in (3, 4, 5, 6)]
        return next((text for text in texts if text != limit), limit)

    @property
    def limit_text(self) -> str:
        """The limit of the term shown; of the first where nothing was measured."""
        return limit_text(self.bar, self.term or self.bar.terms[0])

    @property
    def where_text(self) -> str:
        """At which size, and at how many it was looked at."""
        if self.state == MISSING:
            return self.reason
        parts = []
        if self.bar.median:
            parts.append(f"median over {self.judged} sizes")
        elif self.size is not None:
            middle = figure_text(self.bar, self.term, self.middle) if self.term else ""
            parts.append(f"worst of {self.judged} sizes, {exact_size(self.size)} (median {middle})")
        if self.details:
            parts.append(self.details)
        if self.short and self.size is not None:
            shown = ", ".join(exact_size(s) for s in self.short[:6])
            more = ", ..." if len(self.short) > 6 else ""
            parts.append(f"short at {len(self.short)} of {self.judged} sizes ({shown}{more})")
        if self.left_out:
            parts.append(f"without {', '.join(self.left_out)}")
        return "; ".join(parts)


# -- the figures --------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    """A figures file whose every figure was looked at.

    Raises ArgumentError when it is none, holds no figures, or one of them is broken.
    """
    found = figures.load(path)
    for key, kind in (("machine", dict), ("device", dict), ("checks", dict), ("figures", list)):
        if not isinstance(found.setdefault(key, kind()), kind):
            raise ArgumentError(f"{path} is no figures file: its {key!r} is broken")
    if not found["figures"]:
        raise ArgumentError(f"{path} holds no figures: make some with `gpudirect bench run --out`")
    for i, f in enumerate(found["figures"]):
        wrong = _wrong(f)
        if wrong:
            raise ArgumentError(f"{path}: figure {i + 1}: {wrong}")
    return found


def _wrong(f: Any) -> str | None:
    """What is wrong with one figure, or None."""
    if not isinstance(f, dict):
        return "it is no object"
    for key in ("bench", "case"):
        if not isinstance(f.get(key), str) or not f[key]:
            return f"{key} is {f.get(key)!r}, not a word"
    if not isinstance(f.setdefault("group", ""), str):
        return f"group is {f['group']!r}, not a word"
    for key in ("size", "samples", "batch"):
        if not isinstance(f.get(key), int) or isinstance(f[key], bool) or f[key] < 0:
            return f"{key} is {f.get(key)!r}, not a count"
    if not isinstance(f.get("values"), list):
        return f"values is {f.get('values')!r}, not a list"
    for key, value in [*((k, f.get(k)) for k in STATISTICS), *(("values", v) for v in f["values"])]:
        if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
            return f"{key} is {value!r}, not a time in nanoseconds"
    return None


@dataclass
class _Measured:
    """The figures of a file by what a bar asks for."""

    cases: dict[tuple[str, str], dict[int, dict[str, Any]]] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, found: dict[str, Any]) -> _Measured:
        measured = cls(checks=found["checks"])
        for f in found["figures"]:
            sizes = measured.cases.setdefault((f["bench"], f["case"]), {})
            if f["size"] in sizes:
                raise ArgumentError(
                    f"{f['bench']}/{f['case']} of {f['size']} bytes was measured twice in this file: "
                    "which of them a bar means cannot be told. (Figures of `gpudirect experiment` are "
                    "judged by `gpudirect experiment --again FILE`.)"
                )
            sizes[f["size"]] = f
        return measured


class _NotMeasured(Exception):
    """A bar cannot be judged; the text says why."""


def _value(f: dict[str, Any], statistic: str, quantity: str) -> float:
    """A figure's time, bandwidth or rate at a statistic."""
    time = float(f[statistic])
    if quantity == "time":
        return time
    if time == 0:
        raise _NotMeasured(f"{f['case']}: {statistic} is 0 ns, which gives no {quantity}")
    if quantity == "rate":
        return 1e9 / time
    if not f["size"]:
        raise _NotMeasured(f"{f['case']}: it moves 0 bytes, which gives no bandwidth")
    return float(f["size"]) * 1e9 / time


def _rows(measured: _Measured, bar: Bar, bench: str, case: str) -> dict[int, dict[str, Any]]:
    """A case's figures by size; under the one key 0 where the bar names no sizes."""
    found = measured.cases.get((bench, case), {})
    if bar.sizes is not None:
        return {s: f for s, f in found.items() if bar.sizes.judges(s)}
    if len(found) > 1:
        raise _NotMeasured(f"{bench}/{case} has {len(found)} sizes, the bar is about one")
    return {0: next(iter(found.values()))} if found else {}


def _checked(measured: _Measured, name: str) -> float:
    value = measured.checks.get(name)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise _NotMeasured(f"the file has no check {name!r}")
    return float(value)


@dataclass(frozen=True)
class _Others:
    """What a term compares with."""

    rows: dict[str, dict[int, dict[str, Any]]]
    """By case and size."""
    ended: dict[str, int]
    """Cases given up, and their last size in bytes."""
    left_out: list[str]
    """In words: what is missing here by right."""


def _against(measured: _Measured, bar: Bar, term: Term) -> _Others:
    # a case that is not in the file at all is one that this machine cannot run
    gone = [c for c in term.against if (term.bench, c) not in measured.cases]
    if gone and (term.all_needed or len(gone) == len(term.against)):
        raise _NotMeasured(f"{term.bench}/{', '.join(gone)} is not in the file")
    rows = {c: _rows(measured, bar, term.bench, c) for c in term.against if c not in gone}
    told = [f"{c} (not in the file)" for c in gone]
    ended = {}
    for case, times in _last_factors(rows, term).items() if term.given_up else ():
        if times >= (term.given_up or 0):
            ended[case] = max(rows[case])
            last = exact_size(ended[case])
            told.append(f"{case} above {last}, where it took {significant(times)} x as long")
    return _Others(rows, ended, told)


def _last_factors(rows: dict[str, dict[int, dict[str, Any]]], term: Term) -> dict[str, float]:
    """For each case how many times the best of the others it took at its own last size."""
    factors = {}
    for case, by_size in rows.items():
        last = max(by_size, default=None)
        others = [r[last][term.statistic] for c, r in rows.items() if c != case and last in r]
        if last is not None and others and min(others) > 0 and any(max(r) > last for r in rows.values() if r):
            factors[case] = by_size[last][term.statistic] / min(others)
    return factors


def _compared(figure: float, other: float, term: Term, case: str) -> float:
    if term.compare == "difference":
        return figure - other
    if other == 0:
        raise _NotMeasured(f"{case} is 0, which gives no ratio")
    return figure / other


def _judge_check(measured: _Measured, bar: Bar) -> Outcome:
    """A bar on outcomes that are no times."""
    value = _checked(measured, bar.case)
    best: tuple[float, float, Term] | None = None
    for term in bar.terms:
        figure = value
        if term.against:
            others = [_checked(measured, c) for c in term.against]
            figure = _compared(value, min(others) if term.most else max(others), term, term.against[0])
        if best is None or term.margin(figure) > best[0]:
            best = term.margin(figure), figure, term
    assert best is not None
    return Outcome(bar, HOLDS if best[0] >= 0 else SHORT, figure=best[1], term=best[2])


def judge(found: dict[str, Any], all_bars: Sequence[Bar]) -> list[Outcome]:
    """Hold a loaded figures file against bars."""
    measured = _Measured.of(found)
    outcomes = []
    for bar in all_bars:
        try:
            check = bar.quantity == "check"
            outcomes.append(_judge_check(measured, bar) if check else _judge(measured, bar))
        except _NotMeasured as e:
            outcomes.append(Outcome(bar, MISSING, str(e)))
    return outcomes


def _judge(measured: _Measured, bar: Bar) -> Outcome:
    rows = _rows(measured, bar, bar.bench, bar.case)
    if not rows:
        raise _NotMeasured(f"{bar.bench}/{bar.case} is not in the file")
    if bar.sizes is not None:
        lacking = bar.sizes.lacking(rows)
        if lacking:
            raise _NotMeasured(f"{bar.bench}/{bar.case}: {lacking}")

    # for each term its figure at each size, and what it was compared with
    tables: list[tuple[Term, dict[int, tuple[float, str]]]] = []
    left_out: list[str] = []
    unknown: _NotMeasured | None = None
    for term in bar.terms:
        try:
            others = _against(measured, bar, term)
            tables.append((term, {s: _at(bar, term, s, f, others) for s, f in rows.items()}))
        except _NotMeasured as e:
            unknown = e
        else:
            left_out += [words for words in others.left_out if words not in left_out]
    if not tables:
        raise unknown or _NotMeasured("there is nothing to compare")

    def margin(size: int) -> float:
        return max(term.margin(table[size][0]) for term, table in tables)

    short = tuple(sorted(s for s in rows if margin(s) < 0))
    common: dict[str, Any] = {"judged": len(rows), "short": short, "left_out": tuple(left_out)}
    if bar.median:
        middles = [(t, statistics.median(v for v, _ in table.values())) for t, table in tables]
        term, figure = max(middles, key=lambda found: found[0].margin(found[1]))
        held = term.margin(figure) >= 0
        outcome = Outcome(bar, HOLDS if held else SHORT, figure=figure, term=term, **common)
    else:
        worst = min(rows, key=margin)
        term, table = max(tables, key=lambda found: found[0].margin(found[1][worst][0]))
        figure, details = table[worst]
        outcome = Outcome(
            bar, SHORT if short else HOLDS, figure=figure, term=term, details=details,
            size=worst if bar.sizes is not None else None,
            middle=statistics.median(v for v, _ in table.values()), **common,
        )  # fmt: skip
    if outcome.state == SHORT and unknown:  # the comparison that is missing might have held
        raise unknown
    return outcome


def _at(bar: Bar, term: Term, size: int, f: dict[str, Any], others: _Others) -> tuple[float, str]:
    """A term's figure at one size, and the figures it came from in words."""
    value = _value(f, bar.statistic, bar.quantity)
    told = f"{bar.case} at {quantity_text(value, bar.quantity)}"
    if not term.against:
        return value, told
    values = {}
    for case, by_size in others.rows.items():
        if size > others.ended.get(case, size):
            continue
        if size not in by_size:
            raise _NotMeasured(f"{term.bench}/{case} was not measured at {exact_size(size)}")
        values[case] = _value(by_size[size], term.statistic, bar.quantity)
    best = min if bar.quantity == "time" else max
    case = best(values, key=lambda c: values[c])
    if case == bar.case:  # its own median, say
        told = f"{bar.statistic} at {quantity_text(value, bar.quantity)}"
        beside = f"{term.statistic} at {quantity_text(values[case], bar.quantity)}"
    else:
        beside = f"{case} at {quantity_text(values[case], bar.quantity)}"
    return _compared(value, values[case], term, case), f"{told}, {beside}"
