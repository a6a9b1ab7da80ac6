"""``gpudirect experiment``: does it pay to avoid DMA?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .. import devices
from ..bench import plots
from ..bench.figures import Figures, load
from ..errors import ArgumentError
from ..experiment import analysis, lines, measure, ports, report
from . import BridgeOption, DeviceOption, choose

SECONDS = 0.8  # of each configuration


def experiment(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Which ports: {', '.join(ports.NAMES)} [default: all]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for figures and the HTML page.")] = None,
    quick: Annotated[bool, typer.Option(help="Smallest sizes, few samples: does it work?")] = False,
    seconds: Annotated[float, typer.Option(help="Time for each configuration.")] = SECONDS,
    examples: Annotated[Path | None, typer.Option(help="Folder of the ports.")] = None,
    again: Annotated[
        Path | None, typer.Option(help="Measure nothing: tables and page of this figures file.")
    ] = None,
    device: DeviceOption = None,
    bridge: BridgeOption = None,
) -> None:
    """Run the ports with copies, double-buffered and direct, and compare times and results."""
    if not 0 <= seconds <= 3600:
        raise ArgumentError(f"--seconds {seconds}: give 0 to 3600")
    if again is not None:
        _show(load(again), again.with_suffix(".html") if out is None else out / f"{again.stem}.html")
        return
    choose(device, bridge)
    chosen_ports = [ports.load(n, examples) for n in names] if names else ports.available(examples)
    console = Console()
    chosen = devices.get()
    if chosen.emulated:
        console.print("[bold yellow]Emulated device: these times say nothing about a GPU.[/]")
    figures = Figures(chosen)
    path = None
    if out is not None:  # what cannot be written or drawn is known before the minutes are spent
        plots.matplotlib()
        label = re.sub(r"\W+", "-", chosen.name).strip("-").lower()
        path = out / f"{label}-experiment.json"
        figures.save(path)
    configurations = []
    figures.add(*measure.link(chosen))
    for port in chosen_ports:
        sizes = (port.small,) if quick or chosen.emulated else port.sizes
        for kind in port.kinds[:1] if quick else port.kinds:
            for n in sizes:
                with console.status(f"{port.name}, {kind}, {n}"):
                    found, configuration = measure.run(port, n, kind, 0 if quick else seconds)
                figures.add(*found)
                configurations.append(configuration.as_dict())
    figures.checks["configurations"] = configurations
    figures.checks["ports"] = {p.name: {"title": p.title, "flow": p.flow, "update": p.update}
                               for p in chosen_ports}  # fmt: skip
    figures.checks["lines"] = {p.name: lines.count_file(Path(str(p.module.__file__)))
                               for p in chosen_ports}  # fmt: skip
    if path is not None:
        figures.save(path)
        console.print(f"figures written to {path}", soft_wrap=True)
    _show(figures.as_dict(), path and path.with_suffix(".html"))


def _show(found: dict[str, Any], page: Path | None) -> None:
    """Print what the figures of an experiment say; with a path, write the page as well."""
    console = Console()
    for table in analysis.tables(analysis.Experiment(found)):
        console.print(table.rich())
    if page is not None:
        report.write(found, page)
        console.print(f"page and plots written to {page.with_suffix('')}...", soft_wrap=True)
