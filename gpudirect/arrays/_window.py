"""Windows: mappings of parts of device memory that is not mapped whole.

    w = a.window(0, 64 << 20)     the user's own, elements, moved with w.move(start)
    a.write(data, start)          maps what it needs (_transfer/ondemand.py)
    a.writer()                    a file of device memory, written from start to end

A window has an address of its own: only memory that is mapped whole is unified.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from .._host import HostView
from .._transfer.parts import Part
from ..arguments import index
from ..errors import ApertureError, ArgumentError, ClosedError, Error, RangeError
from ..extent import Backing

if TYPE_CHECKING:
    from ._array import Array


class Window:
    """A mapping of part of an array. Made by ``Array.window``.

    It keeps the array's memory alive, also when the array is closed. A view of it (``host``,
    ``buffer``, a slice of ``array``) stays valid when the window moves or closes: it goes on
    showing the bytes it was made for, and holds that part of the aperture until it is gone.
    """

    __slots__ = ("_array", "_kind", "_piece", "_whole", "_whole_size", "dtype", "size", "start")

    start: int
    """Elements of the array before the first one shown."""
    size: int
    """Elements that the window shows."""
    dtype: np.dtype[Any]
    """The array's."""

    def __init__(self, array: Array, start: int, count: int | None) -> None:
        piece = array._open()
        if not array.contiguous:
            raise ArgumentError("a window shows consecutive elements, and this array has strides: "
                                "make it of the contiguous array behind it")  # fmt: skip
        self._piece: Backing | None = piece
        self._whole = array.ptr - piece.ptr  # where the array starts in its memory
        self._whole_size = array.size
        self.dtype = array.dtype
        start = index(start, "start")
        self.size = array.size - start if count is None else index(count, "count")
        self._check(start)
        self._array: Array | None = None
        self._kind = type(array)
        self._show(self._map(start), start)

    def _check(self, start: int) -> None:
        if self.size <= 0 or start < 0 or start + self.size > self._whole_size:
            raise RangeError(
                f"a window of {self.size} elements from {start} on is not inside an array of "
                f"{self._whole_size} elements"
            )

    def _map(self, start: int) -> Part:
        assert self._piece is not None
        return Part(self._piece, self._whole + start * self.dtype.itemsize, self.nbytes)

    def _show(self, part: Part, start: int) -> None:
        self._array = self._kind._make(part, part.ptr, (self.size,), None, self.dtype)
        self.start = start

    @property
    def nbytes(self) -> int:
        """Bytes that the window shows."""
        return self.size * self.dtype.itemsize

    @property
    def array(self) -> Array:
        """The elements shown, as an Array of one dimension, with everything that an Array can do."""
        if self._array is None:
            raise ClosedError(f"this window of {self.size} elements was closed")
        return self._array

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called, or a move failed half way."""
        return self._array is None

    @property
    def ptr(self) -> int:
        """Device address of the first element shown."""
        return self.array.ptr

    @property
    def host_ptr(self) -> int:
        """CPU address of the first element shown."""
        return self.array.host_ptr

    @property
    def host(self) -> HostView:
        """The CPU's view, as ``Array.host``: one dimension."""
        return self.array.host

    @property
    def buffer(self) -> memoryview:
        """The bytes shown, writable."""
        return self.array.buffer

    def write(self, data: Any, start: int = 0, /, **options: Any) -> None:
        """Store ``data`` from element ``start`` of the window on, and fence, as ``Array.write``."""
        self.array.write(data, start, **options)

    def read(self, out: Any = None, /, **options: Any) -> Any:
        """A copy of the window, or of part of it, as ``Array.read``."""
        return self.array.read(out, **options)

    def flush(self) -> None:
        """Make all stores of this thread leave for the device."""
        self.array.flush()

    def move(self, start: int) -> Window:
        """Show as many elements from element ``start`` of the array on; the window itself.

        Raises RangeError and stays where it was, or ApertureError: the new place is mapped before
        the old one is given up if there is room for both, and after it otherwise, which cannot be
        done while views of the old place are left.
        """
        self.array._open()  # raises when closed, or after a fork
        start = index(start, "start")
        self._check(start)
        if start == self.start:
            return self
        try:
            part = self._map(start)
        except ApertureError as e:
            if not self._let_go():
                raise ApertureError(
                    f"{e}\nThe window cannot give up its present place first: a view of it is left.",
                    e.errno,
                ) from e
            try:
                part = self._map(start)
            except Error:
                self._show(self._map(self.start), self.start)
                raise
        self._show(part, start)
        return self

    def _let_go(self) -> bool:
        """Give up the present place, unless something else still looks at it."""
        part = self.array._piece
        assert part is not None
        left = weakref.ref(part)
        self.array.close()
        self._array = None
        del part
        there = left()
        if there is None:
            return True
        assert isinstance(there, Part)
        self._show(there, self.start)
        return False

    def close(self) -> None:
        """Unmap the window once no view of it is left. Safe twice."""
        if self._array is not None:
            self._array.close()
        self._array = self._piece = None

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        if self._array is None or self._piece is None:
            return f"<Window of {self.size} {self.dtype} closed>"
        device = self._piece.device
        mark = ", emulated" if device.emulated else ""
        return (
            f"<Window of elements {self.start}..{self.start + self.size} of {self._whole_size} "
            f"{self.dtype} at {self.ptr:#x} of {device.id} via {self._piece.bridge.name}{mark}>"
        )
