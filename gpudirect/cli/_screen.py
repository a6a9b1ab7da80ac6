"""What every command prints through: text that fits, JSON that stands alone, progress beside it.

Answers go to standard output and everything else to standard error, so that a pipe gets the answer
only. On a terminal (or where COLUMNS is set) text is wrapped; in a pipe each row is one line.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.text import Text

from ._table import LEAST_WORDS, Table, pairs

if TYPE_CHECKING:
    from ..devices import Device

STYLES = {
    "yes": "green", "ok": "green", "holds": "green",
    "no": "red", "NO": "bold red", "FAILED": "bold red", "BROKEN": "bold red", "falls short": "bold red",
    "not measured": "yellow", "default": "green",
}  # fmt: skip
"""Cells of tables that have a colour."""
QUIET = 2.0  # seconds before anything is told of progress in lines
EVERY = 10.0  # seconds between two of them


def console(error: bool = False) -> Console:
    """A console that prints what it is given: no markup, no wrapping of its own.

    Text only where NO_COLOR is set: of its own, rich leaves out the colours then, and neither bold type
    nor the cursor's ways. (Where TERM is dumb, rich sees to it.)
    """
    return Console(stderr=error, highlight=False, markup=False, emoji=False, soft_wrap=True,
                   color_system=None if os.environ.get("NO_COLOR") else "auto")  # fmt: skip


class Screen:
    """Where a command's answer goes. With ``as_json`` only ``json`` prints."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.out = console()
        self.err = console(error=True)
        fixed = self.out.is_terminal or os.environ.get("COLUMNS", "").isdecimal()
        self.width = max(self.out.width, 24) if fixed else None
        """Columns there are; None in a pipe: as many as it takes."""

    def json(self, found: Any) -> None:
        """The whole answer, for programs. Once, and only with ``as_json``."""
        if self.as_json:
            sys.stdout.write(json.dumps(found, indent=2) + "\n")

    def line(self, text: str = "", style: str = "") -> None:
        """One line as it is."""
        if not self.as_json:
            self.out.print(Text(text, style=style))

    def say(self, text: str, style: str = "", indent: str = "", hang: str | None = None) -> None:
        """A paragraph; its second line and the following start with ``hang``."""
        self.line("\n".join(self.wrap(text, indent, hang)), style)

    def wrap(self, text: str, indent: str = "", hang: str | None = None) -> list[str]:
        """The lines of a paragraph, as ``say`` prints it."""
        if self.width is None:
            return [indent + " ".join(text.split())]
        return textwrap.wrap(text, self.width, initial_indent=indent, break_on_hyphens=False,
                             break_long_words=False,
                             subsequent_indent=indent if hang is None else hang) or [indent]  # fmt: skip

    def coloured(self, text: str, style: str, count: int, hang: str = "") -> None:
        """A paragraph whose first ``count`` characters have a style."""
        if self.as_json:
            return
        wide = self.width or len(text)
        lead = text[: len(hang)]  # kept as it is: it is aligned
        lines = textwrap.wrap(text[len(hang) :], max(wide - len(hang), LEAST_WORDS),
                              break_on_hyphens=False, break_long_words=False) or [""]  # fmt: skip
        shown = Text(f"\n{hang}".join([lead + lines[0], *lines[1:]]))
        shown.stylize(style, 0, count)
        self.out.print(shown)

    def marked(self, mark: str, text: str) -> None:
        """"ok  what it is about": the mark has its colour."""
        head = f"  {mark:<6}  "
        self.coloured(head + text, STYLES.get(mark, ""), len(mark) + 2, " " * len(head))

    def facts(self, rows: Sequence[tuple[str, str]], indent: str = "") -> None:
        """Names and values below each other."""
        for text in pairs(rows, self.width, indent):
            self.line(text)

    def table(self, table: Table) -> None:
        if self.as_json:
            return
        if table.title:
            self.say(table.title, "bold")
        header, *rows = table.lines(self.width)
        for text in header:
            self.line(text, "dim")
        for cells, lines in zip(table.rows, rows, strict=True):
            shown = Text("\n".join(lines))
            for cell in cells:
                if cell in STYLES:
                    shown.highlight_regex(rf"(?:^|(?<=  )){cell}(?=  |$|\n)", STYLES[cell])
            self.out.print(shown)

    def emulated(self, device: Device) -> None:
        """Say that times mean nothing, where they do not. On standard error: it is no figure."""
        if device.emulated:
            self.err.print(Text("Emulated device: these times say nothing about a GPU.", "bold yellow"))

    def note(self, text: str) -> None:
        """Something beside the answer: where a file was written. On standard error with JSON."""
        if self.as_json:
            self.err.print(Text(text))
        else:
            self.line(text)

    @contextmanager
    def progress(self, what: str, measures: bool = False) -> Iterator[Tell]:
        """How far something is, on standard error.

        measures: nothing runs beside what is being timed, so the bar moves with each step only.
        """
        if self.err.is_terminal and self.err.color_system:  # else no line can be written over
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn()
            with Progress(*columns, console=self.err, transient=True, auto_refresh=not measures) as shown:
                task = shown.add_task(what, total=None)

                def tell(step: str = "", done: int = 0, total: int | None = None) -> None:
                    room = max(self.err.width - 36, 16)
                    text = f"{what}: {step}" if step else what
                    shown.update(task, description=text[:room], completed=done, total=total, refresh=measures)

                tell()
                yield tell
        else:
            yield _Lines(self.err, what)


class Tell(Protocol):
    """Called with the step, how many are done, and of how many."""

    def __call__(self, step: str = "", done: int = 0, total: int | None = None) -> None: ...


class _Lines(Tell):
    """Progress where there is no terminal, or one for text only: a line now and then."""

    def __init__(self, err: Console, what: str) -> None:
        self.err, self.what = err, what
        self.start = time.monotonic()
        self.next = self.start + QUIET

    def __call__(self, step: str = "", done: int = 0, total: int | None = None) -> None:
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + EVERY
        told = f"{self.what}: {step}" if step else self.what
        far = f" ({done} of {total})" if total else ""
        self.err.print(Text(f"{told}{far}, {now - self.start:.0f} s"))
