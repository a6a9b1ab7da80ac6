"""``gpudirect doctor``: why things do not work here or are slow, and what mends it.

``look()`` makes a ``Machine``, a small value, of the real one; ``examine(machine)`` finds what is to
be found in it. Findings are pure functions of that value: a file a group, each rule with an example.
"""

from __future__ import annotations

from . import aperture, driver, host, module, platforms, sharing, tools
from ._look import look
from ._machine import HEALTHY, Gpu, Holder, Machine, ModuleFile
from ._report import report
from ._rules import LEVELS, LIMITS, NOTE, RULES, SLOWS, STOPS, Finding, Rule

GROUPS = {
    "driver": "The driver",
    "platforms": "Kinds of machines",
    "aperture": "BAR1",
    "host": "The CPU's side",
    "module": "The kernel module",
    "sharing": "Other processes",
    "tools": "Compilers, files and settings",
}
"""Groups of rules, and their titles."""


def examine(machine: Machine) -> list[Finding]:
    """What is to be found on a machine, the weightiest first."""
    found = [f for rule in RULES if (f := rule.find(machine))]
    return sorted(found, key=lambda f: list(LEVELS).index(f.level))


__all__ = [
    "GROUPS", "HEALTHY", "LEVELS", "LIMITS", "NOTE", "RULES", "SLOWS", "STOPS", "Finding", "Gpu", "Holder",
    "Machine", "ModuleFile", "Rule", "aperture", "driver", "examine", "host", "look", "module", "platforms",
    "report", "sharing", "tools",
]  # fmt: skip
