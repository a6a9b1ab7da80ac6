"""Futures of calls: to be waited for, asked, given a callback, or awaited in asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from ..errors import CallTimeoutError
from ._native import Call

if TYPE_CHECKING:
    from ._service import Service

AWAIT_SPIN = 10e-6
"""Seconds that ``await`` looks for the reply before it yields to the event loop: most are there."""


class Future(Call):
    """A call that was sent. ``result()`` waits for it; so does ``await``.

    Has the methods of ``concurrent.futures.Future``, but cannot be cancelled. A result that is
    never read costs nothing.
    """

    __slots__ = ("_callbacks",)

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
        """Have ``callback(future)`` called once when the call is over, on whatever thread sees it."""
        try:
            self._callbacks.append(callback)
        except AttributeError:
            self._callbacks = [callback]
        if self._watch():
            self._service._poller.watch(self)
        else:
            self._finished()

    def _finished(self) -> None:
        while self._callbacks:
            callback = self._callbacks.pop(0)
            try:
                callback(self)
            except Exception:
                import logging

                logging.getLogger("gpudirect").exception("a callback of %r failed", self)

    def __await__(self) -> Generator[Any, None, Any]:
        if not self.done() and not self._spin(AWAIT_SPIN):
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

    def __repr__(self) -> str:
        state = "over" if self.done() else "open"
        return f"<Future of {self.function} on lane {self.lane}, {state}>"
