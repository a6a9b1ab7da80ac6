"""Streams: queues of work on a device, and points in them.

    stream = gd.stream()
    with stream:                       launches that name no stream go to this one
        start = stream.record()
        kernel[grid, block](a, n)
        end = stream.record()
    end.sync()
    print(end - start, "ms")

``Stream`` is what users hold; a ``Queue`` behind it is the device's side. The queue outlives the
stream while work is queued on it.
"""

from __future__ import annotations

import enum
import operator
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import _native
from .._keeper import keeper
from ..errors import ArgumentError, ClosedError

if TYPE_CHECKING:
    from .base import Device


_call = operator.methodcaller("__call__")


def at_once(first: Callable[[], object], then: Callable[[], object]) -> None:
    """Both in one call of C: between two of Python's a signal's handler may raise, and work that was counted
    and not queued would keep the stream busy for ever."""
    # Not of tuple(): one that is being made can be seen by gc.get_objects() on another thread, and fails then.
    deque(map(_call, (first, then)), 0)


class Event(ABC):
    """A point in a stream, made by ``Stream.record``. The later minus the earlier one is the time
    between them, in milliseconds, of events recorded with ``timing``."""

    device: Device
    timing: bool
    """Whether it tells when it was reached."""

    @abstractmethod
    def done(self) -> bool:
        """Whether everything queued before has finished. Never blocks."""

    @abstractmethod
    def wait(self) -> None:
        """The CPU waits for it."""

    @property
    def is_done(self) -> bool:
        """Whether everything queued before has finished. Never blocks."""
        return self.done()

    def sync(self) -> None:
        """The CPU waits for it."""
        self.wait()

    @abstractmethod
    def _since(self, earlier: Any) -> float:
        """Milliseconds from another event to this one; both have been reached."""

    def __sub__(self, earlier: object) -> float:
        """Milliseconds from an earlier event to this one.

        Raises ArgumentError where one does not tell the time, or was not reached yet.
        """
        if not isinstance(earlier, Event):
            return NotImplemented
        if earlier.device is not self.device:
            raise ArgumentError(f"events of {self.device.id} and {earlier.device.id} have no common clock")
        for event in (earlier, self):
            if not event.timing:
                raise ArgumentError("the event tells no time: record it with timing=True")
            if not event.done():
                raise ArgumentError("the event was not reached yet: sync() it before")
        return self._since(earlier)

    def __repr__(self) -> str:
        state = "reached" if self.done() else "not reached yet"
        mark = " (emulated)" if self.device.emulated else ""
        return f"<Event of {self.device.id}{mark}, {state}>"


Marker = Event


class Now(enum.Enum):
    """What a queue is doing."""

    IDLE = 0
    BUSY = 1
    CAPTURED = 2
    """What is queued becomes part of a CUDA graph, and nothing is done."""


