"""Windows: mappings of parts of device memory that is not mapped whole.

    w = a.window(0, 64 << 20)     the user's own, moved with w.move(offset)
    a.write(data, offset)         maps what it needs (_transfer/ondemand.py)
    a.writer()                    a file of device memory, written from start to end

A window has an address of its own: only memory that is mapped whole is unified.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from .._transfer.parts import Part
from ..arguments import as_dtype, index
from ..errors import ApertureError, ArgumentError, ClosedError, Error, RangeError
from ..extent import Backing
from ..host import HostView

if TYPE_CHECKING:
    from ._array import Array


class Window:
    """A mapping of part of an array. Made by ``Array.window``.

    It keeps the array's memory alive, also when the array is closed. A view of it (``host``,
    ``buffer``, a slice of ``array``) stays valid when the window moves or closes: it goes on
    showing the bytes it was made for, and holds that part of the aperture until it is gone.
    """

    __slots__ = ("_array", "_dtype", "_kind", "_piece", "_start", "nbytes", "offset",
                 "parent_bytes")  # fmt: skip

    offset: int
    """Bytes from the start of the array."""
    nbytes: int
    """Bytes that the window shows."""

    def __init__(self, array: Array, offset: int, nbytes: int | None,
                 dtype: DTypeLike | None) -> None:
        piece = array._open()
        if not array.contiguous:
            raise ArgumentError("a window shows consecutive bytes, and this array has strides: "
                                "make it of the contiguous array behind it")  # fmt: skip
        self._piece: Backing | None = piece
        self._start = array.ptr - piece.ptr
        self.parent_bytes = array.nbytes
        self._dtype = array.dtype if dtype is None else as_dtype(dtype)
        offset = index(offset, "offset")
        self.nbytes = array.nbytes - offset if nbytes is None else index(nbytes, "size")
        self._check(offset)
        if self.nbytes % self._dtype.itemsize:
            raise ArgumentError(
                f"a window of {self.nbytes} bytes holds no whole number of {self._dtype} "
                f"({self._dtype.itemsize} bytes each); dtype='u1' makes one of bytes"
            )
        self._array: Array | None = None
        self._kind = type(array)
        self._show(Part(piece, self._start + offset, self.nbytes), offset)

    def _check(self, offset: int) -> None:
        if self.nbytes <= 0 or offset < 0 or offset + self.nbytes > self.parent_bytes:
            raise RangeError(
                f"a window of {self.nbytes} bytes at offset {offset} is not inside an array of "
                f"{self.parent_bytes} bytes"
            )

    def _show(self, part: Part, offset: int) -> None:
        count = self.nbytes // self._dtype.itemsize
        self._array = self._kind._make(part, part.ptr, (count,), None, self._dtype)
        self.offset = offset

    @property
    def array(self) -> Array:
        """The bytes shown, as an Array of one dimension, with everything that an Array can do."""
        if self._array is None:
            raise ClosedError(f"this window of {self.nbytes} bytes was closed")
        return self._array

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called, or a move failed half way."""
        return self._array is None

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype

    @property
    def ptr(self) -> int:
        """Device address of the first byte shown."""
        return self.array.ptr

    @property
    def host_ptr(self) -> int:
        """CPU address of the first byte shown."""
        return self.array.host_ptr

    @property
    def host(self) -> HostView:
        """The CPU's view, as ``Array.host``: one dimension of the window's dtype."""
        return self.array.host

    @property
    def buffer(self) -> memoryview:
        """The bytes shown, writable."""
        return self.array.buffer

    def write(self, data: Any, offset: int = 0, /, *, via: str | None = None) -> None:
        """Store ``data`` from byte ``offset`` of the window on, and fence, as ``Array.write``."""
        if via is None:
            self.array.write(data, offset)
        else:
            self.array.write(data, offset, via=via)

    def read(self, out: np.ndarray[Any, Any] | None = None, **options: Any) -> np.ndarray[Any, Any]:
        """A copy of the window, or of part of it, as ``Array.read``."""
        return self.array.read(out, **options)

    def flush(self) -> None:
        """Make all stores of this thread leave for the device."""
        self.array.flush()

    def move(self, offset: int) -> Window:
        """Show as many bytes from byte ``offset`` of the array on; the window itself.

        Raises RangeError and stays where it was, or ApertureError: the new place is mapped before
        the old one is given up if there is room for both, and after it otherwise, which cannot be
        done while views of the old place are left.
        """
        piece = self.array._open() and self._piece  # raises when closed, or after a fork
        assert piece is not None
        offset = index(offset, "offset")
        self._check(offset)
        if offset == self.offset:
            return self
        start = self._start + offset
        try:
            part = Part(piece, start, self.nbytes)
        except ApertureError as e:
            if not self._let_go():
                raise ApertureError(
                    f"{e}\nThe window cannot give up its present place first: a view of it is left.",
                    e.errno,
                ) from e
            try:
                part = Part(piece, start, self.nbytes)
            except Error:
                self._show(Part(piece, self._start + self.offset, self.nbytes), self.offset)
                raise
        self._show(part, offset)
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
        self._show(there, self.offset)
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
        return self.nbytes

    def __repr__(self) -> str:
        if self._array is None or self._piece is None:
            return f"<Window of {self.nbytes} bytes closed>"
        device = self._piece.device
        mark = ", emulated" if device.emulated else ""
        return (
            f"<Window of bytes {self.offset}..{self.offset + self.nbytes} of {self.parent_bytes} "
            f"at {self.ptr:#x} of {device.id} via {self._piece.bridge.name}{mark}>"
        )
