"""One thread for a service that looks at the replies of all awaited calls. Started by the first."""

from __future__ import annotations

import itertools
import queue
import threading
import weakref
from typing import TYPE_CHECKING

from .. import _native
from ..errors import Error, ServiceError

if TYPE_CHECKING:
    from ._future import Future
    from ._service import Service

SPIN = 50_000  # ns that it looks without a pause; then it sleeps 50 us between looks
CHECK = 20_000_000  # ns between questions whether the service is alive


class _Looking:
    """What a thread that looks shares with those that give it calls. Lives as long as the thread."""

    def __init__(self) -> None:
        self.new: queue.SimpleQueue[Future | None] = queue.SimpleQueue()
        self.end = False
        self.touching = threading.RLock()  # held while it looks at the service's memory
        self.wake = _native.ffi.new("uint32_t *")
        self._numbers = itertools.count(1)

    def tell(self, future: Future | None) -> None:
        """Give it a call, or nothing to look at ``end`` again. Any thread, signal or finalizer may."""
        self.new.put(future)
        self.wake[0] = next(self._numbers) & 0xFFFFFFFF

    def take(self, wait: bool) -> list[Future]:
        """The calls given since; one at least if it is to wait, and is not to end."""
        found = [self.new.get()] if wait else []
        while not self.new.empty():
            found.append(self.new.get())
        return [f for f in found if f is not None]


class Poller:
    """Calls ``done()`` of watched futures when they are, which runs their callbacks."""

    def __init__(self, service: Service) -> None:
        # the thread must not keep alive a service that everybody else has forgotten
        self._service = weakref.ref(service)
        self._lock = threading.RLock()
        self._looking: _Looking | None = None

    def watch(self, future: Future) -> None:
        """Look after a call until it is over. Raises ServiceError where no thread can be started."""
        with self._lock:
            if self._looking is None or self._looking.end:
                looking = _Looking()
                thread = threading.Thread(
                    target=_look, args=(looking, self._service), name="gpudirect futures", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError as e:
                    raise ServiceError(
                        f"no thread could be started that looks at replies ({e}): wait with "
                        "result(), or let this process have more threads (ulimit -u)"
                    ) from e
                self._looking = looking
            self._looking.tell(future)

    def stop(self) -> None:
        """Have the thread look no more; what is watched is left as it is. The next call to watch
        starts another. A callback that it is running is not waited for."""
        with self._lock:
            looking = self._looking
        if looking is not None:  # kept until it is told: a stop that was interrupted is made again
            looking.end = True
            looking.tell(None)
            with looking.touching:
                pass


def _look(looking: _Looking, service: weakref.ref[Service]) -> None:
    lib, ffi = _native.lib, _native.ffi
    wake = int(ffi.cast("uintptr_t", looking.wake))
    watched: list[Future] = []
    while not looking.end:
        asleep = looking.wake[0]  # before the look for new calls: who gives one changes it after
        watched += looking.take(wait=not watched)
        watched = [f for f in watched if not _over(f)]
        awaited = [a for f in watched if (a := f._awaited()) is not None]
        if not awaited:
            continue
        calls = ffi.new("struct gd_awaited[]", awaited)
        with looking.touching:
            if not looking.end and lib.gd_lane_wait_any(
                calls, len(awaited), wake, asleep, SPIN, CHECK
            ) < 0:  # fmt: skip
                _check(service())


def _over(future: Future) -> bool:
    """Whether it is: then it has been told, and what that raised is nobody's who called."""
    try:
        return future.done()
    except BaseException as e:
        future._log(e)
        return future.done()


def _check(service: Service | None) -> None:
    """Have the futures of a service that has ended fail."""
    try:
        if service is not None:
            service._check()
    except Error:
        pass
