"""The ways data goes between ordinary memory and the device's, and the choice among them.

"map" is CPU stores or loads on the mapping, "dma" the device's copy engine. Which is faster
depends on the size, the direction and whether the host memory is page-locked. The choice is made
in C (_native/paths.c) from the sizes in limits.py.
"""

from __future__ import annotations

import time
from typing import Any

from .. import _native, cpu
from ..bridges import Bridge
from ..devices import Device
from ..limits import COURIER, DIRECTIONS, ERRANDS, GATHERING, NEVER, Limits, stored


class Paths:
    """The choice for one device and one bridge: limits, and where C finds them."""

    def __init__(self, device: Device, limits: Limits) -> None:
        self.struct = _native.ffi.new("struct gd_paths *")
        self.address = int(_native.ffi.cast("uintptr_t", self.struct))
        self._near = device.near_cpus()
        self._team = device.copy_team
        self._driver = device.driver_functions()
        self.struct.driver = self._driver or _native.ffi.NULL
        self.struct.courier = _couriers.get(device, _native.ffi.NULL)
        self.limits = limits

    @property
    def limits(self) -> Limits:
        """In force now. Assigning takes effect at once, also for arrays that exist."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        for name in DIRECTIONS:
            turns = getattr(limits, name)
            kept = getattr(self.struct, name).at
            for i in range(_native.lib.GD_TURNS):
                kept[i] = turns[i] if i < len(turns) else NEVER
        for name in (*COURIER, *ERRANDS, *GATHERING):
            setattr(self.struct, name, getattr(limits, name))
        start_threads(limits, self._near, self._team)


def near(cpus: list[int]) -> list[int]:
    """Those of a device's CPUs that we may use; none where that is no choice."""
    allowed = cpu.allowed()
    found = sorted(allowed.intersection(cpus))
    return found if len(found) < len(allowed) else []


def start_threads(limits: Limits, there: list[int], team: int = 0) -> None:
    """Tell the copy threads of a device how many they are, where they run and what sizes they take.

    They run near the device, where the system says which CPUs that is and we may use some of them.
    """
    allowed, cpus = cpu.allowed(), near(there)
    count = limits.threads or max(1, min(8, len(allowed) // 2, len(cpus) or 8))
    sizes = _native.ffi.new("struct gd_thresholds *", {
        "write_in_a_row": limits.write_threads, "write_alone": limits.write_threads_alone,
        "read_in_a_row": limits.read_threads, "read_alone": limits.read_threads_alone,
    })  # fmt: skip
    for _ in range(1000):
        code = _native.lib.gd_threads_configure_team(
            team, count, _native.ffi.new("int[]", cpus), len(cpus), sizes
        )
        if code != -16:  # EBUSY: a copy runs
            return
        time.sleep(0.001)


_paths: dict[tuple[Device, Bridge], Paths] = {}


def of(device: Device, bridge: Bridge) -> Paths:
    """The choice in force for arrays of a device through a bridge."""
    found = _paths.get((device, bridge))
    if found is None:
        limits = stored(device, bridge.name) or Limits()
        found = _paths.setdefault((device, bridge), Paths(device, limits))
        found.struct.courier = _couriers.get(device, _native.ffi.NULL)  # it may be new
    return found


_couriers: dict[Device, Any] = {}  # those that run: struct gd_courier * of cffi


def lead(device: Device, courier: Any) -> None:
    """Every choice for a device knows this courier from now on; NULL: none."""
    _couriers[device] = courier
    for (on, _), choice in tuple(_paths.items()):
        if on is device:
            choice.struct.courier = courier


def known() -> dict[tuple[Device, Bridge], Paths]:
    """Every choice in force in this process."""
    return dict(_paths)
