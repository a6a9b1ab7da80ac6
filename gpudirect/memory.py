"""Allocations: device memory and its mapping, held together, and a pool of them.

A ``Piece`` is what an array stands on. It lives as long as anybody refers to it (the array, a
NumPy view, a DLPack consumer) and then goes back to its heap. A heap serves one (device, bridge)
pair: small pieces are cut from blocks of 2 MiB, large ones are blocks of their own, and some freed
blocks are kept, mapped, for the next allocation.

A piece freed while kernels may still use it is not handed out again before everything that was
queued at that moment has finished.
"""

from __future__ import annotations

import atexit
import mmap
import os
import threading
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from . import _native, aperture, bridges
from .bridges import Bridge, Mapping, PageRun
from .bridges.base import Held
from .config import defaults, env_size
from .devices import Device, DeviceMemory, Marker
from .errors import (
    ApertureError,
    BridgeError,
    Error,
    NotMappableError,
    OutOfMemoryError,
)

SMALLEST = 256  # bytes: CUDA's own alignment of allocations
LARGEST_SMALL = 1 << 20
POOL_ENVIRONMENT = "GPUDIRECT_POOL"
POOL_DEFAULT = 64 << 20
HOST_PAGE = mmap.PAGESIZE


class Closeable(Protocol):
    def close(self) -> object: ...


class Block:
    """One physical block and the mapping of it (or none, for memory used through windows)."""

    __slots__ = ("_held", "account", "cut", "mapping", "memory", "offset", "used", "windows")

    def __init__(
        self, memory: DeviceMemory, mapping: Mapping | None, account: aperture.Account
    ) -> None:
        self.memory = memory
        self.mapping = mapping
        self.account = account
        self.windows: Closeable | None = None  # those mapped on demand (ondemand.py)
        self._held: Held | None = None  # what the bridge keeps between windows
        # from a device address to the CPU's: 0 where the mapping is unified
        self.offset = mapping.address - memory.ptr if mapping else 0
        self.used = 0  # pieces in use, of a block that is cut
        self.cut = 0  # bytes of each piece; 0: the block is one piece

    def hold(self, bridge: Bridge) -> None:
        """Have the bridge keep what mapping takes at first: windows come and go."""
        if self._held is None and self.mapping is None:
            with self.account:
                self._held = self._held or bridge.hold(self.memory)

    def release(self) -> None:
        """Unmap, then free: device memory outlives its mapping."""
        try:
            if self.windows is not None:
                self.windows.close()
            if self._held is not None:
                self._held.close()
            if self.mapping is not None:
                self.mapping.close()
                self.account.give(aperture.ARRAYS, aperture.charge(0, self.memory.size))
        finally:
            self.memory.free()


class Piece:
    """Some bytes of device memory, mapped; given back when nobody refers to it any more."""

    __slots__ = ("__weakref__", "block", "exported", "heap", "host", "nbytes", "ptr")

    def __init__(self, heap: Heap, block: Block, ptr: int, nbytes: int) -> None:
        self.heap = heap
        self.block = block
        self.ptr = ptr
        self.nbytes = nbytes
        self.host = ptr + block.offset if block.mapping is not None else 0
        self.exported = False  # another library may have queued work on it

    @property
    def device(self) -> Device:
        return self.heap.device

    @property
    def bridge(self) -> Bridge:
        return self.heap.bridge

    @property
    def revocable(self) -> bool:
        mapping = self.block.mapping
        return mapping is not None and mapping.revocable

    def revoked(self) -> bool:
        """Whether the driver has taken the pages back."""
        mapping = self.block.mapping
        return mapping is not None and mapping.revoked()

    def pages(self) -> list[PageRun]:
        mapping = self.block.mapping
        return mapping.pages() if mapping is not None else []

    def memory_at(self, offset: int, length: int) -> tuple[DeviceMemory, int]:
        """The physical block behind bytes of the piece, and where in it they start."""
        return self.block.memory, self.ptr + offset - self.block.memory.ptr

    def __del__(self) -> None:
        self.heap.give(self)


@dataclass(frozen=True)
class HeapStatistics:
    """What a heap holds. All sizes in bytes."""

    device: str
    bridge: str
    reserved: int
    """Device memory taken from the device, mapped or not."""
    mapped: int
    """Of that, mapped through the aperture."""
    in_use: int
    """In pieces that somebody refers to."""
    blocks: int
    """Physical blocks."""
    waiting: int
    """Pieces given back that kernels may still use."""


