"""A lane for another process: what ``Service.share_lane`` does."""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _native
from ..arrays import Array
from ..errors import ServiceError
from ..sharing import Token
from ..sharing._owner import Share, placed, read_only, server
from ._info import declaration
from ._layout import IN_PACKET, PACKET, REPLY

if TYPE_CHECKING:
    from ._resident import Resident
    from ._service import Service


def share_lane(service: Service, lane: int) -> Token:
    """``Service.share_lane``."""
    resident = service._resident
    if resident is None or not service.running:
        service._refuse()
    assert resident is not None
    if resident.host.descriptor is None:
        raise ServiceError(f"the replies lie in memory that {service.device.id} cannot share: its driver "
                           "registers no memory of files, see service.info.host_shared")  # fmt: skip
    before = resident.shared.get(lane) if type(lane) is int else None
    sent = service._lend(lane) if before is None else _again(resident, lane, before)
    resident.stay()  # another process could not bring it back
    layout, wake = resident.layout, resident.wake_word
    ring = layout.ring(lane, layout.packets, 0, 0, resident.memory.ptr, 1, 0)
    said = {
        "mode": "call", "pid": os.getpid(), "nbytes": 0, "emulated": service.device.emulated,
        "memory": _block(resident.memory), "wake": _block(wake) if wake is not None else None,
        "host_size": resident.host.size, "ring": ring, "slots": service.slots, "sent": sent,
        "in_packet": IN_PACKET,
        "functions": [
            [s.name, s.number, s.size, s.result.kind, s.result.size,
             [(p.kind, p.size, p.offset) for p in s.parameters], declaration(s)]
            for s in service.functions.values()
        ],
    }  # fmt: skip
    descriptors: list[int] = []
    try:
        descriptors.append(read_only(os.dup(resident.host.descriptor)))
        for array in (resident.memory, wake):
            if array is not None:
                descriptors.append(array._open().memory_at(0, 1)[0].export_fd())
        share = Share(tuple(descriptors), 1, said)
        token, end = server().offer(share)
    except BaseException:
        for fd in descriptors:
            os.close(fd)
        raise
    share.end = end
    resident.shared[lane] = share
    weakref.finalize(resident.memory._open(), end).atexit = False
    return token


def _block(array: Array) -> dict[str, Any]:
    memory, offset = array._open().memory_at(0, 1)
    return placed(memory, offset, array.nbytes)


def _again(resident: Resident, lane: int, before: Share) -> int:
    """The last call of a lane whose process has ended, or never came. Raises ServiceError."""
    if before.peers:
        raise ServiceError(f"process {before.used_by} is attached to lane {lane}: one at a time")
    if before.uses:  # nobody came: the new token is the one that counts
        sent = int(before.said["sent"])
    else:
        sent = _last(resident, lane, int(before.said["sent"]))
    if before.end is not None:
        before.end()
    return sent


def _last(resident: Resident, lane: int, begin: int) -> int:
    """The number of the last call in a lane's ring, which was answered."""
    layout = resident.layout
    start, slots = layout.packets + lane * layout.slots * PACKET, layout.slots
    raw = resident.memory.read(start=start, count=slots * PACKET, synchronize=False)
    words = raw.view("<u4").reshape(slots, PACKET // 4)
    # a process killed in the middle of a packet leaves one whose ends differ: it is never run
    sequence, tag = words[:, 0], words[:, -1]
    whole = sequence[((sequence ^ tag) & 0xFFFF == 0) & (sequence != 0)]
    if not whole.size:
        return begin
    ahead = (whole - whole[0]).astype(np.int32)  # numbers wrap; those of a ring are close together
    last = int(whole[ahead.argmax()])
    at = resident.host.ptr + (lane * slots + (last & slots - 1)) * REPLY
    if ctypes.c_uint32.from_address(at + REPLY - 4).value != last:
        raise ServiceError(f"call {last} of the process that was attached to lane {lane} is still running")
    return last


assert _native.lib.P2PMOD_REPLY_BYTES == 16  # its last word is the number
