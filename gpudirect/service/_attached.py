"""A service of another process, called through one of its lanes without CUDA here."""

from __future__ import annotations

import operator
import socket
import struct
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from .._keeper import keeper
from ..errors import ArgumentError, ClosedError, DTypeError, ForkError, SharingError
from ..sharing import Token
from ..sharing._attached import FileMapping, mapped, opened
from ..sharing._wire import hang_up
from ._errors import Telling
from ._layout import packet_store
from ._native import Call, Function

_NUMBER = {("i", 1): "b", ("i", 2): "h", ("i", 4): "i", ("i", 8): "q", ("u", 1): "B", ("u", 2): "H",
           ("u", 4): "I", ("u", 8): "Q", ("f", 2): "e", ("f", 4): "f", ("f", 8): "d"}  # fmt: skip


class _NoArray:
    """Arrays are given by their device address here, which is packed the long way."""


class AttachedService(Telling):
    """A service of another process. Made by ``attach``.

    ``call``, ``submit`` and ``svc.name(...)`` are a Service's; pointers are given as attached arrays
    of the same device, or None. When the owner stops the service or ends, calls raise SharingError,
    also those that wait.
    """

    pid: int
    """The owner's process."""
    functions: dict[str, str]  # type: ignore[assignment]
    """Each with its declaration, in words."""
    _options: Any
    _parameters: dict[str, tuple[int, list[list[Any]]]]
    _connection: socket.socket
    _leases: list[object]
    _ended: str
    _closed: bool

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise ArgumentError("attached services are made by gpudirect.attach")

    @classmethod
    def _make(cls, connection: socket.socket, said: dict[str, Any], descriptors: list[int]) -> AttachedService:
        self = cls.__new__(cls)
        pid, emulated = said["pid"], said["emulated"]
        self._leases = []
        host = self._shown(FileMapping(descriptors[0], 0, said["host_size"], writable=False))
        memory = self._shown(mapped(descriptors[1], said["memory"], pid, emulated=emulated, writable=True))
        wake = 0
        if said["wake"] is not None:
            wake = self._shown(mapped(descriptors[2], said["wake"], pid, emulated=emulated, writable=True))
        packets, replies, arguments, arguments_device, stride, told, *_ = said["ring"]
        ring = (memory + packets, host + replies, memory + arguments, arguments_device, stride,
                host + told if wake else 0, wake, 0, said["sent"])  # fmt: skip
        functions = {name: Function(name, _NoArray, number, size, kind, result, tuple(map(tuple, parameters)))
                     for name, number, size, kind, result, parameters, _ in said["functions"]}  # fmt: skip
        self._connection, self._ended, self._closed = connection, "", False
        self.pid = pid
        self.functions = {f[0]: f[6] for f in said["functions"]}
        self._parameters = {f[0]: (f[2], f[5]) for f in said["functions"]}
        self._options = SimpleNamespace(lanes=1, slots=said["slots"], lifetime=None)
        self._open((ring,), said["slots"], 0, packet_store()[0], functions, None, Call)
        return self

    def _shown(self, mapping: Any) -> int:
        """Where a mapping is, which stays until the last call has left."""
        self._leases.append(keeper.leave(mapping.close))
        return int(mapping.address)

    # -- what it is ---------------------------------------------------------------------------

    @property
    def owner_lives(self) -> bool:
        """Whether the owner still has the service: it neither stopped it nor ended."""
        return not self._ended

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """``svc["scale"](2.0, a, 3)``. Raises KernelNotFoundError."""
        if name not in self.functions:
            raise self._unknown(name)
        return partial(self.call, name)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name in self.__dict__.get("functions", ()):
            return partial(self.call, name)
        if name.startswith("_") or "functions" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise AttributeError(str(self._unknown(name)), name=name, obj=self)

    def __repr__(self) -> str:
        state = f", ended: {self._ended}" if self._ended else ""
        return f"<AttachedService of {', '.join(self.functions)} of process {self.pid}{state}>"

    # -- what the C part asks for -------------------------------------------------------------

    def _pack(self, name: str, arguments: tuple[Any, ...]) -> tuple[bytes, tuple[object, ...]]:
        size, parameters = self._parameters.get(name, (0, []))
        if len(arguments) != len(parameters):
            raise ArgumentError(f"{name} takes {len(parameters)} argument(s), {self.functions.get(name, '')}; "
                                f"{len(arguments)} given")  # fmt: skip
        block = bytearray(size)
        for (kind, bytes_, offset), value in zip(parameters, arguments, strict=True):
            try:
                block[offset : offset + bytes_] = _packed(kind, bytes_, value)
            except (TypeError, ValueError, OverflowError, struct.error) as e:
                raise DTypeError(f"{name}: {value!r} does not fit a parameter of {self.functions[name]}: "
                                 f"{e}") from None  # fmt: skip
        return bytes(block), arguments

    def _refuse(self) -> None:
        if self._closed:
            raise ClosedError("this attached service was closed")
        if self._ended:
            raise SharingError(self._ended)
        raise ForkError("this service was attached by the parent process, and mappings of device memory are "
                        "not inherited over fork(): attach with a token of its own")  # fmt: skip

    def _check(self) -> None:
        """Nothing to ask: when the owner ends, calls that wait are told."""

    # -- ends ---------------------------------------------------------------------------------

    def _owner_ended(self, reason: str) -> None:
        self._ended = self._ended or reason
        self._leave(SharingError(reason))

    def _leave(self, failure: Exception) -> None:
        try:
            self._shut(failure, None)
        finally:  # of a signal's handler, say, while those that wait are told
            self._when_left(self._leases.clear)

    def close(self) -> None:
        """Let go of it; the owner can share the lane again. Safe twice."""
        self._closed = True
        self._leave(ClosedError("this attached service was closed"))
        hang_up(self._connection)

    def __enter__(self) -> AttachedService:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if "_connection" in self.__dict__:
            hang_up(self._connection)


def _packed(kind: str, size: int, value: Any) -> bytes:
    """An argument as bytes. Raises what Python does for one that does not fit."""
    if kind == "p":
        if value is None:
            return bytes(8)
        return struct.pack("<Q", value.ptr if hasattr(value, "ptr") else _not_a_pointer(value))
    if kind == "b":
        return struct.pack("<?", value)
    if kind == "s":
        raw = bytes(memoryview(value).cast("B"))
        if len(raw) != size:
            raise ValueError(f"{len(raw)} bytes for a struct of {size}")
        return raw
    if kind == "f":
        return struct.pack("<" + _NUMBER[kind, size], float(value))
    return struct.pack("<" + _NUMBER[kind, size], operator.index(value))


def _not_a_pointer(value: object) -> int:
    raise TypeError(f"a pointer is given as an attached array or None, not as {type(value).__name__}")


def attach_service(token: Token, timeout: float) -> AttachedService:
    """``gpudirect.attach`` with a token of ``Service.share_lane``."""
    return opened(token, timeout, AttachedService._make)
