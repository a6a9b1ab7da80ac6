"""gpudirect: CPU code writes NVIDIA GPU memory directly, and launches kernels on it.

    import gpudirect as gd

    a = gd.empty((4096, 1024), "f4")       # GPU memory, already mapped
    a.host[17, :] = row                    # CPU stores go straight to the GPU
    k = gd.kernel(source, "scale")         # CUDA C++, compiled once
    k[grid, block](a, 4096, 2.0)           # by reference; pending stores are fenced first
    out = a.read()                         # picks mapped reads or DMA by size
"""

from __future__ import annotations

from . import devices
from .arrays import Array, asarray, empty, full, register, zeros
from .bridges import PageRun
from .config import defaults
from .devices import Device, Stream
from .devices import get as device
from .errors import (
    ApertureError,
    ArgumentError,
    BridgeError,
    BridgeUnavailableError,
    ClosedError,
    CompileError,
    DeviceError,
    DeviceLostError,
    DeviceNotFoundError,
    DTypeError,
    Error,
    ForkError,
    KernelError,
    KernelNotFoundError,
    LaunchError,
    NotMappableError,
    OutOfMemoryError,
    RangeError,
    RevokedError,
)
from .host import HostView
from .kernels import Kernel, kernel
from .memory import statistics, trim

__version__ = "0.1.0"


def use(*, device: str | None = None, bridge: str | None = None) -> None:
    """Choose the device and the bridge of calls that name none; None chooses automatically.

    At start they are what $GPUDIRECT_DEVICE and $GPUDIRECT_BRIDGE say.
    Raises DeviceNotFoundError, BridgeUnavailableError or ArgumentError; then nothing changed.
    """
    from . import bridges

    bridges.choose(devices.get(device), bridge)
    defaults.device, defaults.bridge = device, bridge


def stream(device: Device | str | int | None = None) -> Stream:
    """A new stream on a device, independent of all others."""
    return devices.get(device).stream()


def synchronize(device: Device | str | int | None = None) -> None:
    """Wait for all work queued through gpudirect on a device. Raises what went wrong in it."""
    devices.get(device).synchronize()


__all__ = [
    "ApertureError",
    "ArgumentError",
    "Array",
    "BridgeError",
    "BridgeUnavailableError",
    "ClosedError",
    "CompileError",
    "DTypeError",
    "Device",
    "DeviceError",
    "DeviceLostError",
    "DeviceNotFoundError",
    "Error",
    "ForkError",
    "HostView",
    "Kernel",
    "KernelError",
    "KernelNotFoundError",
    "LaunchError",
    "NotMappableError",
    "OutOfMemoryError",
    "PageRun",
    "RangeError",
    "RevokedError",
    "Stream",
    "asarray",
    "device",
    "empty",
    "full",
    "kernel",
    "register",
    "statistics",
    "stream",
    "synchronize",
    "trim",
    "use",
    "zeros",
]
