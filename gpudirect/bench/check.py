"""Hold a figures file against the bars: what must be fast, how fast, and beside what.

The bars are data, ``bars.json``, whose "about" explains the format. A bar compares figures of
one run with each other, so that it means the same on every machine.
"""

from __future__ import annotations

import fnmatch
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .._words import bandwidth_text, exact_size, significant, time_text
from ..errors import ArgumentError
from . import figures

BARS = Path(__file__).with_name("bars.json")
FORMAT = 1
HOLDS, SHORT, MISSING = "holds", "falls short", "not measured"
STATISTICS = ("p0", "p50", "p99", "p999", "mean")
QUANTITIES = ("time", "bandwidth", "rate", "check")
COMPARISONS = ("ratio", "difference", "value")


# -- words for numbers --------------------------------------------------------------------------


def _quantity_text(value: float, quantity: str, digits: int = 3) -> str:
    if quantity == "time":
        return time_text(value, digits)
    if quantity == "bandwidth":
        return bandwidth_text(value, digits)
    if quantity == "rate":
        return f"{significant(value / 1e6, digits)} million/s"
    return significant(value, digits)


# -- the bars -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """Which sizes a bar judges, and which of them a file must hold. Bytes."""

    first: int = 0
    last: int | None = None
    powers_of_two_to: int | None = None
    odd: int = 0
    needed: tuple[int, ...] = ()

    def judges(self, size: int) -> bool:
        return size >= self.first and (self.last is None or size <= self.last)

    def lacking(self, there: Iterable[int]) -> str | None:
        """What of the required sizes is not ``there``, in words; None when all are."""
        found = set(there)
        needed, size = list(self.needed), 1
        while self.powers_of_two_to is not None and size <= self.powers_of_two_to:
            needed += [size] * self.judges(size)
            size *= 2
        missing = [exact_size(s) for s in needed if s not in found]
        if missing:
            shown = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
            return f"without {len(missing)} of the sizes asked for ({shown})"
        odd = sum(1 for s in found if s & (s - 1))
        if odd < self.odd:
            return f"with {odd} sizes that are no power of two, {self.odd} are asked for"
        return None


@dataclass(frozen=True)
class Term:
    """One comparison. A bar holds at a size where one of its terms does."""

    compare: str
    limit: float
    most: bool
    against: tuple[str, ...] = ()
    bench: str = ""
    statistic: str = "p50"
    all_needed: bool = True
    given_up: float | None = None
    """A case may end at a size where it took so many times the time of the best beside it."""

    def margin(self, figure: float) -> float:
        """How far the figure is on the right side, as a part of the limit; negative is short."""
        distance = self.limit - figure if self.most else figure - self.limit
        return distance / abs(self.limit)


@dataclass(frozen=True)
class Bar:
    """One demand."""

    id: str
    bench: str
    words: str
    asked: str
    case: str
    terms: tuple[Term, ...]
    statistic: str = "p50"
    quantity: str = "time"
    sizes: Sizes | None = None
    median: bool = False
    """Judge the median over the sizes, not the worst size."""


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
        limit = _figure_text(self.bar, self.term, self.term.limit)
        texts = [_figure_text(self.bar, self.term, self.figure, digits) for digits in (3, 4, 5, 6)]
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
            middle = _figure_text(self.bar, self.term, self.middle) if self.term else ""
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


def _figure_text(bar: Bar, term: Term, figure: float, digits: int = 3) -> str:
    if term.compare == "ratio":
        return f"{significant(figure, digits)} x"
    text = _quantity_text(figure, bar.quantity, digits)
    return f"+{text}" if term.compare == "difference" and figure >= 0 else text


def limit_text(bar: Bar, term: Term) -> str:
    """A term's limit in words: "at most 1.03 x"."""
    return f"at {'most' if term.most else 'least'} {_figure_text(bar, term, term.limit)}"


BAR_KEYS = frozenset("id bench words asked each case statistic quantity sizes over one_of".split())
TERM_KEYS = frozenset("compare against bench statistic needs given_up at_most at_least".split())
SIZE_KEYS = frozenset("from to powers_of_two_to odd needed".split())


def _expect(condition: bool, where: str, what: str) -> None:
    if not condition:
        raise ArgumentError(f"bars: {where}: {what}")


def _keys(found: Any, known: frozenset[str], where: str) -> dict[str, Any]:
    _expect(isinstance(found, dict), where, "an object is expected")
    unknown = sorted(set(found) - known)
    _expect(not unknown, where, f"unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return dict(found)


def _words(found: Any, key: str, where: str) -> tuple[str, ...]:
    _expect(
        isinstance(found, list) and all(isinstance(w, str) for w in found), where, f"{key} is no list of words"
    )
    return tuple(found)


def _sizes(found: Any, where: str) -> Sizes:
    s = _keys(found, SIZE_KEYS, where)
    numbers = [v for v in s.values() if not isinstance(v, list)] + s.get("needed", [])
    counts = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers)
    _expect(counts, where, "sizes are numbers of bytes")
    needed = tuple(s.get("needed", ()))
    return Sizes(s.get("from", 0), s.get("to"), s.get("powers_of_two_to"), s.get("odd", 0), needed)


