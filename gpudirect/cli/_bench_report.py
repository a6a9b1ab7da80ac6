"""``gpudirect bench report`` and ``bench check``: what to make of a figures file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..bench import check as bars
from ..bench import report as page
from ..bench.check import HOLDS, MISSING, SHORT

FigureFile = Annotated[Path, typer.Argument(help="A figures file, from `bench run --out`.")]
COUNTED = {HOLDS: "hold", SHORT: "fall short", MISSING: "not measured"}
STYLES = {HOLDS: "green", SHORT: "bold red", MISSING: "yellow"}


def what_it_is(found: dict[str, Any]) -> str:
    """Where the figures of a file come from, in one line."""
    machine, device = found["machine"], found["device"]
    return (
        f"{device.get('name', 'unknown device')}, bridge {device.get('bridge')}, "
        f"driver {machine.get('driver')}, {machine.get('cpu', 'unknown CPU')}, "
        f"commit {machine.get('commit')}, {machine.get('time')}"
    )


def check(
    file: FigureFile,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only this bar or bench; wildcards work. Repeat it for several."),
    ] = None,
) -> None:
    """Hold a figures file against the bars. Exit status 1 if one falls short or was not measured."""
    found = bars.read(file)
    outcomes = bars.judge(found, bars.chosen(bars.bars(), only or ()))
    console = Console(soft_wrap=True, highlight=False)

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False)

    emulated = bool(found["device"].get("emulated"))
    say(f"{'EMULATED. ' if emulated else ''}{file}: {what_it_is(found)}", "bold yellow" if emulated else "")
    width = max(len(o.bar.id) for o in outcomes)
    for o in outcomes:
        console.print(f"{o.state:<12}", style=STYLES[o.state], end="  ", markup=False)
        told = f"{o.figure_text}, {o.limit_text}" if o.state != MISSING else o.limit_text
        say(f"{o.bar.id:<{width}}  {told}; {o.where_text}".rstrip("; "))
        if o.state == SHORT:
            say(f"{'':<12}  asked: {o.bar.asked}")
    counts = {state: sum(o.state == state for o in outcomes) for state in STYLES}
    say(", ".join(f"{n} {COUNTED[state]}" for state, n in counts.items() if n))
    if emulated:
        say("EMULATED device: these times say nothing about a GPU, so no bar is met by them.",
            "bold yellow")  # fmt: skip
    if emulated or counts[HOLDS] < len(outcomes):
        raise typer.Exit(1)


def report(
    file: FigureFile,
    out: Annotated[Path | None, typer.Option(help="Folder for it [default: FILE's name with -report]")] = None,
) -> None:
    """Make one self-contained HTML page of a figures file, and its plots as PNG beside it."""
    folder = out if out is not None else file.with_name(f"{file.stem}-report")
    path, plots = page.write(file, folder)
    Console(soft_wrap=True).print(f"{path}; {plots} plots in {folder / page.PLOTS}", markup=False)
