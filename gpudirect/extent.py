"""``Extent``: where the elements of an array are, as one small value.

Whatever moves data or maps parts of it (``_transfer``) knows this and nothing of arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from .bridges import Bridge, PageRun
from .devices import Device, DeviceMemory
from .errors import RevokedError

Shape = tuple[int, ...]


class Backing(Protocol):
    """Memory that an array stands on: whoever refers to it keeps it."""

    exported: bool
    """Another library may have queued work on it."""

    @property
    def device(self) -> Device: ...
    @property
    def bridge(self) -> Bridge: ...
    @property
    def ptr(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def host(self) -> int:
        """CPU address of the first byte; 0 where it is not mapped."""
        ...

    @property
    def revocable(self) -> bool: ...
    @property
    def copying(self) -> int:
        """Flags of the copy engine for what goes there."""
        ...

    def revoked(self) -> bool: ...
    def pages(self) -> list[PageRun]: ...
    def memory_at(self, offset: int, length: int) -> tuple[DeviceMemory, int]:
        """The physical block behind some bytes, and where in it they start."""
        ...


def check_mapped(memory: Backing) -> None:
    """Raises RevokedError when the driver has taken the pages back."""
    if memory.revoked():
        raise RevokedError(
            f"{memory.nbytes} bytes at {memory.ptr:#x} were revoked: their owner freed the memory, "
            "or died. Register the new memory instead."
        )


def packed(shape: Shape, itemsize: int) -> Shape:
    """Strides in bytes of a C-contiguous array."""
    strides, step = [], itemsize
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(reversed(strides))


def distinct(strides: Shape | None, shape: Shape, itemsize: int) -> Shape | None:
    """The strides, or None where the elements lie one after the other anyway. Along a dimension of
    one element they say nothing."""
    if strides is None or itemsize * math.prod(shape) == 0:
        return None
    steps = zip(shape, strides, packed(shape, itemsize), strict=True)
    return None if all(n == 1 or step == plain for n, step, plain in steps) else strides


def span(address: int, shape: Shape, strides: Shape, itemsize: int) -> tuple[int, int]:
    """The lowest address that elements reach, and the one past the highest."""
    if math.prod(shape) == 0:
        return address, address
    reach = [(n - 1) * s for n, s in zip(shape, strides, strict=True)]
    low = address + sum(r for r in reach if r < 0)
    return low, address + sum(r for r in reach if r > 0) + itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Extent:
    """Elements in device memory, which it keeps alive. Sizes and strides are bytes."""

    memory: Backing
    address: int
    """Device address of the first element."""
    shape: Shape
    distinct: Shape | None
    """Bytes from one element to the next along each dimension; None: packed, in C order."""
    dtype: np.dtype[Any]
    flags: int
    """Of the copy engine: ``memory.copying``."""

    @property
    def contiguous(self) -> bool:
        return self.distinct is None

    @property
    def strides(self) -> Shape:
        return self.distinct or packed(self.shape, self.dtype.itemsize)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def mapped(self) -> bool:
        """Whether the CPU has an address of it."""
        return bool(self.memory.host)

    @property
    def host(self) -> int:
        """CPU address of the first element, where it is mapped."""
        return self.memory.host + (self.address - self.memory.ptr)

    def span(self) -> tuple[int, int]:
        """The lowest device address that it reaches, and the one past the highest."""
        return span(self.address, self.shape, self.strides, self.itemsize)

    def usable(self) -> Extent:
        """Itself. Raises ForkError in a child of the process that made it."""
        device = self.memory.device
        if device.forked:
            device.ensure_usable()
        return self

    def rows(self, start: int, stop: int) -> Extent:
        """Part of it along the first dimension."""
        shape = (stop - start, *self.shape[1:])
        return self._cut(start, shape, self.strides)

    def row(self, number: int) -> Extent:
        """One row along the first dimension, which goes."""
        return self._cut(number, self.shape[1:], self.strides[1:])

    def _cut(self, start: int, shape: Shape, strides: Shape) -> Extent:
        address = self.address + start * self.strides[0]
        return replace(self, address=address, shape=shape,
                       distinct=distinct(strides, shape, self.itemsize))  # fmt: skip

    def bytes(self) -> Extent:
        """The same bytes, of a contiguous extent, as a row of ``uint8``."""
        return replace(self, shape=(self.nbytes,), dtype=np.dtype(np.uint8))

    def on(self, memory: Backing) -> Extent:
        """The same elements through another mapping of them."""
        return replace(self, memory=memory, flags=memory.copying)

    def __str__(self) -> str:
        memory = self.memory
        what = "x".join(map(str, self.shape)) or "scalar"
        mark = ", emulated" if memory.device.emulated else ""
        if not self.mapped:
            mark = ", not mapped: use windows" + mark
        return (
            f"<Array {what} {self.dtype} at {self.address:#x} of {memory.device.id} via "
            f"{memory.bridge.name}{mark}>"
        )
