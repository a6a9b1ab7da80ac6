"""``gpudirect bench``: measure, and look at what was measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .._words import time_text
from ..bench import NAMES, load
from ..errors import ArgumentError
from . import _bench_report
from ._options import BridgeOption, Command, DeviceOption, JsonOption, argument, choose, option, starting
from ._table import Table

if TYPE_CHECKING:
    from ..bench.measure import Figure

app: typer.Typer = typer.Typer(
    help="Measure gpudirect beside what one would use otherwise, and judge what was measured.",
    no_args_is_help=True, rich_markup_mode=None,
)  # fmt: skip


def table(figures: list[Figure]) -> Table:
    """Cases as rows; where a case has many sizes, powers of four of them."""
    found = Table(("case", "bytes", "best", "median", "p99", "p99.9"))
    many = len({f.size for f in figures}) > 12
    for f in sorted(figures, key=lambda f: (f.group, f.case, f.size)):
        power = f.size & (f.size - 1) == 0 and f.size.bit_length() % 2 == 1
        if not many or power or not f.size:
            found.add(f.case, f.size or "", *map(time_text, (f.p0, f.p50, f.p99, f.p999)))
    return found


def file_in(out: Path | None, *words: str) -> Path | None:
    """The figures file that ``--out`` means: itself, or in that folder under a name made of words."""
    if out is None or out.suffix == ".json":
        return out
    return out / ("-".join(re.sub(r"\W+", "-", w).strip("-").lower() for w in words) + ".json")


@app.command(cls=Command, short_help="Run benchmarks, and print their figures.")
def run(
    names: Annotated[
        list[str] | None,
        argument(f"Which: {', '.join(NAMES)}", default="all", metavar="NAME",
                 autocompletion=lambda: starting(*NAMES)),
    ] = None,
    out: Annotated[
        Path | None,
        option("Write the figures: a file ending in .json, or a folder for it",
               default="nothing is written", metavar="PATH"),
    ] = None,
    quick: Annotated[bool, option("Few samples, to see that it works", "--quick")] = False,
    as_json: JsonOption = False,
    device: DeviceOption = None,
    bridge: BridgeOption = None,
) -> None:  # fmt: skip
    """Run benchmarks and print their figures: best, median, 99th and 99.9th percentile of each case,
    beside other ways to do the same. A minute or two for all of them."""
    from .. import devices
    from ..bench.figures import Figures
    from ._screen import Screen

    for name in names or ():
        if name not in NAMES:
            raise ArgumentError(f"there is no benchmark {name!r}; there are {', '.join(NAMES)}")
    choose(device, bridge)
    screen = Screen(as_json)
    chosen = devices.get()
    screen.emulated(chosen)
    figures = Figures(chosen)
    path = file_in(out, chosen.name, *(names or ()))
    if path is not None:
        figures.save(path)  # a folder that cannot be written is known before the minutes are spent
    for name in names or NAMES:
        bench = load(name)
        with screen.progress(name, measures=True) as tell:
            found = bench.run(chosen, quick, tell)
        figures.add(*found)
        figures.notes[name] = bench.NOTE
        screen.say(f"{name} on {chosen.id}, {chosen.name}: {bench.NOTE}", "bold")
        screen.table(table(found))
        screen.line()
        if path is not None:
            figures.save(path)
    screen.json(figures.as_dict() if as_json else None)
    if path is not None:
        screen.note(f"figures written to {path}")


app.command(cls=Command, short_help="Hold figures against their targets.")(_bench_report.check)
app.command(cls=Command, short_help="Make a page and plots of figures.")(_bench_report.report)
