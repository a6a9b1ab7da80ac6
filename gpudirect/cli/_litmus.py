"""``gpudirect litmus``: play the tests of the memory model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ArgumentError
from ._options import BridgeOption, DeviceOption, JsonOption, argument, choose, option, starting
from ._table import Table

if TYPE_CHECKING:
    from .. import devices


def _names() -> list[str]:
    """Of the tests, to complete a word with."""
    from ..litmus import ALL

    return starting(*ALL)


def litmus(
    names: Annotated[
        list[str] | None,
        argument("Which tests; --list names them", default="all", metavar="NAME",
                 autocompletion=_names),
    ] = None,
    rounds: Annotated[int, option("Rounds of each test", default="10000", metavar="N")] = 10_000,
    listed: Annotated[bool, option("Name the tests and what each asks", "--list")] = False,
    as_json: JsonOption = False,
    device: DeviceOption = None,
    bridge: BridgeOption = None,
) -> None:  # fmt: skip
    """Play small patterns of stores and loads between the CPU and the device, and count the rounds
    in which one side saw them out of order. Exit status 1 if an order that is promised
    (docs/memory-model.md) is broken."""
    from .. import devices
    from ..litmus import ALL, NOT_PROMISED
    from ._screen import Screen

    screen = Screen(as_json)
    if rounds < 1:
        raise ArgumentError(f"--rounds {rounds}: give 1 or more")
    for name in names or ():
        if name not in ALL:
            raise ArgumentError(f"there is no litmus test {name!r}; there are {', '.join(ALL)}")
    chosen = [ALL[name] for name in names or ALL]
    if listed:
        screen.json([{"name": t.name, "standing": t.standing, "says": t.says} for t in chosen])
        table = Table(("test", "standing", "asks"), words=(1, 2))
        for t in chosen:
            table.add(t.name, t.standing, t.says)
        screen.table(table)
        return
    choose(device, bridge)
    on = devices.get(device)
    screen.say(f"{on.id}, {on.name}{' (emulated: no GPU is involved)' if on.emulated else ''}", "bold")
    found: list[dict[str, Any]] = []
    with screen.progress("playing", measures=True) as tell:
        for done, test in enumerate(chosen):
            tell(test.name, done, len(chosen))
            found.append(_play(test, rounds, device, on))
    table = Table(("test", "standing", "wrong", "rounds", "s", ""), words=(1, 5))
    for f in found:
        if f["offered"]:
            verdict = "ok" if f["standing"] != NOT_PROMISED else ""
            table.add(f["name"], f["standing"], f["violations"], f["rounds"], f"{f['seconds']:.1f}",
                      verdict if f["fine"] else "BROKEN")  # fmt: skip
        else:
            table.add(f["name"], f["standing"], "", "", "", "not offered")
    broken = sum(not f["fine"] for f in found)
    screen.json({"device": on.id, "name": on.name, "emulated": on.emulated, "broken": broken,
                 "tests": found})  # fmt: skip
    screen.table(table)
    if any(not f["offered"] for f in found):
        screen.say("not offered: the device does not say that it keeps this order "
                   "(device.ordering).")  # fmt: skip
    if broken:
        screen.say(f"{broken} of {len(found)} tests saw an order broken that must hold.", "bold red")
        raise typer.Exit(1)


def _play(test: Any, rounds: int, device: str | None, on: devices.Device) -> dict[str, Any]:
    facts = {"name": test.name, "standing": test.standing, "offered": test.offered(on), "fine": True}
    if not facts["offered"]:
        return facts
    outcome = test.run(rounds, device)
    ours = outcome.fine or (outcome.emulated and not test.holds_emulated)
    return facts | {"fine": ours, "rounds": outcome.rounds, "violations": outcome.violations,
                    "seconds": outcome.seconds}  # fmt: skip
