"""Where in a service's memory its parts are. All sizes and offsets are bytes.

Device memory, all of it mapped: the control word, a relay for each lane (``struct relay`` of
before.cuh), the rings of packets, and the longer argument lists, a place for each slot. Page-locked
host memory: the rings of replies.
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
RELAY_HEAD = 48  # of `struct relay` before its arguments
RELAY_ANSWERED = 32  # offset of its `answered`


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


@dataclass(frozen=True)
class Layout:
    """Of a service with so many lanes and slots, whose longest argument list has so many bytes."""

    lanes: int
    slots: int
    longest: int

    relays = APART

    @property
    def relay(self) -> int:
        """Bytes of each relay."""
        return _up(RELAY_HEAD + max(self.longest, IN_PACKET), APART)

    @property
    def packets(self) -> int:
        return self.relays + self.lanes * self.relay

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
        return self.lanes * self.slots * REPLY

    def ring(self, lane: int, packets: int, host: int, mapped: int, device: int) -> Ring:
        """The addresses of a lane: of ``packets``, where the CPU stores them; of the ``host`` memory;
        of the device memory as ``mapped`` and as the ``device`` has it."""
        before = lane * self.slots
        arguments = self.arguments + before * self.stride
        return Ring(
            packets + before * PACKET, host + before * REPLY, mapped + arguments, device + arguments,
            self.stride,
        )  # fmt: skip


def _up(size: int, to: int) -> int:
    return -(-size // to) * to
