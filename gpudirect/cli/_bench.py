"""``gpudirect bench``: measure, and look at what was measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .. import devices
from ..bench import alloc
from ..bench.figures import Figures
from ..errors import ArgumentError
from . import BridgeOption, DeviceOption, _bench_report, choose

app: typer.Typer = typer.Typer(help="Measure gpudirect beside what one would use otherwise.",
                  no_args_is_help=True)  # fmt: skip
app.command()(_bench_report.check)
app.command()(_bench_report.report)
BENCHES = {alloc.NAME: alloc.run}


def short(ns: float) -> str:
    """A time for people."""
    return f"{ns:.0f} ns" if ns < 1000 else f"{ns / 1000:.2f} us" if ns < 1e6 else f"{ns / 1e6:.2f} ms"


@app.command()
def run(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Which: {', '.join(BENCHES)} [default: all]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the figures file.")] = None,
    quick: Annotated[bool, typer.Option(help="Few samples, to see that it works.")] = False,
    device: DeviceOption = None,
    bridge: BridgeOption = None,
) -> None:
    """Run benchmarks and print their figures; with --out, write them to a figures file."""
    choose(device, bridge)
    unknown = set(names or ()) - set(BENCHES)
    if unknown:
        raise ArgumentError(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    console = Console()
    chosen = devices.get()
    if chosen.emulated:
        console.print("[bold yellow]Emulated device: these times say nothing about a GPU.[/]")
    figures = Figures(chosen)
    for name in names or BENCHES:
        table = Table(title=f"{name} on {chosen.id}, {chosen.name}", title_justify="left")
        for column in ("case", "best", "median", "p99"):
            table.add_column(column, justify="left" if column == "case" else "right")
        with console.status(f"measuring {name}"):
            found = BENCHES[name](chosen, quick)
        for f in found:
            table.add_row(f.case, short(f.p0), short(f.p50), short(f.p99))
        figures.add(*found)
        console.print(table)
    if out is not None:
        label = re.sub(r"\W+", "-", chosen.name).strip("-").lower()
        path = out / f"{label}.json"
        figures.save(path)
        console.print(f"figures written to {path}")
