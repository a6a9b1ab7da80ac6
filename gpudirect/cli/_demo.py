"""``gpudirect demo``: see it work."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from ._options import BridgeOption, DeviceOption, JsonOption, choose

if TYPE_CHECKING:
    from ..demo import Check
    from ..devices import Device
    from ._screen import Screen


class Teller:
    """Shows a demo on a screen while it runs."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self.device: Device | None = None
        self.bridge = ""

    def begins(self, on: Device, bridge: str) -> None:
        self.device, self.bridge = on, bridge
        self.screen.say(f"gpudirect on {on.id}, {on.name}, bridge {bridge}", "bold")
        if on.emulated:
            self.screen.say("This is the emulated device: no GPU is involved.", "bold yellow")

    def experiment(self, letter: str, name: str, about: str) -> None:
        self.screen.line()
        self.screen.say(f"({letter}) {name}: {about}", "bold", hang="    ")

    def check(self, check: Check) -> None:
        self.screen.marked("ok" if check.held else "FAILED", f"{check.what}: {check.detail}")

    def remark(self, text: str, emulated: str = "") -> None:
        self.screen.say(text, "", "  ", "    ")
        if emulated:
            self.screen.say(f"emulated: {emulated}", "yellow", "    ")


def demo(as_json: JsonOption = False, device: DeviceOption = None, bridge: BridgeOption = None) -> None:
    """Five small experiments, each checked: the CPU writes GPU memory with plain stores, finds there
    what a copy has put, and kernels run on it. Exit status 1 if a check fails."""
    from .. import demo as experiments
    from ._screen import Screen

    screen = Screen(as_json)
    with screen.progress("opening the device"):
        choose(device, bridge)
    teller = Teller(screen)
    checks = experiments.run(teller)
    failed = [c for c in checks if not c.held]
    on = teller.device
    assert on is not None
    screen.json({
        "device": on.id, "name": on.name, "emulated": on.emulated, "bridge": teller.bridge,
        "held": not failed, "checks": [asdict(c) for c in checks],
    })  # fmt: skip
    screen.line()
    if failed:
        screen.say(f"{len(failed)} of {len(checks)} checks failed:", "bold red")
        for c in failed:
            screen.say(f"{c.experiment}: {c.what}: {c.detail}", "", "  ", "    ")
        screen.say("`gpudirect doctor` says what is missing here, and what mends it.")
        raise typer.Exit(1)
    where = "the emulated device" if on.emulated else on.name
    screen.say(f"All {len(checks)} checks held on {where}.", "bold green")
