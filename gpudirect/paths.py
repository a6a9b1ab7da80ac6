"""The ways data goes between ordinary memory and an array, and the choice among them.

"map" is CPU stores or loads on the mapping, "dma" the device's copy engine. Which is faster
depends on the size, the direction and whether the host memory is page-locked. The choice is made
in C (_native/paths.c) from the sizes in limits.py.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _native, cpu
from .bridges import Bridge
from .devices import Device
from .errors import ApertureError, ArgumentError, Error, RevokedError
from .limits import DIRECTIONS, NEVER, PATHS, Limits, stored

if TYPE_CHECKING:
    from .arrays import Array


class Paths:
    """The choice for one device and one bridge: limits, and where C finds them."""

    def __init__(self, device: Device, limits: Limits) -> None:
        self.struct = _native.ffi.new("struct gd_paths *")
        self.address = int(_native.ffi.cast("uintptr_t", self.struct))
        self._near = device.near_cpus()
        self._driver = device.driver_functions()
        self.struct.driver = self._driver or _native.ffi.NULL
        self.limits = limits

    @property
    def limits(self) -> Limits:
        """In force now. Assigning takes effect at once, also for arrays that exist."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        for name in DIRECTIONS:
            turns = getattr(limits, name)
            kept = getattr(self.struct, name).at
            for i in range(_native.lib.GD_TURNS):
                kept[i] = turns[i] if i < len(turns) else NEVER
        start_threads(limits, self._near)


def start_threads(limits: Limits, near: list[int]) -> None:
    """Tell the copy threads how many they are, where they run and what sizes they take.

    They run near the device, where the system says which CPUs that is and we may use some of them.
    """
    allowed = cpu.allowed()
    cpus = sorted(allowed.intersection(near))
    if len(cpus) == len(allowed):
        cpus = []  # no choice, no pinning
    count = limits.threads or max(1, min(8, len(allowed) // 2, len(cpus) or 8))
    sizes = _native.ffi.new("struct gd_thresholds *", {
        "write_in_a_row": limits.write_threads, "write_alone": limits.write_threads_alone,
        "read_in_a_row": limits.read_threads, "read_alone": limits.read_threads_alone,
    })  # fmt: skip
    for _ in range(1000):
        code = _native.lib.gd_threads_configure(
            count, _native.ffi.new("int[]", cpus), len(cpus), sizes
        )
        if code != -16:  # EBUSY: a copy runs
            return
        time.sleep(0.001)


_paths: dict[tuple[Device, Bridge], Paths] = {}


def of(device: Device, bridge: Bridge) -> Paths:
    """The choice in force for arrays of a device through a bridge."""
    found = _paths.get((device, bridge))
    if found is None:
        limits = stored(device, bridge.name) or Limits()
        found = _paths.setdefault((device, bridge), Paths(device, limits))
    return found


def known() -> dict[tuple[Device, Bridge], Paths]:
    """Every choice in force in this process."""
    return dict(_paths)


def _check_via(via: str | None) -> None:
    if via not in (None, *PATHS):
        raise ArgumentError(f"via={via!r}: give 'map', 'dma' or None for the faster one")


def _done(code: int, array: Array, doing: str) -> None:
    """Raises what a negative return of the copy engine means."""
    if code >= 0:
        return
    if code == -14:  # EFAULT
        where = _native.lib.gd_fault_address()
        raise RevokedError(
            f"{doing} {array!r}: the driver revoked the memory (access at {where:#x}). Its owner "
            "freed it, or died; nothing after that address was copied."
        )
    if code == -22:  # EINVAL
        raise ArgumentError(
            f"{doing} {array!r}: source and destination overlap in memory; copy one of them first"
        )
    raise Error(f"{doing} {array!r} failed: errno {-code}")


def _address(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


def _choose(array: Array, other: np.ndarray[Any, Any], write: bool) -> str:
    """The faster path for a contiguous array that is mapped whole."""
    piece = array._open()
    if not piece.host:
        return "dma"
    struct = of(piece.device, piece.bridge).struct
    pointer = _native.ffi.cast("char *", _address(other))
    return PATHS[_native.lib.gd_path(struct, int(write), pointer, other.nbytes)]


def write(array: Array, source: np.ndarray[Any, Any], offset: int, via: str | None) -> None:
    """Copy ``source`` to bytes of a contiguous array. The range was checked."""
    _check_via(via)
    piece = array._open()
    if via is None:
        via = _choose(array, source, write=True)
    if via == "map":
        if not piece.host:
            raise ApertureError("this array is not mapped, so via='map' cannot work; use 'dma'")
        if source.flags.c_contiguous:
            code = _native.lib.gd_write(
                array.host_ptr + offset,
                _native.ffi.cast("char *", _address(source)),
                source.nbytes,
                array._flags,
            )
        else:
            code = _nd(
                _native.lib.gd_write_nd, array.host_ptr + offset, None, source, array._flags
            )
        _done(code, array, "writing to")
        return
    source = np.ascontiguousarray(source)
    if piece.revocable and piece.revoked():
        raise RevokedError(f"writing to {array!r}: the driver revoked the memory")
    _native.lib.gd_fence()  # mapped stores made before the copy come first
    piece.device.copy_in(array.ptr + offset, _address(source), source.nbytes)


def read(array: Array, out: np.ndarray[Any, Any], offset: int, via: str | None) -> None:
    """Copy bytes of a contiguous array to ``out``. The range was checked."""
    _check_via(via)
    piece = array._open()
    if via is None:
        via = _choose(array, out, write=False)
    if via == "map":
        if not piece.host:
            raise ApertureError("this array is not mapped, so via='map' cannot work; use 'dma'")
        code = _native.lib.gd_read(
            _native.ffi.cast("char *", _address(out)),
            array.host_ptr + offset,
            out.nbytes,
            array._flags,
        )
        _done(code, array, "reading from")
        return
    if piece.revocable and piece.revoked():
        raise RevokedError(f"reading from {array!r}: the driver revoked the memory")
    _native.lib.gd_fence()  # stores of ours that are still on their way come first
    piece.device.copy_out(_address(out), array.ptr + offset, out.nbytes)


def _nd(copy: Any, target: int, array: Array | None, other: np.ndarray[Any, Any],
        flags: int) -> int:
    """Call a strided copy of the engine with the geometry of ``other`` on both sides."""
    new = _native.ffi.new
    inner = new("int64_t[]", array.strides if array is not None else packed(other.shape, other.itemsize))
    return int(
        copy(target, inner, _native.ffi.cast("char *", _address(other)),
             new("int64_t[]", other.strides), new("int64_t[]", other.shape), other.ndim,
             other.itemsize, flags)
    )  # fmt: skip


def packed(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Strides in bytes of a C-contiguous array."""
    strides, step = [], itemsize
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(reversed(strides))


def write_nd(array: Array, source: np.ndarray[Any, Any]) -> None:
    """Copy ``source`` to a strided array of the same shape."""
    code = _nd(_native.lib.gd_write_nd, array.host_ptr, array, source, array._flags)
    _done(code, array, "writing to")


def read_nd(array: Array, out: np.ndarray[Any, Any]) -> None:
    """Copy a strided array to ``out`` of the same size."""
    new, cast = _native.ffi.new, _native.ffi.cast
    shaped = out.reshape(array.shape)
    code = _native.lib.gd_read_nd(
        cast("char *", _address(shaped)), new("int64_t[]", shaped.strides), array.host_ptr,
        new("int64_t[]", array.strides), new("int64_t[]", array.shape), array.ndim,
        array.itemsize, array._flags,
    )  # fmt: skip
    _done(code, array, "reading from")
