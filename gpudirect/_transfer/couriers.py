"""Couriers, as what moves data knows them: errands given to a device's, and waited for.

What a courier is stands above (``gpudirect.courier``); it says here that it runs.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from .. import _native
from ..devices import Device
from ..errors import ArgumentError, Error, RangeError, ServiceError
from ..extent import Extent
from . import paths

LOOK = 20_000_000
"""ns between two looks whether the kernel lives."""
PAUSED = 10.0
"""Seconds that a forced errand waits where the device has to be quiet."""


class Courier(Protocol):
    """One that runs on a device."""

    struct: Any
    """``struct gd_courier *`` of cffi, which is never freed."""

    def check(self) -> None:
        """Raises ServiceError if its kernel is no more, DeviceError if the device is."""


_lock = threading.Lock()
_running: dict[Device, Courier] = {}
_known: dict[int, Courier] = {}  # by the address of their struct: all that ever ran


def attach(device: Device, courier: Courier) -> None:
    """From now on it is asked for what it is faster at."""
    with _lock:
        _known[_address(courier.struct)] = courier
        _running[device] = courier
        paths.lead(device, courier.struct)


def detach(device: Device) -> None:
    """Nobody new finds it. Who found it before sees that it is closed."""
    with _lock:
        _running.pop(device, None)
        paths.lead(device, _native.ffi.NULL)


def running(extent: Extent) -> Courier | None:
    """The courier of an extent's device, where it may be chosen: not for memory that can be revoked,
    of which only a mapping says so in time."""
    return None if extent.memory.revocable else _running.get(extent.memory.device)


def errand(extent: Extent, forced: bool, other: np.ndarray[Any, Any],
           begin: Callable[[Any, int, Any], int]) -> bool:
    """Have ``begin(struct, how, left)`` done: whether it was, or is to be done in another way.

    Returns when it is over, and so does what it raises: until then the device may store to ``other``.
    Raises ServiceError where it was forced and there is no courier, or it ended.
    """
    lib, device = _native.lib, extent.memory.device
    courier = _running.get(device)
    if courier is None:
        if forced:
            raise ServiceError(f"via='courier', and none runs on {device.id}: start one, "
                               "`with gpudirect.Courier():`")  # fmt: skip
        return False
    how = lib.GD_COURIER_FORCED if forced else 0
    pointer = _native.ffi.cast("char *", _native.address_of(other))
    if other.nbytes and lib.gd_locked(pointer, other.nbytes, courier.struct.owner):
        how |= lib.GD_COURIER_DIRECT
    left = _native.ffi.new("struct gd_left *")
    end = time.monotonic() + PAUSED
    while True:
        try:
            code = begin(courier.struct, how, left)
        finally:
            late = bool(left.seat)
            if late:
                _await(left, courier)
        if late:
            code = left.code
        if code != -errno.EAGAIN or not forced:
            break
        if _running.get(device) is not courier:
            raise ServiceError(f"the courier of {device.id} was closed before it could move this")
        courier.check()
        if time.monotonic() > end:
            raise ServiceError(
                f"the courier of {device.id} was not free for {PAUSED} s: somebody holds the device quiet, "
                "or gives it errands without end. Without via='courier' another way is taken."
            )
        time.sleep(1e-4)
    if code == 0:
        return True
    if forced:
        _refuse(code, extent)
    return False


def _await(left: Any, courier: Courier) -> None:
    """Until an errand is over. What a signal's handler raises is raised then."""
    raised: BaseException | None = None
    while left.seat:
        try:
            if _native.lib.gd_courier_go_on(left, LOOK) == -errno.ETIMEDOUT:
                _ensure_alive(left, courier)
        except BaseException as e:
            raised = raised or e
    if raised is not None:
        raise raised


def _ensure_alive(left: Any, courier: Courier) -> None:
    try:
        courier.check()
    except Error:
        left.code, left.seat = -errno.ESHUTDOWN, _native.ffi.NULL  # nobody sits there any more
        raise


def _late(address: int) -> None:
    """The same for C, which asks again until it is over."""
    left = _native.ffi.cast("struct gd_left *", address)
    seat = left.seat
    if seat and _native.lib.gd_courier_go_on(left, LOOK) == -errno.ETIMEDOUT:
        _ensure_alive(left, _known[_address(seat.courier)])


_native.await_with(_late)


def _refuse(code: int, extent: Extent) -> None:
    if code == -errno.E2BIG:
        raise ArgumentError(
            f"via='courier': items of more than {_native.lib.GD_COURIER_ITEM} bytes each are not for a "
            "courier; leave via out"
        )
    if code == -errno.ERANGE:
        raise RangeError(f"indices of {extent} changed while a courier was given them, and one is outside")
    raise ServiceError(
        f"the courier of {extent.memory.device.id} was stopped before it had moved everything for {extent}"
    )


def _address(struct: Any) -> int:
    return int(_native.ffi.cast("uintptr_t", struct))
