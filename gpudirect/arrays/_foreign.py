"""Arrays on device memory that others allocated."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from .. import _allocator, bridges, devices
from .._host import HostView
from ..arguments import as_shape, index
from ..devices import Device
from ..dtypes import as_dtype
from ..errors import ArgumentError, DTypeError, Error, RangeError
from ..extent import Backing, Shape, distinct, packed
from ..memory import Registration
from . import _dlpack
from ._array import Array
from ._factories import ADDRESS_BITS


def register(
    memory: Any,
    nbytes: int | None = None,
    *,
    shape: int | Sequence[int] | None = None,
    dtype: DTypeLike | None = None,
    device: Device | str | int | None = None,
    bridge: str | None = None,
) -> Array:
    """Map device memory that another library allocated, and make an Array of it.

    memory: an object with ``__cuda_array_interface__`` or ``__dlpack__`` (PyTorch, CuPy, JAX, Numba,
        ...), a cuda.core ``Buffer``, or a device address, with ``nbytes`` then.
    shape, dtype: how to see it; by default as the object sees itself, an address as bytes.
    device: None finds the one that holds the memory.
    The owner must keep the memory alive (what an object lends here is referred to). It may start
    anywhere in a physical block and span several. Memory that its library got from us
    (``gd.torch.mapped``, ...) is mapped already, and takes no aperture again.
    What its library's current stream has queued comes before what is launched or read here.
    Raises NotMappableError, with the bridge that could, when this one cannot map the memory.
    """
    found = _describe(memory, nbytes)
    ptr, extents, strides, kind = found.ptr, found.shape, found.strides, found.dtype
    if found.readonly:
        raise ArgumentError(f"{type(memory).__name__} is read-only; its memory is not ours to map")
    if dtype is not None or shape is not None:
        if strides is not None:
            raise ArgumentError("a non-contiguous object keeps its own shape and dtype")
        total = kind.itemsize * math.prod(extents)
        kind = kind if dtype is None else as_dtype(dtype)
        extents = (total // kind.itemsize,) if shape is None else as_shape(shape)
        if kind.itemsize * math.prod(extents) > total:
            raise RangeError(
                f"shape {extents} of {kind} needs {kind.itemsize * math.prod(extents)} bytes; the "
                f"memory has {total}"
            )
    actual = strides or packed(extents, kind.itemsize)
    if any(s < 0 for s in actual):
        raise ArgumentError(f"negative strides {actual} cannot be registered")
    span = sum((n - 1) * s for n, s in zip(extents, actual, strict=True)) + kind.itemsize
    if math.prod(extents) == 0 or span <= 0:
        raise ArgumentError("there is nothing to map in memory of no bytes")
    if isinstance(memory, Array) and device is None:
        device = memory.device
    chosen = devices.get(device)
    if device is None and not chosen.holds(ptr):
        same = (d for d in devices.available() if d.kind == chosen.kind)
        chosen = next((d for d in same if d.holds(ptr)), chosen)
    through = bridges.choose(chosen, bridge)
    piece: Backing | None = None
    if not isinstance(memory, Array):
        _after(chosen, found.stream)
        if found.keep is not None:  # else nobody keeps the memory, and so the mapping that it has
            piece = _allocator.find(chosen, through, ptr, span, found.keep)
    piece = piece or Registration(chosen, through, ptr, span, found.keep)
    return Array._make(piece, ptr, extents, strides, kind)


def host(memory: Any) -> HostView:
    """The CPU's view of device memory: ``a.host`` of an Array, and the same for a PyTorch tensor, a CuPy
    array, or whatever ``register`` takes.

    Waits for what its library's current stream has queued, so that a fill still on its way does not
    overwrite what is stored here. What is queued later, the caller waits for.
    Memory that its library got from us is mapped already; other memory is mapped anew by each call, so
    keep the view. The view keeps the memory alive. Errors are those of ``register``.
    """
    if isinstance(memory, Array):
        return memory.host
    array = register(memory)
    if array.device.pending:
        array.device.synchronize()
    return array.host


def _after(device: Device, stream: object) -> None:
    """What somebody else queued on a stream of his comes before what is queued and read here."""
    if stream is None or device.emulated:
        return
    theirs = device.adopt_stream(stream)
    if theirs.queue.capturing():
        return  # nothing runs there, and waiting would end the capture
    # their stream may be destroyed at any moment: ours waits for it, and is waited for from now on
    ours = device.default_stream
    if theirs.queue is not ours.queue:
        ours.wait(theirs)
    ours.queue.note()


class _Found(NamedTuple):
    """Somebody's device memory."""

    ptr: int
    shape: Shape
    strides: Shape | None
    dtype: np.dtype[Any]
    readonly: bool
    keep: object
    """Whoever refers to it keeps the memory."""
    stream: object = None
    """Where its library queues work on it; None: nothing is to be waited for."""


