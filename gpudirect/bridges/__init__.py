"""Bridges: the ways to make device memory addressable by the CPU, and the choice among them."""

from __future__ import annotations

import importlib
import os
import threading

from .._descriptors import telling
from ..config import defaults
from ..errors import ArgumentError, BridgeError, BridgeUnavailableError
from .base import Bridge, Facts, Mapping, PageRun, Source, Standing

NAMES = ("p2pmod", "dmabuf", "gdrdrv", "rm", "emulated")
"""In order of choice. Each is a module beside this one, imported when it is asked for."""

_made: dict[str, Bridge] = {}
_lock = threading.RLock()


def get(name: str) -> Bridge:
    """The bridge of that name, usable or not. Raises ArgumentError for a name unknown."""
    if (found := _made.get(name)) is not None:
        return found
    with _lock:
        if name not in _made:
            if name not in NAMES:
                raise ArgumentError(f"there is no bridge {name!r}; there are {', '.join(NAMES)}")
            with telling(f"loading the bridge {name}", BridgeError):
                module = importlib.import_module(f".{name}", __name__)
            _made.setdefault(name, getattr(module, f"{name.capitalize()}Bridge")())
        return _made[name]


def standings(device: Facts) -> dict[str, Standing]:
    """Every bridge's standing on a device, in order of choice."""
    return {name: get(name).standing(device) for name in NAMES}


def choose(device: Facts, name: str | None = None) -> Bridge:
    """The bridge to use: ``name``, else what ``gpudirect.use`` or
    $GPUDIRECT_BRIDGE says, else the first that works.

    Raises BridgeUnavailableError, with every bridge's reason, when none does.
    """
    if name is not None and not isinstance(name, str):
        raise ArgumentError(f"bridge is {name!r}: give its name, one of {', '.join(NAMES)}")
    wanted = name or defaults.bridge
    if wanted:
        bridge = get(wanted)
        standing = bridge.standing(device)
        if not standing.usable:
            asked = "bridge=" if name else "GPUDIRECT_BRIDGE="
            raise BridgeUnavailableError(
                f"{asked}{wanted} was asked for, but {wanted} cannot be used on {device.name}: "
                f"{standing.reason}"
            )
        return bridge
    found = standings(device)
    for candidate, standing in found.items():
        if standing.usable:
            return get(candidate)
    reasons = "".join(f"\n  {n}: {s.reason}" for n, s in found.items())
    raise BridgeUnavailableError(f"no bridge can map memory of {device.name}:{reasons}")


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    for bridge in _made.values():
        bridge.after_fork()
    _made.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)

__all__ = [
    "NAMES",
    "Bridge",
    "Facts",
    "Mapping",
    "PageRun",
    "Source",
    "Standing",
    "choose",
    "get",
    "standings",
]
