"""The other side: memory of another process, mapped here."""

from __future__ import annotations

import fcntl
import math
import os
import socket
import stat
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .. import _native
from .._descriptors import none_left, telling, told
from .._keeper import keeper
from ..bridges import base, get
from ..errors import ArgumentError, BridgeError, ClosedError, DTypeError, ForkError, RangeError, SharingError
from . import _wire
from ._token import Token

if TYPE_CHECKING:
    import numpy as np

    from ..bridges import Mapping


class _Handed:
    """A block of another process, as a bridge sees one."""

    def __init__(self, descriptor: int, said: dict[str, Any]) -> None:
        self._descriptor = descriptor
        self.ptr: int = said["block"]
        self.size: int = said["size"]
        self.pci_address: str = said["pci_address"]

    def export_fd(self) -> int:
        with telling(f"naming {self.size} bytes by a descriptor", BridgeError):
            return os.dup(self._descriptor)

    def dmabuf_fd(self, offset: int, length: int) -> int:
        raise NotImplementedError

    def prepare_pinning(self) -> None:
        raise NotImplementedError


class FileMapping:
    """Memory whose descriptor itself can be mapped: the emulated device's, and host memory."""

    def __init__(self, descriptor: int, offset: int, length: int, writable: bool) -> None:
        _trust(descriptor, offset + length)
        start, self._size, lead = base.page_span(offset, length)
        self._base = base.map_file("emulated", descriptor, start, self._size, None, writable)
        self.address = self._base + lead

    def close(self) -> None:
        base.unmap(self._base, self._size, False)


def _trust(descriptor: int, size: int) -> None:
    """Raises SharingError where somebody could take away what a mapping of the file shows: an access would
    end this process then."""
    told = os.fstat(descriptor)
    if stat.S_ISCHR(told.st_mode):  # the lab's stand-in device, which looks after its mappings
        return
    if not stat.S_ISREG(told.st_mode):
        raise SharingError("what was handed over is no memory")
    try:
        sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    except OSError:  # a file that knows no seals
        sealed = 0
    if not sealed:
        raise SharingError("the memory that was handed over is a file that can be made shorter, which would "
                           "end this process: it is not sealed, so it is not mapped")  # fmt: skip
    if told.st_size < size:
        raise SharingError(f"the memory that was handed over is a file of {told.st_size} bytes, and {size} are "
                           "asked for")  # fmt: skip


