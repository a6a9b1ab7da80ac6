"""Futures of calls: to be waited for, asked, given a callback, or awaited in asyncio."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, NoReturn

from ._native import Call

if TYPE_CHECKING:
    from ._service import Service

AWAIT_SPIN = 10e-6
"""Seconds that ``await`` looks for the reply before it yields to the event loop: most are there."""


class _Joint:
    """Of a future in wait() or as_completed(): they hold the condition while they look, and count on
    no future coming to its end meanwhile."""

    __slots__ = ("condition", "lock", "state", "told", "waiters")

    def __init__(self) -> None:
        # taken itself: where a signal's handler raises in the condition's own __enter__ it stays held
        self.lock = threading.RLock()
        self.condition = threading.Condition(self.lock)
        self.state = "RUNNING"
        self.waiters: list[Any] = []
        self.told: list[Any] = []


def _tell(future: Future) -> None:
    joint = future._joint
    with joint.lock:
        joint.state = "FINISHED"
        for waiter in joint.waiters:
            if waiter not in joint.told:  # by a call of this that a signal's handler ended
                (waiter.add_exception if future._failed() else waiter.add_result)(future)
                joint.told.append(waiter)
        joint.condition.notify_all()


class Future(Call, concurrent.futures.Future):  # type: ignore[type-arg]
    """A call that was sent. ``result()`` waits for it; so does ``await``.

    A ``concurrent.futures.Future``, so that ``concurrent.futures.wait``, ``as_completed`` and
    ``asyncio.wrap_future`` take it; but it cannot be cancelled. A result that is never read costs
    nothing.
    """

    _service: Service

    def cancel(self) -> bool:
        """False: a call that was sent cannot be taken back."""
        return False

    def cancelled(self) -> bool:
        """False."""
        return False

    def running(self) -> bool:
        """Whether it is not over."""
        return not self.done()

    def add_done_callback(self, callback: Callable[[Future], object]) -> None:
        """Have ``callback(future)`` called once when the call is over, on whatever thread sees it.

        What it raises is logged, as with other futures; KeyboardInterrupt and the like are raised to
        whoever called there. Raises ServiceError where no thread can be started to look for the end.
        """
        self._add(callback, again=False)

    def _add(self, callback: Callable[[Future], object], again: bool) -> None:
        try:
            if self._watch(callback, again):
                self._service._poller.watch(self)
        except BaseException:
            self._forget(callback)
            raise

    def _log(self, error: BaseException) -> None:
        """Of a callback. Called by C."""
        logging.getLogger("gpudirect").error("a callback of %r failed", self, exc_info=error)

    def __await__(self) -> Generator[Any, None, Any]:
        if not self.done() and not self._wait(AWAIT_SPIN):
            import asyncio  # slow to import, and here already with whoever runs a loop of it

            loop = asyncio.get_running_loop()
            waiter = loop.create_future()

            def wake() -> None:
                if not waiter.done():
                    waiter.set_result(None)

            def over(_: Future) -> None:
                try:
                    loop.call_soon_threadsafe(wake)
                except RuntimeError:
                    if not loop.is_closed():
                        raise
                    # else nobody waits

            self._add(over, again=True)
            yield from waiter
        return self.result(0)

    # -- what concurrent.futures looks at in its futures: made where it does ----------------------

    @property
    def _joint(self) -> _Joint:
        mine = _Joint()
        joint: _Joint = self.__dict__.setdefault("_joined", mine)
        if joint is mine:
            try:
                self._add(_tell, again=True)
            except BaseException:
                del self.__dict__["_joined"]
                raise
        return joint

    @property
    def _state(self) -> str:  # type: ignore[override]
        return self._joint.state

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        return self._joint.condition

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        return self._joint.waiters

    def set_running_or_notify_cancel(self) -> NoReturn:
        """Raises InvalidStateError: the device runs the call."""
        raise concurrent.futures.InvalidStateError(f"{self!r} gets its result from the device")

    def set_result(self, result: Any) -> NoReturn:
        """Raises InvalidStateError: the device sets it."""
        self.set_running_or_notify_cancel()

    def set_exception(self, exception: BaseException | None) -> NoReturn:
        """Raises InvalidStateError: the device sets it."""
        self.set_running_or_notify_cancel()

    def __repr__(self) -> str:
        state = "over" if self.done() else "open"
        return f"<Future of {self.function} on lane {self.lane}, {state}>"
