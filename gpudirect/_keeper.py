"""The keeper: one thread that makes and unmakes what outlives a call.

Allocating and mapping memory, unmapping and freeing it take many steps. Python raises what a
signal handler raises (Ctrl-C) between any two of them, but in the main thread only. So these steps
run on a thread of their own, where nothing comes in between: they are done whole. Whoever waits for
the result may be interrupted; what was made for him is dropped then, and goes home like anything
that is dropped (``_native.Lease``).

A garbage collection runs finalizers in the middle of whatever its thread is doing. So whatever a
finalizer can reach only queues, in C, without a lock; the keeper drains.

``run`` waits for a result, ``post`` does not, ``leave`` makes a lease whose end posts. The keeper
itself never waits for the device: what may (``cuMemFreeHost``) goes to the ``patient`` one.

What is given back may be refused for a moment. So it is done again, before what comes next; who gives
something back in several steps goes on where he was.
"""

from __future__ import annotations

import _thread
import os
import sys
import warnings
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from . import _native
from .errors import DeviceLostError, Error

T = TypeVar("T")

TRIES = 3
"""How often something is given back before it is told that it cannot be."""


class _Call:
    """Something to do for a thread that waits for it."""

    __slots__ = ("arguments", "done", "error", "function", "result")

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function = function
        self.arguments = arguments
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = _thread.allocate_lock()
        self.done.acquire()

    def __call__(self) -> None:
        try:
            self.result = self.function(*self.arguments)
        except BaseException as e:
            self.error = e
        self.function = self.arguments = None  # type: ignore[assignment]
        self.done.release()


class Keeper:
    """A thread with a queue of things to do, started by the first of them."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Any] = SimpleQueue()
        self._alone = _thread.allocate_lock()  # held by the one thread there is
        self._ident = 0
        self._refused: list[tuple[Callable[[], object], int]] = []  # and how often
        self.ending = False
        """The process ends: what is dropped is left to the system."""
        self.post: Callable[[Callable[[], object]], None] = self._jobs.put
        """Have something done soon. One call in C: for finalizers, too."""

    def begin(self) -> None:
        """Start the thread, where it does not run. Raises Error when the system refuses one."""
        if self._ident:
            return
        try:
            _thread.start_new_thread(self._serve, ())
        except RuntimeError as e:
            raise Error(f"the system gives this process no further thread ({e}); see ulimit -u") from e

    def _serve(self) -> None:
        if not self._alone.acquire(blocking=False):
            return  # two were started at once
        self._ident = _thread.get_ident()
        while True:
            self._do(self._jobs.get())

    def _do(self, job: Any) -> None:
        """A function of no arguments, or a lease that came home, which stands for one."""
        if self.ending and type(job) is not _Call:
            return
        if self._refused:
            refused, self._refused = self._refused, []
            for earlier, times in refused:
                self._give_back(earlier, times)
        if type(job) is _Call:
            job()
            return
        if type(job) is _native.Lease:
            job.end()
            job = job.of
        self._give_back(job, 0)

    def _give_back(self, job: Callable[[], object], refused: int) -> None:
        try:
            job()
        except DeviceLostError:
            pass  # it took along whatever there was
        except Error as e:
            if self.ending:
                return
            if refused + 1 < TRIES:
                self._refused.append((job, refused + 1))
                return
            warnings.warn(f"giving back what was dropped failed: {e}", ResourceWarning, stacklevel=2)
        except BaseException:
            if not self.ending:  # else what it was to be given back to has just been closed
                sys.excepthook(*sys.exc_info())

    def give_back(self, job: Callable[[], object]) -> None:
        """Do what gives something back, on this thread. Where it is refused, it is done again later, and
        told by a ResourceWarning at last. No error comes out of it."""
        self._give_back(job, 0)

    def here(self) -> bool:
        """Whether this is the keeper's thread."""
        return _thread.get_ident() == self._ident

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """What a function gives, called on the keeper's thread after all that was posted before.

        On that thread itself, and where the interpreter ends, it is simply called. An interrupted
        wait leaves the keeper to finish.
        """
        if self.here() or sys.is_finalizing():
            return function(*arguments)
        self.begin()
        call = _Call(function, arguments)
        self.post(call)
        call.done.acquire()
        if call.error is not None:
            try:
                raise call.error
            finally:
                call.error = None  # no cycle through the traceback
        return call.result

    def leave(self, job: Callable[[], object]) -> Any:
        """A lease: when nobody refers to it any more, the job is done. Start the keeper before."""
        return _native.Lease(self.post, job)

    def settle(self) -> None:
        """Wait until all that was posted is done."""
        self.run(lambda: None)


keeper = Keeper()
patient = Keeper()
"""For what may wait until nothing runs on the device."""


def _after_fork_in_child() -> None:
    for each in (keeper, patient):
        Keeper.__init__(each)  # the thread is the parent's, and so is what was posted


os.register_at_fork(after_in_child=_after_fork_in_child)
