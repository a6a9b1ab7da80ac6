"""Futures of calls: to be waited for, asked, given a callback, or awaited in asyncio."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import CallTimeoutError
from ._native import Call

if TYPE_CHECKING:
    from ._service import Service

AWAIT_SPIN = 10e-6
"""Seconds that ``await`` looks for the reply before it yields to the event loop: most are there."""


class _Joint:
    """Of a future in wait() or as_completed(): they hold the condition while they look, and count on
    no future coming to its end meanwhile."""

    __slots__ = ("condition", "state", "waiters")

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.state = "RUNNING"
        self.waiters: list[Any] = []


def _tell(future: Future) -> None:
    joint = future._joint
    failed = future.exception(0) is not None
    with joint.condition:
        joint.state = "FINISHED"
        for waiter in joint.waiters:
            (waiter.add_exception if failed else waiter.add_result)(future)
        joint.condition.notify_all()


class Future(Call, concurrent.futures.Future):  # type: ignore[type-arg]
    """A call that was sent. ``result()`` waits for it; so does ``await``.

    A ``concurrent.futures.Future``, so that ``concurrent.futures.wait``, ``as_completed`` and
    ``asyncio.wrap_future`` take it; but it cannot be cancelled. A result that is never read costs
    nothing.
    """

    _service: Service
    _callbacks: list[Callable[[Future], object]]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, or None. Raises CallTimeoutError when it is not over in time."""
        try:
            self.result(timeout)
        except CallTimeoutError:
            if not self.done():
                raise
            return self.exception(0)
        except Exception as e:
            return e
        return None

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

        Raises ServiceError where no thread can be started to look for that.
        """
        callbacks = self.__dict__.setdefault("_callbacks", [])
        callbacks.append(callback)
        if not self._watch():
            self._finished()
            return
        try:
            self._service._poller.watch(self)
        except BaseException:
            if callback in callbacks:
                callbacks.remove(callback)
            raise

    def _finished(self) -> None:
        """It is over. Called once by C, where it was watched, and then for each late callback."""
        callbacks = self.__dict__.get("_callbacks", [])
        while callbacks:
            try:
                callback = callbacks.pop(0)
            except IndexError:  # another thread has taken it
                return
            try:
                callback(self)
            except Exception:
                logging.getLogger("gpudirect").exception("a callback of %r failed", self)
            except BaseException:  # a signal's: the others are told all the same
                self._finished()
                raise

    def __await__(self) -> Generator[Any, None, Any]:
        if not self.done() and not self._spin(AWAIT_SPIN):
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
                    pass  # the loop is closed: nobody waits
                except BaseException:  # a signal's, and nobody would wake the loop again
                    loop.call_soon_threadsafe(wake)
                    raise

            self.add_done_callback(over)
            yield from waiter
        return self.result(0)

    def _spin(self, seconds: float) -> bool:
        try:
            self.result(seconds)
        except CallTimeoutError:
            return self.done()
        except Exception:
            pass
        return True

    # -- what concurrent.futures looks at in its futures: made where it does ----------------------

    @property
    def _joint(self) -> _Joint:
        mine = _Joint()
        joint: _Joint = self.__dict__.setdefault("_joined", mine)
        if joint is mine:
            try:
                self.add_done_callback(_tell)
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
