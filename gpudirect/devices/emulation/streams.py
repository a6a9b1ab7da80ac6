"""Streams of the emulated device: worker threads, so that a missing synchronisation shows."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from ... import _native
from ..._keeper import keeper
from ...errors import DeviceError
from ..streams import Event, Now, Queue, at_once
from .client import StreamConnection

if TYPE_CHECKING:
    from ..emulated import EmulatedDevice


class EmulatedEvent(Event):
    """A place among the stream's jobs. It is reached when the stream says that so many are done:
    one word tells both, as with a GPU, where a stream whose last event is over is idle."""

    def __init__(self, queue: EmulatedQueue, timing: bool) -> None:
        self.device: EmulatedDevice = queue.device
        self.timing = timing
        # not a threading.Event: where a signal's handler raises in its wait(), its lock may stay held,
        # and the worker would wait for that in set()
        self._gate = threading.Lock()
        self._gate.acquire()
        self._reached = False
        self._at = 0.0
        self._place = 0
        self._queue = queue
        queue.submit(self._arrive)

    def _arrive(self) -> Callable[[], None]:
        """The worker's. What it gives is called once the stream counts it as done."""
        self._at = time.perf_counter()
        self._place = self._queue.done + 1
        return self._open

    def _open(self) -> None:
        self._reached = True
        self._gate.release()

    def done(self) -> bool:
        return self._reached or 0 < self._place <= self._queue.done

    def wait(self) -> None:
        if self._queue.on_worker() and not self.done():
            raise DeviceError(
                "a stream of the emulated device cannot wait for itself (a finalizer, run by a "
                "garbage collection on the stream's own thread, asked it to)"
            )
        with self._gate:
            pass

    def _since(self, earlier: Any) -> float:
        return (self._at - float(earlier._at)) * 1e3


class EmulatedQueue(Queue):
    """A worker thread with a queue of its own."""

    device: EmulatedDevice

    def __init__(self, device: EmulatedDevice, number: int) -> None:
        super().__init__(device, number)
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._failure: BaseException | None = None
        self._ended = False
        self._connection: StreamConnection | None = None
        self._ident = 0  # of the worker, while it runs
        self._begun = False
        self._gone = _thread.allocate_lock()  # held as long as there is a worker
        self._all = _native.ffi.new("struct gd_work *")  # markers too, settled by the worker

    @property
    def done(self) -> int:
        """How many jobs are, of all that there ever were."""
        return int(self._all.settled)

    def submit(self, job: Callable[[], object]) -> None:
        """Queue something to do. It is done after everything queued before it.

        What it gives, if that can be called, is called after it counts as done, on the same thread.
        """
        self.device.ensure_usable()
        if not self._begun:
            keeper.run(self._begin)
        at_once(partial(_native.lib.gd_work_begin, self._all), partial(self._jobs.put, job))
        if self._ended:  # whoever waits for a stream that has just gone finds nothing left to do
            self._finish()

    def _finish(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                return
            if job is not None and callable(told := job()):
                told()

    def _begin(self) -> None:
        if self._begun:
            return
        self._gone.acquire()
        try:
            # threading's start() waits for the thread. Whatever that collects first may be a program's own
            # finalizer, which waits for the keeper, and so for us.
            _thread.start_new_thread(self._run, ())
        except RuntimeError as e:
            self._gone.release()
            raise DeviceError(f"{self.device.id}: no thread for a stream ({e}); see ulimit -u") from e
        self._begun = True

    def connection(self) -> StreamConnection:
        """The stream's line to the GPU process. Called on the worker thread only."""
        if self._connection is None:
            self._connection = self.device.process.open_stream()
        return self._connection

    def _run(self) -> None:
        self._ident = _thread.get_ident()
        try:
            self._work()
        finally:
            self._ident = 0
            self._gone.release()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            told = None
            try:
                told = job()
            except BaseException as e:
                self._failure = self._failure or e
                if (lost := self.device.process.lost) is not None:
                    self.device.lost = lost
            del job  # what it refers to goes now, and not with the next one
            _native.lib.gd_work_settle(self._all, self.done + 1)
            if callable(told):
                told()
            del told
        self._ended = True
        self._finish()
        if self._connection is not None:
            self._connection.close()

    def synchronize(self) -> None:
        if self.device.lost is not None and not self.device.forked:
            self._tell_failure()  # whoever launched what ended the device hears that, however late he asks
        self.device.ensure_usable()
        mark = _native.lib.gd_work_mark(self.work)
        if self._begun:
            EmulatedEvent(self, False).wait()
        _native.lib.gd_work_settle(self.work, mark)
        self.let_go()
        self._tell_failure()

    def _tell_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def now(self) -> Now:
        mark = _native.lib.gd_work_mark(self.work)
        if not self.idle():
            return Now.BUSY
        if self._failure is not None:
            self.synchronize()  # raises it
        _native.lib.gd_work_settle(self.work, mark)
        return Now.IDLE

    def idle(self) -> bool:
        return not _native.lib.gd_work_open(self._all)

    def record(self, timing: bool) -> EmulatedEvent:
        return EmulatedEvent(self, timing)

    def on_worker(self) -> bool:
        """Whether this is the worker's own thread."""
        return self._ident == _thread.get_ident()

    def hold(self, event: Event) -> None:
        if not event.done():
            self.submit(event.wait)

    def destroy(self) -> None:
        if self._begun and not self.device.forked:
            self._jobs.put(None)

    def end(self) -> None:
        """Destroy it when its work is done, and wait for that."""
        self.destroy()
        if self._begun:
            with self._gone:
                self._begun = False
