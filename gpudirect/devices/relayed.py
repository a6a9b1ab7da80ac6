"""Resident kernels that end by themselves after a slice, each with its successor queued behind it.

What waits until nothing runs on a device, in any library of the process, waits for a slice then,
and not for ever. ``Device.relay`` starts one; _native/relay.h tells how launches follow one another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import Error

if TYPE_CHECKING:
    from .base import Function
    from .streams import Stream


@dataclass(frozen=True)
class Launch:
    """How a resident kernel is launched, again and again."""

    function: Function
    stream: Stream
    grid: int
    """Blocks."""
    threads: int
    """Of a block."""
    cooperative: bool
    """All blocks must be resident at once."""
    arguments: bytes
    """The argument block, of which each launch has three numbers of its own:"""
    turn_at: int
    """Offset of how often it was launched, this time included, 4 bytes."""
    round_at: int
    """Offset of the number of the round, 4 bytes."""
    slice_at: int
    """Offset of its slice in ns, 8 bytes: the shortest of the device's resident kernels."""
    slice: float
    """Seconds that it asks for."""
    told: int
    """CPU address of the words in which the kernel tells what it has done (p2pmod-lane.h)."""
    wake: tuple[int, int]
    """The device's wake word, for the CPU and for the device; (0, 0): no naps."""
    nap_after: float
    """Seconds without calls after which the kernel ends before its slice is over; 0: never."""
    park_after: float
    """Seconds without calls after which it is launched no more until the next; 0: never."""

    @property
    def pace(self) -> float:
        """Seconds after which it may have ended: so often it is to be looked at."""
        return min(self.slice, self.nap_after or self.slice)


class Relayed(ABC):
    """A resident kernel that is launched again and again."""

    @property
    @abstractmethod
    def slices(self) -> int:
        """Launches that were queued so far."""

    @property
    @abstractmethod
    def late(self) -> int:
        """Launches that were queued when the one before had ended: calls waited meanwhile."""

    @property
    @abstractmethod
    def naps(self) -> bool:
        """Whether it leaves the device when it has no calls, and is woken by the wake word."""

    @property
    @abstractmethod
    def parked(self) -> bool:
        """Whether nothing of it is queued, until somebody calls."""

    @property
    @abstractmethod
    def parks(self) -> int:
        """How often it was parked."""

    @property
    @abstractmethod
    def napped(self) -> float:
        """Seconds that it napped, to within a slice for each time."""

    @property
    @abstractmethod
    def park(self) -> int:
        """Address of the ``struct gd_park`` (_native/lane.h) for those who send calls."""

    @abstractmethod
    def stay(self) -> None:
        """It is parked no more: others than threads of this process may send calls."""

    @abstractmethod
    def failure(self) -> Error | None:
        """What ended it, of its own or of the whole device."""

    @abstractmethod
    def start(self) -> None:
        """Go on launching. Raises DeviceError."""

    @abstractmethod
    def hold(self) -> None:
        """Launch it no more. What is queued still runs, and ends when the kernel is told to."""

    @abstractmethod
    def wake(self) -> None:
        """Let what is queued begin."""
