"""From the start of a service to its end, and how it makes way for what needs a quiet device."""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
import weakref
from dataclasses import replace
from typing import TypeVar

from .. import _native
from .._keeper import patient
from ..arrays import Array
from ..devices import Device
from ..errors import CallTimeoutError, Error, ServiceError
from ..kernels import Kernel
from ._future import Future
from ._layout import Layout, packet_store
from ._native import Function
from ._packing import Packing
from ._poller import Poller
from ._resident import PAUSE, STOP, Resident

START_TIMEOUT = 10.0  # seconds until the kernel must answer
AWAY_TIMEOUT = 1.0  # seconds until threads inside call() have noticed: it takes milliseconds

S = TypeVar("S", bound="Living")
NOTHING = ""
"""Under this name every service answers, and does nothing."""


class Living(Packing):
    """A service's life: it runs from ``start()`` to ``stop()``, then it can be started again."""

    _kind: type[Resident] = Resident
    _kernel: Kernel
    _layout: Layout
    _bridge: str | None
    _poller: Poller
    _resident: Resident | None = None
    """There is one from ``start()`` until its memory was given back."""
    _changing = False
    """``start()`` or ``stop()`` is under way: whoever finds it so is a signal's handler in their middle."""
    _stop_wanted = False
    _half_stopped = False
    """A signal's handler raised in ``stop()``."""

    @property
    def share(self) -> float:
        """Part of the device's room for such blocks that it takes while it runs."""
        room = self._kernel._function.resident_blocks(self._options.threads)
        return self._options.all_blocks / room if room else 1.0

    @property
    def running(self) -> bool:
        """Whether calls are taken."""
        return bool(self._opened)

    def _check_device(self) -> None:
        """Raises ServiceError where the device cannot serve."""
        device, ordering, options = self.device, self.device.ordering, self._options
        if device.launches_block:
            raise ServiceError(
                f"{device.launches_block}: then every launch waits until its kernel has ended, and a "
                "service's kernel ends only when its next launch is there already. Leave it out for "
                "programs with services: they work under compute-sanitizer, and ncu profiles the same "
                "functions launched as kernels."
            )
        if not ordering.direct_writes or ordering.scope == "none":
            raise ServiceError(
                f"{device.id} does not promise a running kernel the order of the CPU's stores "
                f"(attribute 116: {int(ordering.direct_writes)}, 118: {ordering.scope!r}), which a "
                "lane relies on. Launch kernels instead."
            )
        room = self._kernel._function.resident_blocks(options.threads)
        others = sum(s.share for s in _running(device) if s is not self)
        if options.all_blocks > room * (1 - others):
            taken = f", of which services that run hold {others:.0%}" if others else ""
            raise ServiceError(
                f"{options.all_blocks} blocks of {options.threads} threads ({options.lanes} lanes of "
                f"{options.blocks}) must be resident at once; {device.id} holds {room}{taken}. Ask for "
                "fewer lanes, blocks or threads."
            )

    # -- start --------------------------------------------------------------------------------

    def start(self: S) -> S:
        """Launch the resident kernel, and see every lane answer. Raises ServiceError if it does not."""
        self.device.ensure_usable()  # first: in a child the lock may be held for ever
        with self.device.residents_lock:
            if self._half_stopped:
                self.stop()
            if self._opened:
                raise ServiceError("the service runs already")
            if self._changing:
                raise ServiceError("the service is about to be started or stopped, in the middle of which "
                                   "a signal's handler or a callback starts it")  # fmt: skip
            if self._resident is not None:
                raise ServiceError(f"the service cannot be started again: {self._end}")
            self._check_device()
            patient.begin()  # who stops it if it is dropped
            try:
                self._changing = True
                self._resident = self._kind(self._kernel, self._layout, self._options, self._bridge)
                self._launch(self._resident)
                self._open_lanes(self._resident)
                self.device.residents.add(self)
                _all.add(self)
                self._greet()
            except BaseException:
                with contextlib.suppress(Error):
                    self._halt("it did not start")
                raise
            finally:
                self._changing = False
            if self._stop_wanted:
                self.stop()
        return self

    def _launch(self, resident: Resident) -> None:
        resident.launch()
        self._end, self._stopping = None, False

    def _open_lanes(self, resident: Resident) -> None:
        lanes = tuple(resident.ring(n) for n in range(self._options.lanes))
        functions = {
            s.name: Function(
                s.name, Array, s.number, s.size, s.result.kind, s.result.size,
                tuple((p.kind, p.size, p.offset) for p in s.parameters),
            )
            for s in self.functions.values()
        }  # fmt: skip
        nothing = _native.lib.P2PMOD_FUNCTION_NOTHING
        functions[NOTHING] = Function(NOTHING, Array, nothing, 0, "v", 0, ())
        self._open(
            lanes, self._options.slots, resident.memory._flags, packet_store()[0], functions,
            self.device, Future,
        )  # fmt: skip

    def _greet(self) -> None:
        for lane in range(self._options.lanes):
            try:
                self.call(NOTHING, lane=lane, timeout=START_TIMEOUT)
            except CallTimeoutError:
                raise ServiceError(
                    f"the resident kernel did not answer within {START_TIMEOUT} s of its launch: other "
                    f"work seems to hold {self.device.id}"
                ) from None

    # -- end ----------------------------------------------------------------------------------

    def stop(self) -> None:
        """End the service: what was called is answered or fails, its memory goes back. Safe twice.

        A function that runs is waited for, ``stop_timeout`` seconds at most; then ServiceError, and
        the kernel and its memory stay until it ends, with this process at the latest. A signal's handler
        that interrupts ``start()`` or ``stop()`` has it stopped at their end.
        """
        if self.device.forked:
            return
        with self.device.residents_lock:
            if self._changing:
                self._stop_wanted = True  # when that is done
                return
            if self._resident is None:
                return
            try:
                self._half_stopped, self._changing = False, True
                self._halt("it was stopped")
            except Error:
                raise
            except BaseException:  # of a signal's handler: what was begun is ended by somebody else
                self._half_stopped = True
                self._have_stopped()
                raise
            finally:
                self._changing = self._stop_wanted = False

    def _halt(self, why: str) -> None:
        """End the kernel, fail what is open, give everything back. One that was interrupted is made again."""
        resident, failure = self._resident, None
        self._stopping = True
        if resident is not None and resident.launched:
            resident.end(STOP)
            if not resident.await_end(self._options.stop_timeout):
                failure = (
                    f"a function did not end within {self._options.stop_timeout} s of the service's "
                    f"stop. It holds {self._options.all_blocks} blocks of {self.device.id} until it "
                    "does, or this process ends."
                )
            else:
                resident.make_way()  # it is not told again: its memory may go back by half
        self._end = failure or why
        kept: list[object] | None = None if failure is None else []
        self._shut(ServiceError(f"the service is over: {self._end}"), kept)
        self._poller.stop()
        self.device.residents.discard(self)
        _all.discard(self)
        if failure is not None:  # the function may still use all of it
            _kept.append((resident, kept))
            raise ServiceError(failure)
        if resident is None:
            return
        end = time.monotonic() + AWAY_TIMEOUT
        while self._waiting and time.monotonic() < end:
            time.sleep(200e-6)
        self._when_left(resident.give_back)  # the last one in there does, a callback's thread say
        self._resident = None

    def _check(self) -> None:
        """Raises ServiceError if the kernel has ended. Called by threads that wait for a reply."""
        if self.device.forked:
            self.device.ensure_usable()
        if not self._opened:
            self._refuse()
        resident = self._resident
        if resident is None or self._stopping or not resident.ended():
            return
        lock = self.device.residents_lock
        if threading.get_ident() == threading.main_thread().ident:
            with lock:  # nothing else keeps a lock from staying held where a signal's handler raises
                self._judge(resident)
        elif lock.acquire(blocking=False):  # else something starts, stops or makes way: ask again
            try:
                self._judge(resident)
            finally:
                lock.release()

    def _judge(self, resident: Resident) -> None:
        """Raises ServiceError if this kernel is the service's, and has ended for good."""
        if self._resident is not resident or not self._opened or not resident.ended():
            return
        why = "the resident kernel has ended"
        cause = resident.failure()
        if cause is not None:
            why = f"the resident kernel failed: {cause}"
        elif self._options.lifetime is not None:
            why = f"its lifetime of {self._options.lifetime} s is over"
        raise self._over(why, cause)

    def _over(self, why: str, cause: BaseException | None) -> ServiceError:
        """The kernel is no more: what waits for it is told so. The exception that says it."""
        self._end = why
        failure = ServiceError(f"the service is over: {why}")
        failure.__cause__ = cause
        self.device.residents.discard(self)
        self._shut(failure, None)  # last: what those that are told raise comes out of it
        return failure

    # -- what others ask of a resident kernel: Device.quiet() ----------------------------------

    def _pause(self) -> bool:
        """End the kernel between two calls; calls sent from now on wait for ``_resume``. False: it does
        not run, or has made way already."""
        with self.device.residents_lock:
            resident = self._resident
            if not self._opened or resident is None or not resident.launched:
                return False
            resident.end(PAUSE)
            if not resident.await_end(self._options.stop_timeout):
                resident.carry_on()
                raise ServiceError(
                    f"{self.device.id} must be quiet for this, and a function of the resident service "
                    f"{self!r} did not end within {self._options.stop_timeout} s. Do it before the "
                    "service is started, or stop the service."
                )
            resident.make_way()
            return True

    def _resume(self) -> None:
        """Launch the kernel again where it was."""
        with self.device.residents_lock:
            resident = self._resident
            if not self._opened or resident is None or resident.launched:
                return
            try:
                resident.relaunch()
            except Error as e:
                raise self._over(f"it could not be resumed: {e}", e) from e

    def __enter__(self: S) -> S:
        return self if self._opened else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __del__(self) -> None:
        # a collection may have come in the middle of anything: somebody else stops it
        if self.__dict__.get("_resident") is not None and not self.device.forked:
            self._have_stopped()

    def _have_stopped(self) -> None:
        _dropped.add(self)
        patient.post(self._stop_dropped)

    def _stop_dropped(self) -> None:
        try:
            self.stop()
        finally:
            _dropped.discard(self)


_all: weakref.WeakSet[Living] = weakref.WeakSet()
_dropped: set[Living] = set()  # nobody refers to them any more; to be stopped
_kept: list[object] = []  # memory that a function that does not end may still use


def _running(device: Device) -> list[Living]:
    return [s for s in _all if s.device is device and s.running]


@atexit.register
def _stop_all() -> None:
    """At exit: a resident kernel would keep the process, or the device, from ending in peace."""
    for service in (*_all, *_dropped):
        if not service.device.forked:
            hurried = min(service._options.stop_timeout, 1.0)
            service._options = replace(service._options, stop_timeout=hurried)
            with contextlib.suppress(Exception):
                service.stop()
