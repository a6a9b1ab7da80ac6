"""What the two sides say to each other: one JSON object a packet, descriptors beside it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from typing import Any

PROTOCOL = 1  # of what an owner answers; _native/attach.c speaks it too
LONGEST = 64 << 10  # bytes of a packet: a structured dtype of a thousand fields fits
_CREDENTIALS = struct.Struct("3i")


def opened() -> socket.socket:
    """A socket that keeps packets apart."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def named() -> tuple[socket.socket, str]:
    """One that other processes find by its name, in the abstract namespace. Raises OSError."""
    name = "gpudirect-" + os.urandom(16).hex()
    made = opened()
    try:
        made.bind("\0" + name)
    except BaseException:
        made.close()
        raise
    return made, name


def send(to: socket.socket, descriptors: tuple[int, ...] = (), /, **said: Any) -> None:
    """Send a packet. Raises OSError."""
    socket.send_fds(to, [json.dumps(said).encode()], descriptors)


def receive(of: socket.socket, most: int = 0) -> tuple[dict[str, Any], list[int]]:
    """The next packet and at most ``most`` descriptors; ({}, []) where the other side is gone, or
    says what no side of this says. Raises OSError."""
    raw, descriptors, _, _ = socket.recv_fds(of, LONGEST, most)
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        for fd in descriptors:
            os.close(fd)
        return {}, []
    return said, descriptors


def hang_up(connection: socket.socket) -> None:
    """End it for both sides, and for who waits for a packet here. Safe twice."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def peer(of: socket.socket) -> tuple[int, int]:
    """(process, user) at the other end, as the system has it."""
    raw = of.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, user, _ = _CREDENTIALS.unpack(raw)
    return pid, user
