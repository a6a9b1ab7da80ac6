"""Device ``cuda``: NVIDIA GPUs through cuda-python.

Memory is made with ``cuMemCreate``: exportable as a file descriptor and marked
``gpuDirectRDMACapable``, so that every bridge can map every allocation.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .. import _native
from .._keeper import keeper, patient
from ..errors import (
    ArgumentError,
    DeviceError,
    DeviceLostError,
    DeviceNotFoundError,
    Error,
    ForkError,
    LaunchError,
    NotMappableError,
    OutOfMemoryError,
)
from .base import (
    Aperture,
    Device,
    DeviceMemory,
    Function,
    HostMemory,
    Ordering,
    Parameter,
)
from .relayed import CudaRelayed, Launch
from .streams import Event, Queue, Stream, counted

# Device attributes by number: some are newer than the oldest header we run with.
MULTIPROCESSORS = 16
COMPUTE_MAJOR, COMPUTE_MINOR = 75, 76
UNIFIED_ADDRESSING = 41
COOPERATIVE_LAUNCH = 95
POSIX_FD_SUPPORTED = 103
RDMA_WITH_VMM = 110
RDMA_SUPPORTED, RDMA_FLUSH_OPTIONS, RDMA_WRITES_ORDERING = 116, 117, 118

# Errors after which every call in this context fails (CUDA programming guide, "sticky" errors)
STICKY = {700, 702, 704, 709, 710, 714, 715, 716, 717, 718, 719}
OUT_OF_MEMORY, NOT_INITIALIZED, NOT_READY = 2, 3, 600
INVALID_VALUE = 1
LEGACY_STREAM = 1  # CU_STREAM_LEGACY: another name of handle 0
MOST_ADOPTED = 64
"""Streams of others that are remembered without looking which of them are done."""


_inherited = False
"""Whether the process that forked this one had initialised CUDA."""


@functools.cache
def _driver() -> Any:
    """cuda.bindings.driver, initialised. Raises DeviceNotFoundError with the reason, or ForkError."""
    if _inherited:
        raise _cuda_is_the_parents()
    try:
        from cuda.bindings import driver
    except ImportError as e:
        raise DeviceNotFoundError(
            f"cuda-bindings is not installed ({e}): pip install cuda-bindings"
        ) from e
    try:
        (code,) = driver.cuInit(0)
    except Exception as e:  # the bindings raise types of their own when libcuda is absent
        raise DeviceNotFoundError(f"no NVIDIA driver library (libcuda.so.1): {e}") from e
    if int(code) == NOT_INITIALIZED:  # CUDA's answer where a parent had initialised it, by whatever way
        raise _cuda_is_the_parents()
    if code:
        raise DeviceNotFoundError(f"cuInit failed: {code.name} ({int(code)})", int(code))
    return driver


def _cuda_is_the_parents() -> ForkError:
    return ForkError(
        "CUDA was initialised by the process that forked this one, and cannot be used in a child of "
        "fork(): use multiprocessing's 'spawn' start method, or use the GPU only after the fork. "
        "device='emulated' works here."
    )


def _after_fork_in_child() -> None:
    global _inherited
    _inherited = _inherited or bool(_driver.cache_info().currsize)
    _driver.cache_clear()
    _nvml.cache_clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _check(result: tuple[Any, ...], doing: str) -> Any:
    """The value of a driver call; raises the exception that fits its error code."""
    code = int(result[0])
    if code == 0:
        return result[1] if len(result) == 2 else result[1:]
    _, words = _driver().cuGetErrorString(result[0])
    text = words.decode() if words else "no description"
    message = f"{doing}: {result[0].name} ({code}): {text}"
    if code == OUT_OF_MEMORY:
        raise OutOfMemoryError(
            f"{message}. Close arrays (or call gpudirect.trim()), or see `gpudirect info`.", code
        )
    if code in STICKY:
        raise DeviceLostError(
            f"{message}. A kernel's fault ended the CUDA context; only a new process can go on. "
            "compute-sanitizer shows the kernel and the line.", code,
        )  # fmt: skip
    raise DeviceError(message, code)


@functools.cache
def _nvml() -> Any:
    """pynvml, initialised, or None where NVML does not work."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return None
    return pynvml


