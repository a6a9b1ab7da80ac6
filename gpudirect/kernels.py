"""Kernels: CUDA C++ source, compiled once, launched on arrays by reference.

    k = kernel(source, "scale")
    k[grid, block](a, 4096, 2.0)

On the emulated device the same source is compiled by the host's C++ compiler.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _native, devices
from ._host import HostView
from ._pinned import PinnedArray, piece_of
from .arrays import Array, stream_of
from .devices import Device, Function, Parameter, Stream
from .dtypes import why_no_pointer
from .errors import ArgumentError, DTypeError, LaunchError

Dim = int | tuple[int, ...]

_NAMES = {
    "p": "a pointer", "i": "a signed integer", "u": "an unsigned integer",
    "f": "a floating-point number", "b": "a bool", "s": "a struct", "?": "a value",
}  # fmt: skip
_FORMATS = {
    ("i", 1): "<b", ("i", 2): "<h", ("i", 4): "<i", ("i", 8): "<q",
    ("u", 1): "<B", ("u", 2): "<H", ("u", 4): "<I", ("u", 8): "<Q",
    ("f", 2): "<e", ("f", 4): "<f", ("f", 8): "<d", ("b", 1): "<?", ("p", 8): "<Q",
}  # fmt: skip


def _dim(value: Any, what: str) -> tuple[int, int, int]:
    parts = value if isinstance(value, (tuple, list)) else (value,)
    try:
        clean = tuple(operator.index(n) for n in parts)
    except TypeError:
        raise ArgumentError(f"{what} is {value!r}: give one to three whole numbers") from None
    if not 1 <= len(clean) <= 3 or any(n < 1 for n in clean):
        raise ArgumentError(f"{what} is {value!r}: give one to three numbers of at least 1")
    return (*clean, 1, 1)[:3]  # type: ignore[return-value]


def _describe(parameter: Parameter) -> str:
    words = _NAMES.get(parameter.kind, "a value")
    if parameter.pointee:
        return f"{words} to {parameter.pointee}"
    return f"{words} of {parameter.size} bytes"


class Kernel:
    """A compiled kernel. Call it as ``k[grid, block](...)`` or ``k.launch(...)``."""

    def __init__(self, function: Function, device: Device) -> None:
        if not hasattr(function, "parameters"):
            raise ArgumentError("kernels are made by gpudirect.kernel")
        self._function = function
        self.device = device
        self.name = function.name
        self._packers = [_packer(self.name, i, p) for i, p in enumerate(function.parameters)]
        last = function.parameters[-1] if function.parameters else None
        self._size = last.offset + last.size if last else 0

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What the kernel takes, as its compiler laid it out."""
        return self._function.parameters

    @property
    def handle(self) -> int:
        """The driver's handle (CUfunction), for code that launches by itself: a CUDA graph, say.

        Whoever launches that way fences stores first (``a.flush()``). Raises LaunchError on the
        emulated device, which has none.
        """
        if not self._function.handle:
            raise LaunchError(f"{self.device.id} has no CUDA driver, so {self.name} has no handle")
        return self._function.handle

    def __getitem__(self, how: Any) -> Launcher:
        """``k[grid, block]``, ``k[grid, block, stream]`` or ``k[grid, block, stream, shared]``."""
        if not isinstance(how, tuple) or not 2 <= len(how) <= 4:
            raise ArgumentError("write k[grid, block], k[grid, block, stream] or "
                                "k[grid, block, stream, shared_bytes]")  # fmt: skip
        return Launcher(self, *how)

    def launch(
        self,
        grid: Dim,
        block: Dim,
        *arguments: Any,
        stream: Any = None,
        shared: int = 0,
        cooperative: bool = False,
    ) -> None:
        """Queue the kernel; returns at once. Stores made before are fenced first.

        grid, block: one to three numbers. shared: bytes of dynamic shared memory.
        stream: None takes the current one: of ``with stream:``, or else the default stream.
        arguments: arrays (pinned ones too) go by reference, numbers and NumPy scalars by value,
            structured NumPy scalars as structs. Of another library's array, what its current stream has
            queued comes before, and what it queues there later comes after.
        cooperative: every block is resident at once (grid-wide synchronisation).
        Raises ArgumentError, DTypeError or LaunchError; nothing was queued then.
        """
        Launcher(self, grid, block, stream, shared, cooperative)(*arguments)

    def pack(self, arguments: Sequence[Any]) -> bytes:
        """The argument block. Raises ArgumentError or DTypeError naming the argument at fault."""
        return self._pack(arguments)[0]

    def _pack(self, arguments: Sequence[Any]) -> tuple[bytes, list[Any]]:
        """``pack``, and the streams that other libraries' arrays among the arguments are used on."""
        packers = self._packers
        if not isinstance(arguments, (tuple, list)):
            raise ArgumentError(f"arguments is {arguments!r}: give a list of them")
        if len(arguments) != len(packers):
            wanted = ", ".join(_describe(p) for p in self.parameters) or "nothing"
            raise ArgumentError(
                f"{self.name} takes {len(packers)} argument(s) ({wanted}); {len(arguments)} given"
            )
        block = bytearray(self._size)
        theirs = []
        for pack, value in zip(packers, arguments, strict=True):
            stream = pack(block, value, self.device)
            if stream is not None:
                theirs.append(stream)
        return bytes(block), theirs

    def __repr__(self) -> str:
        kinds = ", ".join(_describe(p) for p in self.parameters)
        mark = " (emulated)" if self.device.emulated else ""
        return f"<Kernel {self.name}({kinds}) for {self.device.id}{mark}>"


