"""Memory that other libraries allocate from us: where it is, and its mapping.

What names its memory by address only (PyTorch's caching allocator) calls ``gpudirect_alloc`` and
``gpudirect_free`` of ``_native/allocator.c``, which never take Python's lock: such a library calls with
locks of its own held, and another thread may hold Python's and wait for those. So a block is made
there and mapped here, when somebody asks for the CPU's view of it; and where it was mapped it is given
back here, by a thread that waits in C for what there is to do.

What keeps an object for its memory (CuPy, cuda.core, RMM, Numba) is given pieces of the heap.
"""

from __future__ import annotations

import _thread
import atexit
import os
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import _native, aperture, memory
from ._keeper import keeper
from .bridges import Bridge, Mapping, PageRun
from .devices import Device, DeviceMemory, Stream
from .errors import ApertureError, Error, NotMappableError

WAIT = 60_000_000_000
"""Nanoseconds that the thread waits in C before it looks whether the process is still the same."""


class Shared:
    """Memory of ours in the hands of another library, and the mapping that it has already. Stands in
    for a ``Piece``; keeps whatever keeps the memory."""

    __slots__ = ("__weakref__", "_keep", "_mapping", "_memory", "bridge", "device", "exported", "host",
                 "nbytes", "ptr")  # fmt: skip

    def __init__(self, device: Device, bridge: Bridge, memory: DeviceMemory, mapping: Mapping, ptr: int,
                 nbytes: int, keep: object) -> None:
        self.device = device
        self.bridge = bridge
        self.ptr = ptr
        self.nbytes = nbytes
        self.host: int = mapping.address + ptr - memory.ptr
        self.exported = True
        self._memory = memory
        self._mapping = mapping
        self._keep = keep

    @property
    def revocable(self) -> bool:
        return self._mapping.revocable

    @property
    def copying(self) -> int:
        return self.device.copying(self.revocable)

    def revoked(self) -> bool:
        """Whether the driver has taken the pages back."""
        return self._mapping.revoked()

    def pages(self) -> list[PageRun]:
        return self._mapping.pages()

    def memory_at(self, offset: int, length: int) -> tuple[DeviceMemory, int]:
        """The physical block behind some bytes, and where in it they start."""
        return self._memory, self.ptr + offset - self._memory.ptr


@dataclass
class _Held:
    """A block that ``gpudirect_alloc`` gave, with its mapping."""

    memory: DeviceMemory
    charged: aperture.Charged
    bridge: Bridge

    def release(self) -> None:
        """Unmap. Keeper's."""
        try:
            self.charged.close()
        finally:
            self.memory.free()


class Loans:
    """Pieces of a heap that another library names by address, and gives back by it."""

    def __init__(self, device: Device, bridge: str | None = None) -> None:
        self.device = device
        self._heap = memory.heap(device, bridge)
        self._lent: dict[int, memory.Piece] = {}

    def take(self, nbytes: int) -> int:
        """The address of mapped memory, for one who gives it back. Raises OutOfMemoryError, ApertureError."""
        piece = self._piece(nbytes)
        self._lent[piece.ptr] = piece
        return piece.ptr

    def give(self, ptr: int, stream: object = None) -> None:
        """It is used no more, but for what is queued on a stream. What is not lent is let be.

        For finalizers too: nothing here waits or takes a lock.
        """
        piece = self._lent.pop(ptr, None)
        if piece is not None and stream is not None and not self.device.forked:
            there = stream if isinstance(stream, Stream) else self.device.adopt_stream(stream)
            there.queue.note()

    def undo(self, ptr: int, piece: object) -> None:
        """``give``, unless it was given back already, and lent to somebody else since."""
        if self._lent.get(ptr) is piece:
            self.give(ptr)

    def piece(self, ptr: int) -> object:
        """What is lent at an address, for ``undo``."""
        return self._lent.get(ptr)

    def owned(self, nbytes: int, stream: object = None) -> tuple[int, object]:
        """(address, owner): mapped memory that goes back when nobody refers to the owner any more, and
        what was queued on a stream until then is done."""
        piece = self._piece(nbytes)
        there = None if stream is None else self.device.adopt_stream(stream)
        return piece.ptr, keeper.leave(partial(_let_go, [piece], there))

    def _piece(self, nbytes: int) -> memory.Piece:
        piece = self._heap.take(max(nbytes, 1))
        piece.exported = True
        return piece

    def __len__(self) -> int:
        return len(self._lent)


