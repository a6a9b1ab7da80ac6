"""The bars: what must be fast, how fast, and beside what.

They are data, ``bars.json``, whose "about" explains the format. A bar compares figures of one run with
each other, so that it means the same on every machine.
"""

from __future__ import annotations

import fnmatch
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .._words import bandwidth_text, exact_size, significant, time_text
from ..errors import ArgumentError

BARS = Path(__file__).with_name("bars.json")
FORMAT = 1
STATISTICS = ("p0", "p50", "p99", "p999", "mean")
QUANTITIES = ("time", "bandwidth", "rate", "check")
COMPARISONS = ("ratio", "difference", "value")


def quantity_text(value: float, quantity: str, digits: int = 3) -> str:
    if quantity == "time":
        return time_text(value, digits)
    if quantity == "bandwidth":
        return bandwidth_text(value, digits)
    if quantity == "rate":
        return f"{significant(value / 1e6, digits)} million/s"
    return significant(value, digits)


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


def figure_text(bar: Bar, term: Term, figure: float, digits: int = 3) -> str:
    if term.compare == "ratio":
        return f"{significant(figure, digits)} x"
    text = quantity_text(figure, bar.quantity, digits)
    return f"+{text}" if term.compare == "difference" and figure >= 0 else text


def limit_text(bar: Bar, term: Term) -> str:
    """A term's limit in words: "at most 1.03 x"."""
    return f"at {'most' if term.most else 'least'} {figure_text(bar, term, term.limit)}"


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


def load(path: Path = BARS) -> list[Bar]:
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
