"""``gpudirect experiment``: does it pay to avoid DMA?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import ArgumentError
from ..experiment import NAMES
from ._bench import file_in
from ._options import BridgeOption, DeviceOption, JsonOption, argument, choose, option, starting
from ._table import Table

if TYPE_CHECKING:
    from ._screen import Screen

SECONDS = 0.8  # of each configuration
WORDS = {"verdict", "claim", "detail"}
"""Columns of its tables that hold words."""


def experiment(
    names: Annotated[
        list[str] | None,
        argument(f"Which programs: {', '.join(NAMES)}", default="all", metavar="NAME",
                 autocompletion=lambda: starting(*NAMES)),
    ] = None,
    out: Annotated[
        Path | None,
        option("Folder for the figures and an HTML page", default="nothing is written",
               metavar="FOLDER"),
    ] = None,
    quick: Annotated[bool, option("Smallest sizes, few samples: does it work?", "--quick")] = False,
    seconds: Annotated[float, option("Time for each program and size", default="0.8", metavar="S")] = SECONDS,
    examples: Annotated[
        Path | None,
        option("Folder of the programs", default="the checkout's examples", metavar="FOLDER"),
    ] = None,
    again: Annotated[
        Path | None,
        option("Measure nothing: the tables of this figures file and, with --out, its page",
               metavar="FILE"),
    ] = None,
    as_json: JsonOption = False,
    device: DeviceOption = None,
    bridge: BridgeOption = None,
) -> None:  # fmt: skip
    """Run the example programs with copies, double-buffered and with direct stores, and compare times
    and results: docs/does-avoiding-dma-pay.md. Minutes for all of them; --quick for seconds."""
    from .. import devices
    from ..bench import plots
    from ..bench.figures import Figures, load
    from ..experiment import lines, measure, ports
    from ._screen import Screen

    if not 0 <= seconds <= 3600:
        raise ArgumentError(f"--seconds {seconds}: give 0 to 3600")
    screen = Screen(as_json)
    if again is not None:
        _show(screen, load(again), None if out is None else out / f"{again.stem}.html")
        return
    choose(device, bridge)
    chosen_ports = [ports.load(n, examples) for n in names] if names else ports.available(examples)
    chosen = devices.get()
    screen.emulated(chosen)
    figures = Figures(chosen)
    path = file_in(out, chosen.name, "experiment")
    if path is not None:  # what cannot be written or drawn is known before the minutes are spent
        plots.matplotlib()
        figures.save(path)
    runs = [(port, kind, n) for port in chosen_ports
            for n in ((port.small,) if quick or chosen.emulated else port.sizes)
            for kind in (port.kinds[:1] if quick else port.kinds)]  # fmt: skip
    configurations = []
    with screen.progress("measuring", measures=True) as tell:
        figures.add(*measure.link(chosen))
        for done, (port, kind, n) in enumerate(runs):
            tell(f"{port.name}, {kind}, {n}", done, len(runs))
            found, configuration = measure.run(port, n, kind, 0 if quick else seconds)
            figures.add(*found)
            configurations.append(configuration.as_dict())
    figures.checks["configurations"] = configurations
    figures.checks["ports"] = {p.name: {"title": p.title, "flow": p.flow, "update": p.update,
                                       "reads": p.reads}
                               for p in chosen_ports}  # fmt: skip
    figures.checks["lines"] = {p.name: lines.count_file(Path(str(p.module.__file__)))
                               for p in chosen_ports}  # fmt: skip
    if path is not None:
        figures.save(path)
        screen.note(f"figures written to {path}")
    _show(screen, figures.as_dict(), path and path.with_suffix(".html"))


def _show(screen: Screen, found: dict[str, Any], page: Path | None) -> None:
    """Print what the figures of an experiment say; with a path, write the page as well."""
    from ..experiment import analysis, report

    told = analysis.tables(analysis.Experiment(found))
    screen.json(found)
    for t in told:
        words = tuple(i for i, name in enumerate(t.columns) if name in WORDS)
        screen.table(Table(t.columns, words, t.title, t.rows))
        screen.line()
    if page is not None:
        with screen.progress("drawing"):
            report.write(found, page)
        screen.note(f"page and plots written to {page.with_suffix('')}...")