def _let_go(left: list[memory.Piece], stream: Stream | None) -> None:
    if stream is not None and not stream.device.forked:
        stream.queue.note()
    left.clear()


_held: dict[int, _Held] = {}  # by address
_opened: dict[int, Any] = {}  # ordinal -> what C refers to
_serving = False


def find(device: Device, bridge: Bridge, ptr: int, nbytes: int, keep: object) -> Shared | None:
    """Memory of ours that another library holds, through the mapping that it has or is given now.

    None where it is not ours, or is mapped by another bridge than the one asked for.
    Raises BridgeError, ApertureError.
    """
    block = memory.find(device, bridge, ptr, nbytes)
    if block is not None and block.mapping is not None:
        return Shared(device, bridge, block.memory, block.mapping, ptr, nbytes, (block, keep))
    if not _opened:
        return None
    found = _native.ffi.new("struct gd_block *")
    if not _native.lib.gd_allocator_hold(ptr, found) or found.device != device.ordinal:
        return None
    if ptr + nbytes > found.address + found.size:
        return None
    held = _held.get(found.address) or keeper.run(_map, device, bridge, int(found.address), int(found.size))
    if held.bridge is not bridge:
        return None
    return Shared(device, bridge, held.memory, held.charged.mapping, ptr, nbytes, (held, keep))


def _map(device: Device, bridge: Bridge, ptr: int, size: int) -> _Held:
    """Map a block whole. Keeper's."""
    found = _held.get(ptr)
    if found is not None:  # another thread asked for it as well
        return found
    parts = device.locate(ptr, size)
    try:
        block, offset, length = parts[0]
        if len(parts) > 1 or length < size:
            raise NotMappableError(f"{size} bytes at {ptr:#x} are not one block")
        at = ptr if bridge.places else None
        charged = aperture.account(device).map(aperture.REGISTERED, bridge, block, offset, size, at=at)
    except BaseException as e:
        for part, _, _ in parts:
            part.free()
        if isinstance(e, ApertureError):
            raise ApertureError(f"{e}\n{aperture.holders()}", e.errno) from e
        raise
    found = _held[ptr] = _Held(block, charged, bridge)
    return found


def open_for(device: Device) -> None:
    """Have ``gpudirect_alloc`` and ``gpudirect_free`` serve a device. Raises Error."""
    if device.ordinal in _opened:
        return
    device.ensure_usable()
    kept = device.origin()
    origin = _native.ffi.new("struct gd_origin *", {"granularity": device.granularity, **kept})
    if _native.lib.gd_allocator_open(device.ordinal, origin):
        raise Error(f"{device.id}: {_native.lib.GD_MOST_DEVICES} devices at most can lend memory")
    _opened[device.ordinal] = kept
    _serve()


def _serve() -> None:
    """Start the thread that gives back what was mapped."""
    global _serving
    if _serving:
        return
    try:
        _thread.start_new_thread(_loop, ())
    except RuntimeError as e:
        raise Error(f"the system gives this process no further thread ({e}); see ulimit -u") from e
    _serving = True


def _loop() -> None:
    block = _native.ffi.new("struct gd_block *")
    while True:
        what = _native.lib.gd_allocator_next(block, WAIT)
        if what == _native.lib.GD_UNMAP:
            keeper.post(partial(_bury, int(block.address)))
        elif what == _native.lib.GD_PRESS:
            keeper.post(_relieve)


def _bury(ptr: int) -> None:
    """Unmap a block that was given back, and free it. Keeper's."""
    held = _held.pop(ptr, None)
    if held is not None:
        keeper.give_back(held.release)
    _native.lib.gd_allocator_bury(ptr)


def _relieve() -> None:
    """Memory ran out for somebody else: what our pools keep goes back to the devices. Keeper's."""
    try:
        memory.shed_all()
    finally:
        _native.lib.gd_allocator_pressed()


def statistics(device: Device) -> dict[str, int]:
    """Blocks and bytes that other libraries hold of a device, those that wait to be unmapped, how often
    there was no memory, and the driver's last error."""
    found = _native.ffi.new("struct gd_allocated *")
    _native.lib.gd_allocator_statistics(device.ordinal, found)
    return {name: int(getattr(found, name)) for name in ("blocks", "bytes", "waiting", "refused", "code")}


def _after_fork_in_child() -> None:
    global _serving
    _serving = False
    _held.clear()
    _opened.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_native.lib.gd_allocator_close)
