"""``gpudirect calibrate``: find out at which sizes this machine's faster path changes."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from .. import bridges, devices
from ..calibration import calibrate
from ..limits import DIRECTIONS, NEVER, THRESHOLDS, Limits, ensure_writable, file_of
from ._info import size


def words(limits: Limits, direction: str) -> str:
    """"mapping up to 4 KiB, then DMA"."""
    turns = getattr(limits, direction)
    ways = ["mapping", "DMA"]
    found = [f"{ways[i % 2]} up to {size(turn)}" for i, turn in enumerate(turns) if turn]
    last = ways[len(turns) % 2]
    return ", ".join([*found, f"then {last}" if found else f"{last} always"])


def table(limits: Limits, title: str) -> Table:
    """The limits, for people."""
    shown = Table(title=title, title_justify="left", show_header=False)
    for name in DIRECTIONS:
        way, memory = name.split("_")
        memory = "page-locked" if memory == "pinned" else memory
        shown.add_row(f"{way}, {memory} memory", words(limits, name))
    for name in THRESHOLDS:
        least = getattr(limits, name)
        way = "alone" if name.endswith("alone") else "in a row"
        shown.add_row(f"{name.split('_')[0]}, several threads, {way}",
                      "never" if least >= NEVER else f"from {size(least)} on")  # fmt: skip
    return shown


def run(console: Console, device: str | None, bridge: str | None) -> None:
    """Calibrate one device, show and keep what was found."""
    chosen = devices.get(device)
    if chosen.emulated:
        console.print("[bold yellow]Emulated device: these limits say nothing about a GPU.[/]")
    ensure_writable(file_of(chosen, bridges.choose(chosen, bridge).name))
    with console.status("measuring") as status:
        limits, path = calibrate(
            chosen, bridge, progress=lambda text: status.update(f"measuring: {text}")
        )
    console.print(table(limits, f"faster path on {chosen.id}, {chosen.name}"))
    console.print(f"kept in {path}; remove that file to return to the built-in limits", soft_wrap=True)
