"""One thread for a service that looks at the replies of all awaited calls. Started by the first."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from .. import _native
from ..errors import Error

if TYPE_CHECKING:
    from ._future import Future
    from ._service import Service

SPIN = 50_000  # ns that it looks without a pause; then it sleeps 50 us between looks
CHECK = 20_000_000  # ns between questions whether the service is alive


class Poller:
    """Calls ``done()`` of watched futures when they are, which runs their callbacks."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Condition()
        self._new: list[Future] = []
        self._wake = _native.ffi.new("uint32_t *")
        self._thread: threading.Thread | None = None
        self._end = False

    def watch(self, future: Future) -> None:
        """Look after a call until it is over."""
        with self._lock:
            self._new.append(future)
            self._wake[0] += 1
            if self._thread is None:
                self._end = False
                self._thread = threading.Thread(
                    target=self._run, name="gpudirect futures", daemon=True
                )
                self._thread.start()
            self._lock.notify()

    def stop(self) -> None:
        """End the thread; what is watched is left as it is."""
        with self._lock:
            thread, self._end = self._thread, True
            self._wake[0] += 1
            self._lock.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        lib, ffi = _native.lib, _native.ffi
        wake = int(ffi.cast("uintptr_t", self._wake))
        watched: list[Future] = []
        while True:
            with self._lock:
                while not self._new and not watched and not self._end:
                    self._lock.wait()
                if self._end:
                    self._thread = None
                    self._new.clear()
                    return
                watched += self._new
                self._new.clear()
                asleep = self._wake[0]
            watched = [f for f in watched if not f.done()]
            awaited = [a for f in watched if (a := f._awaited()) is not None]
            if not awaited:
                continue
            calls = ffi.new("struct gd_awaited[]", awaited)
            code = lib.gd_lane_wait_any(calls, len(awaited), wake, asleep, SPIN, CHECK)
            if code < 0:
                try:
                    self._service._check()
                except Error:
                    watched = [f for f in watched if not f.done()]
