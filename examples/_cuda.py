"""What a CUDA program has at hand, for the versions that copy: page-locked arrays, asynchronous
copies, events and graphs, each one driver call through cuda-python.

On the emulated device the same names do the same with its own streams, so that every version of
every port also runs without a GPU. The direct versions need none of this but ``pinned``, where
kernels leave their results.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from cffi import FFI

import gpudirect as gd


@functools.cache
def _driver(device: Any) -> Any:
    """cuda.bindings.driver with the GPU's context current; None on the emulated device."""
    if device.emulated:
        return None
    from cuda.bindings import driver

    _, context = driver.cuDevicePrimaryCtxRetain(device.ordinal)
    driver.cuCtxSetCurrent(context)
    return driver


def _check(result: tuple[Any, ...], doing: str) -> Any:
    if int(result[0]):
        raise gd.DeviceError(f"{doing}: {result[0].name} ({int(result[0])})", int(result[0]))
    return result[1] if len(result) > 1 else None


class _Pinned:
    """Keeps page-locked memory alive as long as a NumPy array stands on it."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        nbytes = max(1, int(np.prod(shape)) * dtype.itemsize)
        self.memory = gd.device().host_allocate(nbytes)
        self.__array_interface__ = {
            "version": 3, "data": (self.memory.ptr, False), "shape": shape, "typestr": dtype.str,
        }  # fmt: skip

    def __del__(self) -> None:
        if hasattr(self, "memory"):
            with contextlib.suppress(gd.Error):
                gd.synchronize()  # a step that failed may have left copies under way
            self.memory.free()


def pinned(shape: Any, dtype: Any = "f4") -> np.ndarray:
    """A NumPy array in page-locked memory, which the device reads and writes at ``address(a)``."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return np.asarray(_Pinned(shape, np.dtype(dtype))).view(dtype)


def address(a: np.ndarray) -> int:
    """Where a NumPy array lies."""
    return a.__array_interface__["data"][0]


def copy_in(ptr: int, host: int, nbytes: int, stream: Any = None) -> None:
    """cuMemcpyHtoD, or cuMemcpyHtoDAsync on a stream."""
    device = gd.device()
    d = _driver(device)
    if d is None:
        device.copy_in(ptr, host, nbytes, stream)
    elif stream is None:
        _check(d.cuMemcpyHtoD(ptr, host, nbytes), "cuMemcpyHtoD")
    else:
        _check(d.cuMemcpyHtoDAsync(ptr, host, nbytes, stream.handle), "cuMemcpyHtoDAsync")


def copy_out(host: int, ptr: int, nbytes: int, stream: Any = None) -> None:
    """cuMemcpyDtoH, or cuMemcpyDtoHAsync on a stream."""
    device = gd.device()
    d = _driver(device)
    if d is None:
        device.copy_out(host, ptr, nbytes, stream)
    elif stream is None:
        _check(d.cuMemcpyDtoH(host, ptr, nbytes), "cuMemcpyDtoH")
    else:
        _check(d.cuMemcpyDtoHAsync(host, ptr, nbytes, stream.handle), "cuMemcpyDtoHAsync")


def upload(array: gd.Array, host: np.ndarray, stream: Any = None) -> None:
    """Copy a contiguous NumPy array to device memory."""
    copy_in(array.ptr, address(host), host.nbytes, stream)


def download(host: np.ndarray, array: gd.Array, stream: Any = None) -> np.ndarray:
    """Copy device memory to a contiguous NumPy array, and return that."""
    copy_out(address(host), array.ptr, host.nbytes, stream)
    return host


class Event:
    """A point in a stream, used again and again. Until recorded it has been reached."""

    def __init__(self) -> None:
        self._driver = _driver(gd.device())
        self._marker: Any = None
        if self._driver is not None:
            disable_timing = self._driver.CUevent_flags.CU_EVENT_DISABLE_TIMING
            self._event = _check(self._driver.cuEventCreate(disable_timing), "cuEventCreate")

    def record(self, stream: Any) -> None:
        """cuEventRecord: everything queued on the stream so far."""
        if self._driver is None:
            self._marker = stream.marker()
        else:
            _check(self._driver.cuEventRecord(self._event, stream.handle), "cuEventRecord")

    def synchronize(self) -> None:
        """cuEventSynchronize: the CPU waits for it."""
        if self._driver is not None:
            _check(self._driver.cuEventSynchronize(self._event), "cuEventSynchronize")
        elif self._marker is not None:
            self._marker.wait()

    def hold(self, stream: Any) -> None:
        """cuStreamWaitEvent: what is queued on ``stream`` from now on waits for it."""
        if self._driver is not None:
            found = self._driver.cuStreamWaitEvent(stream.handle, self._event, 0)
            _check(found, "cuStreamWaitEvent")
        elif self._marker is not None:
            stream.wait(self._marker)

    def __del__(self) -> None:
        if getattr(self, "_event", None) is not None:
            self._driver.cuEventDestroy(self._event)


