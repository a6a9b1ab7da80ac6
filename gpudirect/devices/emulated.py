"""Device ``emulated``: a software stand-in for a GPU. It always says that it is one.

The emulated GPU is another process (``emulation/``). Device memory is a memfd (or, where the lab's
stand-in driver is loaded, a piece of its PCI BAR) that the GPU process maps at the device address;
this process sees it only where a bridge maps it. So a pointer is one number on both sides, a CPU
access without a mapping faults as it would on hardware, and a kernel's bad pointer ends the GPU
and not the program. Streams are worker threads: a missing synchronisation shows.

Environment:
  GPUDIRECT_EMULATED_DEVICES  how many there are (1)
  GPUDIRECT_EMULATED_MEMORY   bytes of device memory each (1 GiB)
  GPUDIRECT_EMULATED_BAR1     bytes of aperture each (256 MiB)
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from .. import _native
from .._descriptors import telling
from .._keeper import keeper, patient
from ..config import env_size
from ..errors import (
    ArgumentError,
    DeviceError,
    DeviceLostError,
    DeviceNotFoundError,
    LaunchError,
    NotMappableError,
    OutOfMemoryError,
)
from . import _nvrtc
from ._shared import new_descriptor
from .base import (
    Aperture,
    Device,
    DeviceMemory,
    Function,
    HostMemory,
    Ordering,
    Parameter,
)
from .emulation.client import MOST_RESIDENT, MOST_RESIDENT_THREADS, GpuProcess
from .emulation.compiler import compile_kernel
from .emulation.memory import BorrowedMemory, EmulatedMemory, Room, StandIn
from .emulation.relayed import EmulatedRelayed, EmulatedRelayThread
from .emulation.streams import EmulatedQueue
from .relayed import Launch
from .streams import Stream, counted

GRANULARITY = 2 << 20  # as NVIDIA's cuMemCreate
BASE, REGION = 0x6000_0000_0000, 1 << 40  # device addresses: a region for each device
GENERATIONS = 8  # parts of a region: for a process, its children of fork(), theirs ...
GENERATION = REGION // GENERATIONS
OUT_OF_MEMORY = 2  # CUDA's number, for C


def count() -> int:
    """How many emulated devices there are."""
    return env_size("GPUDIRECT_EMULATED_DEVICES", 1)


class EmulatedFunction(Function):
    """A kernel compiled by the host's C++ compiler."""

    def __init__(self, device: EmulatedDevice, name: str, module: Any,
                 parameters: tuple[Parameter, ...]) -> None:
        self.device = device
        self.name = name
        self.parameters = parameters
        self._module = module

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
        if block[0] * block[1] * block[2] > 1024:
            raise LaunchError(f"{self.name}: a block of {block} has more than 1024 threads")
        target = stream.queue
        assert isinstance(target, EmulatedQueue)
        with counted(stream):
            target.submit(
                lambda: target.connection().launch(
                    self._module, grid, block, shared, arguments, cooperative=cooperative
                )
            )

    def image(self) -> bytes:
        with telling(f"reading the code of {self.name}"):
            return self._module.kernel.path.read_bytes()

    def resident_blocks(self, threads: int) -> int:
        return min(MOST_RESIDENT, MOST_RESIDENT_THREADS // threads)


class EmulatedDevice(Device):
    """One emulated GPU."""

    kind = "emulated"
    granularity = GRANULARITY
    ordering = Ordering(direct_writes=True, flush_by_host=True, scope="owner")

    def __init__(self, ordinal: int) -> None:
        super().__init__()
        if not 0 <= ordinal < count():
            raise DeviceNotFoundError(
                f"there is no emulated:{ordinal}: there are {count()}, numbered from 0 "
                "(GPUDIRECT_EMULATED_DEVICES sets how many)"
            )
        self.ordinal = ordinal
        self.name = "Emulated GPU"
        self.uuid = f"EMULATED-{ordinal:08x}"
        self.pci_address = f"eeee:{ordinal:02x}:00.0"
        self.lock = threading.RLock()
        self.lost: str | None = None  # the fault that ended the GPU process
        self._process: GpuProcess | None = None
        # not where the parent of a fork() had them: a stale pointer of its finds nothing there
        start = BASE + ordinal * REGION + _native.lib.gd_forks()[0] % GENERATIONS * GENERATION
        self._addresses = Room(start, GENERATION)
        self._blocks: dict[int, EmulatedMemory] = {}
        self._starts: list[int] = []
        self._total = env_size("GPUDIRECT_EMULATED_MEMORY", 1 << 30)
        self._used = 0
        self.bar1_total = env_size("GPUDIRECT_EMULATED_BAR1", 256 << 20)
        self.bar1_used = 0
        self.bar1 = Room(0, self.bar1_total)
        self._stand_in = StandIn.present()
        self._streams = 0
        self._functions: dict[str, Any] = {}
        self._relay = EmulatedRelayThread(self)
        queue = EmulatedQueue(self, 0)
        self.queues.add(queue)
        self.default_stream = Stream(queue, owned=False)

    def holds(self, ptr: int) -> bool:
        return 0 <= ptr - BASE - self.ordinal * REGION < REGION

    def elsewhere(self, ptr: int) -> str:
        other = (ptr - BASE) // REGION
        return f"emulated:{other}" if 0 <= other < count() and other != self.ordinal else ""

    @property
    def process(self) -> GpuProcess:
        """The emulated GPU, started on first use."""
        return self._process or keeper.run(self._start)

    def _start(self) -> GpuProcess:
        if self._process is None:
            self._process = GpuProcess(self.id)
        return self._process

    def ensure_usable(self) -> None:
        super().ensure_usable()
        if self.lost is not None:
            raise DeviceLostError(
                f"{self.id} is lost since a kernel failed: {self.lost}. Start a new process to go on."
            )

    def ensure_alive(self) -> None:
        process = self._process
        if process is not None and not self.forked and process.ended():
            self.lost = self.lost or process.lost
        self.ensure_usable()

    def synchronize(self) -> None:
        if self.lost is not None:  # the stream of the launch that failed says more than "lost"
            for queue in self.pending_queues():
                queue.synchronize()
        super().synchronize()

    def allocate(self, size: int) -> EmulatedMemory:
        self.ensure_usable()
        return keeper.run(self._allocate, size, False)

    def _allocate(self, size: int, host: bool) -> EmulatedMemory:
        size = -(-size // GRANULARITY) * GRANULARITY
        with self.lock:
            if size > self._total - self._used:
                raise OutOfMemoryError(
                    f"{self.id}: {size} bytes asked for, {self._total - self._used} of "
                    f"{self._total} free. Close arrays (or call gpudirect.trim()), or raise "
                    "GPUDIRECT_EMULATED_MEMORY."
                )
            ptr = self._addresses.take(size)
            if ptr is None:
                raise OutOfMemoryError(f"{self.id}: no device address left for {size} bytes")
            with contextlib.ExitStack() as undo:
                undo.callback(self._addresses.give, ptr, size)
                stand_in = None if host else self._stand_in
                fd = stand_in.allocate(size, ptr) if stand_in else new_descriptor(size)
                undo.callback(os.close, fd)
                reserved = _native.lib.gd_reserve(ptr, size, 0)
                if reserved < 0:
                    raise DeviceError(f"reserving {ptr:#x}: {os.strerror(-reserved)}", -reserved)
                undo.callback(_native.lib.gd_unmap, ptr, size)
                self.process.map(ptr, size, fd, 0)
                undo.pop_all()
            self._used += size
            block = EmulatedMemory(self, ptr, size, fd, host=host)
            self._blocks[ptr] = block
            bisect.insort(self._starts, ptr)
        return block

    def release(self, block: EmulatedMemory, fd: int) -> None:
        """Called by ``EmulatedMemory.free``: nobody uses the block any more."""
        with self.lock:
            del self._blocks[block.ptr]
            self._starts.remove(block.ptr)
            self._used -= block.size
            with contextlib.suppress(DeviceError):  # a lost device has unmapped everything
                self.process.unmap(block.ptr, block.size)
            if self._stand_in and not block.host:
                self._stand_in.free(fd)
            _native.lib.gd_unmap(block.ptr, block.size)
            self._addresses.give(block.ptr, block.size)

    def find(self, ptr: int, size: int) -> tuple[EmulatedMemory, int]:
        """(block, offset) of a device range. Raises NotMappableError when there is none."""
        with self.lock:
            i = bisect.bisect(self._starts, ptr) - 1
            block = self._blocks[self._starts[i]] if i >= 0 else None
        if block is None or ptr + size > block.ptr + block.size:
            raise NotMappableError(
                f"{size} bytes at {ptr:#x} are not one piece of live memory of {self.id}"
            )
        return block, ptr - block.ptr

    def locate(self, ptr: int, size: int) -> list[tuple[DeviceMemory, int, int]]:
        self.ensure_usable()
        found: list[tuple[DeviceMemory, int, int]] = []
        at, end = ptr, ptr + size
        try:
            while at < end:
                block, offset = self.find(at, 1)
                length = min(end - at, block.size - offset)
                found.append((BorrowedMemory(block), offset, length))
                at += length
        except BaseException:
            for borrowed, _, _ in found:
                borrowed.free()
            raise
        return found

    def origin(self) -> dict[str, Any]:
        made: dict[int, DeviceMemory] = {}

        def make(device: int, size: int, address: Any, handle: Any) -> int:
            try:
                block = self.allocate(size)
            except OutOfMemoryError:
                return OUT_OF_MEMORY
            made[block.ptr] = block
            address[0] = handle[0] = block.ptr
            return 0

        def unmake(device: int, address: int, size: int, handle: int) -> int:
            keeper.run(made.pop(address).free)
            return 0

        functions = {"make": make, "unmake": unmake}
        fields = dict(_native.ffi.typeof("struct gd_origin").fields)
        return {name: _native.ffi.callback(fields[name].type, f, error=1) for name, f in functions.items()}

    def memory(self) -> tuple[int, int]:
        keeper.settle()  # what was dropped is given back first
        return self._total - self._used, self._total

    def aperture(self) -> Aperture:
        return Aperture(self.bar1_total, self.bar1_used)

    def host_allocate(self, size: int, *, shared: bool = False) -> HostMemory:
        self.ensure_usable()
        return keeper.run(self._host_allocate, size, shared)

    def _host_allocate(self, size: int, shared: bool) -> HostMemory:
        patient.begin()
        block = self._allocate(size, True)
        ptr = block.ptr
        address = _native.lib.gd_map(ptr, block.size, 1, 1, block._fd, 0, 0)
        if address < 0:
            block.free()
            raise DeviceError(f"mapping host memory: {os.strerror(-address)}", -address)

        def free() -> None:
            while self.working():  # as cuMemFreeHost waits for whatever may use it
                time.sleep(1e-3)
            if not self.forked:
                _native.lib.gd_reserve(ptr, block.size, 0)
                block.free()

        return HostMemory(ptr, size, free, block._fd if shared else None)

    def stream(self) -> Stream:
        self.ensure_usable()
        return keeper.run(self._stream)

    def _stream(self) -> Stream:
        self.sweep()
        self._streams += 1
        queue = EmulatedQueue(self, self._streams)
        self.queues.add(queue)
        return Stream(queue)

    def adopt_stream(self, handle: object) -> Stream:
        raise ArgumentError(
            f"{handle!r} is no stream of the emulated device; it knows only its own "
            "(gpudirect.Stream)"
        )

    def _block(self, ptr: int, size: int) -> tuple[EmulatedMemory, int]:
        """``find``, for what moves bytes. Raises DeviceError, as the driver does."""
        try:
            return self.find(ptr, size)
        except NotMappableError as e:
            raise DeviceError(f"moving {size} bytes: {e}", 1) from None

    def _queue(self, job: Callable[[], object], stream: Stream) -> None:
        queue = stream.queue
        assert isinstance(queue, EmulatedQueue)
        with counted(stream):
            queue.submit(job)

    def _dma(self, device: int, host: int, size: int, inward: bool, stream: Stream | None) -> None:
        self.ensure_usable()
        block, offset = self._block(device, size)

        def copy() -> None:
            there = block.dma_view() + offset
            if inward:
                ctypes.memmove(there, host, size)
            else:
                ctypes.memmove(host, there, size)

        target = stream or self.default_stream
        self._queue(copy, target)
        if stream is None:
            target.synchronize()

    def copy_in(self, dst: int, src: int, size: int, stream: Stream | None = None) -> None:
        self._dma(dst, src, size, True, stream)

    def copy_out(self, dst: int, src: int, size: int, stream: Stream | None = None) -> None:
        self._dma(src, dst, size, False, stream)

    def copy_within(self, dst: int, src: int, size: int, stream: Stream) -> None:
        self.ensure_usable()
        into, to = self._block(dst, size)
        out_of, at = self._block(src, size)
        self._queue(lambda: ctypes.memmove(into.dma_view() + to, out_of.dma_view() + at, size), stream)

    def fill(self, dst: int, value: int, size: int, stream: Stream | None = None,
             width: int = 1) -> None:
        self.ensure_usable()
        block, offset = self._block(dst, size)
        if dst % width or size % width:  # as cuMemsetD16Async and cuMemsetD32Async
            raise DeviceError(f"filling {size} bytes at {dst:#x} by {width}: not a multiple of it", 1)

        def set_bytes() -> None:
            there = block.dma_view() + offset
            if width == 1:
                ctypes.memset(there, value, size)
            else:
                ctypes.memmove(there, value.to_bytes(width, "little") * (size // width), size)

        self._queue(set_bytes, stream or self.default_stream)

    def flush_writes(self) -> None:
        _native.lib.gd_fence()

    def compile(self, source: str, name: str, options: Sequence[str] = ()) -> EmulatedFunction:
        self.ensure_usable()
        with telling(f"compiling {name}"):
            compiled = compile_kernel(source, name, options)
            with self.lock:
                key = str(compiled.path)
                if key not in self._functions:
                    self._functions[key] = self.process.load(compiled)
                module = self._functions[key]
        return EmulatedFunction(self, name, module, tuple(compiled.parameters))

    def relay(self, launch: Launch) -> EmulatedRelayed:
        return EmulatedRelayed(self._relay, launch)

    def facts(self) -> dict[str, object]:
        free, total = self.memory()
        return {
            "device": self.id,
            "name": self.name,
            "uuid": self.uuid,
            "pci_address": self.pci_address,
            "memory_bytes": total,
            "memory_free_bytes": free,
            "bar1_bytes": self.bar1_total,
            "bar1_used_bytes": self.bar1_used,
            "memory_from": "stand-in driver's BAR" if self._stand_in else "memfd",
            "nvrtc": _nvrtc.version(),
            **({"nvrtc_reason": why} if (why := _nvrtc.reason()) else {}),
            "emulated": True,
        }

    def __repr__(self) -> str:
        judged = "; kernels are not judged by NVRTC, which cannot be loaded" if _nvrtc.reason() else ""
        return f"<Device {self.id} {self.name} (emulated: no GPU is involved{judged})>"

    def close(self) -> None:
        queue = self.default_stream.queue
        assert isinstance(queue, EmulatedQueue)
        queue.end()
        if self._process is not None:
            self._process.close()
            self._process = None

    def forget(self) -> None:
        """In a child process: let go of what was inherited."""
        self.forked = True
        self.lock = threading.RLock()
        if self._process is not None:
            self._process.close()  # our copies of its descriptors; the process is the parent's
