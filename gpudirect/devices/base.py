"""What a device is: memory, streams, copies and launches. Nothing here knows of bridges.

All addresses are plain integers, all sizes are bytes.
"""

from __future__ import annotations

import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .. import _native
from .._keeper import keeper, patient
from ..errors import ArgumentError, ForkError
from .streams import Queue, Stream

if TYPE_CHECKING:
    from .relayed import Launch, Relayed


@dataclass(frozen=True)
class Aperture:
    """Size and use of the GPU's PCI aperture (BAR1), in bytes."""

    total: int
    used: int


@dataclass(frozen=True)
class Ordering:
    """What the device promises about data that arrives through BAR1 (CUDA attributes 116-118)."""

    direct_writes: bool
    """The device takes writes from outside at all (attribute 116)."""
    flush_by_host: bool
    """``Device.flush_writes`` works: cuFlushGPUDirectRDMAWrites (attribute 117, bit 0)."""
    scope: str
    """Who sees such writes in order without a flush: "none", "owner" or "all devices" (118)."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel, as its compiler laid it out."""

    kind: str
    """'p' pointer, 'i' signed, 'u' unsigned, 'f' floating, 'b' bool, 's' struct, '?' unknown."""
    size: int
    """Bytes."""
    offset: int
    """Bytes from the start of the argument block."""
    pointee: str = ""
    """For a pointer: kind and size of what it points to, "f4" say; '' when not told."""


class DeviceMemory(ABC):
    """One physical block of device memory, at its own device address."""

    device: Device
    ptr: int
    size: int
    pci_address: str

    @abstractmethod
    def export_fd(self) -> int:
        """A new file descriptor naming the physical block. The caller closes it."""

    @abstractmethod
    def dmabuf_fd(self, offset: int, length: int) -> int:
        """A new dma-buf descriptor of a page-aligned part of the block. The caller closes it."""

    @abstractmethod
    def free(self) -> None:
        """Give the block back. Safe twice. The caller has made sure that no kernel uses it."""

    def prepare_pinning(self) -> None:  # noqa: B027 - not every device has anything to do
        """Called once before kernel code pins the pages (CU_POINTER_ATTRIBUTE_SYNC_MEMOPS)."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.size} bytes at {self.ptr:#x} of {self.device.name}>"


class HostMemory:
    """Page-locked host memory that the device reads and writes through the same address.

    It goes back when nobody refers to it any more, or by ``free``: not at once, but when nothing that was
    queued on the device can touch it.
    """

    __slots__ = ("_lease", "descriptor", "ptr", "size")

    def __init__(
        self, ptr: int, size: int, give_back: Callable[[], object], descriptor: int | None = None
    ) -> None:
        self._lease: Any = patient.leave(give_back)
        self.ptr = ptr
        self.size = size
        self.descriptor = descriptor
        """Of a file that holds the same bytes, for another process to map; None: it cannot be shared.
        It is closed when the memory goes back: duplicate it to keep it."""

    def free(self) -> None:
        """Let go of it. Safe twice, and never waits: somebody else does."""
        self.ptr = 0
        self.descriptor = None
        self._lease = None


class Function(ABC):
    """A kernel, compiled and loaded."""

    name: str
    parameters: tuple[Parameter, ...]
    handle: int = 0
    """The driver's own handle of it (CUfunction); 0 where there is no such thing."""

    @abstractmethod
    def launch(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared: int,
        stream: Stream,
        arguments: bytes,
        *,
        cooperative: bool = False,
    ) -> None:
        """Queue the kernel. ``arguments`` is the argument block that ``parameters`` describes."""

    @abstractmethod
    def image(self) -> bytes:
        """The compiled code, with whatever data its source put beside it."""

    def unload_when_dropped(self) -> None:  # noqa: B027 - not every device has anything to do
        """Have the code unloaded, at a quiet moment, when nobody refers to the function any more.

        For who gives its ``handle`` to nobody, and launches nothing that is not over by then.
        """

    @abstractmethod
    def resident_blocks(self, threads: int) -> int:
        """Blocks of so many threads that can run at once on the device when nothing else does."""


class Resident(Protocol):
    """A resident kernel that can make way."""

    def _pause(self) -> bool:
        """End the kernel, so that the device can be quiet. Whether it ran."""

    def _resume(self) -> None:
        """Launch it again."""


