"""What a service is asked for, checked: how many lanes, slots and threads, and how it idles and ends."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import _native
from ..errors import ArgumentError

MOST_LANES = 64
LONGEST_SLEEP = 1e-3  # seconds: CUDA's __nanosleep
WARP = 32  # threads
SHORTEST_SLICE = 1e-4  # seconds
SHORTEST_NAP_AFTER = 2e-5
SHORTEST_PARK_AFTER = 1e-3


@dataclass(frozen=True)
class Options:
    """How a service is laid out and lives. Times in seconds."""

    lanes: int
    slots: int
    threads: int
    """Of a block."""
    blocks: int
    """Of each lane."""
    idle_after: float
    idle_sleep: float
    lifetime: float | None
    stop_timeout: float
    slice: float | None
    """None: one launch for ever."""
    nap_after: float | None
    """None: it never naps."""
    park_after: float | None
    """None: it is never parked."""

    @property
    def all_blocks(self) -> int:
        """Blocks of all lanes, resident at once."""
        return self.lanes * self.blocks


def checked(
    teams: Iterable[str],
    *,
    lanes: Any,
    slots: Any,
    threads: Any,
    blocks: Any,
    idle_after: Any,
    idle_sleep: Any,
    lifetime: Any,
    stop_timeout: Any,
    slice: Any,
    nap_after: Any,
    park_after: Any,
) -> Options:
    """The options, with what was left open chosen by the teams that run functions.

    Raises ArgumentError naming the option at fault.
    """
    used = set(teams)
    grid = "grid" in used
    if threads is None:
        threads = 256 if used & {"block", "grid"} else WARP
    if blocks is not None and not grid and blocks != 1:
        raise ArgumentError(f"blocks is {blocks!r}, but no function is declared for a grid")
    found = Options(
        lanes=_count(lanes, "lanes", 1, MOST_LANES),
        slots=_count(slots, "slots", 2, _native.lib.P2PMOD_LANE_SLOTS_MAX),
        threads=_count(threads, "threads", WARP, 1024),
        blocks=_count((8 if grid else 1) if blocks is None else blocks, "blocks", 1, 1 << 16),
        idle_after=_seconds(idle_after, "idle_after"),
        idle_sleep=_seconds(idle_sleep, "idle_sleep"),
        lifetime=None if lifetime is None else _seconds(lifetime, "lifetime"),
        stop_timeout=_seconds(stop_timeout, "stop_timeout"),
        slice=None if slice is None else _seconds(slice, "slice"),
        nap_after=None if nap_after is None or slice is None else _seconds(nap_after, "nap_after"),
        park_after=None if park_after is None else _seconds(park_after, "park_after"),
    )
    if found.nap_after is None:
        found = replace(found, park_after=None)  # who never naps is always there
    if found.slots & (found.slots - 1):
        raise ArgumentError(f"slots is {slots}: give a power of two")
    if found.threads % WARP:
        raise ArgumentError(f"threads is {threads}: give a multiple of {WARP}, the size of a warp")
    if found.idle_sleep > LONGEST_SLEEP:
        raise ArgumentError(f"idle_sleep is {idle_sleep!r}: the device sleeps {LONGEST_SLEEP} s at most")
    if found.lifetime == 0:
        raise ArgumentError("lifetime is 0: give seconds, or None for no end")
    if found.slice is not None and found.slice < SHORTEST_SLICE:
        raise ArgumentError(
            f"slice is {slice!r}: give at least {SHORTEST_SLICE} seconds, since each slice takes a launch "
            "(3 to 4 us), or None for a kernel that stays until the service stops"
        )
    if found.nap_after is not None and found.nap_after < SHORTEST_NAP_AFTER:
        raise ArgumentError(
            f"nap_after is {nap_after!r}: give at least {SHORTEST_NAP_AFTER} seconds, since a call that wakes "
            "takes 7 to 9 us, or None for a kernel that never naps"
        )
    if found.park_after is not None and found.park_after < SHORTEST_PARK_AFTER:
        raise ArgumentError(
            f"park_after is {park_after!r}: give at least {SHORTEST_PARK_AFTER} seconds, since a call that "
            "finds the service parked takes tens of us, or None for one that is never parked"
        )
    if found.slice and found.lifetime and found.slice > found.lifetime:
        raise ArgumentError(
            f"slice is {found.slice} s and lifetime {found.lifetime} s: a slice is a part of it, so make "
            "it shorter"
        )
    return found


def _count(value: Any, what: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise ArgumentError(f"{what} is {value!r}: give a whole number from {low} to {high}")
    return int(value)


def _seconds(value: Any, what: str) -> float:
    try:
        seconds = -1.0 if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise ArgumentError(f"{what} is {value!r}: give seconds, 0 or more")
    return seconds