def count() -> int:
    """How many GPUs CUDA sees. Raises DeviceNotFoundError with the reason when there is none."""
    found = int(_check(_driver().cuDeviceGetCount(), "counting GPUs"))
    if not found:
        raise DeviceNotFoundError("CUDA sees no GPU (look at CUDA_VISIBLE_DEVICES)")
    return found


def near_cpus(pci_address: str, root: Path = Path("/sys/bus/pci/devices")) -> list[int]:
    """CPUs that the system calls local to a PCI device ("0-3,8" in sysfs)."""
    try:
        text = (root / pci_address / "local_cpulist").read_text().strip()
    except OSError:
        return []
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


class CudaMemory(DeviceMemory):
    """A block of ``cuMemCreate`` at an address of its own; or a borrowed one of somebody else."""

    def __init__(self, device: CudaDevice, ptr: int, size: int, handle: Any, owned: bool) -> None:
        self.device: CudaDevice = device
        self.ptr = ptr
        self.size = size
        self.pci_address = device.pci_address
        self._handle = handle
        self._owned = owned

    def export_fd(self) -> int:
        if self._handle is None:
            raise NotMappableError(
                f"memory at {self.ptr:#x} was not made by cuMemCreate, so it cannot be exported as "
                "a file descriptor. The bridges p2pmod, gdrdrv and dmabuf (CUDA 13.3 or newer) can "
                "map it; or let it come from gpudirect.empty()."
            )
        d = _driver()
        with self.device.current():
            result = d.cuMemExportToShareableHandle(
                self._handle,
                d.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                0,
            )
        if int(result[0]):
            raise NotMappableError(
                f"memory at {self.ptr:#x} cannot be exported as a file descriptor "
                f"({result[0].name}): its maker did not ask for an exportable handle. PyTorch does "
                "with PYTORCH_ALLOC_CONF=expandable_segments:True; otherwise use p2pmod or gdrdrv."
            )
        return int(result[1])

    def dmabuf_fd(self, offset: int, length: int) -> int:
        d = _driver()
        with self.device.current():
            return int(
                _check(
                    d.cuMemGetHandleForAddressRange(
                        self.ptr + offset,
                        length,
                        d.CUmemRangeHandleType.CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD,
                        0,
                    ),
                    f"asking for a dma-buf of {length} bytes at {self.ptr + offset:#x}",
                )
            )

    def prepare_pinning(self) -> None:
        import ctypes

        d = _driver()
        one = ctypes.c_uint(1)
        with self.device.current():
            _check(
                d.cuPointerSetAttribute(
                    ctypes.addressof(one),
                    d.CUpointer_attribute.CU_POINTER_ATTRIBUTE_SYNC_MEMOPS,
                    self.ptr,
                ),
                "setting SYNC_MEMOPS",
            )

    def free(self) -> None:
        handle, self._handle = self._handle, None
        if handle is None:
            return
        d = _driver()
        if not self._owned:
            with self.device.current():
                d.cuMemRelease(handle)
            return
        with self.device.current():
            _check(d.cuMemUnmap(self.ptr, self.size), "unmapping device memory")
            _check(d.cuMemRelease(handle), "releasing device memory")
            _check(d.cuMemAddressFree(self.ptr, self.size), "freeing a device address")


class CudaEvent(Event):
    """A CUDA event recorded on a stream. The driver's own is used again when this one is gone."""

    def __init__(self, queue: CudaQueue, timing: bool) -> None:
        d = _driver()
        self.device: CudaDevice = queue.device
        self.timing = timing
        with self.device.current():
            self._lease = self.device.take_event(timing)
            self._event = self._lease.of
            _check(d.cuEventRecord(self._event, queue.handle), "recording an event")

    @property
    def handle(self) -> int:
        """The driver's number of it (CUevent), good as long as this object lives."""
        return int(self._event)

    def done(self) -> bool:
        with self.device.current():
            (code,) = _driver().cuEventQuery(self._event)
        return int(code) != NOT_READY

    def wait(self) -> None:
        self.device.ensure_usable()
        with self.device.current():
            _check(_driver().cuEventSynchronize(self._event), "waiting for an event")

    def since(self, earlier: Any) -> float:
        with self.device.current():
            return float(
                _check(_driver().cuEventElapsedTime(earlier._event, self._event), "timing events")
            )


