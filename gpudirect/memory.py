"""The memory of this process: one heap for each device and bridge, and what all of them do."""

from __future__ import annotations

import atexit
import os

from . import aperture, bridges
from ._heap import Block, Heap, HeapStatistics, Piece
from ._keeper import keeper, patient
from ._registration import Registration
from .bridges import Bridge
from .config import defaults
from .devices import Device

# -- the heaps of this process ---------------------------------------------------------------

_heaps: dict[tuple[Device, Bridge], Heap] = {}
_chosen: dict[tuple[Device, str | None], Heap] = {}  # by what was asked for


def heap(device: Device, bridge: str | None = None) -> Heap:
    """The heap of a device, through the bridge asked for or chosen.

    What a name means is found out once: asking every bridge again would cost more than a small
    allocation does.
    """
    wanted = bridge or defaults.bridge
    found = _chosen.get((device, wanted))
    if found is None:
        chosen = bridges.choose(device, bridge)
        found = _heaps.get((device, chosen)) or _heaps.setdefault((device, chosen), Heap(device, chosen))
        _chosen[device, wanted] = found
    return found


def statistics() -> list[HeapStatistics]:
    """What every heap of this process holds."""
    return [h.statistics() for h in tuple(_heaps.values())]


def _held() -> list[str]:
    return [
        f"  this process, {device.id} through {bridge.name}: {h.mapped()} bytes mapped, "
        f"{keeper.run(h.in_use)} in use"
        for (device, bridge), h in tuple(_heaps.items())
    ]


aperture.also_told_by(_held)


def shed(device: Device) -> bool:
    """Give back what the pools of a device keep mapped, without waiting; False if there is none."""
    return any([h.shed() for h in tuple(_heaps.values()) if h.device is device])


def shed_all() -> bool:
    """``shed`` for every device."""
    return any([h.shed() for h in tuple(_heaps.values())])


def find(device: Device, bridge: Bridge, ptr: int, nbytes: int) -> Block | None:
    """The block of a heap that some device memory lies in; None where it is nobody's here."""
    there = _heaps.get((device, bridge))
    return there.find(ptr, nbytes) if there is not None else None


def trim() -> None:
    """Give all unused device memory back to the devices."""
    for h in tuple(_heaps.values()):
        h.trim()


def _close() -> None:
    """At exit: what is still alive is left to the system, which frees it all at once."""
    keeper.ending = patient.ending = True


def _after_fork_in_child() -> None:
    _heaps.clear()
    _chosen.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close)  # runs before the devices close: they registered earlier

__all__ = ["Block", "Heap", "HeapStatistics", "Piece", "Registration", "find", "heap", "shed", "shed_all",
           "statistics", "trim"]