class Queue(ABC):
    """The device's side of a stream."""

    def __init__(self, device: Device, handle: int, owner: object = None) -> None:
        self.device = device
        self.handle = handle
        self.owner = owner
        """What keeps a stream of somebody else alive."""
        self.work = _native.ffi.new("struct gd_work *", {"device": device.work})
        self.retired = False
        """Its stream is gone: it is destroyed as soon as it is idle."""
        self._kept: dict[Event, tuple[object, ...]] = {}

    @property
    def pending(self) -> bool:
        """Whether there is work that nobody has waited for since it was queued."""
        return bool(_native.lib.gd_work_open(self.work))

    def note(self) -> None:
        """Somebody else has queued work: what goes home from now on, and who waits, waits for it."""
        at_once(partial(_native.lib.gd_work_begin, self.work), partial(_native.lib.gd_work_queued, self.work))

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until everything queued so far is done, and settle it; raises what went wrong."""

    @abstractmethod
    def idle(self) -> bool:
        """Whether nothing queued is left to do. Never blocks, and raises nothing."""

    @abstractmethod
    def now(self) -> Now:
        """What it is doing. Where it is idle, what was queued counts as waited for, and what went
        wrong in it is raised. Never blocks."""

    @abstractmethod
    def record(self, timing: bool) -> Event:
        """A point after everything queued so far."""

    @abstractmethod
    def hold(self, event: Event) -> None:
        """Have what is queued from now on wait for an event."""

    def keep(self, *objects: object) -> None:
        """Refer to objects until what is queued now is done and somebody looks: a wait does."""
        self.let_go()
        self._kept[self.record(False)] = objects

    def let_go(self) -> None:
        """Forget what was kept for work that is done."""
        for event in tuple(self._kept):
            if event.done():
                self._kept.pop(event, None)

    def capturing(self) -> bool:
        """Whether what is queued becomes part of a graph that is captured."""
        return False

    def destroy(self) -> None:  # noqa: B027 - a driver's stream goes with the last reference
        """Its stream is gone, and it is idle. Somebody may still be about to wait for it."""

    def settle_if_idle(self) -> bool:
        """Whether nothing is left to do; what was queued counts as waited for then."""
        mark = _native.lib.gd_work_mark(self.work)
        if not self.idle():
            return False
        _native.lib.gd_work_settle(self.work, mark)
        self.let_go()
        return not self.pending


@contextmanager
def counted(stream: Stream) -> Iterator[None]:
    """Around whatever queues work on a stream without C that counts it."""
    work = stream.work
    begun: list[bool] = []
    try:
        if work:
            at_once(partial(_native.lib.gd_work_begin, work), partial(begun.append, True))
        yield
    finally:
        if begun:
            _native.lib.gd_work_queued(work)


class Stream:
    """A queue of work on a device, run in order. Made by ``gpudirect.stream``.

    In a ``with`` block it is the current stream of its thread (or task): what the device does (launches,
    ``fill``, ``copy``) and names none goes there. What the CPU does (``write``, ``read``, ``scatter``)
    is in a stream's order where it says ``stream=``. Leaving the block neither waits nor closes.
    A stream that nobody refers to any more goes back to the driver once its work is done.
    """

    __slots__ = ("__weakref__", "_lease", "_queue", "_work", "device", "handle")

    device: Device
    handle: int
    """The driver's number of it. Raises ClosedError when the stream was closed."""

    def __init__(self, queue: Queue, *, owned: bool = True) -> None:
        if not isinstance(queue, Queue):
            raise ArgumentError("streams are made by gpudirect.stream")
        self._lease = keeper.leave(partial(queue.device.retire, queue)) if owned else None
        self._queue: Queue | None = queue
        self._work: Any = queue.work
        self.device = queue.device
        self.handle = queue.handle

    def __getattr__(self, name: str) -> Any:
        if name == "handle":  # close() took it away, so that an open stream pays nothing for this
            raise self._closed_error()
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"this stream of {self.device.id} was closed: make another one")

    @property
    def queue(self) -> Queue:
        """The device's side. Raises ClosedError."""
        if self._queue is None:
            raise self._closed_error()
        return self._queue

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._queue is None

    @property
    def resident(self) -> bool:
        """A kernel that waits for calls runs on it: ``Device.synchronize`` does not wait for it."""
        return self._work == _native.ffi.NULL

    @resident.setter
    def resident(self, value: bool) -> None:
        self._work = _native.ffi.NULL if value else self.queue.work

    @property
    def work(self) -> Any:
        """Where its work is counted, for C: a ``struct gd_work *``, or NULL where it is not."""
        return self._work

    def synchronize(self) -> None:
        """Wait until everything queued so far is done; raises what went wrong in it."""
        self.queue.synchronize()

    sync = synchronize

    def idle(self) -> bool:
        """Whether nothing queued is left to do. Never blocks, and raises nothing else."""
        return self.queue.idle()

    def marker(self) -> Event:
        """``record``, without the time."""
        return self.queue.record(False)

    def record(self, *, timing: bool = True) -> Event:
        """A point after everything queued so far. timing: it tells when it was reached."""
        try:
            timing = bool(timing)
        except (TypeError, ValueError):
            raise ArgumentError(f"timing is {timing!r}: give True or False") from None
        return self.queue.record(timing)

    def wait(self, what: Event | Stream) -> None:
        """Have what is queued from now on wait for an event, or for what is queued on a stream.

        The CPU does not wait. Raises ArgumentError for what is of another device.
        """
        event = what.marker() if isinstance(what, Stream) else what
        if not isinstance(event, Event):
            raise ArgumentError(f"{what!r} is nothing to wait for: give an event or a stream")
        if event.device is not self.device:
            raise ArgumentError(f"the event is of {event.device.id}, the stream of {self.device.id}")
        self.queue.hold(event)

    def close(self) -> None:
        """Wait for the work queued and give the stream back. Safe twice.

        A stream of somebody else is only let go of, and the device's default stream stays.
        """
        queue = self._queue
        if queue is None or self is self.device.default_stream:
            return
        try:
            if self._lease is not None and not self.device.forked:
                queue.synchronize()
        finally:
            self._queue = None
            self._work = _native.ffi.NULL
            del self.handle
            self._lease = None  # retires the queue

    def __enter__(self) -> Stream:
        self.queue  # noqa: B018 - raises when closed
        entered = self.device.entered
        entered.set((self, entered.get()))
        return self

    def __exit__(self, *exc: object) -> None:
        entered = self.device.entered
        top = entered.get()
        if top is not None:
            entered.set(top[1])

    def __cuda_stream__(self) -> tuple[int, int]:
        if self.device.emulated:
            raise AttributeError("this stream is emulated: no CUDA library can use it")
        return 0, self.handle

    def __repr__(self) -> str:
        mark = " (emulated)" if self.device.emulated else ""
        if self._queue is None:
            return f"<Stream of {self.device.id}, closed{mark}>"
        return f"<Stream {self.handle:#x} of {self.device.id}{mark}>"

