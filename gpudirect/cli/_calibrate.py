"""``gpudirect calibrate``: find out at which sizes this machine's faster path changes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from .. import bridges
from .._words import size_text
from ._options import BridgeOption, DeviceOption, JsonOption, choose

if TYPE_CHECKING:
    from ..limits import Limits


def words(limits: Limits, direction: str) -> str:
    """"mapping up to 4 KiB, then DMA"."""
    turns = getattr(limits, direction)
    ways = ["mapping", "DMA"]
    found = [f"{ways[i % 2]} up to {size_text(turn)}" for i, turn in enumerate(turns) if turn]
    last = ways[len(turns) % 2]
    return ", ".join([*found, f"then {last}" if found else f"{last} always"])


def rows(limits: Limits) -> list[tuple[str, str]]:
    """The limits, for people."""
    from ..limits import COURIER, DIRECTIONS, ERRANDS, NEVER, THRESHOLDS

    shown = []
    for name in DIRECTIONS:
        way, memory = name.split("_")
        memory = "page-locked" if memory == "pinned" else memory
        shown.append((f"{way}, {memory} memory", words(limits, name)))
    for name in THRESHOLDS:
        least = getattr(limits, name)
        way = "alone" if name.endswith("alone") else "in a row"
        shown.append((f"{name.split('_')[0]}, several threads, {way}",
                      "never" if least >= NEVER else f"from {size_text(least)} on"))  # fmt: skip
    for name in COURIER:
        low, high = getattr(limits, name)
        memory = "page-locked" if name.endswith("pinned") else "pageable"
        shown.append((f"read, {memory} memory, with a courier",
                      f"from {size_text(low)} to {size_text(high)}" if low < high else "never"))  # fmt: skip
    for name in ERRANDS:
        least = getattr(limits, name)
        shown.append((f"{name.split('_')[1]} with a courier",
                      "never" if least >= NEVER else f"from {least} elements on"))  # fmt: skip
    shown.append(("gather, element by element",
                  f"{limits.gather_words}, and one more for each {size_text(limits.gather_span)} of span"))
    return shown


def calibrate(as_json: JsonOption = False, device: DeviceOption = None,
              bridge: BridgeOption = None) -> None:
    """Measure at which sizes mapped stores and loads beat DMA here, and keep the answer: later
    programs on this machine use it. A few seconds; the file is named at the end."""
    from .. import devices
    from ..calibration import calibrate as measure
    from ..limits import ensure_writable, file_of
    from ._screen import Screen

    choose(device, bridge)
    screen = Screen(as_json)
    chosen = devices.get(device)
    screen.emulated(chosen)
    ensure_writable(file_of(chosen, bridges.choose(chosen, bridge).name))
    with screen.progress("measuring", measures=True) as tell:
        limits, path = measure(chosen, bridge, progress=tell)
    screen.json({"device": chosen.id, "name": chosen.name, "emulated": chosen.emulated,
                 "limits": asdict(limits), "file": str(path)})  # fmt: skip
    screen.say(f"Faster path on {chosen.id}, {chosen.name}", "bold")
    screen.facts(rows(limits), "  ")
    screen.note(f"kept in {path}; remove that file to return to the built-in limits")
