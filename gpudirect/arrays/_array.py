"""``Array``: device memory with a shape and a dtype."""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import _native, _transfer
from .._host import HostView, Span
from .._pinned import pinned
from .._transfer import copies, ordered, paths
from .._transfer.gather import checked_out, gather, picked
from .._transfer.scatter import scatter
from .._transfer.writer import Writer
from ..arguments import (
    REFUSALS,
    as_element,
    as_source,
    flag,
    index,
    overlap,
    raw_bytes,
    refusal,
    refuse_keywords,
)
from ..bridges import PageRun
from ..devices import Device, Now, Stream
from ..dtypes import as_dtype, letter, refuse, same_values
from ..errors import ArgumentError, ClosedError, DTypeError, NotMappableError, RangeError
from ..extent import Backing, Extent, Shape, check_mapped, distinct, packed, span
from ..memory import heap
from ..sharing import Token
from . import _export, _share
from ._operators import Operators
from ._window import Window

BY_DEVICE = 64 << 10
"""Bytes: copying less than this within the device takes longer than to read and to write it."""


class Array(Operators, _native.Mapped):
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

    __slots__ = ("_flags", "_geometry", "_host_view", "_piece", "_strides")

    _flags: int
    _strides: Shape | None
    _piece: Backing | None
    _host_view: HostView | None
    _geometry: np.ndarray[Any, Any] | None

    __array_priority__: ClassVar[float] = 100.0

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise ArgumentError(
            "arrays are made by gpudirect.empty, zeros, ones, full, asarray or register"
        )

    @classmethod
    def _make(cls, piece: Backing, ptr: int, shape: Shape, strides: Shape | None,
              dtype: np.dtype[Any]) -> Array:
        self = cls.__new__(cls)
        self._piece = piece
        self._geometry = self._host_view = None
        itemsize, device, host = dtype.itemsize, piece.device, piece.host
        if strides is not None:
            strides = distinct(strides, shape, itemsize)
        self._strides = strides  # None: contiguous
        flags = self._flags = piece.copying
        self._attach(
            host + (ptr - piece.ptr) if host and strides is None else 0, itemsize * math.prod(shape),
            piece, letter(dtype), flags, ptr, paths.of(device, piece.bridge).address,
            device.work_address, shape, dtype, itemsize,
        )  # fmt: skip
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
        span = Span(piece, address, self.shape, self.strides, self.dtype)
        return span.seen(self.dtype).view(HostView)

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
            span = Span(None, self.ptr, self.shape, self.strides, self.dtype)
            found = self._geometry = span.seen(self.dtype)
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
        except (IndexError, OverflowError) as e:
            raise RangeError(f"{e} (shape {self.shape})") from None
        except (TypeError, ValueError) as e:  # a step of 0, a slice of words
            raise ArgumentError(f"a[{index!r}]: {e}") from None

    def __setitem__(self, index: Any, value: ArrayLike) -> None:
        """Store values: ``a[3:5] = x`` is ``a.host[3:5] = x``."""
        try:
            self.host[index] = value
        except REFUSALS as e:
            raise refusal(e, f"storing into an array of shape {self.shape} and {self.dtype}") from None

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

    @property
    def T(self) -> Array:
        """The same memory with the dimensions in reverse order."""
        return self.transpose()

    def transpose(self, *axes: Any) -> Array:
        """The same memory with the dimensions in another order, reversed by default.

        Raises ArgumentError if ``axes`` are not each dimension once.
        """
        self._open()
        try:
            return self._like(self._shape_of().transpose(*axes))
        except (TypeError, ValueError) as e:
            raise ArgumentError(f"transpose{axes} of an array of shape {self.shape}: {e}") from None

    def swapaxes(self, one: int, other: int) -> Array:
        """The same memory with two dimensions exchanged. Raises RangeError, DTypeError."""
        return self._seen("swapaxes", one, other)

    def squeeze(self, axis: int | tuple[int, ...] | None = None) -> Array:
        """The same memory without its dimensions of one element, or without those named.

        Raises ArgumentError where one has more, RangeError, DTypeError.
        """
        return self._seen("squeeze", axis)

    def ravel(self) -> Array:
        """The same memory in one dimension. Raises ArgumentError if that needs a copy."""
        return self.reshape(-1)

    def _seen(self, how: str, *arguments: Any) -> Array:
        """The same memory as a method of NumPy sees it."""
        self._open()
        try:
            return self._like(getattr(self._shape_of(), how)(*arguments))
        except REFUSALS as e:
            raise refusal(e, f"{how}{arguments} of an array of shape {self.shape}") from None

    def _in_memory_order(self) -> tuple[Array, tuple[int, ...]] | None:
        """The same elements as they follow each other in memory, and how their dimensions came to
        be in that order; None where there are gaps."""
        axes = tuple(sorted(range(self.ndim), key=lambda i: -self.strides[i]))
        found = self.transpose(axes)
        return (found, axes) if found.contiguous else None

    def view(self, dtype: DTypeLike) -> Array:
        """The same bytes as another dtype."""
        self._open()
        kind = as_dtype(dtype)
        try:
            return self._like(self._shape_of().view(kind))
        except (TypeError, ValueError) as e:
            raise DTypeError(f"{e}") from None

    def copy(self, *, stream: Any = None) -> Array:
        """A new array with the same elements, in device memory of its own, in C order.

        It is there when this returns. stream: copied by the device in that stream's order, and
        perhaps later than this returns; a strided array waits for the stream instead.
        Raises OutOfMemoryError, ClosedError, RevokedError, ArgumentError (no stream).
        """
        piece = self._open()
        check_mapped(piece)
        device = piece.device
        on = None if stream is None else device.as_stream(stream)
        fresh = heap(device, piece.bridge.name).take(max(self.nbytes, 1), mapped=None)
        twin = Array._make(fresh, fresh.ptr, self.shape, None, self.dtype)
        if not self.nbytes:
            return twin
        if self.contiguous and (on or self.nbytes >= BY_DEVICE):
            if on is None and device.pending:
                device.synchronize()
            queued = on or device.current_stream
            ordered.copy(twin._extent(), self._extent(), queued)
            if on is None:
                queued.synchronize()
        else:
            twin.write(self.read(stream=on))
        return twin

    def __copy__(self) -> Array:
        return self.copy()

    def __deepcopy__(self, memo: object) -> Array:
        return self.copy()

    # -- data in -----------------------------------------------------------------------------

    # write(data, start=0) itself is in C (native.Mapped): contiguous data of the array's own kind
    # that fits is stored and fenced there; everything else comes here.

    def _write_slow(self, data: Any, start: int = 0, *, via: str | None = None, stream: Any = None,
                    **others: Any) -> None:
        if others:
            refuse_keywords("write", others)
        piece = self._open()
        if via is not None:
            copies.check_via(via)
        on = None
        if stream is not None:
            on = piece.device.as_stream(stream)
            if via is None and getattr(data, "nbytes", 0) < BY_DEVICE and on.queue.now() is Now.IDLE:
                self.write(data, start)
                return
        check_mapped(piece)
        start = index(start, "start")
        if on is not None and isinstance(data, Array) and via != "map" and \
                self._write_array(data, start, on):  # fmt: skip
            return
        source = as_source(data, self.dtype)
        if not self.contiguous:
            if start or source.shape != self.shape:
                raise ArgumentError(
                    f"a non-contiguous array {self.shape} is written whole, from data of its own "
                    f"shape (given: {source.shape}, start {start})"
                )
            if dense := self._in_memory_order():
                found, axes = dense
                found._write_slow(np.ascontiguousarray(source.transpose(axes)), via=via, stream=on)
            else:
                if on is not None:
                    ordered.waited(on, "writing to a strided array")
                _transfer.write_nd(self._extent(), source, via)
            return
        if start < 0 or start + source.size > self.size:
            raise RangeError(
                f"{source.size} elements from {start} on do not fit into an array of {self.size}"
            )
        if source.nbytes:
            if piece.host and overlap(source, piece.host, piece.nbytes):
                if on is not None:
                    ordered.waited(on, "writing an array to itself")
                source = source.view(HostView).fetch()
            extent, offset = self._extent(), start * self.itemsize
            if on is None or not ordered.write(extent, source, offset, via, on):
                _transfer.write(extent, source, offset, via)

    def _write_array(self, other: Array, start: int, on: Stream) -> bool:
        """Another array's elements, copied within the device; False where that cannot be done."""
        if not (self.contiguous and other.contiguous and other.dtype == self.dtype
                and other.device is on.device):  # fmt: skip
            return False
        if start < 0 or start + other.size > self.size:
            return False  # told by who goes on
        to = replace(self._extent(), address=self.ptr + start * self.itemsize, shape=other.shape)
        (low, high), (first, last) = to.span(), other._extent().span()
        if other.nbytes == 0 or (low < last and first < high):
            return False
        ordered.copy(to, other._extent(), on)
        return True

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

    def fill(self, value: Any, *, stream: Any = None) -> None:
        """Set every element to ``value``.

        It is done when this returns. stream: queued there, and done by the device in that stream's
        order; only a strided array waits for the stream instead.
        Raises DTypeError, ArgumentError (no stream), ClosedError, RevokedError.
        """
        piece = self._open()
        element = as_element(value, self.dtype)
        raw = element.tobytes()
        if stream is not None:
            on = piece.device.as_stream(stream)
            dense = self if self.contiguous else (self._in_memory_order() or (None,))[0]
            if dense is None:
                self._write_slow(np.broadcast_to(element, self.shape), stream=on)
            elif self.nbytes:
                ordered.fill(dense._extent(), raw, on)
        elif self.contiguous and len(set(raw)) == 1:
            if self.nbytes:
                _native.lib.gd_fence()  # earlier stores first
                piece.device.fill(self.ptr, raw[0], self.nbytes, piece.device.current_stream)
                piece.device.synchronize()
        elif self.nbytes:
            self._write_slow(np.broadcast_to(element, self.shape))

    # scatter(indices, items) and gather(indices, out) themselves are in C: arrays of ordinary memory
    # go from there; everything else comes here.

    def _scatter_slow(self, places: Any, items: Any = None, *, via: str | None = None,
                      stream: Any = None) -> None:
        if stream is not None:
            ordered.waited(self._open().device.as_stream(stream), "scattering")
        scatter(self._extent(), places, items, via)

    # -- other processes ---------------------------------------------------------------------

    def share(self, mode: str = "r", *, uses: int | None = 1) -> Token:
        """A token with which another process of the same user maps this array (``gpudirect.attach``),
        without CUDA there. Made with ``shareable=True``; a contiguous part can be shared as well, but
        what is handed over names the whole block.

        mode: "r" (which protects from mistakes, not from malice) or "rw".
        uses: how many processes may attach with it; None: any number.
        The memory lives until the last of them lets go of it, and each is told when this array, with
        all its views, is closed. Raises ArgumentError, SharingError, ClosedError.
        """
        return _share.share(self, mode, uses)

    @property
    def peers(self) -> tuple[int, ...]:
        """Processes that are attached to this memory now."""
        return _share.peers(self)

    # -- parts that are mapped by themselves -------------------------------------------------

    def window(self, start: int = 0, count: int | None = None, **others: Any) -> Window:
        """Map ``count`` elements of the flattened array from element ``start`` on (None: all the
        rest), wherever the array is too large to be mapped whole. ``move`` it over the rest;
        ``close`` it or use ``with``.

        A window of bytes, or of another dtype, is one of ``a.view(dtype)``.
        An array that is mapped whole lends its own mapping: the window then takes no aperture.
        Raises RangeError, ArgumentError (a strided array), ApertureError.
        """
        if others:
            refuse_keywords("window", others)
        return Window(self, start, count)

    def writer(self, *position: object, **others: object) -> Writer:
        """A file over the array's bytes: write, flush, seek, tell, close; positions are bytes.

        On an array that is not mapped whole it maps windows on demand, the next one while the
        present one is written.
        """
        if position or others:
            raise ArgumentError("writer() takes no position: a writer is a file of bytes, so seek()")
        return Writer(self._extent())

    # -- data out ----------------------------------------------------------------------------

    # read(out=None, start=, count=) itself is in C: of a contiguous array, with nothing queued on the
    # device, it is copied there; everything else comes here.

    def _read_slow(
        self,
        out: Any = None,
        *,
        start: int = 0,
        count: int | None = None,
        via: str | None = None,
        synchronize: bool = True,
        stream: Any = None,
        **others: Any,
    ) -> Any:
        if others:
            refuse_keywords("read", others)
        piece = self._open()
        if via is not None:
            copies.check_via(via)
        on = None if stream is None else piece.device.as_stream(stream)
        start = index(start, "start")
        part = start != 0 or count is not None
        synchronize = flag(synchronize, "synchronize")
        if part:
            count = self.size - start if count is None else index(count, "count")
            if not self.contiguous:
                raise ArgumentError("a non-contiguous array is read whole; slice it instead")
            if start < 0 or count < 0 or start + count > self.size:
                raise RangeError(
                    f"{count} elements from {start} on are not inside an array of {self.size}"
                )
        shape = (count,) if count is not None else self.shape
        if on is not None and not synchronize:
            return self._read_later(out, shape, start, via, on)
        target = _target(out, shape, self.dtype)
        if on is not None:
            ordered.waited(on, f"reading from {self}")
        elif synchronize and piece.device.pending:
            piece.device.synchronize()
        if target.nbytes:
            if self.contiguous:
                _transfer.read(self._extent(), target, start * self.itemsize, via)
            elif dense := self._in_memory_order():
                found, axes = dense
                seen = found._read_slow(via=via, synchronize=False).transpose(np.argsort(axes))
                if out is None:
                    return seen
                target.reshape(self.shape)[...] = seen
            else:
                _transfer.read_nd(self._extent(), target, via)
        if out is None:
            return target
        if isinstance(out, np.ndarray) and target is not out:
            out[...] = target.reshape(out.shape)
        return out

    def _read_later(self, out: Any, shape: Shape, start: int, via: str | None, on: Stream) -> Any:
        """``read(stream=..., synchronize=False)``: the device fills page-locked memory."""
        if via not in (None, "dma") or not self.contiguous:
            raise ArgumentError(
                "read(stream=..., synchronize=False) is a copy that the device makes later: of a "
                "contiguous array, and not via='map'"
            )
        target = pinned(shape, self.dtype, device=on.device) if out is None else \
            _target(out, shape, self.dtype)  # fmt: skip
        if out is not None and not np.may_share_memory(target, np.asarray(out)):
            raise ArgumentError("out is filled by the device itself: give a contiguous array of this dtype")
        if target.nbytes:
            ordered.read(self._extent(), target, start * self.itemsize, on)
        return target if out is None else out

    def _gather_slow(self, indices: Any, out: Any = None, *, via: str | None = None,
                     synchronize: bool = True, stream: Any = None) -> Any:
        extent = self._extent()
        on = None if stream is None else extent.memory.device.as_stream(stream)
        chosen = picked(indices, self.size)
        checked_out(out)
        target = _target(out, chosen.shape, self.dtype)
        if on is not None:
            ordered.waited(on, f"gathering from {self}")
        elif synchronize and extent.memory.device.pending:
            extent.memory.device.synchronize()
        if np.may_share_memory(target, chosen.indices):  # they are read while it is filled
            chosen = chosen._replace(indices=chosen.indices.copy())
        gather(extent, chosen, target, via)
        if out is None:
            return target
        if isinstance(out, np.ndarray) and target is not out:
            out[...] = target.reshape(out.shape)
        return out

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """What ``read()`` gives, read-only: a store into it would not reach the device."""
        if copy is False:
            raise ArgumentError("a NumPy array of device memory is a copy; use .host for a view")
        copied = flag(copy, "copy")
        found = self.read()
        if dtype is not None:
            try:
                found = found.astype(dtype, copy=False)
            except REFUSALS as e:
                raise refusal(e, f"{self.dtype} as {dtype!r}") from None
        found.flags.writeable = copied
        return found

    def item(self, *where: Any) -> Any:
        """One element as a Python number, as NumPy has it: the only one, the one at an index for
        each dimension, or at one index of the flattened array.

        Raises RangeError, ArgumentError.
        """
        if len(where) == 1 and isinstance(where[0], tuple):
            where = where[0]
        if not where and self.size != 1:
            raise ArgumentError(f"item() of an array of {self.size} elements: say which one")
        if not where:
            return self.read().item()
        if len(where) not in (1, self.ndim):
            raise RangeError(f"item{where}: {len(where)} indices for {self.ndim} dimensions")
        if len(where) == 1:
            at = index(where[0], "index")
            if not -self.size <= at < self.size:
                raise RangeError(f"item({at}) of an array of {self.size} elements")
            where = np.unravel_index(at % self.size, self.shape)
        return self[where].read().item()

    def tolist(self) -> Any:
        """``a.read().tolist()``."""
        return self.read().tolist()

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
        """A DLPack capsule. What the consumer queues on ``stream`` comes after what was queued
        here; copy=True lends a copy.

        Raises ExportError (another device, strides that are no whole number of elements), DTypeError.
        """
        copied = flag(copy, "copy")
        lent = self.copy() if copied else self
        return _export.dlpack(lent._extent(), stream, max_version, dl_device, copied=copied)

    def __reduce__(self) -> Any:
        raise DTypeError("device memory cannot be pickled: pickle a.read(), and asarray() it there")

    if not TYPE_CHECKING:  # who checks types is told already

        def __getattr__(self, name: str) -> Any:
            if not name.startswith("_") and hasattr(np.ndarray, name):
                raise AttributeError(
                    f"an Array is device memory and has no {name!r}: a NumPy array of what it holds has, "
                    f"a.read().{name}"
                )
            return object.__getattribute__(self, name)  # raises as it did

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


