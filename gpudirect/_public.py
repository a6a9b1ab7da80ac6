"""The public names of gpudirect, all of them. ``gpudirect`` itself imports this when one is asked for."""

from __future__ import annotations

from . import devices
from ._attach import attach
from ._distribute import distribute
from ._host import HostView
from ._inputs import Inputs
from ._pinned import PinnedArray, pinned
from .arrays import (
    Array,
    asarray,
    empty,
    empty_like,
    full,
    full_like,
    host,
    ones,
    ones_like,
    register,
    zeros,
    zeros_like,
)
from .bridges import PageRun
from .config import defaults
from .courier import Courier, CourierInfo
from .devices import Device, Event, Stream
from .devices import get as device
from .errors import (
    ApertureError,
    ArgumentError,
    BridgeError,
    BridgeUnavailableError,
    CallError,
    CallTimeoutError,
    ClosedError,
    CompileError,
    DeviceAssertionError,
    DeviceError,
    DeviceLostError,
    DeviceNotFoundError,
    DTypeError,
    Error,
    ExportError,
    ForkError,
    FrameworkError,
    KernelError,
    KernelNotFoundError,
    LaunchError,
    NotMappableError,
    OutOfMemoryError,
    RangeError,
    RefusedArgumentError,
    RevokedError,
    ServiceError,
    SharingError,
)
from .kernels import Kernel, kernel
from .limits import Limits
from .memory import statistics
from .service import Doorbell, Future, Service, ServiceInfo


def use(*, device: Device | str | int | None = None, bridge: str | None = None) -> None:
    """Choose the device and the bridge of calls that name none; None chooses automatically.

    At start they are what $GPUDIRECT_DEVICE and $GPUDIRECT_BRIDGE say.
    Raises DeviceNotFoundError, BridgeUnavailableError or ArgumentError; then nothing changed.
    """
    from . import bridges

    chosen = devices.get(device)
    bridges.choose(chosen, bridge)
    defaults.device, defaults.bridge = None if device is None else chosen.id, bridge


def stream(device: Device | str | int | None = None) -> Stream:
    """A new stream on a device, independent of all others: ``with stream:`` makes it current."""
    return devices.get(device).stream()


def trim() -> None:
    """Give all unused memory back: device memory, mappings, page-locked host memory.

    Waits for kernels that may still use what was freed.
    """
    from . import memory
    from ._pinned import trim as trim_pinned

    memory.trim()
    trim_pinned()


def synchronize(device: Device | str | int | None = None) -> None:
    """Wait for all work queued through gpudirect on a device. Raises what went wrong in it."""
    devices.get(device).synchronize()


def calibrate(device: Device | str | int | None = None, bridge: str | None = None) -> Limits:
    """Measure at which sizes the mapping and DMA are faster on this machine; a few seconds.

    What was found is in force at once and kept for later processes. An interruption changes
    nothing. Raises ArgumentError when it cannot be kept: it is in force then all the same.
    """
    from .calibration import calibrate as measure_and_keep

    return measure_and_keep(devices.get(device), bridge)[0]


def get_limits(device: Device | str | int | None = None, bridge: str | None = None) -> Limits:
    """The sizes in force, at which ``write`` and ``read`` change their path."""
    from . import bridges
    from ._transfer import paths

    on = devices.get(device)
    return paths.of(on, bridges.choose(on, bridge)).limits


def set_limits(limits: Limits, device: Device | str | int | None = None,
               bridge: str | None = None) -> None:
    """Put limits of your own into force in this process, also for arrays that exist."""
    from . import bridges
    from ._transfer import paths

    if not isinstance(limits, Limits):
        raise ArgumentError(f"limits is {limits!r}: give gpudirect.Limits(...)")

    on = devices.get(device)
    paths.of(on, bridges.choose(on, bridge)).limits = limits


__all__ = [
    "ApertureError",
    "ArgumentError",
    "Array",
    "BridgeError",
    "BridgeUnavailableError",
    "CallError",
    "CallTimeoutError",
    "ClosedError",
    "CompileError",
    "Courier",
    "CourierInfo",
    "DTypeError",
    "Device",
    "DeviceAssertionError",
    "DeviceError",
    "DeviceLostError",
    "DeviceNotFoundError",
    "Doorbell",
    "Error",
    "Event",
    "ExportError",
    "ForkError",
    "FrameworkError",
    "Future",
    "HostView",
    "Inputs",
    "Kernel",
    "KernelError",
    "KernelNotFoundError",
    "LaunchError",
    "Limits",
    "NotMappableError",
    "OutOfMemoryError",
    "PageRun",
    "PinnedArray",
    "RangeError",
    "RefusedArgumentError",
    "RevokedError",
    "Service",
    "ServiceError",
    "ServiceInfo",
    "SharingError",
    "Stream",
    "asarray",
    "attach",
    "calibrate",
    "device",
    "distribute",
    "empty",
    "empty_like",
    "full",
    "full_like",
    "get_limits",
    "host",
    "kernel",
    "ones",
    "ones_like",
    "pinned",
    "register",
    "set_limits",
    "statistics",
    "stream",
    "synchronize",
    "trim",
    "use",
    "zeros",
    "zeros_like",
]