class Launcher:
    """A kernel with its launch configuration."""

    __slots__ = ("_block", "_cooperative", "_grid", "_kernel", "_shared", "_stream")

    def __init__(self, kernel: Kernel, grid: Dim, block: Dim, stream: Any = None, shared: int = 0,
                 cooperative: bool = False) -> None:
        self._kernel = kernel
        self._grid = _dim(grid, "grid")
        self._block = _dim(block, "block")
        device = kernel.device
        # None: the current one when it is called
        self._stream: Stream | None = None if stream is None else device.as_stream(stream)
        try:
            self._shared = operator.index(shared)
        except TypeError:
            raise ArgumentError(f"shared is {shared!r}: give a number of bytes") from None
        if self._shared < 0:
            raise ArgumentError(f"shared is {shared}: give at least 0 bytes")
        self._cooperative = cooperative

    def __call__(self, *arguments: Any) -> None:
        kernel = self._kernel
        block, theirs = kernel._pack(arguments)
        stream = self._stream or kernel.device.current_stream
        others = _others(stream, theirs) if theirs else ()
        for other in others:  # what their library queued on the arguments comes before
            stream.wait(other)
        _native.lib.gd_fence()
        kernel._function.launch(
            self._grid, self._block, self._shared, stream, block,
            cooperative=self._cooperative,
        )  # fmt: skip
        for other in others:  # and what it queues there from now on comes after
            other.wait(stream)


def _others(stream: Stream, theirs: Sequence[Any]) -> list[Stream]:
    """Streams of other libraries, each once, that are another one than a launch goes to.

    Raises LaunchError where one is being captured: the launch would not be part of the graph.
    """
    device = stream.device
    if device.emulated:
        return []
    found = {s.queue: s for s in map(device.adopt_stream, theirs) if s.queue is not stream.queue}
    for queue in found:
        if queue.capturing():
            raise LaunchError(
                "an argument's library captures a graph on its current stream, and this launch goes to "
                f"another one ({stream!r}), so it would not be captured: name that stream, as in "
                "k[grid, block, torch.cuda.current_stream()]"
            )
    return list(found.values())


