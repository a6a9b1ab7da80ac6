"""Device memory for other libraries: the CUDA array interface and DLPack.

What they queue comes after what was queued here: their stream waits for ours, the CPU does not.
"""

from __future__ import annotations

import contextlib
from typing import Any

from .. import _native
from ..devices import Device, Stream
from ..dtypes import typestr
from ..errors import ArgumentError, ExportError
from ..extent import Extent
from . import _dlpack

NO_ORDER = -1  # DLPack: the consumer sees to the order itself
AMBIGUOUS = 0  # DLPack and the array interface: which default stream?


def _order(device: Device, consumer: Stream) -> None:
    """What is queued on a stream from now on comes after all that was queued on the device."""
    for queue in device.pending_queues():
        if queue is not consumer.queue:
            consumer.wait(queue.record(False))


def array_interface(extent: Extent) -> dict[str, Any]:
    """``__cuda_array_interface__``, version 3. Raises AttributeError for emulated memory."""
    device = extent.memory.device
    if device.emulated:
        raise AttributeError("this memory is emulated: no CUDA library can use it (np.asarray can)")
    extent.memory.exported = True
    _native.lib.gd_fence()  # the consumer launches without us
    found = {
        "version": 3,
        "data": (extent.address, False),
        "shape": extent.shape,
        "strides": extent.distinct,
        "typestr": typestr(extent.dtype),
        "stream": _stream_to_wait_for(device),
    }
    with contextlib.suppress(ValueError):  # fields that overlap have no description
        found["descr"] = extent.dtype.descr
    return found


def _stream_to_wait_for(device: Device) -> int | None:
    """The stream that a consumer must wait for; None where nothing is queued."""
    queues = device.pending_queues()
    if len(queues) == 1 and not queues[0].retired:
        return queues[0].handle or _dlpack.LEGACY_STREAM
    if not queues:
        return None
    _order(device, device.default_stream)
    return _dlpack.LEGACY_STREAM


def dlpack_device(extent: Extent) -> tuple[int, int]:
    """(DLPack device type, number). Emulated memory is the CPU's, and says so."""
    device = extent.memory.device
    return (_dlpack.CPU, 0) if device.emulated else (_dlpack.CUDA, device.ordinal)


def dlpack(
    extent: Extent,
    stream: Any,
    max_version: tuple[int, int] | None,
    dl_device: tuple[int, int] | None,
    *,
    copied: bool,
) -> object:
    """A DLPack capsule that keeps the memory. Raises ExportError, DTypeError, ArgumentError."""
    memory, device = extent.memory, extent.memory.device
    there = dlpack_device(extent)
    try:
        asked = None if dl_device is None else (int(dl_device[0]), int(dl_device[1]))
        max_version = None if max_version is None else (int(max_version[0]), int(max_version[1]))
    except (TypeError, ValueError, LookupError, OverflowError):
        raise ArgumentError(
            f"dl_device={dl_device!r}, max_version={max_version!r}: give two numbers each"
        ) from None
    if asked is not None and asked != there:
        raise ExportError(f"the memory is on {device.id}, DLPack's {there}, and not on {dl_device}")
    code, bits = _dlpack.code_of(extent.dtype)
    itemsize = extent.itemsize
    if any(s % itemsize for s in extent.strides):
        raise ExportError(
            f"DLPack counts strides in elements, and {extent.strides} bytes are no whole number of "
            f"{extent.dtype} ({itemsize} bytes): export a.copy()"
        )
    versioned = max_version is not None and max_version >= (1, 0)
    flags = _dlpack.COPIED if copied else 0
    if bits < 8:
        if max_version is None or max_version < _dlpack.VERSION:
            raise ExportError(
                f"{extent.dtype} lies in a byte each, and only DLPack {_dlpack.VERSION} can say so; "
                f"the consumer takes {max_version}"
            )
        flags |= _dlpack.PADDED
    if device.emulated and not extent.mapped:
        raise ExportError("this emulated memory is not mapped, so nobody has an address of it")
    _before(device, stream)
    memory.exported = True
    _native.lib.gd_fence()
    address = extent.host if device.emulated else extent.address
    return _native.lend(
        memory, address, extent.shape, tuple(s // itemsize for s in extent.strides),
        (code, bits), *there, versioned, flags,
    )  # fmt: skip


def _before(device: Device, stream: Any) -> None:
    """What was queued on the device comes before what the consumer will do on ``stream``."""
    if device.emulated:
        if device.pending:
            device.synchronize()  # its consumers run on the CPU, at once
        return
    if stream is not None and stream == AMBIGUOUS:
        raise ExportError("stream=0 is ambiguous: give 1 for the legacy default stream, 2 for the "
                          "thread's, or a handle")  # fmt: skip
    if stream is None or stream != NO_ORDER:
        _order(device, device.adopt_stream(_dlpack.LEGACY_STREAM if stream is None else stream))
