"""What a finding is, and the list of all that can be found."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ._machine import Machine

STOPS, LIMITS, SLOWS, NOTE = "stops", "limits", "slows", "note"
LEVELS = {
    STOPS: "a GPU cannot be used",
    LIMITS: "something cannot be used",
    SLOWS: "it works, and could be faster",
    NOTE: "good to know",
}
"""In order of weight."""


@dataclass(frozen=True)
class Finding:
    """One thing found on one machine."""

    id: str
    title: str
    level: str
    seen: str
    """What was seen, with numbers."""
    means: str
    costs: str
    mend: tuple[str, ...]
    """Lines; those that start with "$ " are commands to type."""


Seen = str | None
Steps = Callable[[Machine], Iterable[str]]


@dataclass(frozen=True)
class Rule:
    """One thing that can be found."""

    id: str
    group: str
    title: str
    level: str
    means: str
    costs: str
    mend: Steps
    example: Machine
    """A machine that has it: what tests and docs/troubleshooting.md show."""
    seen: Callable[[Machine], Seen]

    def find(self, machine: Machine) -> Finding | None:
        """The finding, if this machine has it."""
        seen = self.seen(machine)
        if seen is None:
            return None
        return Finding(self.id, self.title, self.level, seen, self.means, self.costs,
                       tuple(self.mend(machine)))  # fmt: skip


RULES: list[Rule] = []
"""Everything that can be found, by group."""


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def rule(title: str, level: str, *, means: str, costs: str, mend: Steps | Iterable[str],
         example: Machine) -> Callable[[Callable[[Machine], Seen]], Callable[[Machine], Seen]]:
    """Make a function of a machine a rule: it says what was seen, or None."""
    steps: Steps = mend if callable(mend) else lambda machine, told=tuple(mend): told  # type: ignore[misc]

    def add(seen: Callable[[Machine], Seen]) -> Callable[[Machine], Seen]:
        group = seen.__module__.rpartition(".")[2]
        RULES.append(Rule(seen.__name__.replace("_", "-"), group, title, level, one_line(means),
                          one_line(costs), steps, example, seen))  # fmt: skip
        return seen

    return add


def as_root(machine: Machine, command: str) -> str:
    """A command that needs root."""
    return f"$ {command}" if machine.root else f"$ sudo {command}"


INSTALL = {
    "debian": "apt install {}", "ubuntu": "apt install {}", "fedora": "dnf install {}",
    "rhel": "dnf install {}", "suse": "zypper install {}", "arch": "pacman -S {}",
}  # fmt: skip


def install(machine: Machine, **packages: str) -> list[str]:
    """How to install a package, whose name differs by distribution; all of them where it is unknown."""
    def command(distribution: str) -> str:
        return as_root(machine, INSTALL[distribution].format(packages[distribution]))

    if machine.distribution in packages:
        return [command(machine.distribution)]
    names = {"debian": "Debian, Ubuntu", "fedora": "Fedora, RHEL", "suse": "SUSE", "arch": "Arch"}
    said = {"ubuntu", "rhel"}  # as Debian, as Fedora
    return [f"{command(d)}    # {names[d]}" for d in packages if d not in said]


def each(machine: Machine, what: Callable[[Any], Seen]) -> Seen:
    """What is seen of every GPU that can be opened, together."""
    found = [f"{gpu.id}, {gpu.name}: {seen}" for gpu in machine.gpus
             if gpu.reason is None and (seen := what(gpu))]  # fmt: skip
    return "; ".join(found) or None