class Graph:
    """Launches captured once (cuStreamBeginCapture) and replayed as one (cuGraphLaunch)."""

    def __init__(self, launches: Callable[[Any], None], stream: Any) -> None:
        self._launches, self._stream = launches, stream
        self._driver = d = _driver(gd.device())
        if d is None:
            return
        mode = d.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        _check(d.cuStreamBeginCapture(stream.handle, mode), "cuStreamBeginCapture")
        launches(stream)
        graph = _check(d.cuStreamEndCapture(stream.handle), "cuStreamEndCapture")
        self._graph = _check(d.cuGraphInstantiate(graph, 0), "cuGraphInstantiate")
        _check(d.cuGraphDestroy(graph), "cuGraphDestroy")

    def launch(self) -> None:
        """Queue all of it on the graph's stream."""
        if self._driver is None:
            self._launches(self._stream)
        else:
            _check(self._driver.cuGraphLaunch(self._graph, self._stream.handle), "cuGraphLaunch")

    def __del__(self) -> None:
        if getattr(self, "_graph", None) is not None:
            self._driver.cuGraphExecDestroy(self._graph)


def calls(kernel: Any, types: str, streams: Any = ()) -> tuple[Any, Any]:
    """(struct calls, kernel) for C code that makes the driver's calls itself: cuMemcpyHtoDAsync,
    cuMemcpyDtoHAsync, cuStreamSynchronize and cuLaunchKernel, as ``types`` declares them.

    The struct must be kept. On the emulated device the four lead back here.
    """
    ffi = FFI()
    ffi.cdef(types)
    device = gd.device()
    d = _driver(device)
    if d is not None:
        flags = d.CUdriverProcAddress_flags.CU_GET_PROC_ADDRESS_DEFAULT
        names = "MemcpyHtoDAsync", "MemcpyDtoHAsync", "StreamSynchronize", "LaunchKernel"
        found = [int(d.cuGetProcAddress(f"cu{n}".encode(), 12000, flags)[1]) for n in names]
        fields = zip(ffi.typeof("struct calls").fields, found, strict=True)
        filled = {name: ffi.cast(field.type, at) for (name, field), at in fields}
        handle = kernel.handle
        return ffi.new("struct calls *", filled), ffi.cast("void *", handle)
    by_handle = {s.handle: s for s in (device.default_stream, *streams)}

    def stream(handle: Any) -> Any:
        return by_handle[int(ffi.cast("uintptr_t", handle))]

    def launch(_: Any, *more: Any) -> int:
        grid, block, handle, arguments = more[:3], more[3:6], more[7], more[8]
        values = [ffi.cast(f"{'uint64_t' if p.size == 8 else 'int32_t'} *", arguments[i])[0]
                  for i, p in enumerate(kernel.parameters)]  # fmt: skip
        kernel[grid, block, stream(handle)](*values)
        return 0

    def copied(copy: Callable[..., None]) -> Callable[..., int]:
        def call(to: Any, source: Any, nbytes: int, handle: Any) -> int:
            to, source = (int(ffi.cast("uintptr_t", p)) for p in (to, source))
            copy(to, source, nbytes, stream(handle))
            return 0

        return call

    def wait(handle: Any) -> int:
        stream(handle).synchronize()
        return 0

    made = copied(device.copy_in), copied(device.copy_out), wait, launch
    fields = ffi.typeof("struct calls").fields
    kept = {name: ffi.callback(field.type, f, error=-1)
            for (name, field), f in zip(fields, made, strict=True)}  # fmt: skip
    table = ffi.new("struct calls *", kept)
    _KEPT[table] = kept
    return table, ffi.NULL


_KEPT: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def host_traffic(version: str, nbytes: int, results: int = 0) -> int:
    """Bytes through host memory when ``nbytes`` go to the device and ``results`` come back.

    Counted once for each time a byte is written to host memory or read from it, caches aside: the
    producer writes it, the DMA engine reads it; from pageable memory the driver first reads it
    and writes it to a page-locked buffer. Stores through the mapping touch no host memory.
    """
    each = {"copy, pageable": 4, "copy, pinned": 2, "double-buffered": 2, "direct": 0}[version]
    back = {"copy, pageable": 3}.get(version, 1)
    return each * nbytes + back * results