class CudaQueue(Queue):
    """A CUDA stream: the legacy default one (handle 0), one of ours, or an adopted one."""

    device: CudaDevice

    def __init__(self, device: CudaDevice, handle: int, *, owned: bool = False) -> None:
        super().__init__(device, handle)
        # the driver's stream goes when nobody refers to this any more: whoever is just about to
        # wait for it does
        self._lease = keeper.leave(partial(device.destroy_stream, handle)) if owned else None

    def synchronize(self) -> None:
        self.device.ensure_usable()
        code = _native.lib.gd_driver_synchronize(
            self.device.driver_functions(), self.handle, self.work
        )
        if code:
            _check((_driver().CUresult(code),), "waiting for a stream")

    def idle(self) -> bool:
        with self.device.current():
            (code,) = _driver().cuStreamQuery(self.handle)
        return int(code) != NOT_READY

    def record(self, timing: bool) -> CudaEvent:
        self.device.ensure_usable()
        return CudaEvent(self, timing)

    def hold(self, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        self.device.ensure_usable()
        with self.device.current():
            found = _driver().cuStreamWaitEvent(self.handle, event._event, 0)
        _check(found, "having a stream wait for an event")


@functools.lru_cache(256)
def _grid(grid: tuple[int, int, int], block: tuple[int, int, int], shared: int) -> Any:
    """A launch configuration as C wants it."""
    return _native.ffi.new("struct gd_grid *", (grid, block, shared))


def _unload(device: CudaDevice, module: Any) -> None:
    """Unload code, which waits until nothing runs on the device. The patient keeper's."""
    if not device.forked:
        with device.quiet(), device.current():
            _driver().cuModuleUnload(module)  # fails where a kernel's fault has been told


class CudaFunction(Function):
    """A loaded kernel."""

    _lease: Any = None  # whose end has the code unloaded

    def __init__(self, device: CudaDevice, module: Any, kernel: Any, name: str,
                 parameters: tuple[Parameter, ...], code: bytes) -> None:
        self.device = device
        self.name = name
        self.parameters = parameters
        self._code = code
        self._module = module  # keeps the code loaded
        self._kernel = kernel
        self.handle = int(kernel)
        self._shared_allowed = 48 << 10

    def _allow_shared(self, shared: int) -> None:
        d = _driver()
        with self.device.current():
            _check(
                d.cuFuncSetAttribute(
                    self._kernel,
                    d.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    shared,
                ),
                f"allowing {self.name} {shared} bytes of shared memory",
            )
        self._shared_allowed = shared

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
        device = self.device
        device.ensure_usable()
        if shared > self._shared_allowed:
            self._allow_shared(shared)
        if cooperative:
            code = device.launch_cooperative(self._kernel, grid, block, shared, stream, arguments)
        else:
            code = _native.lib.gd_driver_launch(
                device.driver_functions(), self.handle, _grid(grid, block, shared), stream.handle,
                arguments, len(arguments), stream.work,
            )  # fmt: skip
        if code:
            try:
                _check(
                    (_driver().CUresult(code),),
                    f"launching {self.name} with grid {grid} and block {block}",
                )
            except DeviceLostError:
                raise
            except DeviceError as e:
                raise LaunchError(str(e)) from None

    def image(self) -> bytes:
        return self._code

    def unload_when_dropped(self) -> None:
        patient.begin()
        self._lease = patient.leave(functools.partial(_unload, self.device, self._module))

    def resident_blocks(self, threads: int) -> int:
        with self.device.current():
            each = _check(
                _driver().cuOccupancyMaxActiveBlocksPerMultiprocessor(self._kernel, threads, 0),
                f"asking how many blocks of {self.name} fit",
            )
        return int(each) * (self.device.attribute(MULTIPROCESSORS) or 0)


class CudaDevice(Device):
    """One GPU and its primary context."""

    kind = "cuda"

    def __init__(self, ordinal: int) -> None:
        super().__init__()
        d = _driver()
        result = d.cuDeviceGet(ordinal)
        if int(result[0]):
            raise DeviceNotFoundError(
                f"there is no cuda:{ordinal}: CUDA sees {count()} GPU(s), numbered from 0"
            )
        self.ordinal = ordinal
        self._device = result[1]
        self.name = _check(d.cuDeviceGetName(256, self._device), "name").split(b"\0")[0].decode()
        raw = bytes(_check(d.cuDeviceGetUuid(self._device), "UUID").bytes)[:16].hex()
        self.uuid = "GPU-" + "-".join(
            (raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:])
        )
        bus = _check(d.cuDeviceGetPCIBusId(32, self._device), "PCI address")
        self.pci_address = bus.split(b"\0")[0].decode().lower()
        self._context = _check(d.cuDevicePrimaryCtxRetain(self._device), "opening the GPU")
        self._context_number = int(self._context)
        self._lock = threading.RLock()
        self._relay: Any = None
        self._adopted: dict[int, CudaQueue] = {}
        self._events = {timing: _native.Yard() for timing in (False, True)}  # to be used again
        self._free_events: dict[bool, list[Any]] = {False: [], True: []}
        self._properties = self._allocation_properties()
        with self.current():
            self.granularity = int(
                _check(
                    d.cuMemGetAllocationGranularity(
                        self._properties,
                        d.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM,
                    ),
                    "asking for the allocation granularity",
                )
            )
        access = d.CUmemAccessDesc()
        access.location = self._properties.location
        access.flags = d.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        self._access = [access]
        scopes = {0: "none", 100: "owner", 200: "all devices"}
        self.ordering = Ordering(
            direct_writes=bool(self.attribute(RDMA_SUPPORTED)),
            flush_by_host=bool((self.attribute(RDMA_FLUSH_OPTIONS) or 0) & 1),
            scope=scopes.get(self.attribute(RDMA_WRITES_ORDERING) or 0, "none"),
        )
        self._functions = self._find_functions()
        queue = CudaQueue(self, 0)
        self.queues.add(queue)
        self.default_stream = Stream(queue, owned=False)

    def _allocation_properties(self) -> Any:
        d = _driver()
        if not self.attribute(POSIX_FD_SUPPORTED):
            raise DeviceError(
                f"{self.name} cannot export memory as a file descriptor (device attribute "
                f"{POSIX_FD_SUPPORTED} is 0), which every allocation of gpudirect needs"
            )
        p = d.CUmemAllocationProp()
        p.type = d.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        location = d.CUmemLocation()
        location.type = d.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        location.id = self.ordinal
        p.location = location
        p.requestedHandleTypes = (
            d.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        )
        # without it nv-p2p (p2pmod, gdrdrv) refuses to pin what cuMemCreate made
        p.allocFlags.gpuDirectRDMACapable = 1 if self.attribute(RDMA_WITH_VMM) else 0
        return p

    @contextlib.contextmanager
    def _pushed(self) -> Iterator[None]:
        d = _driver()
        _check(d.cuCtxPushCurrent(self._context), "entering the context")
        try:
            yield
        finally:
            d.cuCtxPopCurrent()

    def current(self) -> contextlib.AbstractContextManager[None]:
        """Make this GPU's context current for a block, leaving the caller's choice as it was."""
        _, context = _driver().cuCtxGetCurrent()
        if int(context) == self._context_number:
            return _NOTHING
        return self._pushed()

    def attribute(self, number: int) -> int | None:
        d = _driver()
        try:
            which = d.CUdevice_attribute(number)
        except ValueError:
            return None  # newer than these bindings
        code, value = d.cuDeviceGetAttribute(which, self._device)
        return None if int(code) else int(value)

    def ensure_alive(self) -> None:
        self.ensure_usable()
        with self.current():
            result = _driver().cuStreamQuery(0)
        if int(result[0]) in STICKY:
            _check(result, f"asking whether {self.id} is there")

    def allocate(self, size: int) -> CudaMemory:
        self.ensure_usable()
        return keeper.run(self._allocate, size)

    def _allocate(self, size: int) -> CudaMemory:
        size = -(-size // self.granularity) * self.granularity
        d = _driver()
        doing = f"allocating {size} bytes on {self.id}"
        with self.current(), contextlib.ExitStack() as undo:
            handle = _check(d.cuMemCreate(size, self._properties, 0), doing)
            undo.callback(d.cuMemRelease, handle)
            ptr = _check(d.cuMemAddressReserve(size, self.granularity, 0, 0), doing)
            undo.callback(d.cuMemAddressFree, ptr, size)
            _check(d.cuMemMap(ptr, size, 0, handle, 0), doing)
            undo.callback(d.cuMemUnmap, ptr, size)
            _check(d.cuMemSetAccess(ptr, size, self._access, 1), doing)
            undo.pop_all()
        return CudaMemory(self, int(ptr), size, handle, owned=True)

    def locate(self, ptr: int, size: int) -> list[tuple[DeviceMemory, int, int]]:
        self.ensure_usable()
        d = _driver()
        found: list[tuple[DeviceMemory, int, int]] = []
        at, end = ptr, ptr + size
        try:
            while at < end:
                with self.current():
                    code, base, extent = d.cuMemGetAddressRange(at)
                    if int(code):
                        raise NotMappableError(
                            f"{at:#x} is not device memory of {self.id} that CUDA knows "
                            f"({code.name}): give the address of memory on this GPU, alive, and "
                            f"no more than its size ({at - ptr} of {size} bytes were found)"
                        )
                    retained = d.cuMemRetainAllocationHandle(at)
                handle = None if int(retained[0]) else retained[1]
                base, extent = int(base), int(extent)
                length = min(end, base + extent) - at
                block = CudaMemory(self, base, extent, handle, owned=False)
                found.append((block, at - base, length))
                at += length
        except BaseException:
            for borrowed, _, _ in found:
                borrowed.free()
            raise
        return found

    def holds(self, ptr: int) -> bool:
        with self.current():  # each context knows its own memory only
            code, _, _ = _driver().cuMemGetAddressRange(ptr)
        return not int(code)

    def memory(self) -> tuple[int, int]:
        keeper.settle()  # what was dropped is given back first
        with self.current():
            free, total = _check(_driver().cuMemGetInfo(), "asking for free memory")
        return int(free), int(total)

    def aperture(self) -> Aperture | None:
        nvml = _nvml()
        if nvml is None:
            return None
        try:
            handle = nvml.nvmlDeviceGetHandleByPciBusId(self.pci_address.encode())
            info = nvml.nvmlDeviceGetBAR1MemoryInfo(handle)
        except Exception:
            return None
        return Aperture(int(info.bar1Total), int(info.bar1Used))

    def host_allocate(self, size: int) -> HostMemory:
        self.ensure_usable()
        return keeper.run(self._host_allocate, size)

    def _host_allocate(self, size: int) -> HostMemory:
        d = _driver()
        patient.begin()
        with self.current():
            ptr = int(
                _check(
                    d.cuMemHostAlloc(size, d.CU_MEMHOSTALLOC_PORTABLE | d.CU_MEMHOSTALLOC_DEVICEMAP),
                    f"allocating {size} bytes of page-locked host memory",
                )
            )
        return HostMemory(ptr, size, partial(self._host_free, ptr))

    def _host_free(self, ptr: int) -> None:
        if not self.forked:
            with self.quiet(), self.current():
                _driver().cuMemFreeHost(ptr)

    def stream(self) -> Stream:
        self.ensure_usable()
        return keeper.run(self._stream)

    def _stream(self) -> Stream:
        d = _driver()
        self.sweep()
        with self.current():
            handle = _check(
                d.cuStreamCreate(d.CUstream_flags.CU_STREAM_NON_BLOCKING), "making a stream"
            )
        queue = CudaQueue(self, int(handle), owned=True)
        self.queues.add(queue)
        return Stream(queue)

    def destroy_stream(self, handle: int) -> None:
        """Give a stream back to the driver. Keeper's."""
        if not self.forked:
            with self.current():
                _driver().cuStreamDestroy(handle)

    def take_event(self, timing: bool) -> Any:
        """A lease of an event of the driver's; the context is current."""
        free = self._free_events[timing]
        if not free:
            free.extend(self._events[timing].take())
        try:
            return free.pop()
        except IndexError:
            pass
        d = _driver()
        flags = d.CUevent_flags
        flag = flags.CU_EVENT_DEFAULT if timing else flags.CU_EVENT_DISABLE_TIMING
        return _native.Lease(self._events[timing], _check(d.cuEventCreate(flag), "making an event"))

    def adopt_stream(self, handle: object) -> Stream:
        number = handle
        if hasattr(number, "__cuda_stream__"):
            number = number.__cuda_stream__()[1]
        elif hasattr(number, "cuda_stream"):  # torch.cuda.Stream
            number = number.cuda_stream
        elif hasattr(number, "ptr"):  # cupy.cuda.Stream
            number = number.ptr
        try:
            number = int(number)  # type: ignore[call-overload]
        except (TypeError, ValueError):
            raise ArgumentError(
                f"{handle!r} is no stream: give gpudirect's own, an object with __cuda_stream__, "
                "or a CUstream handle as an integer"
            ) from None
        if number in (0, LEGACY_STREAM):
            return self.default_stream
        return Stream(self._adopt(number, handle), owned=False)

    def _adopt(self, number: int, owner: object) -> CudaQueue:
        """The one queue of a stream of somebody else, however often it is given."""
        found = self._adopted.get(number)
        if found is None:
            if len(self._adopted) >= MOST_ADOPTED:
                self._forget_adopted()
            found = self._adopted.setdefault(number, CudaQueue(self, number))
            self.queues.add(found)
        found.owner = owner  # a handle is used again for another stream when its owner is gone
        return found

    def _forget_adopted(self) -> None:
        """Let go of adopted streams that have no work left and that nobody is about to use."""
        for number in tuple(self._adopted):
            queue = self._adopted.get(number)
            if queue is None or queue.pending:
                continue
            self._adopted.pop(number, None)
            self.queues.discard(queue)
            left = weakref.ref(queue)
            del queue
            used = left()
            if used is not None:  # a launch on it is just being made
                self._adopted.setdefault(number, used)
                self.queues.add(used)

    def copy_in(self, dst: int, src: int, size: int, stream: Stream | None = None) -> None:
        self.ensure_usable()
        d = _driver()
        with self.current():
            if stream is None:
                result = d.cuMemcpyHtoD(dst, src, size)
                if not int(result[0]):
                    # from pageable memory the driver returns once it has staged the data (CUDA
                    # driver API, "API synchronization behavior"): a load through the mapping
                    # could still see what was there before
                    result = d.cuStreamSynchronize(0)
            else:
                with counted(stream):
                    result = d.cuMemcpyHtoDAsync(dst, src, size, stream.handle)
        _check(result, f"copying {size} bytes to {dst:#x}")

    def copy_out(self, dst: int, src: int, size: int, stream: Stream | None = None) -> None:
        self.ensure_usable()
        d = _driver()
        with self.current():
            if stream is None:
                result = d.cuMemcpyDtoH(dst, src, size)
            else:
                with counted(stream):
                    result = d.cuMemcpyDtoHAsync(dst, src, size, stream.handle)
        _check(result, f"copying {size} bytes from {src:#x}")

    def driver_functions(self) -> Any:
        return self._functions

    def _find_functions(self) -> Any:
        """Addresses of driver functions, for C. Raises DeviceError if one is missing."""
        d = _driver()
        names = {"copy_in": b"cuMemcpyHtoD", "copy_out": b"cuMemcpyDtoH",
                 "settle": b"cuStreamSynchronize", "current": b"cuCtxGetCurrent",
                 "push": b"cuCtxPushCurrent", "pop": b"cuCtxPopCurrent",
                 "attribute": b"cuPointerGetAttribute", "launch": b"cuLaunchKernel",
                 "launch_cooperative": b"cuLaunchCooperativeKernel", "query": b"cuStreamQuery",
                 "event_new": b"cuEventCreate", "event_free": b"cuEventDestroy",
                 "event_record": b"cuEventRecord", "stream_wait": b"cuStreamWaitEvent",
                 "stream_wait_word": b"cuStreamWaitValue32",
                 "capture_mode": b"cuThreadExchangeStreamCaptureMode"}  # fmt: skip
        found = _native.ffi.new("struct gd_driver *", {"context": self._context_number})
        for key, name in names.items():
            # as they were in CUDA 12.0, whose types _native/driver.c knows
            result = _check(d.cuGetProcAddress(name, 12000, 0), f"finding {name.decode()}")
            setattr(found, key, int(result[0]))
        return found

    def error(self, code: int, doing: str) -> Error:
        """The exception for an error code of the driver that C met."""
        try:
            _check((_driver().CUresult(code),), doing)
        except Error as e:
            return e
        return DeviceError(f"{doing}: error {code}", code)

    def relay_thread(self) -> Any:
        """The thread in C that launches resident kernels (``struct gd_relay *``), started once."""
        with self._lock:
            if self._relay is None:
                relay = _native.lib.gd_relay_new(self._functions)
                if relay == _native.ffi.NULL:
                    raise DeviceError(
                        f"no thread could be started for the resident kernels of {self.id}: this "
                        "process has too many (ulimit -u), or too little memory"
                    )
                self._relay = relay
            return self._relay

    def relay(self, launch: Launch) -> CudaRelayed:
        return CudaRelayed(self, launch)

    def near_cpus(self) -> list[int]:
        return near_cpus(self.pci_address)

    def fill(self, dst: int, value: int, size: int, stream: Stream | None = None) -> None:
        self.ensure_usable()
        d = _driver()
        target = stream or self.default_stream
        with self.current(), counted(target):
            _check(
                d.cuMemsetD8Async(dst, value, size, target.handle), f"filling {size} bytes"
            )

    def flush_writes(self) -> None:
        if not self.ordering.flush_by_host:
            raise DeviceError(
                f"{self.name} offers no flush of writes through BAR1 to a running kernel (device "
                f"attribute {RDMA_FLUSH_OPTIONS}); a launch or a stream synchronisation orders them"
            )
        d = _driver()
        with self.current():
            _check(
                d.cuFlushGPUDirectRDMAWrites(
                    d.CUflushGPUDirectRDMAWritesTarget.CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX,
                    d.CUflushGPUDirectRDMAWritesScope.CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER,
                ),
                "flushing writes",
            )

    @property
    def compute_capability(self) -> tuple[int, int]:
        """(major, minor)."""
        return self.attribute(COMPUTE_MAJOR) or 0, self.attribute(COMPUTE_MINOR) or 0

    def compile(self, source: str, name: str, options: Sequence[str] = ()) -> CudaFunction:
        from ._nvrtc import compile_kernel

        self.ensure_usable()
        compiled = compile_kernel(source, name, self.compute_capability, options)
        d = _driver()
        # the driver loads code when nothing runs, and by default at the first launch only: then a
        # resident kernel would block that for ever
        with self.quiet(), self.current():
            module = _check(d.cuModuleLoadData(compiled.code), f"loading {name}")
            kernel = _check(
                d.cuModuleGetFunction(module, compiled.symbol.encode()), f"finding {name}"
            )
            if hasattr(d, "cuFuncLoad"):
                _check(d.cuFuncLoad(kernel), f"loading {name}")
        return CudaFunction(self, module, kernel, name, compiled.parameters, compiled.code)

    def launch_cooperative(self, kernel: Any, grid: tuple[int, int, int],
                           block: tuple[int, int, int], shared: int, stream: Stream,
                           arguments: bytes) -> int:
        """cuLaunchKernelEx with every block resident at once; the driver's code."""
        import ctypes

        d = _driver()
        size = ctypes.c_size_t(len(arguments))
        # CU_LAUNCH_PARAM_BUFFER_POINTER, _BUFFER_SIZE, _END of cuda.h
        buffer = ctypes.c_char_p(arguments)
        extra = (ctypes.c_void_p * 5)(
            1, ctypes.cast(buffer, ctypes.c_void_p), 2, ctypes.addressof(size), 0
        )
        config = d.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = block
        config.sharedMemBytes = shared
        config.hStream = stream.handle
        attribute = d.CUlaunchAttribute()
        attribute.id = d.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
        attribute.value.cooperative = 1
        config.attrs = [attribute]
        config.numAttrs = 1
        with self.current(), counted(stream):
            (code,) = d.cuLaunchKernelEx(config, kernel, 0, ctypes.addressof(extra))
        return int(code)

    def facts(self) -> dict[str, object]:
        d = _driver()
        free, total = self.memory()
        aperture = self.aperture()
        return {
            "device": self.id,
            "name": self.name,
            "uuid": self.uuid,
            "pci_address": self.pci_address,
            "compute_capability": ".".join(map(str, self.compute_capability)),
            "memory_bytes": total,
            "memory_free_bytes": free,
            "bar1_bytes": aperture.total if aperture else None,
            "bar1_used_bytes": aperture.used if aperture else None,
            "cuda_driver": int(_check(d.cuDriverGetVersion(), "version")),
            "ordering": {
                "direct_writes": self.ordering.direct_writes,
                "flush_by_host": self.ordering.flush_by_host,
                "scope": self.ordering.scope,
            },
            "emulated": False,
        }

    def close(self) -> None:
        """Nothing to do: CUDA tears its context down with the process."""


_NOTHING = contextlib.nullcontext()
