"""``Array``: device memory with a shape and a dtype."""

from __future__ import annotations

import math
import operator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import _native, _transfer
from .._transfer import paths
from .._transfer.scatter import scatter
from .._transfer.writer import Writer
from ..arguments import as_dtype, as_source, index, overlap
from ..bridges import PageRun
from ..devices import Device
from ..errors import ArgumentError, ClosedError, DTypeError, NotMappableError, RangeError
from ..extent import Backing, Extent, Shape, check_mapped, distinct, flags_of, packed, span
from ..host import HostView
from . import _export
from ._window import Window


class _Span:
    """Lets NumPy make a view of mapped memory whose base keeps the memory alive."""

    __slots__ = ("__array_interface__", "piece")

    def __init__(self, piece: Backing | None, address: int, shape: Shape,
                 strides: Shape, dtype: np.dtype[Any]) -> None:
        self.piece = piece
        self.__array_interface__ = {
            "version": 3,
            "data": (address, False),
            "shape": shape,
            "strides": strides,
            "typestr": dtype.str,
            "descr": dtype.descr if dtype.names and not dtype.hasobject else [("", dtype.str)],
        }


class Array(_native.Mapped):  # type: ignore[misc]
    """Device memory with a shape and a dtype, mapped into the CPU's address space.

    Made by ``empty``, ``zeros``, ``full``, ``asarray`` and ``register``; a slice is an Array as
    well and shares the memory. ``a.host`` is the CPU's view, ``a.ptr`` the device address; with a
    unified mapping (the default for memory of ours) both are one number, so that pointers stored
    inside the data are valid on both sides.

    Stores through ``a.host`` or ``a.write`` go to the GPU as they are made. Loads are slow:
    about 1 us each, however small. Read in bulk with ``a.read()``.

    The memory is given back by ``close()``, at the end of ``with``, or when the array is
    collected, but never before the last view of it (``a.host``, a slice, a memoryview) is gone.
    """

    __slots__ = ("_flags", "_geometry", "_host_view", "_piece", "_strides", "dtype", "ptr", "shape")

    shape: Shape
    """Elements along each dimension."""
    dtype: np.dtype[Any]
    _piece: Backing | None
    _host_view: HostView | None
    _geometry: np.ndarray[Any, Any] | None
    ptr: int
    """Device address of the first element."""

    __array_priority__: ClassVar[float] = 100.0

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise ArgumentError(
            "arrays are made by gpudirect.empty, zeros, full, asarray or register"
        )

    @classmethod
    def _make(cls, piece: Backing, ptr: int, shape: Shape, strides: Shape | None,
              dtype: np.dtype[Any]) -> Array:
        self = cls.__new__(cls)
        self._piece = piece
        self.ptr = ptr
        self.shape = shape
        self.dtype = dtype
        self._geometry = self._host_view = None
        if strides is not None:
            strides = distinct(strides, shape, dtype.itemsize)
        self._strides = strides  # None: contiguous
        self._flags = flags_of(piece)
        if strides is None:
            nbytes = dtype.itemsize * math.prod(shape)
            address = piece.host + (ptr - piece.ptr) if piece.host else 0
            kind = dtype.char if dtype.names is None else None
            choice = paths.of(piece.device, piece.bridge)
            self._attach(address, nbytes, piece, kind, self._flags, ptr, choice.address,
                         piece.device.work_address)
        return self

    # -- what it is --------------------------------------------------------------------------

    def _open(self) -> Backing:
        piece = self._piece
        if piece is None:
            raise ClosedError(f"this array of {self.nbytes} bytes was closed")
        if piece.device.forked:
            piece.device.ensure_usable()  # raises ForkError
        return piece

    def _extent(self) -> Extent:
        """Where the elements are, for whatever moves them. Raises ClosedError, ForkError."""
        piece = self._open()
        return Extent(piece, self.ptr, self.shape, self._strides, self.dtype, self._flags)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._piece is None

    @property
    def device(self) -> Device:
        """The device that holds the memory."""
        return self._open().device

    @property
    def bridge(self) -> str:
        """Name of the bridge that mapped it."""
        return self._open().bridge.name

    @property
    def strides(self) -> Shape:
        """Bytes from one element to the next along each dimension."""
        return self._strides or packed(self.shape, self.dtype.itemsize)

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie one after the other, in C order."""
        return self._strides is None

    @property
    def unified(self) -> bool:
        """Whether device and CPU see the memory at the same address."""
        return self.ptr == self.host_ptr

    @property
    def host_ptr(self) -> int:
        """CPU address of the first element."""
        piece = self._open()
        if not piece.host:
            raise NotMappableError(
                "this array has no mapping of its own (it was made with mapped=False, or the "
                "aperture's budget had no room), so the CPU has no address of it; use window(), "
                "write() or read()"
            )
        return piece.host + (self.ptr - piece.ptr)

    @property
    def host(self) -> HostView:
        """The CPU's view: a NumPy array over the mapping. Write to it; read with ``read()``.

        The view keeps the memory alive. What a kernel wrote is there only after a
        synchronisation (``gpudirect.synchronize()``).
        """
        view = self._host_view
        if view is None:
            piece = self._open()
            check_mapped(piece)
            view = self._host_view = self._view_at(self.host_ptr, piece)
        return view

    def _view_at(self, address: int, piece: Backing) -> HostView:
        span = _Span(piece, address, self.shape, self.strides, self.dtype)
        view = np.asarray(span)
        if view.dtype != self.dtype:  # offsets and titles do not survive the interface
            view = view.view(self.dtype)
        return view.view(HostView)

    @property
    def buffer(self) -> memoryview:
        """The bytes of the mapping, writable: for ``readinto`` and ``recv_into``."""
        return memoryview(self)

    @property
    def pages(self) -> list[PageRun]:
        """Where the bytes are: runs of device address, bus address and size, clipped to the array.

        The bus address is a PCI (BAR1) physical address as the CPU sees it. Behind an IOMMU
        another PCI device must use an address of its own instead. It is None where the bridge
        does not tell it, and marked ``emulated`` where it is made up.
        """
        piece = self._open()
        start, end = span(self.ptr, self.shape, self.strides, self.itemsize)
        runs = []
        for run in piece.pages():
            first = max(start, run.device_address)
            last = min(end, run.device_address + run.size)
            if first < last:
                bus = run.bus_address
                moved = None if bus is None else bus + first - run.device_address
                runs.append(PageRun(first, moved, last - first, run.emulated))
        return runs

    def __len__(self) -> int:
        if not self.shape:
            raise DTypeError("len() of an array of no dimensions")
        return self.shape[0]

    def __repr__(self) -> str:
        if self._piece is None:
            what = "x".join(map(str, self.shape)) or "scalar"
            return f"<Array {what} {self.dtype} closed>"
        return str(self._extent())

    # -- views -------------------------------------------------------------------------------

    def _shape_of(self) -> np.ndarray[Any, Any]:
        """A NumPy array with this geometry that is never dereferenced: NumPy does the slicing."""
        found = self._geometry
        if found is None:
            found = np.asarray(_Span(None, self.ptr, self.shape, self.strides, self.dtype))
            if found.dtype != self.dtype:
                found = found.view(self.dtype)
            self._geometry = found
        return found

    def _like(self, geometry: np.ndarray[Any, Any]) -> Array:
        ptr = geometry.__array_interface__["data"][0] if geometry.size else self.ptr
        return Array._make(self._open(), ptr, geometry.shape, geometry.strides, geometry.dtype)

    def __getitem__(self, index: Any) -> Array:
        """A part of the array, sharing its memory: integers, slices, ``...``, None, field names."""
        self._open()
        parts = index if isinstance(index, tuple) else (index,)
        if isinstance(index, str):
            try:
                return self._like(self._shape_of()[index])
            except (ValueError, IndexError, KeyError):
                raise DTypeError(f"{self.dtype} has no field {index!r}") from None
        clean: list[Any] = []
        for part in parts:
            if part is None or part is Ellipsis or isinstance(part, slice):
                clean.append(part)
                continue
            try:
                if isinstance(part, (bool, np.bool_)):
                    raise TypeError
                clean.append(operator.index(part))
            except TypeError:
                raise DTypeError(
                    f"an Array is cut by integers, slices, ... and field names, not by {part!r}; "
                    "for scattered elements use a.host[...] = values or scatter()"
                ) from None
        if Ellipsis not in clean:
            clean.append(Ellipsis)  # an integer index gives a view too, never an element
        try:
            return self._like(self._shape_of()[tuple(clean)])
        except IndexError as e:
            raise RangeError(f"{e} (shape {self.shape})") from None

    def __setitem__(self, index: Any, value: ArrayLike) -> None:
        """Store values: ``a[3:5] = x`` is ``a.host[3:5] = x``."""
        self.host[index] = value

    def reshape(self, *shape: Any) -> Array:
        """The same memory in another shape. Raises ArgumentError if that needs a copy."""
        self._open()
        wanted = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        if not self.contiguous:
            raise ArgumentError("only contiguous arrays can be reshaped without a copy")
        try:
            return self._like(self._shape_of().reshape(wanted))
        except (TypeError, ValueError) as e:
            raise ArgumentError(f"{e}") from None

    def view(self, dtype: DTypeLike) -> Array:
        """The same bytes as another dtype."""
        self._open()
        kind = as_dtype(dtype)
        try:
            return self._like(self._shape_of().view(kind))
        except (TypeError, ValueError) as e:
            raise DTypeError(f"{e}") from None

    # -- data in -----------------------------------------------------------------------------

    # write(data, offset=0) itself is in C (native.Mapped): contiguous bytes-like data that fits is
    # stored and fenced there; everything else comes here.

    def _write_slow(self, data: Any, offset: int = 0, *, via: str | None = None) -> None:
        piece = self._open()
        check_mapped(piece)
        source = as_source(data, self.dtype)
        if source.dtype.hasobject:
            raise DTypeError("object arrays hold addresses of Python objects; they stay on the CPU")
        if source.dtype != self.dtype and source.dtype not in (np.uint8, np.int8, np.dtype("S1")):
            raise DTypeError(
                f"data of dtype {source.dtype} would be taken for {self.dtype}: convert it with "
                f".astype({self.dtype.str!r}), or give its bytes with .view('u1')"
            )
        offset = index(offset, "offset")
        if not self.contiguous:
            if offset or source.shape != self.shape:
                raise ArgumentError(
                    f"a non-contiguous array {self.shape} is written whole, from data of its own "
                    f"shape (given: {source.shape}, offset {offset})"
                )
            _transfer.write_nd(self._extent(), source)
            return
        if offset < 0 or offset + source.nbytes > self.nbytes:
            raise RangeError(
                f"{source.nbytes} bytes at offset {offset} do not fit into an array of "
                f"{self.nbytes} bytes"
            )
        if source.nbytes:
            if piece.host and overlap(source, piece.host, piece.nbytes):
                source = source.view(HostView).fetch()
            _transfer.write(self._extent(), source, offset, via)

    def _flush_slow(self) -> None:
        self._open()  # raises when closed
        _native.lib.gd_fence()  # a strided view flushes as well

    def _buffer_slow(self) -> None:
        self._open()
        if not self.contiguous:
            raise ArgumentError("the array is not contiguous, so it has no plain buffer; use .host")
        raise NotMappableError(
            "this array has no mapping of its own (it was made with mapped=False, or the aperture's "
            "budget had no room); use window() or write()"
        )

    def fill(self, value: Any) -> None:
        """Set every element to ``value``, on the device."""
        piece = self._open()
        element = np.zeros(1, self.dtype)
        element[0] = value
        raw = element.tobytes()
        if self.contiguous and len(set(raw)) == 1:
            _native.lib.gd_fence()  # earlier stores first
            piece.device.fill(self.ptr, raw[0], self.nbytes)
            piece.device.synchronize()
        elif self.nbytes:
            self._write_slow(np.full(self.shape, element[0], self.dtype))

    def scatter(self, places: Any, items: Any = None) -> None:
        """Store many small pieces at once, without a staging copy, and fence.

        scatter(offsets, items): ``items[i]`` is stored ``offsets[i]`` bytes from the start.
            offsets: whole numbers, in bytes, any alignment. items: data of the array's dtype, one
            item for each offset along its first dimension.
        scatter(pieces): pieces is a list of (offset in bytes, bytes-like); lengths may differ.
        Pieces that overlap are stored in the order given.
        Raises RangeError if one does not lie in the array (nothing is stored then), DTypeError,
        ArgumentError, RevokedError, ClosedError.
        """
        scatter(self._extent(), places, items)

    # -- parts that are mapped by themselves -------------------------------------------------

    def window(
        self, offset: int = 0, size: int | None = None, *, dtype: DTypeLike | None = None
    ) -> Window:
        """Map ``size`` bytes from byte ``offset`` on (None: all the rest), wherever the array is
        too large to be mapped whole. ``move`` it over the rest; ``close`` it or use ``with``.

        dtype: of the window's ``host``; None takes the array's.
        An array that is mapped whole lends its own mapping: the window then takes no aperture.
        Raises RangeError, ArgumentError (a strided array, half an element), ApertureError.
        """
        return Window(self, offset, size, dtype)

    def writer(self, offset: int = 0) -> Writer:
        """A file-like object that stores from byte ``offset`` on: write, flush, seek, tell, close.

        On an array that is not mapped whole it maps windows on demand, the next one while the
        present one is written.
        """
        return Writer(self._extent(), offset)

    # -- data out ----------------------------------------------------------------------------

    # read(out=None) itself is in C: a whole contiguous array into ``out``, with nothing queued on
    # the device, is copied there; everything else comes here.

    def _read_slow(
        self,
        out: np.ndarray[Any, Any] | None = None,
        *,
        offset: int = 0,
        nbytes: int | None = None,
        via: str | None = None,
        synchronize: bool = True,
    ) -> np.ndarray[Any, Any]:
        piece = self._open()
        part = offset != 0 or nbytes is not None
        if part:
            offset = index(offset, "offset")
            count = self.nbytes - offset if nbytes is None else index(nbytes, "nbytes")
            if not self.contiguous:
                raise ArgumentError("a non-contiguous array is read whole; slice it instead")
            if offset < 0 or count < 0 or offset + count > self.nbytes:
                raise RangeError(
                    f"{count} bytes at offset {offset} are not inside an array of "
                    f"{self.nbytes} bytes"
                )
        else:
            count = self.nbytes
        if out is None:
            out = np.empty(count, np.uint8) if part else np.empty(self.shape, self.dtype)
        else:
            out = _destination(out, count)
        if synchronize and piece.device.pending:
            piece.device.synchronize()
        if count:
            if self.contiguous:
                _transfer.read(self._extent(), out, offset, via)
            else:
                _transfer.read_nd(self._extent(), out)
        return out

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        if copy is False:
            raise ArgumentError("a NumPy array of device memory is a copy; use .host for a view")
        return self.read() if dtype is None else self.read().astype(dtype)

    # -- other libraries ---------------------------------------------------------------------

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return _export.array_interface(self._extent())

    def __dlpack_device__(self) -> tuple[int, int]:
        return _export.dlpack_device(self._extent())

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        return _export.dlpack(self._extent(), max_version, dl_device, copy)

    # -- the end -----------------------------------------------------------------------------

    def close(self) -> None:
        """Close the array. The memory goes back once no view of it is left. Safe twice."""
        self._detach()
        self._piece = None
        self._host_view = None
        self._geometry = None

    def __enter__(self) -> Array:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _destination(out: Any, count: int) -> np.ndarray[Any, Any]:
    """What a read fills: an array, or another writable buffer seen as bytes."""
    try:
        found = out if isinstance(out, np.ndarray) else np.asarray(memoryview(out))
    except (TypeError, ValueError):
        raise ArgumentError(
            f"out is a {type(out).__name__}: give a NumPy array or another writable buffer"
        ) from None
    for fine, why in (
        (found.flags.writeable, "is read-only"),
        (found.flags.c_contiguous, "is not C-contiguous"),
        (found.nbytes == count, f"has {found.nbytes} bytes"),
    ):
        if not fine:
            raise ArgumentError(f"out must be C-contiguous, writable and {count} bytes: it {why}")
    return found
