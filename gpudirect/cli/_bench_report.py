"""``gpudirect bench report`` and ``bench check``: what to make of a figures file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._options import JsonOption, argument, option

if TYPE_CHECKING:
    from ..bench.check import Outcome
    from ._screen import Screen

FigureFile = Annotated[
    Path, argument("A figures file, from `gpudirect bench run --out`", metavar="FILE")
]


def what_it_is(found: dict[str, Any]) -> str:
    """Where the figures of a file come from, in one line."""
    machine, device = found["machine"], found["device"]
    return (
        f"{device.get('name', 'unknown device')}, bridge {device.get('bridge')}, "
        f"driver {machine.get('driver')}, {machine.get('cpu', 'unknown CPU')}, "
        f"commit {machine.get('commit')}, {machine.get('time')}"
    )


def as_data(o: Outcome) -> dict[str, Any]:
    """An outcome for programs."""
    return {
        "id": o.bar.id, "state": o.state, "asked": o.bar.asked, "limit": o.limit_text,
        "figure": None if math.isnan(o.figure) else o.figure,
        "where": o.where_text, "size": o.size, "reason": o.reason or None,
    }  # fmt: skip


def check(
    file: FigureFile,
    only: Annotated[
        list[str] | None,
        option("Only this target or benchmark; wildcards work, and several times --only",
               default="all", metavar="NAME"),
    ] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Hold a figures file against the targets that this project sets itself: ratios to other ways
    in the same run. Exit status 1 if one falls short or was not measured."""
    from ..bench import bars
    from ..bench import check as judging
    from ..bench.check import HOLDS, MISSING, SHORT
    from ._screen import Screen

    screen = Screen(as_json)
    found = judging.read(file)
    outcomes = judging.judge(found, bars.chosen(bars.load(), only or ()))
    emulated = bool(found["device"].get("emulated"))
    failed = emulated or any(o.state != HOLDS for o in outcomes)
    screen.json({
        "file": str(file), "device": found["device"].get("name"), "emulated": emulated,
        "held": not failed, "targets": [as_data(o) for o in outcomes],
    })  # fmt: skip
    screen.say(f"{'EMULATED. ' if emulated else ''}{file}: {what_it_is(found)}",
               "bold yellow" if emulated else "")  # fmt: skip
    widest = max(len(o.bar.id) for o in outcomes)
    beside = screen.width is None or widest + 14 <= screen.width // 2
    for o in outcomes:
        told = f"{o.figure_text}, {o.limit_text}" if o.state != MISSING else o.limit_text
        words = f"{told}; {o.where_text}".rstrip("; ")
        if o.state == SHORT:
            words += f"; asked: {o.bar.asked}"
        _row(screen, o, words, widest, beside)
    counted = {HOLDS: "hold", SHORT: "fall short", MISSING: "not measured"}
    counts = {state: sum(o.state == state for o in outcomes) for state in counted}
    screen.say(", ".join(f"{n} {counted[state]}" for state, n in counts.items() if n))
    if emulated:
        screen.say("EMULATED device: these times say nothing about a GPU, so no target is met by them.",
                   "bold yellow")  # fmt: skip
    if failed:
        raise typer.Exit(1)


def _row(screen: Screen, o: Outcome, words: str, widest: int, beside: bool) -> None:
    """State and name, and the figures beside them, or below where there is no room."""
    from ._screen import STYLES

    if beside:
        head = f"{o.state:<12}  {o.bar.id:<{widest}}  "
        screen.coloured(head + words, STYLES[o.state], len(o.state), " " * len(head))
    else:
        screen.coloured(f"{o.state:<12}  {o.bar.id}", STYLES[o.state], len(o.state))
        screen.say(words, indent="    ")


def report(
    file: FigureFile,
    out: Annotated[
        Path | None,
        option("Folder for it", default="FILE's name with -report", metavar="FOLDER"),
    ] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Make one HTML page of a figures file that stands alone, and its plots as PNG beside it."""
    from ..bench import report as page
    from ._screen import Screen

    screen = Screen(as_json)
    folder = out if out is not None else file.with_name(f"{file.stem}-report")
    with screen.progress("drawing"):
        path, plots = page.write(file, folder)
    screen.json({"page": str(path), "plots": plots, "folder": str(folder / page.PLOTS)})
    screen.line(f"{path}; {plots} plots in {folder / page.PLOTS}")
