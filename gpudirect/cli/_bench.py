"""``gpudirect bench``: measure, and look at what was measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .. import devices
from ..bench import NAMES, load
from ..bench.figures import Figures
from ..bench.measure import Figure
from ..errors import ArgumentError
from . import BridgeOption, DeviceOption, _bench_report, choose

app: typer.Typer = typer.Typer(help="Measure gpudirect beside what one would use otherwise.",
                  no_args_is_help=True)  # fmt: skip
app.command()(_bench_report.check)
app.command()(_bench_report.report)


def short(ns: float) -> str:
    """A time for people."""
    return f"{ns:.0f} ns" if ns < 1000 else f"{ns / 1000:.2f} us" if ns < 1e6 else f"{ns / 1e6:.2f} ms"


def rows(figures: list[Figure]) -> Table:
    """Cases as rows; where a case has many sizes, powers of four of them."""
    table = Table(title_justify="left")
    for column in ("case", "bytes", "best", "median", "p99", "p99.9"):
        table.add_column(column, justify="left" if column == "case" else "right")
    many = len({f.size for f in figures}) > 12
    for f in sorted(figures, key=lambda f: (f.group, f.case, f.size)):
        power = f.size & (f.size - 1) == 0 and f.size.bit_length() % 2 == 1
        if not many or power or not f.size:
            table.add_row(f.case, str(f.size or ""), *map(short, (f.p0, f.p50, f.p99, f.p999)))
    return table


@app.command()
def run(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Which: {', '.join(NAMES)} [default: all]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figures file, or its name ending in .json.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="Few samples, to see that it works.")] = False,
    device: DeviceOption = None,
    bridge: BridgeOption = None,
) -> None:
    """Run benchmarks and print their figures; with --out, write them to a figures file."""
    choose(device, bridge)
    unknown = set(names or ()) - set(NAMES)
    if unknown:
        raise ArgumentError(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    console = Console()
    chosen = devices.get()
    if chosen.emulated:
        console.print("[bold yellow]Emulated device: these times say nothing about a GPU.[/]")
    figures = Figures(chosen)
    path = out
    if out is not None and out.suffix != ".json":
        label = re.sub(r"\W+", "-", chosen.name).strip("-").lower()
        path = out / ("-".join([label, *(names or ())]) + ".json")
    if path is not None:
        figures.save(path)  # a folder that cannot be written is known before the minutes are spent
    columns = TextColumn("{task.fields[bench]}"), BarColumn(), TextColumn("{task.description}")
    for name in names or NAMES:
        bench = load(name)
        with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
            task = progress.add_task("", bench=name)
            found = bench.run(
                chosen, quick,
                lambda what, done, total: progress.update(
                    task, description=what, completed=done, total=total  # noqa: B023
                ),
            )  # fmt: skip
        figures.add(*found)
        figures.notes[name] = bench.NOTE
        console.print(f"[bold]{name}[/] on {chosen.id}, {chosen.name}: {bench.NOTE}", highlight=False)
        console.print(rows(found))
        if path is not None:
            figures.save(path)
    if path is not None:
        console.print(f"figures written to {path}", soft_wrap=True)
