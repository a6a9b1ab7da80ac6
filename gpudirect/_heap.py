"""A heap: device memory and its mapping, held together, cut, kept and handed out again.

Each free piece is one ``Lease``, and each piece in use is that lease in somebody's hands. Leases
move between lists, each move one call in C: out of a list and into a piece, out of a dropped piece
into the yard, out of the yard into a list. An exception that comes between two moves (Ctrl-C)
drops the lease, so it goes to the yard; it is never lost, never in two places, and there is no lock
that could stay held. What else a heap tells is counted from these lists.

Blocks are made and unmade by the keeper (``_keeper.py``). A piece given back while kernels may use
it is not handed out before everything that was queued at that moment has finished.
"""

from __future__ import annotations

import contextlib
import operator
from collections import Counter, deque
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from . import _native, aperture
from ._keeper import keeper
from .bridges import Bridge, PageRun
from .bridges.base import Held
from .config import env_size
from .devices import Device, DeviceMemory, Marker
from .errors import ApertureError, Error, OutOfMemoryError

SMALLEST = 256  # bytes: CUDA's own alignment of allocations
LARGEST_SMALL = 1 << 20
POOL_ENVIRONMENT = "GPUDIRECT_POOL"
POOL_DEFAULT = 64 << 20


class Closeable(Protocol):
    def close(self) -> object: ...


class Block:
    """One physical block and the mapping of it (or none, for memory used through windows)."""

    __slots__ = ("_held", "account", "charged", "copying", "cut", "host", "mapping", "memory", "revocable",
                 "shareable", "windows")

    def __init__(self, memory: Any, charged: aperture.Charged | None, account: Any, host: int = 0) -> None:
        self.memory: DeviceMemory = memory
        self.charged = charged
        self.mapping = charged.mapping if charged else None
        self.host = self.mapping.address if self.mapping else host
        """CPU address of the first byte; 0: not mapped."""
        self.account: aperture.Account = account
        self.revocable = self.mapping is not None and self.mapping.revocable
        self.copying = memory.device.copying(self.revocable) if self.mapping else 0
        self.shareable = False
        """It holds one array alone, for as long as it is there: another process may map it."""
        self.windows: Closeable | None = None  # those mapped on demand (_transfer/ondemand.py)
        self._held: Held | None = None  # what the bridge keeps between windows
        self.cut = 0  # bytes of each piece; 0: the block is one piece

    @property
    def pieces(self) -> int:
        """How many pieces it is."""
        return self.memory.size // self.cut if self.cut else 1

    def revoked(self) -> bool:
        """Whether the driver has taken the pages back."""
        return self.mapping is not None and self.mapping.revoked()

    def hold(self, bridge: Bridge) -> None:
        """Have the bridge keep what mapping takes at first: windows come and go."""
        if self._held is None and self.mapping is None:
            keeper.run(self._hold, bridge)

    def _hold(self, bridge: Bridge) -> None:
        if self._held is None:
            self._held = bridge.hold(self.memory)

    def release(self) -> None:
        """Unmap, then free: device memory outlives its mapping. Done again, it goes on. Keeper's."""
        if self.windows is not None:
            self.windows.close()
        if self._held is not None:
            keeper.give_back(self._held.close)
        if self.charged is not None:
            self.charged.close()
        self.memory.free()


