"""Where in a service's memory its parts are. All sizes and offsets are bytes.

Device memory, all of it mapped: the control word, what launches count (``struct gd_ends`` of ends.cuh),
a board for each lane (``struct board`` of offered.cuh), the rings of packets, and the longer argument
lists, a place for each slot. Page-locked host memory: the rings of replies, and the words that tell
how far the launches are (p2pmod-lane.h).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .. import _native

PACKET: int = _native.lib.P2PMOD_PACKET_BYTES
IN_PACKET: int = _native.lib.P2PMOD_PACKET_ARGUMENTS  # bytes of arguments
REPLY: int = _native.lib.P2PMOD_REPLY_BYTES
WORD = 4
LINE = 64
APART = 256  # what different parties write is so far apart


class Ring(NamedTuple):
    """A lane's addresses, as calls are sent."""

    packets: int
    replies: int
    arguments: int
    """Of longer argument lists, for the CPU."""
    arguments_device: int
    """The same for the device."""
    stride: int
    """Bytes from one slot's arguments to the next; 0: there are none that long."""
    told: int
    """Of the words that tell whether the kernel naps; 0: it never does."""
    wake: int
    """Of the wake word, for the CPU."""
    park: int
    """Of a ``struct gd_park``; 0: the kernel is never parked."""


@dataclass(frozen=True)
class Layout:
    """Of a service with so many lanes and slots, whose longest argument list has so many bytes."""

    lanes: int
    slots: int
    longest: int

    ends = LINE
    boards = APART
    board = 1280  # bytes of each, as offered.cuh asserts

    @property
    def packets(self) -> int:
        return self.boards + self.lanes * self.board

    @property
    def arguments(self) -> int:
        return self.packets + self.lanes * self.slots * PACKET

    @property
    def stride(self) -> int:
        return _up(self.longest, LINE) if self.longest > IN_PACKET else 0

    @property
    def device_bytes(self) -> int:
        """Of all the device memory."""
        return self.arguments + self.lanes * self.slots * self.stride

    @property
    def host_bytes(self) -> int:
        """Of all the host memory."""
        return self.told + LINE

    @property
    def told(self) -> int:
        """In the host memory: P2PMOD_TOLD_WORDS words of p2pmod-lane.h."""
        return self.lanes * self.slots * REPLY

    def ring(
        self, lane: int, packets: int, host: int, mapped: int, device: int, wake: int, park: int
    ) -> Ring:
        """The addresses of a lane: of ``packets``, where the CPU stores them; of the ``host`` memory;
        of the device memory as ``mapped`` and as the ``device`` has it; of the ``wake`` word, 0 where
        the kernel does not nap; of what tells that it is parked."""
        before = lane * self.slots
        arguments = self.arguments + before * self.stride
        return Ring(
            packets + before * PACKET, host + before * REPLY, mapped + arguments, device + arguments,
            self.stride, host + self.told if wake else 0, wake, park,
        )  # fmt: skip


def packet_store() -> tuple[int, str]:
    """(number, words) of how this CPU stores a packet."""
    lib, ffi = _native.lib, _native.ffi
    lane = ffi.new("struct gd_lane *")
    lane.slots, lane.packets, lane.replies = 2, 64, 64
    lib.gd_lane_init(lane)
    one = lane.store == lib.GD_LANE_LINE
    words = "one 64-byte store (MOVDIR64B)" if one else "words, a fence, then the first and the last"
    return int(lane.store), words


def _up(size: int, to: int) -> int:
    return -(-size // to) * to