class Heap:
    """Allocator of mapped device memory for one (device, bridge) pair. Thread-safe."""

    def __init__(self, device: Device, bridge: Bridge) -> None:
        self.device = device
        self.bridge = bridge
        self.closed = False
        self._lock = threading.Lock()
        self._returned: deque[tuple[Block, int, int, bool]] = deque()
        self._waiting: deque[tuple[list[Marker], Block, int, int]] = deque()
        self._cut: dict[int, list[tuple[Block, int]]] = {}  # piece size -> free pieces
        self._kept: dict[int, list[Block]] = {}  # block size -> free blocks
        self._kept_bytes = 0
        self._keep_limit = env_size(POOL_ENVIRONMENT, POOL_DEFAULT)
        self._blocks: set[Block] = set()
        self._in_use = 0
        self._account = aperture.account(device)

    # -- taking ------------------------------------------------------------------------------

    def take(self, nbytes: int, *, mapped: bool | None = True, pool: bool = True) -> Piece:
        """At least ``nbytes`` (> 0) of device memory, aligned to 256 bytes or better.

        mapped: None maps it if the aperture's budget has room, and else leaves it to windows.
        Raises OutOfMemoryError, ApertureError or BridgeError; nothing is taken then.
        """
        with self._lock:
            # a forked or lost device says so before memory of the parent is handed out
            self.device.ensure_usable()
            if self._returned or self._waiting:
                self._collect()
            if mapped is None:
                mapped, optional = self._account.could_hold(nbytes), self._account.budget is not None
            else:
                optional = False
            try:
                return self._take(nbytes, mapped, pool)
            except ApertureError:
                if not optional:
                    raise
                return self._take(nbytes, False, pool)

    def _take(self, nbytes: int, mapped: bool, pool: bool) -> Piece:
        if nbytes <= LARGEST_SMALL and mapped and pool:
            cut = SMALLEST if nbytes <= SMALLEST else 1 << (nbytes - 1).bit_length()
            free = self._cut.get(cut)
            if not free:
                free = self._cut_block(cut)
            block, ptr = free.pop()
            block.used += 1
            self._in_use += cut
            return Piece(self, block, ptr, nbytes)
        block = self._take_block(nbytes, mapped, pool)
        self._in_use += block.memory.size
        return Piece(self, block, block.memory.ptr, nbytes)

    def _cut_block(self, cut: int) -> list[tuple[Block, int]]:
        """Cut a block into pieces; the free list of that size."""
        block = self._recut() or self._take_block(LARGEST_SMALL + 1, True, True)
        start = block.memory.ptr
        pieces = [(block, p) for p in range(start, start + block.memory.size, cut)]
        pieces.reverse()  # the lowest address is popped first
        block.cut = cut
        free = self._cut.setdefault(cut, [])
        free.extend(pieces)
        return free

    def _recut(self) -> Block | None:
        """A cut block of which nothing is in use, taken out of its free list."""
        for block in self._blocks:
            if block.cut and not block.used:
                self._uncut(block)
                return block
        return None

    def _uncut(self, block: Block) -> None:
        self._cut[block.cut] = [p for p in self._cut[block.cut] if p[0] is not block]
        block.cut = 0

    def _take_block(self, nbytes: int, mapped: bool, pool: bool) -> Block:
        granularity = self.device.granularity
        size = -(-nbytes // granularity) * granularity
        kept = self._kept.get(size) if mapped and pool else None
        if kept:
            self._kept_bytes -= size
            return kept.pop()
        try:
            return self._new_block(size, mapped)
        except (OutOfMemoryError, ApertureError):
            # room may be hidden in what is kept, or in what kernels have not finished with
            if not self._make_room():
                raise
            return self._new_block(size, mapped)

    def _new_block(self, size: int, mapped: bool) -> Block:
        memory = self.device.allocate(size)
        mapping = None
        if mapped:
            try:
                at = memory.ptr if self.bridge.places else None
                mapping = self._account.map(
                    aperture.ARRAYS, self.bridge, memory, 0, memory.size, at=at
                )
            except BaseException as e:
                memory.free()
                if isinstance(e, ApertureError):
                    raise ApertureError(f"{e}\n{holders()}", e.errno) from e
                raise
        block = Block(memory, mapping, self._account)
        self._blocks.add(block)
        return block

    # -- giving back -------------------------------------------------------------------------

    def give(self, piece: Piece) -> None:
        """Called when the last reference to a piece is gone, on whatever thread that happens."""
        if self.closed:
            return
        # may run inside take() of this very thread (garbage collection), so: note it down, and
        # tidy up only if nobody holds the lock
        if not self._lock.acquire(blocking=False):
            self._returned.append((piece.block, piece.ptr, piece.nbytes, piece.exported))
            return
        try:
            if self._account.held:  # perhaps by this thread, in the middle of mapping
                self._returned.append((piece.block, piece.ptr, piece.nbytes, piece.exported))
            elif self.device.pending or piece.exported or self._returned:
                self._returned.append((piece.block, piece.ptr, piece.nbytes, piece.exported))
                self._collect()
            else:
                self._put(piece.block, piece.ptr)
        finally:
            self._lock.release()

    def _collect(self) -> None:
        """Put what came back into the free lists, as far as kernels have finished with it."""
        while self._returned:
            block, ptr, nbytes, exported = self._returned.popleft()
            markers = self._markers(exported)
            if markers:
                self._waiting.append((markers, block, ptr, nbytes))
            else:
                self._put(block, ptr)
        while self._waiting and all(m.done() for m in self._waiting[0][0]):
            _, block, ptr, _ = self._waiting.popleft()
            self._put(block, ptr)

    def _markers(self, exported: bool) -> list[Marker]:
        queues = set(self.device.pending_queues())
        if exported:
            queues.add(self.device.default_stream.queue)
        try:
            return [q.record(False) for q in queues]
        except Error:
            return []  # a lost device runs nothing any more

    def _put(self, block: Block, ptr: int) -> None:
        if block.cut:
            block.used -= 1
            self._in_use -= block.cut
            self._cut[block.cut].append((block, ptr))
            return
        size = block.memory.size
        self._in_use -= size
        dead = block.mapping is None or block.mapping.revoked()
        if dead or self._kept_bytes + size > self._keep_limit:
            self._drop(block)
        else:
            self._kept_bytes += size
            self._kept.setdefault(size, []).append(block)

    def _drop(self, block: Block) -> None:
        self._blocks.discard(block)
        block.release()

    def shed(self) -> bool:
        """Give what is kept mapped for the next allocation back, if there is any. Never waits."""
        with self._lock:
            return self._shed()

    def _make_room(self) -> bool:
        """Wait for what kernels hold, then give all that is unused back to the device."""
        before = len(self._blocks)
        for markers, block, ptr, _ in self._waiting:
            for marker in markers:
                marker.wait()
            self._put(block, ptr)
        self._waiting.clear()
        self._shed()
        return len(self._blocks) < before

    def _shed(self) -> bool:
        before = len(self._blocks)
        for kept in self._kept.values():
            while kept:
                self._drop(kept.pop())
        self._kept_bytes = 0
        for block in [b for b in self._blocks if b.cut and not b.used]:
            self._uncut(block)
            self._drop(block)
        return len(self._blocks) < before

    def trim(self) -> None:
        """Give every unused block back to the device, waiting for running kernels if need be."""
        with self._lock:
            self._collect()
            self._make_room()

    def statistics(self) -> HeapStatistics:
        with self._lock:
            return HeapStatistics(
                device=self.device.id,
                bridge=self.bridge.name,
                reserved=sum(b.memory.size for b in self._blocks),
                mapped=sum(b.memory.size for b in self._blocks if b.mapping is not None),
                in_use=self._in_use,
                blocks=len(self._blocks),
                waiting=len(self._waiting) + len(self._returned),
            )


class Registration:
    """Memory that somebody else allocated, mapped at an address of its own.

    It stands in for a ``Piece``. The owner must keep the memory alive; where the bridge imports
    it (``rm``), the pages stay valid even if he does not.
    """

    __slots__ = (
        "__weakref__",
        "_account",
        "_keep",
        "_reserved",
        "_segments",
        "bridge",
        "device",
        "exported",
        "host",
        "nbytes",
        "ptr",
    )

    def __init__(self, device: Device, bridge: Bridge, ptr: int, nbytes: int, keep: object) -> None:
        self.device = device
        self.bridge = bridge
        self.ptr = ptr
        self.nbytes = nbytes
        self.exported = False
        self._account = aperture.account(device)
        self._keep = keep
        self._segments: list[tuple[DeviceMemory, int, int, Mapping]] = []
        self._reserved: tuple[int, int] | None = None
        found = device.locate(ptr, nbytes)
        try:
            self._map(found)
        except BaseException:
            self._release()
            for memory, _, _ in found[len(self._segments) :]:
                memory.free()
            raise

    def _map(self, found: list[tuple[DeviceMemory, int, int]]) -> None:
        if not self.bridge.places:
            if len(found) > 1:
                raise NotMappableError(
                    f"{self.bridge.name} cannot map {self.nbytes} bytes at {self.ptr:#x} as one "
                    f"range: they lie in {len(found)} physical blocks, and it chooses addresses "
                    "itself. Use the bridge p2pmod, dmabuf or rm."
                )
            memory, offset, length = found[0]
            mapping = self._mapping(memory, offset, length, None)
            self._segments.append((memory, offset, length, mapping))
            self.host = mapping.address
            return
        # one reservation, so that blocks that are neighbours on the device are neighbours here
        lead = self.ptr % HOST_PAGE
        span = -(-(lead + self.nbytes) // HOST_PAGE) * HOST_PAGE
        base = int(_native.lib.gd_reserve(0, span, HOST_PAGE))
        if base < 0:
            raise BridgeError(f"reserving {span} bytes of addresses: {os.strerror(-base)}", -base)
        self._reserved = (base, span)
        self.host = base + lead
        at = self.host
        for memory, offset, length in found:
            mapping = self._mapping(memory, offset, length, at)
            self._segments.append((memory, offset, length, mapping))
            at += length

    def _mapping(self, memory: DeviceMemory, offset: int, length: int, at: int | None) -> Mapping:
        try:
            return self._account.map(
                aperture.REGISTERED, self.bridge, memory, offset, length, at=at
            )
        except ApertureError as e:
            raise ApertureError(f"{e}\n{holders()}", e.errno) from e

    @property
    def revocable(self) -> bool:
        return any(s[3].revocable for s in self._segments)

    def revoked(self) -> bool:
        return any(s[3].revoked() for s in self._segments)

    def pages(self) -> list[PageRun]:
        return [run for s in self._segments for run in s[3].pages()]

    def memory_at(self, offset: int, length: int) -> tuple[DeviceMemory, int]:
        """The physical block behind bytes of the range, and where in it they start."""
        at = 0
        for memory, start, extent, _ in self._segments:
            if at <= offset < at + extent:
                if offset + length > at + extent:
                    break
                return memory, start + offset - at
            at += extent
        raise NotMappableError(f"bytes {offset}..{offset + length} span several physical blocks")

    def _release(self) -> None:
        if self.device.forked:
            return
        segments, self._segments = self._segments, []
        reserved, self._reserved = self._reserved, None

        def close() -> None:
            for memory, _, _, mapping in segments:
                mapping.close()
                memory.free()
            if reserved is not None:
                _native.lib.gd_unmap(*reserved)

        size = sum(aperture.charge(offset, length) for _, offset, length, _ in segments)
        self._account.give(aperture.REGISTERED, size, close)

    def __del__(self) -> None:
        if _alive:
            self._release()


# -- the heaps of this process ---------------------------------------------------------------

_heaps: dict[tuple[Device, Bridge], Heap] = {}
_chosen: dict[tuple[Device, str | None], Heap] = {}  # by what was asked for
_heaps_lock = threading.Lock()
_alive = True


def heap(device: Device, bridge: str | None = None) -> Heap:
    """The heap of a device, through the bridge asked for or chosen.

    What a name means is found out once: asking every bridge again would cost more than a small
    allocation does.
    """
    wanted = bridge or defaults.bridge
    found = _chosen.get((device, wanted))
    if found is None:
        chosen = bridges.choose(device, bridge)
        with _heaps_lock:
            found = _heaps.get((device, chosen))
            if found is None:
                found = _heaps[device, chosen] = Heap(device, chosen)
            _chosen[device, wanted] = found
    return found


def statistics() -> list[HeapStatistics]:
    """What every heap of this process holds."""
    return [h.statistics() for h in _heaps.values()]


def holders() -> str:
    """Who holds how much of the aperture, in words, for an error message."""
    lines = []
    for (device, bridge), h in _heaps.items():
        mapped = sum(b.memory.size for b in h._blocks if b.mapping is not None)
        lines.append(
            f"  this process, {device.id} through {bridge.name}: {mapped} bytes mapped, "
            f"{h._in_use} in use"
        )
    lines.extend(f"  this process, {use.device}: {use}" for use in aperture.use())
    for device in {d for d, _ in _heaps}:
        bar1 = device.aperture()
        if bar1 is not None:
            lines.append(
                f"  all processes, {device.id}: {bar1.used} of {bar1.total} bytes of BAR1"
            )
    return "\n".join(lines)


def shed(device: Device) -> bool:
    """Give back what the pools of a device keep mapped, without waiting; False if there is none."""
    return any([h.shed() for h in _heaps.values() if h.device is device])


def alive() -> bool:
    """Whether there is still something to tidy up for: False at exit, when the system does it."""
    return _alive


def trim() -> None:
    """Give all unused device memory back to the devices."""
    for h in tuple(_heaps.values()):
        h.trim()


def _close() -> None:
    """At exit: what is still alive is left to the system, which frees it all at once."""
    global _alive
    _alive = False
    for h in _heaps.values():
        h.closed = True


def _after_fork_in_child() -> None:
    global _heaps_lock
    _heaps_lock = threading.Lock()
    for h in _heaps.values():
        h.closed = True
        h._lock = threading.Lock()
    _heaps.clear()
    _chosen.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close)  # runs before the devices close: they registered earlier
