"""HTML pages from the templates beside this file. What is not marked as HTML is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=False,
    )  # fmt: skip


def page(title: str, where: str, emulated: str, body: str) -> str:
    """A page that stands alone. title is text; where, emulated ('' for none) and body are HTML."""
    return _templates().get_template("report.html").render(
        title=("EMULATED: " if emulated else "") + title, heading=title, where=Markup(where),
        emulated=Markup(emulated), body=Markup(body),
    )  # fmt: skip


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table. caption and cells are HTML; empty columns are left out."""
    rows = list(rows)
    used = [i for i in range(max(map(len, rows), default=0)) if i == 0 or any(row[i] for row in rows)]
    return _templates().get_template("table.html").render(
        caption=Markup(caption), head=[Markup(head[i]) for i in used if head], kind=kind,
        rows=[[Markup(row[i]) for i in used] for row in rows],
    )  # fmt: skip