def _launches_block() -> str:
    if os.environ.get("CUDA_LAUNCH_BLOCKING", "0") not in ("", "0"):
        return "CUDA_LAUNCH_BLOCKING is set"
    if "NV_COMPUTE_PROFILER_PERFWORKS_DIR" in os.environ:  # by ncu, for what it starts
        return "Nsight Compute (ncu) profiles this process"
    return ""


class Device(ABC):
    """A place where memory and kernels live."""

    kind: str
    """"cuda" or "emulated"."""
    ordinal: int
    name: str
    uuid: str
    pci_address: str
    granularity: int
    """Every block's size is a multiple of this many bytes."""
    ordering: Ordering
    default_stream: Stream

    def __init__(self) -> None:
        self.work = _native.ffi.new("struct gd_work *")
        """What was queued on all streams together, and waited for."""
        self.work_address = int(_native.ffi.cast("uintptr_t", self.work))
        self.queues: set[Queue] = set()
        """Those of all streams that live or have work left."""
        self.entered: ContextVar[tuple[Stream, Any] | None] = ContextVar("stream", default=None)
        """The streams entered with ``with``, the innermost first, as a linked list."""
        self.residents: weakref.WeakSet[Resident] = weakref.WeakSet()
        """Resident kernels that run: they end when they are told to, and not before."""
        self.residents_lock = threading.RLock()
        """Held while one starts, stops, or makes way."""
        self.forked = False
        self.launches_block = _launches_block()
        """Why every launch waits for its kernel's end, as CUDA's driver was told to when it was loaded; ""
        where none does."""

    @property
    def id(self) -> str:
        """The name that selects this device: "cuda:0", "emulated:1"."""
        return f"{self.kind}:{self.ordinal}"

    @property
    def copy_team(self) -> int:
        """Number of the copy threads that serve it: each team serves one copy at a time."""
        return self.ordinal % int(_native.lib.GD_TEAMS)

    def copying(self, revocable: bool) -> int:
        """Flags of the copy engine for a mapping of its memory, which can be revoked or not."""
        lib = _native.lib
        return self.copy_team << lib.GD_TEAM_SHIFT | (lib.GD_GUARDED if revocable else 0)

    @property
    def emulated(self) -> bool:
        """Whether this is the software stand-in."""
        return self.kind == "emulated"

    def ensure_usable(self) -> None:
        """Raises ForkError in a child process, DeviceLostError after a fatal fault."""
        if self.forked:
            raise ForkError(
                f"{self.id} was opened by the parent process, and device memory is not inherited "
                "over fork(). Use multiprocessing's 'spawn' start method, or open the device only "
                "after the fork."
            )

    def ensure_alive(self) -> None:
        """``ensure_usable``, and asks the device itself: a fault that nobody has met yet is told.

        For loops that wait for a kernel. Never blocks.
        """
        self.ensure_usable()

    @abstractmethod
    def allocate(self, size: int) -> DeviceMemory:
        """A new block of at least ``size`` bytes (rounded up to ``granularity``)."""

    @abstractmethod
    def locate(self, ptr: int, size: int) -> list[tuple[DeviceMemory, int, int]]:
        """Which physical blocks back ``size`` bytes at ``ptr``, memory of others included.

        Returns (block, offset in it, length) in address order, together exactly the range.
        Raises NotMappableError when the memory is unknown; blocks found here are borrowed:
        freeing them drops the reference only.
        """

    def holds(self, ptr: int) -> bool:
        """Whether the memory at a device address is on this device."""
        return True

    def elsewhere(self, ptr: int) -> str:
        """The id of another device of its kind that memory of another library is on; "" where it is on this
        one, or nobody knows. Opens no device, and asks nothing where there is one only."""
        return ""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of device memory."""

    @abstractmethod
    def aperture(self) -> Aperture | None:
        """Size and use of BAR1; None where the driver does not tell."""

    @abstractmethod
    def host_allocate(self, size: int, *, shared: bool = False) -> HostMemory:
        """Page-locked host memory, ``size`` bytes.

        shared: in a file with a ``descriptor``, at one address for the device and this process, and all 0.
            Where the driver cannot register such memory, it has no descriptor.
        """

    @abstractmethod
    def stream(self) -> Stream:
        """A new stream, independent of all others."""

    @abstractmethod
    def adopt_stream(self, handle: object) -> Stream:
        """A stream that another library made: an object with ``__cuda_stream__`` or a handle."""

    def as_stream(self, given: object) -> Stream:
        """A stream of this device, as somebody gave it: one of ours, or what ``adopt_stream`` takes.

        Raises ArgumentError, ClosedError.
        """
        if not isinstance(given, Stream):
            return self.adopt_stream(given)
        if given.device is not self:
            raise ArgumentError(f"{given!r} is no stream of {self.id}")
        given.queue  # noqa: B018 - raises when closed
        return given

    @abstractmethod
    def copy_in(self, dst: int, src: int, size: int, stream: Stream | None = None) -> None:
        """DMA: host memory to device memory. Without a stream, returns when it is done."""

    @abstractmethod
    def copy_out(self, dst: int, src: int, size: int, stream: Stream | None = None) -> None:
        """DMA: device memory to host memory. Without a stream, returns when it is done."""

    @abstractmethod
    def copy_within(self, dst: int, src: int, size: int, stream: Stream) -> None:
        """Queue a copy from device memory to other device memory."""

    def driver_functions(self) -> Any:
        """Functions of the driver that C may call: a ``struct gd_driver *`` of _native/native.h;
        None where there are none."""
        return None

    def origin(self) -> dict[str, Any]:
        """How C makes blocks of its memory: fields of a ``struct gd_origin`` of _native/allocator.h,
        for the caller to keep."""
        return {"driver": self.driver_functions()}

    def near_cpus(self) -> list[int]:
        """CPUs of the NUMA node that the device hangs on; empty where the system does not tell."""
        return []

    @abstractmethod
    def fill(self, dst: int, value: int, size: int, stream: Stream | None = None,
             width: int = 1) -> None:
        """Queue the filling of ``size`` bytes of device memory with the ``width`` bytes (1, 2 or 4) of
        ``value``. dst, size: multiples of the width."""

    @abstractmethod
    def flush_writes(self) -> None:
        """Make data that arrived through BAR1 visible to running kernels."""

    @abstractmethod
    def compile(self, source: str, name: str, options: Sequence[str] = ()) -> Function:
        """Compile CUDA C++ ``source`` (cached on disk) and load its kernel ``name``."""

    @abstractmethod
    def relay(self, launch: Launch) -> Relayed:
        """A resident kernel that ends after each slice and is launched again; not started yet."""

    @abstractmethod
    def facts(self) -> dict[str, object]:
        """What a figures file must say of this device, as plain data."""

    @property
    def pending(self) -> bool:
        """Whether work was queued through gpudirect that nobody has waited for since."""
        return bool(_native.lib.gd_work_open(self.work))

    def pending_queues(self) -> list[Queue]:
        """The queues with work that nobody has waited for since."""
        return [q for q in tuple(self.queues) if q.pending]

    def working(self) -> bool:
        """Whether work queued through gpudirect is still to be done: kernels may be waiting for
        data."""
        return self.pending and any(not q.idle() for q in self.pending_queues())

    @property
    def current_stream(self) -> Stream:
        """Where launches go that name no stream: the one entered with ``with``, or the default."""
        top = self.entered.get()
        return self.default_stream if top is None else top[0]

    def retire(self, queue: Queue) -> None:
        """Give a queue whose stream is gone back to the driver, once its work is done. Keeper's."""
        if self.forked:
            return
        queue.retired = True
        self.sweep()

    def sweep(self) -> None:
        """Destroy the queues of streams that are gone, as far as they are idle. Keeper's."""
        for queue in [q for q in tuple(self.queues) if q.retired]:
            if queue.settle_if_idle():
                self.queues.discard(queue)
                queue.destroy()

    def synchronize(self) -> None:
        """Wait for all work that was queued through gpudirect on this device.

        Resident kernels are left out: they wait for calls, and end when their service is stopped.
        """
        self.ensure_usable()
        for queue in self.pending_queues():
            queue.synchronize()
        if any([q.retired for q in tuple(self.queues)]):  # of those that had work left, or still had before
            keeper.post(self.sweep)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """For what waits until nothing runs on the device: resident kernels are paused meanwhile.

        Loading code does, and so do cuMemFree, cuMemFreeHost and cuModuleUnload. What was paused before
        stays so.
        """
        with self.residents_lock, ExitStack() as undo:
            for resident in tuple(self.residents):
                if resident._pause():
                    undo.callback(resident._resume)
            yield

    def attribute(self, number: int) -> int | None:
        """A CUDA device attribute by number; None where the device does not know it."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Give back what the device object holds. Called at exit."""

    def __repr__(self) -> str:
        mark = " (emulated: no GPU is involved)" if self.emulated else ""
        return f"<Device {self.id} {self.name}{mark}>"
