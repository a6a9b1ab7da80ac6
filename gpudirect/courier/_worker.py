"""The courier of a device: a service with functions of our own, and the seats of those who ask it."""

from __future__ import annotations

import atexit
import contextlib
import time
import weakref
from pathlib import Path
from typing import Any

from .. import _native
from .._transfer import couriers
from ..arrays import empty
from ..devices import Device
from ..errors import Error, OutOfMemoryError, ServiceError
from ..service import Service

FUNCTIONS = ("push", "pick", "put", "pack", "unpack")
ERRANDS = ("reads", "gathers", "scatters", "strided reads", "strided writes")
MOST_SEATS: int = _native.lib.GD_COURIER_SEATS
THREADS = 1024
"""Of a block. One block of 256 takes as long up to 4 KiB, and 1.3 times as long at 64 KiB (H200)."""
THREADS_EMULATED = 32
"""Each is a fibre there, and as slow as any other."""
SLOTS = 64
"""Of a lane: a few calls are under way at once."""
NAP_AFTER: float | None = 5e-3
"""Seconds without an errand after which it leaves the device."""
STOP_TIMEOUT = 5.0
"""Seconds that ``stop`` waits for errands under way."""
_OPTIONS = ("--maxrregcount=64",)  # so that 1024 threads fit


class _Calls(Service):
    """Its functions as a service, which is closed to errands while it is paused or ends."""

    _struct: Any = None

    def _close(self) -> None:
        if self._struct is not None:
            _native.lib.gd_courier_close(self._struct)

    def _pause(self) -> bool:
        was_open = self._struct is not None and self._struct.open
        self._close()
        paused = False
        try:
            paused = super()._pause()
        finally:
            if was_open and not paused:
                self._reopen()
        return paused

    def _resume(self) -> None:
        super()._resume()
        self._reopen()

    def _reopen(self) -> None:
        if self._struct is not None and self.running:
            _native.lib.gd_courier_open(self._struct)

    def _over(self, why: str, cause: BaseException | None) -> ServiceError:
        self._close()
        return super()._over(why, cause)

    def _halt(self, why: str) -> None:
        self._close()
        super()._halt(why)


class Worker:
    """What runs on a device while any Courier of it does. ``couriers.Courier`` for what moves data."""

    def __init__(self, device: Device, seats: int) -> None:
        self.device = device
        self.seats = seats
        self.threads = THREADS_EMULATED if device.emulated else THREADS
        self.shared = 0
        """Courier objects that keep it running."""
        source = (Path(__file__).parent / "courier.cuh").read_text()
        self._service = _Calls(
            source, dict.fromkeys(FUNCTIONS, "block"), lanes=seats, slots=SLOTS, threads=self.threads,
            device=device, options=_OPTIONS, nap_after=NAP_AFTER,
        )  # fmt: skip
        self.struct = _struct_of(device)
        place = _native.lib.GD_COURIER_PARTS * _native.lib.GD_COURIER_PLACE
        self._place = place
        self.device_bytes = self.host_bytes = seats * place

    def start(self) -> None:
        """Raises ServiceError, OutOfMemoryError, ApertureError."""
        with contextlib.ExitStack() as undo:
            self._staging = self.device.host_allocate(self.host_bytes)
            undo.callback(self._staging.free)
            self._lists = empty(self.device_bytes, "u1", device=self.device, mapped=True)
            undo.callback(self._lists.close)
            self._service.start()
            undo.callback(self._service.stop)
            self._fill()
            self._service._struct = self.struct
            undo.pop_all()
        _native.lib.gd_courier_ready(self.struct)
        _native.lib.gd_courier_open(self.struct)
        couriers.attach(self.device, self)
        _all.add(self)

    def _fill(self) -> None:
        struct, service = self.struct, self._service
        struct.seats = self.seats
        struct.flags = self._lists._flags
        struct.owner = self.device.ordinal + 1 if self.device.emulated else 0
        for name in FUNCTIONS:
            setattr(struct, name, service.functions[name].number)
        for i in range(len(ERRANDS)):
            struct.errands[i] = 0
        for i in range(self.seats):
            seat = struct.seat[i]
            seat.lane = service.lend(i)[0]
            seat.staging = self._staging.ptr + i * self._place
            seat.list = self._lists.host_ptr + i * self._place
            seat.list_device = self._lists.ptr + i * self._place

    @property
    def running(self) -> bool:
        return self._service.running

    @property
    def state(self) -> str:
        """"awake", "napping", "paused" or "stopped"."""
        return self._service.info.state if self.running else "stopped"

    @property
    def errands(self) -> dict[str, int]:
        """How many of each kind were begun."""
        return {name: int(self.struct.errands[i]) for i, name in enumerate(ERRANDS)}

    def check(self) -> None:
        """Raises ServiceError if the kernel has ended."""
        self._service._check()

    def stop(self) -> None:
        """Let the errands under way end, and stop. Raises ServiceError where one does not."""
        couriers.detach(self.device)
        _native.lib.gd_courier_close(self.struct)
        if not self._cleared():
            _native.lib.gd_courier_open(self.struct)
            couriers.attach(self.device, self)
            raise ServiceError(
                f"an errand of the courier of {self.device.id} was not over within {STOP_TIMEOUT} s: it "
                "was not stopped. Stop it outside of gpudirect's calls, and when nobody holds the device quiet."
            )
        _all.discard(self)
        try:
            self._service.stop()
        finally:
            self._lists.close()
            self._staging.free()

    def _cleared(self) -> bool:
        """Whether nobody sits any more. Where the kernel is no more, nobody's errand goes on."""
        end = time.monotonic() + STOP_TIMEOUT
        taken: list[int] = []
        while len(taken) < self.seats:
            taken += [i for i in range(self.seats) if i not in taken
                      and not _native.lib.gd_courier_clear(self.struct, i)]  # fmt: skip
            if len(taken) == self.seats:
                break
            try:
                self.check()
            except Error:
                return True
            if time.monotonic() > end:
                for i in taken:
                    self.struct.seat[i].taken = 0
                return False
            time.sleep(50e-6)
        return True


_structs: dict[Device, Any] = {}


def _struct_of(device: Device) -> Any:
    """``struct gd_courier *`` of a device: one for ever, since a thread may have just found it."""
    found = _structs.get(device)
    if found is None:
        found = _native.lib.gd_courier_new()
        if not found:
            raise OutOfMemoryError("no memory for a courier")
        found = _structs.setdefault(device, found)
    return found


_all: weakref.WeakSet[Worker] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Before services are stopped at exit: nobody may send to one that is."""
    for worker in tuple(_all):
        if not worker.device.forked:
            with contextlib.suppress(Exception):
                worker.stop()
