"""``Courier``: the object that keeps a device's courier running."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from functools import partial

from .. import devices
from .._keeper import patient
from ..devices import Device
from ..errors import ArgumentError, ServiceError
from ._worker import MOST_SEATS, Worker

SEATS = 2


@dataclass(frozen=True)
class CourierInfo:
    """What a courier is, and what it has done."""

    device: str
    emulated: bool
    running: bool
    shared: int
    """Courier objects that keep it running."""
    seats: int
    """Errands at once; each has a block of the device."""
    threads: int
    """Of a block."""
    state: str
    """"awake", "napping", "paused" or "stopped"."""
    errands: dict[str, int]
    """Begun since it started: reads, gathers, scatters, strided reads, strided writes."""
    device_bytes: int
    host_bytes: int


class Courier:
    """A worker on the device that moves data for the CPU: reads, gathers, scatters, strided copies.

        with gd.Courier():
            a.read(out)

    It runs from ``start()`` (or ``with``) to ``stop()``. While it does, ``read``, ``gather``, ``scatter``
    and ``write`` of strided arrays of the device take it where it is the fastest way, in every thread of
    the process; ``via="courier"`` makes them. One runs on a device: another Courier object shares it, and
    it stops with the last. Into memory of ``gpudirect.pinned`` it stores straight.

    device: whose; None chooses as everywhere.
    seats: errands at once, each a block of 1024 threads. Who finds none free goes another way. The first
        Courier object of a device decides.

    It makes way for others as a service does (``Service(slice=, nap_after=)``): after 5 ms without an
    errand it leaves the device, and small errands go other ways until it is back.

    Raises ArgumentError; ServiceError where the device promises a running kernel no order of the CPU's
    stores, or has no room for the blocks.
    """

    def __init__(self, device: Device | str | int | None = None, *, seats: int = SEATS) -> None:
        if isinstance(seats, bool) or not isinstance(seats, int) or not 1 <= seats <= MOST_SEATS:
            raise ArgumentError(f"seats is {seats!r}: give a whole number from 1 to {MOST_SEATS}")
        self.device = devices.get(device)
        self._seats = seats
        self._worker: Worker | None = None

    @property
    def running(self) -> bool:
        """Whether this object keeps a courier running, and it lives."""
        worker = self._worker
        return worker is not None and not self.device.forked and worker.running

    def start(self) -> Courier:
        """Start the device's courier, or share the one that runs. Raises ServiceError."""
        self.device.ensure_usable()
        with _lock:
            if self._worker is not None and self._worker.running:
                raise ServiceError("the courier runs already")
            self._worker = None
            worker = _workers.get(self.device)
            if worker is None or not worker.running:
                worker = Worker(self.device, self._seats)
                patient.begin()  # who stops it if it is dropped
                worker.start()
                _workers[self.device] = worker
            worker.shared += 1
            self._worker = worker
        return self

    def stop(self) -> None:
        """Let go of the courier; the last one to do so stops it. Errands under way are waited for.

        Safe twice. Raises ServiceError where one is not over within 5 s; the courier goes on then.
        """
        if self.device.forked:
            return
        with _lock:
            worker = self._worker
            if worker is None:
                return
            if worker.shared == 1:
                worker.stop()
                if _workers.get(self.device) is worker:
                    del _workers[self.device]
            worker.shared -= 1
            self._worker = None

    @property
    def info(self) -> CourierInfo:
        """What it is and what it has done."""
        worker = self._worker
        return CourierInfo(
            device=self.device.id, emulated=self.device.emulated, running=self.running,
            shared=worker.shared if worker else 0, seats=worker.seats if worker else self._seats,
            threads=worker.threads if worker else 0, state=worker.state if worker else "stopped",
            errands=worker.errands if worker else {},
            device_bytes=worker.device_bytes if worker else 0,
            host_bytes=worker.host_bytes if worker else 0,
        )  # fmt: skip

    def __enter__(self) -> Courier:
        return self if self.running else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        mark = " (emulated)" if self.device.emulated else ""
        state = "running" if self.running else "stopped"
        return f"<Courier of {self.device.id}{mark}, {self._seats} seat(s), {state}>"

    def __del__(self) -> None:
        # a collection may have come in the middle of anything: somebody else stops it
        worker = self.__dict__.get("_worker")
        if worker is not None and not self.device.forked:
            patient.post(partial(Courier._drop, self.device, worker))

    @staticmethod
    def _drop(device: Device, worker: Worker) -> None:
        last = Courier.__new__(Courier)
        last.device, last._seats, last._worker = device, worker.seats, worker
        last.stop()


_lock = threading.RLock()
_workers: dict[Device, Worker] = {}


def _after_fork_in_child() -> None:
    """What ran belongs to the parent."""
    global _lock
    _lock = threading.RLock()
    _workers.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