def _one_of(value: Any, known: Sequence[str], where: str) -> str:
    _expect(value in known, where, f"{value!r} is none of {', '.join(known)}")
    return str(value)


def _term(found: Any, bench: str, where: str) -> Term:
    words = _keys(found, TERM_KEYS, where)
    compare = _one_of(words.get("compare"), COMPARISONS, where)
    limits = [k for k in ("at_most", "at_least") if k in words]
    _expect(len(limits) == 1, where, "either at_most or at_least is needed")
    limit = words[limits[0]]
    numeric = isinstance(limit, int | float) and not isinstance(limit, bool)
    _expect(numeric and math.isfinite(limit) and limit != 0, where, f"limit {limit!r}: a number, not 0")
    against = _words(words.get("against", []), "against", where)
    _expect(bool(against) == (compare != "value"), where, "a value stands alone, all else has against")
    return Term(
        compare, float(limit), limits[0] == "at_most", against, words.get("bench", bench),
        _one_of(words.get("statistic", "p50"), STATISTICS, where),
        _one_of(words.get("needs", "all"), ("all", "one"), where) == "all",
        _given_up(words.get("given_up"), where),
    )  # fmt: skip


def _given_up(found: Any, where: str) -> float | None:
    numeric = isinstance(found, int | float) and not isinstance(found, bool)
    _expect(found is None or (numeric and found >= 2), where, f"given_up {found!r}: a factor of 2 or more")
    return found


def _bars_of(found: Any) -> list[Bar]:
    """The bars of one entry: one, or one for each word of its "each"."""
    where = str(found.get("id") if isinstance(found, dict) else found)
    words = _keys(found, BAR_KEYS, where)
    for key in ("id", "bench", "words", "asked", "case"):
        _expect(isinstance(words.get(key), str) and words[key] != "", where, f"{key} is missing")
    quantity = _one_of(words.get("quantity", "time"), QUANTITIES, where)
    sizes = None
    if "sizes" in words:
        sizes = _sizes(words["sizes"], where)
        _expect(quantity != "check", where, "checks have no sizes")
    median = _one_of(words.get("over", "every"), ("every", "median"), where) == "median"
    _expect(sizes is not None or not median, where, "a median over sizes needs sizes")
    terms = tuple(_term(t, words["bench"], where) for t in words.get("one_of", ()))
    _expect(bool(terms), where, "one_of is empty")
    bar = Bar(
        words["id"], words["bench"], words["words"], words["asked"], words["case"], terms,
        _one_of(words.get("statistic", "p50"), STATISTICS, where), quantity, sizes, median,
    )  # fmt: skip
    if "each" not in words:
        return [bar]
    _expect("{each}" in bar.id, where, "with each, the id needs {each}")
    return [_filled(bar, each) for each in _words(words["each"], "each", where)]


def _filled(bar: Bar, each: str) -> Bar:
    def fill(text: str) -> str:
        return text.replace("{each}", each)

    return replace(
        bar, id=fill(bar.id).replace(" ", "-"), words=fill(bar.words), case=fill(bar.case),
        terms=tuple(replace(t, against=tuple(map(fill, t.against))) for t in bar.terms),
    )  # fmt: skip


def bars(path: Path = BARS) -> list[Bar]:
    """The bars. Raises ArgumentError with the entry and what is wrong in it."""
    try:
        found = json.loads(path.read_text())
    except OSError as e:
        raise ArgumentError(f"{path}: {e.strerror}") from e
    except ValueError as e:
        raise ArgumentError(f"{path} holds no bars: {e}") from e
    _expect(isinstance(found, dict) and found.get("format") == FORMAT, str(path), f"no format {FORMAT}")
    all_bars = [bar for entry in found.get("bars", ()) for bar in _bars_of(entry)]
    twice = [i for i, n in Counter(b.id for b in all_bars).items() if n > 1]
    _expect(not twice, str(path), f"{', '.join(twice)} stands there twice")
    return all_bars


def chosen(all_bars: list[Bar], only: Sequence[str]) -> list[Bar]:
    """The bars whose id or bench matches one of ``only`` (wildcards work); all without any.

    Raises ArgumentError for a word that matches nothing.
    """
    if not only:
        return all_bars
    for word in only:
        if not any(fnmatch.fnmatch(name, word) for b in all_bars for name in (b.id, b.bench)):
            ids = ", ".join(b.id for b in all_bars)
            raise ArgumentError(f"no bar {word!r}; there are {ids}")
    return [
        b for b in all_bars
        if any(fnmatch.fnmatch(name, word) for word in only for name in (b.id, b.bench))
    ]  # fmt: skip


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
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if not numeric or not math.isfinite(value) or value < 0:
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
    told = f"{bar.case} at {_quantity_text(value, bar.quantity)}"
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
        told = f"{bar.statistic} at {_quantity_text(value, bar.quantity)}"
        beside = f"{term.statistic} at {_quantity_text(values[case], bar.quantity)}"
    else:
        beside = f"{case} at {_quantity_text(values[case], bar.quantity)}"
    return _compared(value, values[case], term, case), f"{told}, {beside}"
