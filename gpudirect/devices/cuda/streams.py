"""Streams and events of CUDA: ours, and those that other libraries made."""

from __future__ import annotations

import errno
import operator
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from ... import _native
from ..._keeper import keeper
from ...errors import ArgumentError, DeviceError, Error
from ..streams import Event, Now, Queue
from ._driver import NOT_READY, check, driver

if TYPE_CHECKING:
    from .device import CudaDevice

WAIT_PIECE = int(_native.lib.GD_WAIT_PIECE)
LEGACY_STREAM = 1  # CU_STREAM_LEGACY: another name of handle 0
SPECIAL_STREAMS = {0, 1, 2}  # the default one, by each of its names
DESTROYED = {201, 400, 709}
"""What the driver says of a stream that is no more: invalid context, invalid handle, context destroyed."""
MOST_ADOPTED = 64
"""Streams of others that are remembered without looking which of them are done."""


class CudaEvent(Event):
    """A CUDA event recorded on a stream. The driver's own is used again when this one is gone."""

    def __init__(self, queue: CudaQueue, timing: bool) -> None:
        d = driver()
        self.device: CudaDevice = queue.device
        self.timing = timing
        with self.device.current():
            self._lease = self.device.events.take(timing)
            self._event = self._lease.of
            check(d.cuEventRecord(self._event, queue.handle), "recording an event")

    @property
    def handle(self) -> int:
        """The driver's number of it (CUevent), good as long as this object lives."""
        return int(self._event)

    def done(self) -> bool:
        with self.device.current():
            (code,) = driver().cuEventQuery(self._event)
        return int(code) != NOT_READY

    def wait(self) -> None:
        self.device.ensure_usable()
        functions, handle, waited = self.device.driver_functions(), self.handle, 0
        # in pieces, between which Python looks at its signals
        while (code := _native.lib.gd_driver_wait_event(functions, handle, waited)) == -errno.EAGAIN:
            waited += WAIT_PIECE
        if code:
            raise self.device.error(code, "waiting for an event")

    def _since(self, earlier: Any) -> float:
        with self.device.current():
            return float(check(driver().cuEventElapsedTime(earlier._event, self._event), "timing events"))


