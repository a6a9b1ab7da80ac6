"""``Doorbell``: one word for a kernel that runs, and one for its answer."""

from __future__ import annotations

import errno
import os
import weakref
from typing import NoReturn

from .. import _native, devices
from .._pinned import PinnedArray, polled
from ..arrays import Array, empty
from ..devices import Device
from ..errors import ArgumentError, CallTimeoutError, ClosedError, RevokedError

LOOK = 10_000_000
"""ns of a wait between two looks for signals, and whether the device lives."""


class Doorbell:
    """A word in device memory that the CPU stores to, and one in host memory that a kernel answers in.

        bell = gd.Doorbell()
        kernel[1, 1, stream](bell.ptr, bell.answer_ptr)
        bell.ring(1)
        bell.wait(1, timeout=1.0)

    The kernel must load its word anew each time (``volatile``), and store what it answers behind a
    ``__threadfence_system()``. Both words are 0 at first. Their memory outlives the doorbell until
    everything that was queued on the device when it went has finished.
    """

    def __init__(
        self, *, bits: int = 32, device: Device | str | int | None = None, bridge: str | None = None
    ) -> None:
        if not isinstance(bits, int) or bits not in (32, 64):
            raise ArgumentError(f"bits is {bits!r}; a doorbell's words have 32 or 64")
        lib = _native.lib
        self.device = devices.get(device)
        self.bits = bits
        self._store = lib.gd_store32 if bits == 32 else lib.gd_store64
        self._wait = lib.gd_wait32 if bits == 32 else lib.gd_wait64
        # pieces of two pools: a line each at least, so that neither is disturbed by its neighbours, and
        # not handed out again before kernels have finished that may look at them
        memory = empty(64, "u1", device=self.device, bridge=bridge, mapped=True)
        memory.write(bytes(64), via="map")  # waits for nothing, as zeros() would
        answer = polled(f"u{bits // 8}", self.device)
        answer[0] = 0
        self._memory: Array | None = memory
        self._answer: PinnedArray | None = answer
        self._bell = memory.host_ptr
        _all.add(self)
        self.ptr = memory.ptr
        """Device address of the word that the kernel looks at."""
        self.answer_ptr = answer.ptr
        """Address, for the device and the CPU, of the word that the kernel answers in."""

    def ring(self, value: int) -> None:
        """Store ``value`` after all earlier stores of this thread, and send it on its way."""
        lib = _native.lib
        held = self._memory  # while C stores to it, whoever closes the doorbell meanwhile
        lib.gd_fence()
        try:
            code = self._store(self._bell, value, lib.GD_GUARDED)
        except (OverflowError, TypeError, ValueError):
            raise ArgumentError(
                f"{value!r} is no whole number of {self.bits} bits, 0 or more"
            ) from None
        if code:
            self._refuse(code)
        lib.gd_fence()
        del held

    def wait(self, value: int, timeout: float | None = None) -> None:
        """Spin until the answer is ``value``, for at most ``timeout`` seconds; 0 looks once.

        Other Python threads run meanwhile, and a signal (Ctrl-C) ends it. Raises CallTimeoutError
        with what is there instead, DeviceLostError when the device is no more.
        """
        if timeout is not None and not timeout >= 0:
            raise ArgumentError(f"timeout is {timeout!r}: give seconds, 0 or more")
        left = -1 if timeout is None or timeout > 9e9 else int(timeout * 1e9)
        while True:
            held = self._answer  # while C looks at it
            if held is None or not self._bell:
                self._refuse(0)
            ns = LOOK if left < 0 else min(left, LOOK)
            try:
                code = self._wait(self.answer_ptr, value, ns)
            except (OverflowError, TypeError):
                raise ArgumentError(
                    f"{value!r} is no whole number of {self.bits} bits, 0 or more"
                ) from None
            if not code:
                return
            if left >= 0:
                left -= ns
            if code != -errno.ETIMEDOUT or left == 0:
                self._refuse(code, f"no answer {value} within {timeout} s; it is {self.answer}")
            self.device.ensure_alive()

    @property
    def answer(self) -> int:
        """What the answer word holds now."""
        held = self._answer
        if held is None or not self._bell:
            self._refuse(0)
        return int(held[0])

    def _refuse(self, code: int, late: str = "") -> NoReturn:
        self.device.ensure_usable()
        if not self._bell:
            raise ClosedError("this doorbell was closed")
        if -code == errno.ETIMEDOUT:
            raise CallTimeoutError(late)
        if -code == errno.EFAULT:
            raise RevokedError("the doorbell's memory was revoked")
        raise ArgumentError(f"doorbell: {os.strerror(-code)}")

    def close(self) -> None:
        """Give its memory back. Safe twice, and never waits. Kernels that were queued before may
        still look at it; none queued later may."""
        self._bell = 0
        self._answer = self._memory = None

    def __enter__(self) -> Doorbell:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"at {self.ptr:#x}" if self._bell else "closed"
        mark = " (emulated)" if self.device.emulated else ""
        return f"<Doorbell of {self.bits} bits on {self.device.id}, {state}{mark}>"


_all: weakref.WeakSet[Doorbell] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """The words of the parent's doorbells are not there; others may be, at their addresses."""
    for bell in tuple(_all):
        bell._bell = 0
    _all.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