def _target(out: Any, shape: Shape, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """What a read fills: ``out`` itself, or memory of its own where the elements must be converted
    or spread on their way there."""
    if out is None:
        return np.empty(shape, dtype)
    count = math.prod(shape)
    if not isinstance(out, np.ndarray):
        raw = raw_bytes(out)
        if raw is None:
            raise ArgumentError(
                f"out is a {type(out).__name__}: give a NumPy array or another writable buffer"
            )
        if raw.readonly or not raw.c_contiguous or raw.nbytes != count * dtype.itemsize:
            raise ArgumentError(
                f"out must be contiguous, writable and {count * dtype.itemsize} bytes: it has "
                f"{raw.nbytes} bytes" + (", read-only" if raw.readonly else "")
            )
        return np.frombuffer(raw.cast("B"), np.uint8).view(dtype).reshape(shape) if count else \
            np.empty(shape, dtype)  # fmt: skip
    if not out.flags.writeable:
        raise ArgumentError(f"out must be writable: this array of shape {out.shape} is read-only")
    if out.shape != shape and not (out.ndim == 1 and out.size == count):
        raise ArgumentError(f"out must have the shape {shape}, or be flat: it has {out.shape}")
    if not same_values(out.dtype, dtype):
        raise refuse(dtype, out.dtype, "the array")
    if out.dtype == dtype and out.flags.c_contiguous:
        return out
    return np.empty(shape, dtype)
