"""Devices: finding them, opening each once, and the choice among them."""

from __future__ import annotations

import atexit
import functools
import os
import threading

from ..config import defaults
from ..errors import ArgumentError, DeviceNotFoundError
from . import cuda, emulated
from .base import (
    Aperture,
    Device,
    DeviceMemory,
    Function,
    HostMemory,
    Ordering,
    Parameter,
)
from .relayed import Launch, Relayed
from .streams import Event, Marker, Now, Queue, Stream

_opened: dict[str, Device] = {}
_lock = threading.RLock()


def _open(kind: str, ordinal: int) -> Device:
    key = f"{kind}:{ordinal}"
    with _lock:
        if key not in _opened:
            make = cuda.CudaDevice if kind == "cuda" else emulated.EmulatedDevice
            _opened.setdefault(key, make(ordinal))  # a collection may have opened it meanwhile
        return _opened[key]


def cuda_reason() -> str | None:
    """Why there is no CUDA device here; None when there is one."""
    try:
        cuda.count()
    except DeviceNotFoundError as e:
        return str(e)
    return None


@functools.cache
def _default() -> str:
    return "emulated:0" if cuda_reason() else "cuda:0"


def available() -> list[Device]:
    """Every device of this machine: the GPUs, then the emulated ones."""
    gpus = 0 if cuda_reason() else cuda.count()
    return [
        *(_open("cuda", n) for n in range(gpus)),
        *(_open("emulated", n) for n in range(emulated.count())),
    ]


def get(which: Device | str | int | None = None) -> Device:
    """A device by "cuda", "cuda:1", "emulated", an ordinal, a UUID or a PCI address.

    None: what ``gpudirect.use`` or $GPUDIRECT_DEVICE says, else the first GPU, else the emulated device.
    Raises DeviceNotFoundError with what there is.
    """
    if isinstance(which, Device):
        return which
    if which is None:
        which = defaults.device or _default()
    if type(which) is str and which in _opened:
        return _opened[which]
    if isinstance(which, int):
        which = f"emulated:{which}" if cuda_reason() else f"cuda:{which}"
    if not isinstance(which, str):
        raise ArgumentError(f"{which!r} names no device: give 'cuda:0', a UUID or a PCI address")
    kind, _, number = which.partition(":")
    if kind in ("cuda", "emulated") and (number.isdecimal() or not number):
        if kind == "cuda" and (reason := cuda_reason()):
            raise DeviceNotFoundError(
                f"no CUDA device: {reason.rstrip('.')}. Without a GPU, GPUDIRECT_DEVICE=emulated runs "
                "everything in software."
            )
        return _open(kind, int(number or 0))
    wanted = which.lower()
    for device in available():
        names = {device.uuid.lower(), device.pci_address, device.pci_address[-7:]}
        if wanted in names or (len(wanted) >= 8 and device.uuid.lower().startswith(wanted)):
            return device
    there = "; ".join(f"{d.id} = {d.uuid} at {d.pci_address}" for d in available())
    raise DeviceNotFoundError(f"there is no device {which!r}. There are: {there}")


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    for device in _opened.values():
        device.forked = True
        if isinstance(device, emulated.EmulatedDevice):
            device.forget()
    _opened.clear()
    _default.cache_clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


@atexit.register
def _close_all() -> None:
    for device in _opened.values():
        if not device.forked:
            device.close()


__all__ = [
    "Aperture",
    "Device",
    "DeviceMemory",
    "Event",
    "Function",
    "HostMemory",
    "Launch",
    "Marker",
    "Now",
    "Ordering",
    "Parameter",
    "Queue",
    "Relayed",
    "Stream",
    "available",
    "cuda_reason",
    "get",
]