class Piece:
    """Some bytes of memory in use; given back when nobody refers to it any more."""

    __slots__ = ("__weakref__", "_lease", "block", "heap", "host", "nbytes", "ptr")

    def __init__(self, heap: Heap, lease: Any, nbytes: int) -> None:
        self._lease = lease
        self.heap = heap
        self.block: Block = lease.of
        self.ptr: int = lease.ptr
        self.host: int = lease.host
        self.nbytes = nbytes

    @property
    def exported(self) -> bool:
        """Another library may have queued work on it."""
        return bool(self._lease.exported)

    @exported.setter
    def exported(self, value: bool) -> None:
        self._lease.exported = value

    # no bytecode, where a signal's handler might raise: a call asks for it, of each array
    device: Device = property(operator.attrgetter("heap.device"))  # type: ignore[assignment]

    @property
    def bridge(self) -> Bridge:
        return self.heap.bridge

    @property
    def revocable(self) -> bool:
        return self.block.revocable

    @property
    def copying(self) -> int:
        """Flags of the copy engine for what goes there."""
        return self.block.copying

    def revoked(self) -> bool:
        """Whether the driver has taken the pages back."""
        return self.block.revoked()

    def pages(self) -> list[PageRun]:
        mapping = self.block.mapping
        return mapping.pages() if mapping is not None else []

    def memory_at(self, offset: int, length: int) -> tuple[DeviceMemory, int]:
        """The physical block behind bytes of the piece, and where in it they start."""
        return self.block.memory, self.ptr + offset - self.block.memory.ptr


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


class _Waiting:
    """Leases that are free once some points in streams are reached."""

    __slots__ = ("leases", "markers")

    def __init__(self, markers: list[Marker]) -> None:
        self.markers = markers
        self.leases: list[Any] = []

    def done(self) -> bool:
        return all(m.done() for m in self.markers)

    def wait(self) -> None:
        for marker in self.markers:
            marker.wait()


def _size(lease: Any) -> int:
    """Bytes of a piece, not as asked for but as cut."""
    block: Block = lease.of
    return block.cut or block.memory.size


