"""Tables that fit: aligned where there is room, words wrapped where there is less, and one row
after the other where not even that would do. Nothing is ever cut off."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

GAP = "  "
LEAST_WORDS = 16  # a column of words narrower than this reads badly


@dataclass
class Table:
    """Rows of text. Columns are numbers, set to the right, but for the first and ``words``."""

    columns: tuple[str, ...]
    words: tuple[int, ...] = ()
    """Columns that may be wrapped, beside the first."""
    title: str = ""
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        self.rows.append(tuple(map(str, cells)))

    def lines(self, width: int | None) -> list[list[str]]:
        """The header (empty in the last form) and each row, as lines of at most ``width``
        characters where words allow; None: as wide as it is."""
        natural = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        room = None if width is None else width - len(GAP) * (len(natural) - 1)
        if room is None or sum(natural) <= room:
            return self._aligned(natural)
        wraps = {0, *self.words}
        fixed = sum(w for i, w in enumerate(natural) if i not in wraps)
        fitted = _shares([natural[i] for i in sorted(wraps)], room - fixed)
        if fitted is None:
            return self._one_by_one(width or 0)
        widths = list(natural)
        for i, share in zip(sorted(wraps), fitted, strict=True):
            widths[i] = share
        return self._aligned(widths)

    def _aligned(self, widths: Sequence[int]) -> list[list[str]]:
        header = self._row(self.columns, widths)
        rule = GAP.join("-" * w for w in widths)
        return [[*header, rule], *(self._row(row, widths) for row in self.rows)]

    def _row(self, cells: Sequence[str], widths: Sequence[int]) -> list[str]:
        wrapped = [textwrap.wrap(c, w) or [""]
                   for c, w in zip(cells, widths, strict=True)]  # fmt: skip
        lines = []
        for n in range(max(map(len, wrapped))):
            parts = (w[n] if n < len(w) else "" for w in wrapped)
            lines.append(GAP.join(self._set(i, p, widths[i]) for i, p in enumerate(parts)).rstrip())
        return lines

    def _set(self, column: int, text: str, width: int) -> str:
        return text.ljust(width) if column == 0 or column in self.words else text.rjust(width)

    def _one_by_one(self, width: int) -> list[list[str]]:
        names = max(map(len, self.columns[1:]))
        found: list[list[str]] = [[]]
        for row in self.rows:
            lines = textwrap.wrap(row[0], width) or [""]
            for name, cell in zip(self.columns[1:], row[1:], strict=True):
                lines += pair(name, cell, names, width, "  ") if cell else []
            found.append(lines)
        return found


def pair(name: str, value: str, names: int, width: int | None, indent: str = "") -> list[str]:
    """"name   value", the value wrapped beside it, or below it where there is no room beside."""
    first = f"{indent}{name:<{names}}{GAP}"
    if width is None:
        return [f"{first}{value}".rstrip()]
    longest = max(map(len, value.split()), default=0)
    if width - len(first) < max(LEAST_WORDS, min(longest, width - len(indent) - 4)):
        below = indent + "    "
        return [f"{indent}{name}", *textwrap.wrap(value, max(width, 24), initial_indent=below,
                                                  subsequent_indent=below)]  # fmt: skip
    return textwrap.wrap(value, width, initial_indent=first, subsequent_indent=" " * len(first),
                         break_on_hyphens=False, break_long_words=False) or [first.rstrip()]  # fmt: skip


def pairs(rows: Sequence[tuple[str, str]], width: int | None, indent: str = "") -> Iterator[str]:
    """Names and values below each other."""
    names = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        yield from pair(name, value, names, width, indent)


def _shares(natural: Sequence[int], room: int) -> list[int] | None:
    """Widths for columns of words in ``room``: the narrow ones keep theirs; None: too little."""
    widths = list(natural)
    while sum(widths) > room:
        widest = max(widths)
        if widest <= LEAST_WORDS:
            return None
        widths[widths.index(widest)] -= 1
    return widths
