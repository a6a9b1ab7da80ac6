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
import errno
import fcntl
import operator
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from .. import _native
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
from .base import (
    Aperture,
    Device,
    DeviceMemory,
    Function,
    HostMemory,
    Ordering,
    Parameter,
)
from .emulation.client import (
    MOST_RESIDENT,
    MOST_RESIDENT_THREADS,
    GpuProcess,
    StreamConnection,
)
from .emulation.compiler import compile_kernel
from .relayed import EmulatedRelayed, EmulatedRelayThread, Launch
from .streams import Event, Queue, Stream, counted

GRANULARITY = 2 << 20  # as NVIDIA's cuMemCreate
BASE, REGION = 0x6000_0000_0000, 1 << 40  # device addresses: a region for each device
GENERATIONS = 8  # parts of a region: for a process, its children of fork(), theirs ...
GENERATION = REGION // GENERATIONS


def count() -> int:
    """How many emulated devices there are."""
    return env_size("GPUDIRECT_EMULATED_DEVICES", 1)


class Room:
    """First-fit allocator of an address range. Not thread-safe."""

    def __init__(self, start: int, size: int) -> None:
        self._free = [(start, size)]

    def take(self, size: int) -> int | None:
        for i, (start, have) in enumerate(self._free):
            if have >= size:
                if have == size:
                    del self._free[i]
                else:
                    self._free[i] = (start + size, have - size)
                return start
        return None

    def give(self, start: int, size: int) -> None:
        i = bisect.bisect(self._free, (start, 0))
        if i < len(self._free) and start + size == self._free[i][0]:
            size += self._free.pop(i)[1]
        if i and sum(self._free[i - 1]) == start:
            start, before = self._free.pop(i - 1)
            size += before
            i -= 1
        self._free.insert(i, (start, size))


class EmulatedMemory(DeviceMemory):
    """A block of emulated device memory."""

    def __init__(
        self, device: EmulatedDevice, ptr: int, size: int, fd: int, *, host: bool = False
    ) -> None:
        self.device: EmulatedDevice = device
        self.ptr = ptr
        self.size = size
        self.host = host
        """Ordinary memory, not the device's: a memfd even where a stand-in driver is there."""
        self.pci_address = device.pci_address
        self._fd = fd
        self._view = 0  # this process's private mapping, for emulated DMA

    def export_fd(self) -> int:
        return os.dup(self._fd)

    def dmabuf_fd(self, offset: int, length: int) -> int:
        raise NotMappableError("the emulated device makes no dma-bufs; use the bridge 'emulated'")

    def dma_view(self) -> int:
        """Where emulated DMA finds the block in this process. Never shown to the user."""
        with self.device.lock:
            if not self._view:
                address = _native.lib.gd_map(0, self.size, 1, 1, self._fd, 0, 0)
                if address < 0:
                    raise DeviceError(f"emulated DMA: {os.strerror(-address)}", -address)
                self._view = int(address)
            return self._view

    def aperture_take(self, length: int) -> int | None:
        with self.device.lock:
            offset = self.device.bar1.take(length)
            if offset is not None:
                self.device.bar1_used += length
            return offset

    def aperture_give(self, offset: int, length: int) -> None:
        with self.device.lock:
            self.device.bar1.give(offset, length)
            self.device.bar1_used -= length

    def aperture_state(self) -> tuple[int, int]:
        return self.device.bar1_total, self.device.bar1_used

    def free(self) -> None:
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if not self.device.forked:
            self.device.release(self, fd)
        if self._view:
            _native.lib.gd_unmap(self._view, self.size)
            self._view = 0
        os.close(fd)