class CudaQueue(Queue):
    """A CUDA stream: the legacy default one (handle 0), one of ours, or an adopted one."""

    device: CudaDevice

    def __init__(self, device: CudaDevice, handle: int, *, owned: bool = False) -> None:
        super().__init__(device, handle)
        # the driver's stream goes when nobody refers to this any more: whoever is just about to
        # wait for it does
        self._lease = keeper.leave(partial(device.destroy_stream, handle)) if owned else None

    def synchronize(self) -> None:
        self.device.ensure_usable()
        lib = _native.lib
        code = lib.gd_driver_synchronize(self.device.driver_functions(), self.handle, self.work)
        if code == -errno.EAGAIN:
            mark = lib.gd_work_mark(self.work)
            try:
                self.record(False).wait()
            except DeviceError:
                lib.gd_work_settle(self.work, mark)  # it has been told, and runs no more
                raise
            lib.gd_work_settle(self.work, mark)
        elif code:
            error = self.device.error(code, "waiting for a stream")
            if not self._gone(error):
                raise error
        if self._kept:
            self.let_go()

    def now(self) -> Now:
        self.device.ensure_usable()
        mark = _native.lib.gd_work_mark(self.work)
        code = _native.lib.gd_driver_ready(self.device.driver_functions(), self.handle)
        if code == -errno.EAGAIN:
            return Now.BUSY
        if code == -errno.EBUSY:
            return Now.CAPTURED
        _native.lib.gd_work_settle(self.work, mark)
        if code:
            raise self.device.error(code, "asking a stream")
        return Now.IDLE

    def idle(self) -> bool:
        functions = self.device.driver_functions()
        return bool(_native.lib.gd_driver_query(functions, self.handle) != -errno.EAGAIN)

    def record(self, timing: bool) -> CudaEvent:
        self.device.ensure_usable()
        try:
            return CudaEvent(self, timing)
        except DeviceError as e:
            if not self._gone(e):
                raise
            ours = self.device.default_stream.queue
            assert isinstance(ours, CudaQueue)
            return CudaEvent(ours, timing)  # whatever it stood for is done

    def _gone(self, error: Error) -> bool:
        """Whether an error tells that the owner of a stream of others has destroyed it.

        Its work may still run, and nothing but the device can be asked: all of it is waited for. A context
        that is lost says so then.
        """
        theirs = self._lease is None and self.handle not in SPECIAL_STREAMS
        if not theirs or getattr(error, "code", None) not in DESTROYED:
            return False
        self._wait_for_all()
        return True

    def _wait_for_all(self) -> None:
        with self.device.quiet(), self.device.current():
            check(driver().cuCtxSynchronize(), "waiting for a stream that its owner destroyed")

    def capturing(self) -> bool:
        with self.device.current():
            code, status = driver().cuStreamIsCapturing(self.handle)
        return not int(code) and int(status) != 0

    def hold(self, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        self.device.ensure_usable()
        with self.device.current():
            found = driver().cuStreamWaitEvent(self.handle, event._event, 0)
        check(found, "having a stream wait for an event")


class Events:
    """The driver's events of a device, used again when nobody holds them any more."""

    def __init__(self) -> None:
        self._yards = {timing: _native.Yard() for timing in (False, True)}
        self._free: dict[bool, list[Any]] = {False: [], True: []}

    def take(self, timing: bool) -> Any:
        """A lease of an event; the context is current."""
        free = self._free[timing]
        if not free:
            free.extend(self._yards[timing].take())
        try:
            return free.pop()
        except IndexError:
            pass
        d = driver()
        flags = d.CUevent_flags
        flag = flags.CU_EVENT_DEFAULT if timing else flags.CU_EVENT_DISABLE_TIMING
        return _native.Lease(self._yards[timing], check(d.cuEventCreate(flag), "making an event"))


def number_of(handle: object) -> int:
    """The driver's number of a stream that another library made, 0 for the default stream.

    Raises ArgumentError for what is no stream.
    """
    number: Any = handle
    try:
        if hasattr(number, "__cuda_stream__"):
            number = number.__cuda_stream__()[1]
        elif hasattr(number, "cuda_stream"):  # torch.cuda.Stream
            number = number.cuda_stream
        elif hasattr(number, "ptr"):  # cupy.cuda.Stream
            number = number.ptr
        # the bindings' CUstream is a number by int() only
        number = int(number) if type(number).__name__ == "CUstream" else operator.index(number)
        wrong = isinstance(handle, bool) or not 0 <= number < 1 << 64
    except Exception:  # somebody else's code
        wrong = True
    if wrong:
        raise ArgumentError(
            f"{handle!r} is no stream: give gpudirect's own, an object with __cuda_stream__, "
            "or a CUstream handle as an integer"
        )
    return 0 if number == LEGACY_STREAM else number


class Adopted:
    """The queues of streams that other libraries made."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._queues: dict[int, CudaQueue] = {}

    def queue(self, number: int, owner: object) -> CudaQueue:
        """The one queue of a stream of somebody else, however often it is given."""
        found = self._queues.get(number)
        if found is None:
            if len(self._queues) >= MOST_ADOPTED:
                self._forget()
            found = self._queues.setdefault(number, CudaQueue(self._device, number))
            self._device.queues.add(found)
        found.owner = owner  # a handle is used again for another stream when its owner is gone
        return found

    def _forget(self) -> None:
        """Let go of streams that have no work left and that nobody is about to use."""
        living = self._device.queues
        for number in tuple(self._queues):
            queue = self._queues.get(number)
            if queue is None or queue.pending:
                continue
            self._queues.pop(number, None)
            living.discard(queue)
            left = weakref.ref(queue)
            del queue
            used = left()
            if used is not None:  # a launch on it is just being made
                self._queues.setdefault(number, used)
                living.add(used)