class Attached(_native.Mapped):
    """An array of another process, mapped here. Made by ``attach``.

    write, read, flush and buffer are an Array's; ``dtype`` is its type string ("<f4"), so that NumPy
    need not be there. ``host`` is a NumPy view. When the owner closes the array or ends, every access
    but through a view that exists raises SharingError; the memory itself stays until the last view of
    it is gone.
    """

    __slots__ = ("_connection", "_descr", "_ended", "_lease", "_where", "mode", "nbytes", "pid")

    mode: str
    """"r" or "rw"."""
    pid: int
    """The owner's process."""
    nbytes: int
    """Bytes of the array."""
    _connection: socket.socket
    _descr: Any
    _ended: str
    _where: int
    _lease: Any

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise ArgumentError("attached arrays are made by gpudirect.attach")

    @classmethod
    def _make(cls, connection: socket.socket, mapping: Any, said: dict[str, Any]) -> Attached:
        self = cls.__new__(cls)
        self._connection = connection
        self._descr = said["descr"]
        self._ended = ""
        self._where = mapping.address
        self._lease = keeper.leave(mapping.close)
        self.mode, self.pid, self.nbytes = said["mode"], said["pid"], said["nbytes"]
        self._attach(self._where if self.mode == "rw" else 0, said["nbytes"], self._lease, said["format"], 0,
                     said["ptr"], 0, 0, tuple(said["shape"]), said["dtype"], said["itemsize"])  # fmt: skip
        return self

    # -- what it is --------------------------------------------------------------------------

    @property
    def owner_lives(self) -> bool:
        """Whether the owner still has the array: it neither closed it nor ended."""
        return not self._ended

    @property
    def host(self) -> np.ndarray[Any, Any]:
        """The CPU's view of it: a NumPy array, read-only with mode "r". Loads are slow, about 1 us
        each, as through any mapping. Imports NumPy. Raises SharingError, ClosedError."""
        import numpy as np

        return np.frombuffer(self.buffer, _dtype(self._descr)).reshape(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        what = "x".join(map(str, self.shape)) or "scalar"
        state = f", ended: {self._ended}" if self._ended else ""
        return f"<Attached {what} {self.dtype} of process {self.pid}, {self.mode}{state}>"

    # -- what the plain way does not do ------------------------------------------------------

    def _check(self) -> None:
        if self._where == 0:
            raise ClosedError("this attached array was closed")
        if self._ended:
            raise SharingError(self._ended)
        if self._connection.fileno() < 0:  # see _after_fork_in_child
            raise ForkError("this array was attached by the parent process, and mappings of device memory "
                            "are not inherited over fork(): attach with a token of its own")  # fmt: skip

    def _write_slow(self, data: Any, start: int = 0, *, via: str | None = None) -> None:
        self._check()
        if self.mode != "rw":
            raise SharingError(f"process {self.pid} shared this array read-only; ask for share(mode='rw')")
        if via not in (None, "map"):
            raise ArgumentError(f"via is {via!r}: an attached array has no DMA, only 'map'")
        import numpy as np

        kind = _dtype(self._descr)
        try:
            source = np.ascontiguousarray(data)
            if source.dtype != kind:
                plain = not isinstance(data, (np.ndarray, np.generic))  # numbers: as NumPy takes them
                source = source.astype(kind, casting="same_kind" if plain else "equiv", copy=False)
        except (TypeError, ValueError) as e:
            raise DTypeError(f"{type(data).__name__} cannot be stored as {kind}: {e}") from None
        if not isinstance(start, int) or start < 0 or start + source.size > math.prod(self.shape):
            raise RangeError(f"{source.size} elements from {start} on do not fit into an array of "
                             f"{math.prod(self.shape)}")  # fmt: skip
        if source.nbytes:
            at = self._where + start * kind.itemsize
            _native.lib.gd_write(at, _native.ffi.cast("char *", _native.address_of(source)), source.nbytes, 0)

    def _read_slow(self, out: Any = None, *, start: int = 0, count: int | None = None,
                   via: str | None = None, synchronize: bool = True) -> Any:
        self._check()
        import numpy as np

        size = math.prod(self.shape)
        part = start != 0 or count is not None
        count = size - start if count is None else count
        if start < 0 or count < 0 or start + count > size:
            raise RangeError(f"{count} elements from {start} on are not inside an array of {size}")
        kind = _dtype(self._descr)
        found = np.empty((count,) if part else self.shape, kind)
        if found.nbytes:
            at = self._where + start * kind.itemsize
            _native.lib.gd_read(_native.ffi.cast("char *", _native.address_of(found)), at, found.nbytes, 0)
        if out is None:
            return found
        into = np.asarray(out)
        if into.nbytes != found.nbytes:
            raise ArgumentError(f"out has {into.nbytes} bytes, and {found.nbytes} are read")
        into.reshape(-1).view(np.uint8)[:] = found.reshape(-1).view(np.uint8)
        return out

    def _flush_slow(self) -> None:
        self._check()
        _native.lib.gd_fence()

    def _buffer_slow(self) -> memoryview:
        self._check()
        view = _native.Mapped()
        view._attach(self._where, self.nbytes, self._lease, "B", 0, 0, 0, 0, (self.nbytes,), "|u1", 1)
        return view.buffer.toreadonly()

    # -- ends --------------------------------------------------------------------------------

    def _owner_ended(self, reason: str) -> None:
        """The owner has ended, or closed the array."""
        self._ended = self._ended or reason
        self._detach()

    def close(self) -> None:
        """Let go of it: unmapped once no view is left. Safe twice."""
        self._where = 0
        self._detach()
        self._lease = None
        _wire.hang_up(self._connection)  # ends who watches

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        connection = getattr(self, "_connection", None)
        if connection is not None:
            _wire.hang_up(connection)


def _dtype(descr: Any) -> np.dtype[Any]:
    """A dtype that came as JSON: lists are tuples there."""
    import numpy as np

    def plain(part: Any) -> Any:
        if isinstance(part, str):
            return part
        return [tuple(plain(x) if i == 1 else tuple(x) if isinstance(x, list) else x
                      for i, x in enumerate(field)) for field in part]  # fmt: skip

    return np.dtype(np.lib.format.descr_to_dtype(plain(descr)))


def attach(token: Token | str, *, timeout: float = 10.0) -> Attached:
    """Map an array of another process, with a token that its ``share`` gave.

    Needs neither CUDA nor NumPy, and makes no CUDA context. timeout: seconds that the owner may take
    to answer.
    Raises SharingError (the owner is gone, another user, the token was used already), ArgumentError
    (no token), BridgeError or ApertureError (the memory cannot be mapped here).
    """
    token = Token.parse(token)
    if token.mode == "call":
        raise ArgumentError(f"{token!r} is for a service: use gpudirect.attach")

    def make(connection: socket.socket, said: dict[str, Any], descriptors: list[int]) -> Attached:
        writable = said["mode"] == "rw"
        mapping = mapped(descriptors[0], said, said["pid"], emulated=said["emulated"], writable=writable)
        return Attached._make(connection, mapping, said)

    return opened(token, timeout, make)


class Open(Protocol):
    """What hangs on a connection to its owner."""

    _connection: socket.socket

    def _owner_ended(self, reason: str) -> None:
        """The owner closed it, or has ended."""


T = TypeVar("T", bound=Open)


def opened(token: Token, timeout: float,
           make: Callable[[socket.socket, dict[str, Any], list[int]], T]) -> T:  # fmt: skip
    """What ``make`` makes of a connection, of what the owner says, and of the descriptors that come with it
    (which are closed then). From then on it is told when the owner ends. Raises SharingError."""
    keeper.begin()  # who unmaps
    with telling("asking for the array of another process", lambda message, _: SharingError(message)):
        connection = _wire.opened()
    try:
        said, descriptors = _asked(connection, token, timeout)
        try:
            found = make(connection, said, descriptors)
        finally:
            for fd in descriptors:
                os.close(fd)
    except BaseException:
        connection.close()
        raise
    watcher = threading.Thread(target=_watch, args=(connection, weakref.ref(found), token.pid),
                               name="gpudirect attached", daemon=True)  # fmt: skip
    watcher.start()
    _attached.add(found)
    return found


def _asked(connection: socket.socket, token: Token, timeout: float) -> tuple[dict[str, Any], list[int]]:
    """What the owner answers. Raises SharingError."""
    connection.settimeout(timeout)
    try:
        connection.connect("\0" + token.socket)
        _, user = _wire.peer(connection)
        if user != os.getuid():  # somebody took the name after the owner had ended
            raise SharingError(f"user {user} answers on the token's socket, and not you (user {os.getuid()}): "
                               f"process {token.pid} has ended, or is another user's")  # fmt: skip
        _wire.send(connection, secret=token.secret)
        said, descriptors = _wire.receive(connection, 4)
    except TimeoutError:
        raise SharingError(f"process {token.pid}, which shared the array, did not answer in {timeout} s: is "
                           "it stopped, or in a debugger?") from None  # fmt: skip
    except OSError as e:
        raise SharingError(f"process {token.pid}, which shared the array, does not answer ({e.strerror}): it "
                           "has ended, or runs in another network namespace (container)") from None  # fmt: skip
    try:
        _understood(said, token)
    except BaseException:
        for fd in descriptors:
            os.close(fd)
        raise
    if not descriptors and (none := none_left()):
        raise SharingError(str(told(none, f"taking the memory that process {token.pid} shared")))
    if not descriptors:
        raise SharingError(f"process {token.pid} ended while it was asked")
    connection.settimeout(None)
    return said, descriptors


def _understood(said: dict[str, Any], token: Token) -> None:
    """Raises SharingError for a refusal, and for what another version says."""
    if "refused" in said:
        raise SharingError(f"process {token.pid} refused: {said['refused']}")
    if said and said.get("protocol") != _wire.PROTOCOL:
        raise SharingError(f"process {token.pid} speaks version {said.get('protocol')} of sharing, and this "
                           f"one {_wire.PROTOCOL}: install one version of gpudirect on both sides")  # fmt: skip


def mapped(descriptor: int, said: dict[str, Any], pid: int, *, emulated: bool,
           writable: bool) -> Mapping | FileMapping:  # fmt: skip
    """Map part of a block of device memory that was handed over."""
    offset, length = said["offset"], max(said["nbytes"], 1)
    try:
        if emulated:
            return FileMapping(descriptor, offset, length, writable)
        return get("rm").map(_Handed(descriptor, said), offset, length, writable=writable)  # type: ignore[call-arg]
    except BridgeError as e:
        e.add_note(f"attaching to {length} bytes of process {pid}")
        raise


def _watch(connection: socket.socket, seen: weakref.ref[Open], pid: int) -> None:
    """Wait until the owner says that it closed the array, or ends."""
    try:
        said, _ = _wire.receive(connection)
    except OSError:
        said = {}
    found = seen()
    if found is not None:
        found._owner_ended(f"process {pid}, its owner, closed it" if said.get("closed") else
                   f"process {pid}, its owner, has ended")  # fmt: skip
    connection.close()


_attached: weakref.WeakSet[Open] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for each in tuple(_attached):
        each._connection.close()  # the parent's: while a child held it, its end would not be noticed


os.register_at_fork(after_in_child=_after_fork_in_child)
