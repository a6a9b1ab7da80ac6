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
        self._thread: threading.Thread | None = None

    def watch(self, future: Future) -> None:
        """Look after a call until it is over. Raises ServiceError where no thread can be started."""
        with self._lock:
            if self._looking is None:
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
                self._looking, self._thread = looking, thread
            self._looking.tell(future)

    def stop(self) -> None:
        """End the thread; what is watched is left as it is. The next call to watch starts another."""
        with self._lock:
            looking, self._looking = self._looking, None
            thread, self._thread = self._thread, None
        if looking is not None and thread is not None:
            looking.end = True
            looking.tell(None)
            if thread is not threading.current_thread():  # a callback may stop its service
                thread.join()


def _look(looking: _Looking, service: weakref.ref[Service]) -> None:
    lib, ffi = _native.lib, _native.ffi
    wake = int(ffi.cast("uintptr_t", looking.wake))
    watched: list[Future] = []
    while not looking.end:
        asleep = looking.wake[0]  # before the look for new calls: who gives one changes it after
        watched += looking.take(wait=not watched)
        watched = [f for f in watched if not f.done()]
        awaited = [a for f in watched if (a := f._awaited()) is not None]
        if not awaited:
            continue
        calls = ffi.new("struct gd_awaited[]", awaited)
        if lib.gd_lane_wait_any(calls, len(awaited), wake, asleep, SPIN, CHECK) < 0:
            _check(service())
            watched = [f for f in watched if not f.done()]


def _check(service: Service | None) -> None:
    """Have the futures of a service that has ended fail."""
    try:
        if service is not None:
            service._check()
    except Error:
        pass