def _describe(memory: Any, nbytes: int | None) -> _Found:
    if isinstance(memory, Array):
        extent = memory._extent()
        return _Found(extent.address, extent.shape, extent.distinct, extent.dtype, False, extent.memory)
    byte = np.dtype(np.uint8)
    array = hasattr(type(memory), "__cuda_array_interface__") or hasattr(memory, "__cuda_array_interface__")
    if not array and hasattr(memory, "handle") and hasattr(memory, "size"):
        # a cuda.core Buffer: bytes, which its DLPack tells as int8
        return _Found(int(memory.handle), (int(memory.size),), None, byte, False, memory)
    if array or hasattr(type(memory), "__dlpack__"):
        return _lent(memory)
    try:
        ptr = operator.index(memory)
    except TypeError:
        raise DTypeError(
            f"{type(memory).__name__} is no device memory: give an object with "
            "__cuda_array_interface__ or __dlpack__, a cuda.core Buffer, or an address and nbytes"
        ) from None
    if nbytes is None:
        raise ArgumentError("an address alone is not enough: give nbytes as well")
    size = index(nbytes, "nbytes")
    if size <= 0 or ptr <= 0 or (ptr + size) >> ADDRESS_BITS:
        raise ArgumentError(f"{size} bytes at {ptr:#x} are no range of device memory")
    return _Found(ptr, (size,), None, byte, False, None)


def _lent(memory: Any) -> _Found:
    """By the array interface, or by DLPack where that cannot say what the elements are."""
    name, found, why = type(memory).__name__, None, "it lends nothing"
    try:
        interface = getattr(memory, "__cuda_array_interface__", None)
        if interface is not None:
            found = _of_interface(interface, memory)
    except Error:
        raise
    except Exception as e:  # somebody else's code
        why = f"its __cuda_array_interface__ makes no sense: {e}"
    if found is not None and (found.dtype.kind != "V" or found.dtype.names):
        return found
    try:
        lent = _dlpack.borrow(memory)
    except Error:
        raise
    except Exception as e:
        lent, why = None, f"{why}; its __dlpack__ refuses: {e}"
    if lent is not None:
        keep, ptr, shape, strides, dtype = lent
        apart = distinct(strides, shape, dtype.itemsize)
        return _Found(ptr, shape, apart, dtype, False, keep, _dlpack.LEGACY_STREAM)
    if found is None:
        if hasattr(memory, "__dlpack_device__") and memory.__dlpack_device__()[0] == _dlpack.CPU:
            why = "its memory is the CPU's, not a GPU's"
        raise DTypeError(f"{name} cannot be registered: {why}")
    return found


def _of_interface(interface: dict[str, Any], memory: object) -> _Found:
    (ptr, readonly), shape = interface["data"], as_shape(interface["shape"])
    typestr, descr = str(interface["typestr"]), interface.get("descr") or []
    kind = as_dtype(list(descr) if typestr.startswith("|V") and len(descr) > 1 else typestr)
    strides = interface.get("strides")
    if strides is not None:
        strides = tuple(operator.index(s) for s in strides)
        if len(strides) != len(shape):
            raise ValueError(f"strides {strides} of a shape {shape}")
        strides = distinct(strides, shape, kind.itemsize)
    stream = stream_of(memory, interface)
    return _Found(operator.index(ptr), shape, strides, kind, bool(readonly), memory, stream)


def stream_of(memory: Any, interface: dict[str, Any]) -> object:
    """The stream that work on somebody's memory is queued on; None where there is nothing to wait for.

    PyTorch has version 2 of the interface, which does not tell.
    """
    if "stream" in interface:
        return interface["stream"]
    torch: Any = sys.modules.get("torch")
    tensor: Any = getattr(torch, "Tensor", ())
    if isinstance(memory, tensor):
        return torch.cuda.current_stream(memory.device)
    return None