def _packer(kernel: str, index: int, parameter: Parameter) -> Any:
    """A function that checks one argument and stores it in the argument block."""
    kind, size, offset = parameter.kind, parameter.size, parameter.offset
    layout = struct.Struct(_FORMATS[kind, size]) if (kind, size) in _FORMATS else None

    def refuse(value: Any, why: str = "") -> DTypeError:
        shown = repr(value)
        given = f"{type(value).__name__} {shown if len(shown) < 60 else shown[:57] + '...'}"
        return DTypeError(
            f"argument {index + 1} of {kernel} is {_describe(parameter)}; given {given}"
            + (f" ({why})" if why else "")
        )

    def pack_pointer(block: bytearray, value: Any, device: Device) -> Any:
        stream = None
        if isinstance(value, Array):
            if value.device is not device:
                device.ensure_usable()  # of the parent, maybe
                raise refuse(value, f"it is on {value.device.id}, the kernel on {device.id}")
            if why := why_no_pointer(value.dtype, parameter.pointee):
                raise refuse(value, why)
            address = value.ptr
        elif isinstance(value, PinnedArray):
            try:
                owner = piece_of(value).device
            except ArgumentError as e:
                raise refuse(value, str(e)) from None
            if owner is not device:
                raise refuse(value, f"it is pinned for {owner.id}, the kernel on {device.id}")
            if why := why_no_pointer(value.dtype, parameter.pointee):
                raise refuse(value, why)
            address = value.ptr
        elif value is None:
            address = 0
        elif isinstance(value, HostView):
            raise refuse(value, "give the array itself, not its CPU view")
        elif (interface := getattr(value, "__cuda_array_interface__", None)) is not None:
            if why := why_no_pointer(np.dtype(interface["typestr"]), parameter.pointee):
                raise refuse(value, why)
            address = interface["data"][0]
            if other := device.elsewhere(address):
                raise refuse(value, f"it is on {other}, the kernel on {device.id}")
            stream = stream_of(value, interface)
        elif hasattr(value, "device_pointer"):
            address = value.device_pointer
        else:
            try:
                address = operator.index(value)
            except TypeError:
                why = "a NumPy array is CPU memory: copy it with gpudirect.asarray" \
                    if isinstance(value, np.ndarray) else ""  # fmt: skip
                raise refuse(value, why) from None
            if not 0 <= address < 1 << 64:
                raise refuse(value, "no address")
        struct.pack_into("<Q", block, offset, address)
        return stream

    def pack_number(block: bytearray, value: Any, device: Device) -> None:
        assert layout is not None
        if isinstance(value, Array):
            raise refuse(value, "an array goes to a pointer")
        try:
            if kind in "iu":
                layout.pack_into(block, offset, operator.index(value))
            elif kind == "b":
                layout.pack_into(block, offset, bool(value))
            else:
                layout.pack_into(block, offset, float(value))
        except (struct.error, OverflowError):
            raise refuse(value, f"out of the range of {size} bytes") from None
        except (TypeError, ValueError):
            raise refuse(value) from None

    def pack_raw(block: bytearray, value: Any, device: Device) -> None:
        if isinstance(value, (bytes, bytearray)):
            raw = bytes(value)
        elif isinstance(value, (np.generic, np.ndarray)) and not value.dtype.hasobject:
            raw = value.tobytes()
        else:
            raise refuse(value, "give a structured NumPy scalar of the same layout, or bytes")
        if len(raw) != size:
            raise refuse(value, f"it has {len(raw)} bytes")
        block[offset : offset + size] = raw

    if kind == "p":
        return pack_pointer
    return pack_number if layout is not None else pack_raw


def compiler_options(options: Any) -> tuple[str, ...]:
    """Options for the compiler, which must be several texts. Raises ArgumentError."""
    if not isinstance(options, (list, tuple)) or not all(isinstance(o, str) for o in options):
        raise ArgumentError(f'options is {options!r}: give a list of texts, as in ["-DN=3"]')
    return tuple(options)


def kernel(
    source: str,
    name: str,
    *,
    device: Device | str | int | None = None,
    options: Sequence[str] = (),
) -> Kernel:
    """Compile CUDA C++ ``source`` and return its kernel ``name``.

    name: as written in the source; a template instance ("scale<float>") or a name in a namespace
        works as well.
    options: NVRTC's, as in ["-DN=3", "-Iheaders"]; the architecture is the device's. CUDA's headers
        (cuda_fp16.h, cooperative_groups.h, cuda/atomic) and the standard ones that make sense on a GPU
        (cstdint, cmath, type_traits) are found where CUDA's are installed.
    Compiled once: the result is cached on disk (``$GPUDIRECT_CACHE``), so the next process loads it.
    Raises CompileError (with ``log``), KernelNotFoundError, ArgumentError.
    """
    if not isinstance(source, str) or not source.strip():
        raise ArgumentError("source is empty: give CUDA C++ text")
    if not isinstance(name, str) or not name.strip():
        raise ArgumentError("name is empty: give the kernel's name as in the source")
    options = compiler_options(options)
    chosen = devices.get(device)
    return Kernel(chosen.compile(source, name, options), chosen)


__all__ = ["Kernel", "Launcher", "kernel"]
