"""``gpudirect doctor``: why things do not work here or are slow, and what mends it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ArgumentError
from ._options import JsonOption, option

if TYPE_CHECKING:
    from ..doctor import Finding
    from ._screen import Screen

COLOURS = {"stops": "bold red", "limits": "red", "slows": "yellow", "note": "bold"}
REPORT = "gpudirect-report.json"


def doctor(
    report: Annotated[
        bool, option(f"Write a file for an issue, {REPORT}: the machine, the demo's checks and a quick "
                     "bench, without names and paths; minutes", "--report")
    ] = False,
    out: Annotated[
        Path | None, option("The report's file", default=REPORT, metavar="FILE")
    ] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Look for every known reason why a GPU cannot be used here or is slow. Each is told with what it
    means, what it costs, and the command that mends it. Exit status 1 if a GPU cannot be used."""
    from .. import doctor as doctors
    from ._screen import Screen

    if out is not None and not report:
        raise ArgumentError("--out names the file of --report: give both")
    screen = Screen(as_json)
    with screen.progress("looking") as tell:
        machine = doctors.look(tell)
    found = doctors.examine(machine)
    file = None
    if report:
        file = out or Path(REPORT)
        with screen.progress("reporting") as tell:
            doctors.report(machine, found, file, tell=tell)
    stopped = any(f.level == doctors.STOPS for f in found)
    screen.json({
        "stopped": stopped, "findings": [asdict(f) for f in found],
        "gpus": [g.id for g in machine.gpus], "report": str(file) if file else None,
    })  # fmt: skip
    for f in found:
        show(screen, f)
    screen.say(summary(found, [f"{g.id}, {g.name}" for g in machine.gpus]), "bold")
    if file:
        screen.note(f"report written to {file}: look it through, then attach it to an issue")
    if stopped:
        raise typer.Exit(1)


def show(screen: Screen, f: Finding) -> None:
    """A finding, for people."""
    screen.coloured(f"{f.level}: {f.title}", COLOURS[f.level], len(f.level) + 1)
    screen.facts([("seen", f.seen), ("means", f.means), ("costs", f.costs)], "  ")
    screen.line("  mend")
    for step in f.mend:
        if step.startswith("$ "):
            screen.line(f"    {step}", "green")  # never wrapped: it is to be copied
        else:
            screen.say(step, indent="    ")
    screen.line()


def summary(found: list[Finding], gpus: list[str]) -> str:
    """How it stands, in a line or two."""
    from ..doctor import LEVELS

    there = "; ".join(gpus) if gpus else "no GPU that can be used"
    if not found:
        return f"{there}: nothing to mend."
    counts = Counter(f.level for f in found)
    told = ", ".join(f"{counts[level]} {level if counts[level] == 1 or level != 'note' else 'notes'}"
                     for level in LEVELS if counts[level])  # fmt: skip
    return f"{there}: {told}."