class Heap:
    """Allocator of mapped device memory for one (device, bridge) pair. Thread-safe."""

    def __init__(self, device: Device, bridge: Bridge | None) -> None:
        self.device = device
        self.bridge: Bridge = bridge  # type: ignore[assignment]
        self._keep_limit = env_size(POOL_ENVIRONMENT, POOL_DEFAULT)
        # the keeper looks after what came home only when it is more than may be kept
        self._yard = _native.Yard(partial(keeper.post, self._tidy), self._keep_limit)
        self._waiting: deque[_Waiting] = deque()
        self._cut: dict[bool, dict[int, list[Any]]] = {False: {}, True: {}}  # mapped -> size -> free
        self._kept: dict[int, list[Any]] = {}  # block size -> free blocks, mapped
        self._doomed: list[Any] = []  # blocks of one piece that go back to the device
        self._blocks: set[Block] = set()
        self._account = aperture.account(device)  # opened now: what it reads may be wrong

    # -- taking ------------------------------------------------------------------------------

    def take(self, nbytes: int, *, mapped: bool | None = True, pool: bool = True) -> Piece:
        """At least ``nbytes`` (> 0) of device memory, aligned to 256 bytes or better.

        mapped: None maps it if the aperture's budget has room, and else leaves it to windows.
        Raises OutOfMemoryError, ApertureError or BridgeError; nothing is taken then.
        """
        # a forked or lost device says so before memory of the parent is handed out
        self.device.ensure_usable()
        if self._yard or self._waiting:
            self._collect()
        lease = None
        if pool:  # what is there already costs no more room in the aperture
            if nbytes <= LARGEST_SMALL:
                cut = SMALLEST if nbytes <= SMALLEST else 1 << (nbytes - 1).bit_length()
                free = self._cut[mapped is not False].get(cut)
            elif mapped is not False:
                granularity = self.device.granularity
                free = self._kept.get(-(-nbytes // granularity) * granularity)
            else:
                free = None
            if free:
                try:
                    lease = free.pop()
                except IndexError:  # another thread was quicker
                    pass
        if lease is None:
            optional = False
            if mapped is None:
                account = self._account
                optional = account.budget is not None
                mapped = account.could_hold(nbytes)
            lease = self._make(nbytes, mapped, pool, optional)
        return Piece(self, lease, nbytes)

    def _rounded(self, nbytes: int) -> int:
        granularity = self.device.granularity
        return -(-nbytes // granularity) * granularity

    def _make(self, nbytes: int, mapped: bool, pool: bool, optional: bool) -> Any:
        """A piece of a new block, or of room that was made."""
        try:
            return keeper.run(self._make_kept, nbytes, mapped, pool)
        except (OutOfMemoryError, ApertureError) as e:
            # room may be hidden in what is kept, or in what kernels have not finished with
            room = self._make_room()
            if not room and not (optional and isinstance(e, ApertureError)):
                raise
        if room:
            try:
                return keeper.run(self._make_kept, nbytes, mapped, pool)
            except ApertureError:
                if not optional:
                    raise
        return keeper.run(self._make_kept, nbytes, False, pool)

    # what follows in this section runs on the keeper's thread

    def _make_kept(self, nbytes: int, mapped: bool, pool: bool) -> Any:
        if not pool or nbytes > LARGEST_SMALL:
            block = self._new_block(self._rounded(nbytes), mapped)
            # without the pool, or without a mapping, it is not kept: the bell is rung at once
            kept = pool and mapped
            return self._lease(block, 0, block.memory.size if kept else self._keep_limit + 1)
        cut = SMALLEST if nbytes <= SMALLEST else 1 << (nbytes - 1).bit_length()
        while True:
            with contextlib.suppress(IndexError, KeyError):
                return self._cut[mapped][cut].pop()
            self._cut_block(cut, mapped)  # other threads may take all of it at once

    def _lease(self, block: Block, offset: int, weight: int) -> Any:
        host = block.host + offset if block.host else 0
        ptr = block.memory.ptr + offset
        return _native.Lease(self._yard, block, ptr, block.cut, host, weight)

    def _cut_block(self, cut: int, mapped: bool) -> None:
        block = self._recut(mapped) or self._new_block(self._rounded(LARGEST_SMALL + 1), mapped)
        block.cut = cut
        leases = [self._lease(block, at, 0) for at in range(0, block.memory.size, cut)]
        leases.reverse()  # the lowest address is popped first
        self._cut[mapped].setdefault(cut, []).extend(leases)

    def _recut(self, mapped: bool) -> Block | None:
        """A cut block of which nothing is in use, taken out of its free list."""
        for free in self._cut[mapped].values():
            for block in self._unused(free):
                if self._gather(free, block):
                    return block
        return None

    @staticmethod
    def _unused(free: list[Any]) -> list[Block]:
        """The blocks of which every piece is in a free list."""
        counts = Counter(lease.of for lease in tuple(free))
        return [block for block, count in counts.items() if count == block.pieces]

    @staticmethod
    def _gather(free: list[Any], block: Block) -> bool:
        """Take all pieces of a block out of a free list, for good; False if one was taken first."""
        mine: list[Any] = []
        others: list[Any] = []
        while free:
            try:
                lease = free.pop()
            except IndexError:
                break
            (mine if lease.of is block else others).append(lease)
        others.reverse()
        free.extend(others)
        if len(mine) < block.pieces:
            mine.reverse()
            free.extend(mine)
            return False
        for lease in mine:
            lease.end()
        return True

    def _new_block(self, size: int, mapped: bool) -> Block:
        memory = self.device.allocate(size)
        charged = None
        if mapped:
            try:
                at = memory.ptr if self.bridge.places else None
                charged = self._account.map(
                    aperture.ARRAYS, self.bridge, memory, 0, memory.size, at=at
                )
            except BaseException as e:
                keeper.give_back(memory.free)
                if isinstance(e, ApertureError):
                    raise ApertureError(f"{e}\n{aperture.holders()}", e.errno) from e
                raise
        block = Block(memory, charged, self._account)
        self._blocks.add(block)
        return block

    # -- giving back -------------------------------------------------------------------------

    def _collect(self) -> None:
        """Put what came home into the free lists, as far as kernels have finished with it."""
        back = self._yard.take()
        if back:
            exported = False
            for lease in back:
                exported = exported or lease.exported
            if exported or _native.lib.gd_work_open(self.device.work):  # after they were given back
                waiting = _Waiting(self._markers(exported))
                self._waiting.append(waiting)
                waiting.leases.extend(back)
            else:
                while back:
                    self._put(back.pop())
        while self._waiting:
            try:
                first = self._waiting[0]
                if not first.done():
                    break
                while first.leases:
                    self._put(first.leases.pop())
                self._waiting.remove(first)
            except (IndexError, ValueError):
                continue  # another thread does the same

    def _markers(self, exported: bool) -> list[Marker]:
        queues = set(self.device.pending_queues())
        if exported:
            queues.add(self.device.default_stream.queue)
        try:
            return [q.record(False) for q in queues]
        except Error:
            return []  # a lost device runs nothing any more

    def _put(self, lease: Any) -> None:
        lease.exported = False
        block: Block = lease.of
        if block.cut:
            self._cut[bool(block.host)][block.cut].append(lease)
            return
        room, size = self._keep_limit, lease.weight  # of a block that is never kept: more than the limit
        for other, free in tuple(self._kept.items()):
            room -= other * len(free)
        if size <= room and not (block.revocable and block.revoked()):
            self._kept.setdefault(size, []).append(lease)
        else:
            self._doomed.append(lease)
            keeper.post(self._bury)

    def _bury(self) -> None:
        """Give blocks back to the device. Keeper's."""
        while self._doomed:
            try:
                lease = self._doomed.pop()
            except IndexError:
                break
            lease.end()
            self._release(lease.of)

    def _release(self, block: Block) -> None:
        keeper.give_back(partial(self._leave, block))

    def _leave(self, block: Block) -> None:
        block.release()
        self._blocks.discard(block)

    def _tidy(self) -> None:
        """More came home than may be kept."""
        if not self.device.forked:
            self._collect()
            self._bury()

    def shed(self) -> bool:
        """Give what is kept mapped for the next allocation back, if there is any. Never waits."""
        return keeper.run(self._shed)

    def _make_room(self) -> bool:
        """Wait for what kernels hold, then give all that is unused back to the device.

        Whether there may be more room than before.
        """
        before = len(self._blocks)
        self._collect()
        held = tuple(self._waiting)
        for waiting in held:
            waiting.wait()
        keeper.run(self._shed)
        return bool(held) or len(self._blocks) < before

    def _shed(self) -> bool:
        before = len(self._blocks)
        self._collect()
        for kept in tuple(self._kept.values()):
            while kept:
                try:
                    self._doomed.append(kept.pop())
                except IndexError:
                    break
        self._bury()
        for shelf in self._cut.values():
            for free in tuple(shelf.values()):
                for block in self._unused(free):
                    if self._gather(free, block):
                        self._release(block)
        return len(self._blocks) < before

    def trim(self) -> None:
        """Give every unused block back to the device, waiting for running kernels if need be."""
        keeper.settle()
        self._make_room()
        keeper.settle()

    # -- telling -----------------------------------------------------------------------------

    def find(self, ptr: int, nbytes: int) -> Block | None:
        """The block that some device memory lies in; None where it is none of these."""
        for block in tuple(self._blocks):
            if 0 <= ptr - block.memory.ptr <= block.memory.size - nbytes:
                return block
        return None

    def in_use(self) -> int:
        """Bytes in pieces that somebody refers to. Keeper's."""
        self._tidy()
        free = [
            *(lease for shelf in self._cut.values() for f in tuple(shelf.values()) for lease in tuple(f)),
            *(lease for f in tuple(self._kept.values()) for lease in tuple(f)),
            *tuple(self._doomed),
            *(lease for w in tuple(self._waiting) for lease in tuple(w.leases)),
        ]
        return sum(b.memory.size for b in self._blocks) - sum(map(_size, free))

    def mapped(self) -> int:
        """Bytes mapped through the aperture."""
        return sum(b.memory.size for b in tuple(self._blocks) if b.mapping is not None)

    def statistics(self) -> HeapStatistics:
        return keeper.run(self._statistics)

    def _statistics(self) -> HeapStatistics:
        in_use = self.in_use()
        return HeapStatistics(
            device=self.device.id,
            bridge=self.bridge.name if self.bridge is not None else "",
            reserved=sum(b.memory.size for b in self._blocks),
            mapped=self.mapped(),
            in_use=in_use,
            blocks=len(self._blocks),
            waiting=sum(len(w.leases) for w in tuple(self._waiting)) + len(self._yard),
        )
