"""What a service tells of itself."""

from __future__ import annotations

from dataclasses import dataclass

from ..devices import Parameter
from ._source import Signature


@dataclass(frozen=True)
class ServiceInfo:
    """What a service is, and what it holds while it runs."""

    device: str
    emulated: bool
    running: bool
    functions: dict[str, str]
    """Each with its declaration, in words."""
    lanes: int
    slots: int
    """Calls that each lane can hold."""
    blocks: int
    """Blocks resident on the device until the service stops."""
    threads: int
    """Threads of each block."""
    share: float
    """Of the blocks of this kind that the device can hold at once."""
    device_bytes: int
    """Device memory of rings, arguments and control words, all of it mapped."""
    host_bytes: int
    """Page-locked host memory of the replies."""
    host_shared: bool
    """Whether it lies in a file (a memfd) that another process could map. Only while it runs."""
    ordering: str
    """What the device promises a running kernel about the CPU's stores (attribute 118)."""
    packet_store: str
    """How the CPU stores a packet."""
    idle_after: float
    """Seconds without a call after which a lane sleeps between polls."""
    idle_sleep: float
    """Seconds of that sleep, at least; the device makes it up to twice as long."""
    lifetime: float | None
    """Seconds after which the kernel ends by itself, as soon as there is nothing to do."""
    slice: float | None
    """Seconds after which it makes way for its own next launch, and so for whoever waits for the
    device; None: never."""
    slices: int
    """Launches since the service was started."""
    nap_after: float | None
    """Seconds without a call after which it leaves the device until the next one; None: never."""
    park_after: float | None
    """Seconds without a call after which nothing of it is queued until the next one; None: never."""
    state: str
    """"awake", "napping", "parked", "paused" or "stopped"."""
    napped: float
    """Seconds that it napped since it was started, to within a slice for each nap."""
    parks: int
    """How often it was parked since it was started."""
    late: int
    """Of these, queued too late to follow the one before at once: calls waited a launch's time."""


def declaration(s: Signature) -> str:
    """A function's result, parameters and team in words."""

    def words(p: Parameter) -> str:
        if p.kind == "p":
            return f"{p.pointee or 'void'}*"
        return {"v": "void", "s": f"struct of {p.size} bytes"}.get(p.kind, f"{p.kind}{p.size}")

    return f"{words(s.result)} ({', '.join(map(words, s.parameters))}), by a {s.team}"