class BorrowedMemory(EmulatedMemory):
    """A view of a block that somebody else owns, for ``locate``."""

    def __init__(self, owner: EmulatedMemory) -> None:
        super().__init__(owner.device, owner.ptr, owner.size, os.dup(owner._fd))

    def free(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class EmulatedEvent(Event):
    """A flag that the stream's worker raises when it gets there."""

    def __init__(self, queue: EmulatedQueue, timing: bool) -> None:
        self.device: EmulatedDevice = queue.device
        self.timing = timing
        self._reached = threading.Event()
        self._at = 0.0
        self._queue = queue
        queue.submit(self._reach)

    def _reach(self) -> None:
        self._at = time.perf_counter()
        self._reached.set()

    def done(self) -> bool:
        return self._reached.is_set()

    def wait(self) -> None:
        if self._queue.on_worker() and not self.done():
            raise DeviceError(
                "a stream of the emulated device cannot wait for itself (a finalizer, run by a "
                "garbage collection on the stream's own thread, asked it to)"
            )
        self._reached.wait()

    def since(self, earlier: Any) -> float:
        return (self._at - float(earlier._at)) * 1e3


_call = operator.methodcaller("__call__")


class EmulatedQueue(Queue):
    """A worker thread with a queue of its own."""

    device: EmulatedDevice

    def __init__(self, device: EmulatedDevice, number: int) -> None:
        super().__init__(device, number)
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._failure: BaseException | None = None
        self._ended = False
        self._connection: StreamConnection | None = None
        self._thread: threading.Thread | None = None
        self._all = _native.ffi.new("struct gd_work *")  # markers too, settled by the worker

    def submit(self, job: Callable[[], None]) -> None:
        """Queue something to do. It is done after everything queued before it."""
        self.device.ensure_usable()
        if self._thread is None:
            keeper.run(self._begin)
        # both in one call of C: between two of Python's a signal's handler may raise, and work that was
        # counted and not queued would keep the stream busy for ever
        tuple(map(_call, (partial(_native.lib.gd_work_begin, self._all), partial(self._jobs.put, job))))
        if self._ended:  # whoever waits for a stream that has just gone finds nothing left to do
            self._finish()

    def _finish(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                return
            if job is not None:
                job()

    def _begin(self) -> None:
        if self._thread is not None:
            return
        thread = threading.Thread(
            target=self._run, name=f"{self.device.id} stream {self.handle}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as e:
            raise DeviceError(f"{self.device.id}: no thread for a stream ({e}); see ulimit -u") from e
        self._thread = thread

    def connection(self) -> StreamConnection:
        """The stream's line to the GPU process. Called on the worker thread only."""
        if self._connection is None:
            self._connection = self.device.process.open_stream()
        return self._connection

    def _run(self) -> None:
        done = 0
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException as e:
                self._failure = self._failure or e
                if (lost := self.device.process.lost) is not None:
                    self.device.lost = lost
            done += 1
            del job  # what it refers to goes now, and not with the next one
            _native.lib.gd_work_settle(self._all, done)
        self._ended = True
        self._finish()
        if self._connection is not None:
            self._connection.close()

    def synchronize(self) -> None:
        self.device.ensure_usable()
        mark = _native.lib.gd_work_mark(self.work)
        if self._thread is not None:
            EmulatedEvent(self, False).wait()
        _native.lib.gd_work_settle(self.work, mark)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def idle(self) -> bool:
        return not _native.lib.gd_work_open(self._all)

    def record(self, timing: bool) -> EmulatedEvent:
        return EmulatedEvent(self, timing)

    def on_worker(self) -> bool:
        """Whether this is the worker's own thread."""
        return self._thread is threading.current_thread()

    def hold(self, event: Event) -> None:
        if not event.done():
            self.submit(event.wait)

    def destroy(self) -> None:
        if self._thread is not None and not self.device.forked:
            self._jobs.put(None)

    def end(self) -> None:
        """Destroy it when its work is done, and wait for that."""
        thread = self._thread
        self.destroy()
        if thread is not None:
            thread.join()
            self._thread = None


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
                fd = stand_in.allocate(size, ptr) if stand_in else self._memfd(size)
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

    @staticmethod
    def _memfd(size: int) -> int:
        fd = os.memfd_create("gpudirect-emulated", os.MFD_CLOEXEC)
        os.truncate(fd, size)
        return fd

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

    def memory(self) -> tuple[int, int]:
        keeper.settle()  # what was dropped is given back first
        return self._total - self._used, self._total

    def aperture(self) -> Aperture:
        return Aperture(self.bar1_total, self.bar1_used)

    def host_allocate(self, size: int) -> HostMemory:
        self.ensure_usable()
        return keeper.run(self._host_allocate, size)

    def _host_allocate(self, size: int) -> HostMemory:
        patient.begin()
        block = self._allocate(size, True)
        ptr = block.ptr
        address = _native.lib.gd_map(ptr, block.size, 1, 1, block._fd, 0, 0)
        if address < 0:
            block.free()
            raise DeviceError(f"mapping host memory: {os.strerror(-address)}", -address)

        def free() -> None:
            # dropped, and not freed by hand: as cuMemFreeHost, this waits for what may use it
            while patient.here() and self.working():
                time.sleep(1e-3)
            if not self.forked:
                _native.lib.gd_reserve(ptr, block.size, 0)
                block.free()

        return HostMemory(ptr, size, free)

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

    def _dma(self, device: int, host: int, size: int, inward: bool, stream: Stream | None) -> None:
        self.ensure_usable()
        try:
            block, offset = self.find(device, size)
        except NotMappableError as e:
            raise DeviceError(f"copying {size} bytes: {e}", 1) from None

        def copy() -> None:
            there = block.dma_view() + offset
            if inward:
                ctypes.memmove(there, host, size)
            else:
                ctypes.memmove(host, there, size)

        target = stream or self.default_stream
        assert isinstance(target.queue, EmulatedQueue)
        with counted(target):
            target.queue.submit(copy)
        if stream is None:
            target.synchronize()

    def copy_in(self, dst: int, src: int, size: int, stream: Stream | None = None) -> None:
        self._dma(dst, src, size, True, stream)

    def copy_out(self, dst: int, src: int, size: int, stream: Stream | None = None) -> None:
        self._dma(src, dst, size, False, stream)

    def fill(self, dst: int, value: int, size: int, stream: Stream | None = None) -> None:
        self.ensure_usable()
        block, offset = self.find(dst, size)
        target = stream or self.default_stream
        assert isinstance(target.queue, EmulatedQueue)

        def set_bytes() -> None:
            ctypes.memset(block.dma_view() + offset, value, size)

        with counted(target):
            target.queue.submit(set_bytes)

    def flush_writes(self) -> None:
        _native.lib.gd_fence()

    def compile(self, source: str, name: str, options: Sequence[str] = ()) -> EmulatedFunction:
        self.ensure_usable()
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


class StandIn:
    """The lab's stand-in NVIDIA driver: device memory in the BAR of a real PCI device."""

    NODE = "/dev/nvidia-standin"

    @classmethod
    def present(cls) -> StandIn | None:
        """The stand-in, where its driver is loaded."""
        return cls() if os.path.exists(cls.NODE) else None

    def allocate(self, size: int, ptr: int) -> int:
        """A descriptor that is ``size`` bytes of device memory at the device address ``ptr``."""
        argument = _native.ffi.new("struct standin_alloc *")
        argument.size = _native.ffi.sizeof("struct standin_alloc")
        argument.length, argument.va = size, ptr
        fd = os.open(self.NODE, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _native.lib.STANDIN_ALLOC, _native.ffi.buffer(argument), True)
        except OSError as e:
            os.close(fd)
            if e.errno == errno.ENOMEM:
                raise OutOfMemoryError(
                    f"the stand-in driver's BAR has no {size} bytes left; close arrays"
                ) from e
            raise DeviceError(f"the stand-in driver refused {size} bytes: {e.strerror}") from e
        return fd

    def free(self, fd: int) -> None:
        """Free the memory now, pins and all, whoever else holds the descriptor."""
        fcntl.ioctl(fd, _native.lib.STANDIN_FREE)
