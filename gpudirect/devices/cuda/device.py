"""One GPU: its context, its memory and what it promises."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ... import _native
from ..._keeper import keeper, patient
from ...errors import DeviceError, DeviceNotFoundError, Error, NotMappableError
from .. import _nvrtc
from .._shared import SharedPages
from ..base import Aperture, Device, DeviceMemory, HostMemory, Ordering
from ..relayed import Launch
from ..streams import Stream, counted
from ._driver import STICKY, check, count, driver, nvml
from .function import CudaFunction
from .memory import CudaMemory
from .relayed import CudaRelayed
from .streams import Adopted, CudaQueue, Events, number_of

# Device attributes by number: some are newer than the oldest header we run with.
COMPUTE_MAJOR, COMPUTE_MINOR = 75, 76
POSIX_FD_SUPPORTED = 103
RDMA_WITH_VMM = 110
RDMA_SUPPORTED, RDMA_FLUSH_OPTIONS, RDMA_WRITES_ORDERING = 116, 117, 118

DEVICE_MEMORY = 2  # CU_MEMORYTYPE_DEVICE

INVALID_VALUE = 1
CANNOT_REGISTER = INVALID_VALUE, 801  # or NOT_SUPPORTED: this system's driver registers no such memory

_NOTHING = contextlib.nullcontext()


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


_SINCE = {152: 13030}  # attributes that not every driver knows: its CUDA version


class CudaDevice(Device):
    """One GPU and its primary context."""

    kind = "cuda"

    def __init__(self, ordinal: int) -> None:
        super().__init__()
        d = driver()
        result = d.cuDeviceGet(ordinal)
        if int(result[0]):
            raise DeviceNotFoundError(
                f"there is no cuda:{ordinal}: CUDA sees {count()} GPU(s), numbered from 0"
            )
        self.ordinal = ordinal
        self._device = result[1]
        self.name = check(d.cuDeviceGetName(256, self._device), "name").split(b"\0")[0].decode()
        raw = bytes(check(d.cuDeviceGetUuid(self._device), "UUID").bytes)[:16].hex()
        self.uuid = "GPU-" + "-".join((raw[:8], raw[8:12], raw[12:16], raw[16:20], raw[20:]))
        bus = check(d.cuDeviceGetPCIBusId(32, self._device), "PCI address")
        self.pci_address = bus.split(b"\0")[0].decode().lower()
        self._context = check(d.cuDevicePrimaryCtxRetain(self._device), "opening the GPU")
        try:
            self._set_up()
        except BaseException:
            d.cuDevicePrimaryCtxRelease(self._device)
            raise

    def _set_up(self) -> None:
        d = driver()
        self._context_number = int(self._context)
        self._lock = threading.RLock()
        self._relay: Any = None
        self.events = Events()
        self._adopted = Adopted(self)
        self._properties = self._allocation_properties()
        with self.current():
            self.granularity = int(
                check(
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
        self._dma = _native.ffi.new("struct gd_paths *", {"driver": self._functions})
        queue = CudaQueue(self, 0)
        self.queues.add(queue)
        self.default_stream = Stream(queue, owned=False)

    def _allocation_properties(self) -> Any:
        d = driver()
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
        p.requestedHandleTypes = d.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        # without it nv-p2p (p2pmod, gdrdrv) refuses to pin what cuMemCreate made
        p.allocFlags.gpuDirectRDMACapable = 1 if self.attribute(RDMA_WITH_VMM) else 0
        return p

    @contextlib.contextmanager
    def _pushed(self) -> Iterator[None]:
        d = driver()
        check(d.cuCtxPushCurrent(self._context), "entering the context")
        try:
            yield
        finally:
            d.cuCtxPopCurrent()

    def current(self) -> contextlib.AbstractContextManager[None]:
        """Make this GPU's context current for a block, leaving the caller's choice as it was."""
        code, context = driver().cuCtxGetCurrent()
        if code:
            check((code,), "asking which context is current")
        if int(context) == self._context_number:
            return _NOTHING
        return self._pushed()

    def attribute(self, number: int) -> int | None:
        d = driver()
        if _SINCE.get(number, 0) > self._version:
            return None  # not asked: tools that watch the driver's errors would tell it as ours
        try:
            which = d.CUdevice_attribute(number)
        except ValueError:
            return None  # newer than these bindings
        result = d.cuDeviceGetAttribute(which, self._device)
        if int(result[0]) == INVALID_VALUE:
            return None  # newer than this driver
        return int(check(result, f"asking for device attribute {number}"))

    @cached_property
    def _version(self) -> int:
        return int(check(driver().cuDriverGetVersion(), "asking for the driver's version"))

    def ensure_alive(self) -> None:
        self.ensure_usable()
        with self.current():
            result = driver().cuStreamQuery(0)
        if int(result[0]) in STICKY:
            check(result, f"asking whether {self.id} is there")

    def allocate(self, size: int) -> CudaMemory:
        self.ensure_usable()
        return keeper.run(self._allocate, size)

    def _allocate(self, size: int) -> CudaMemory:
        size = -(-size // self.granularity) * self.granularity
        d = driver()
        doing = f"allocating {size} bytes on {self.id}"
        with self.current(), contextlib.ExitStack() as undo:
            handle = check(d.cuMemCreate(size, self._properties, 0), doing)
            undo.callback(d.cuMemRelease, handle)
            ptr = check(d.cuMemAddressReserve(size, self.granularity, 0, 0), doing)
            undo.callback(d.cuMemAddressFree, ptr, size)
            check(d.cuMemMap(ptr, size, 0, handle, 0), doing)
            undo.callback(d.cuMemUnmap, ptr, size)
            check(d.cuMemSetAccess(ptr, size, self._access, 1), doing)
            undo.pop_all()
        return CudaMemory(self, int(ptr), size, handle, owned=True)

    def locate(self, ptr: int, size: int) -> list[tuple[DeviceMemory, int, int]]:
        self.ensure_usable()
        d = driver()
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
                keeper.give_back(borrowed.free)
            raise
        return found

    def holds(self, ptr: int) -> bool:
        with self.current():  # each context knows its own memory only
            code, _, _ = driver().cuMemGetAddressRange(ptr)
        return not int(code)

    @cached_property
    def _alone(self) -> bool:
        """Whether CUDA sees no other GPU."""
        return count() < 2

    def elsewhere(self, ptr: int) -> str:
        if self._alone:
            return ""
        d = driver()
        about = d.CUpointer_attribute
        with self.current():
            code, kind = d.cuPointerGetAttribute(about.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, ptr)
            if int(code) or int(kind) != DEVICE_MEMORY:
                return ""  # the host's, or none that the driver knows
            code, managed = d.cuPointerGetAttribute(about.CU_POINTER_ATTRIBUTE_IS_MANAGED, ptr)
            if int(code) or managed:
                return ""
            code, ordinal = d.cuPointerGetAttribute(about.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, ptr)
        return f"cuda:{int(ordinal)}" if not int(code) and int(ordinal) != self.ordinal else ""

    def memory(self) -> tuple[int, int]:
        keeper.settle()  # what was dropped is given back first
        with self.current():
            free, total = check(driver().cuMemGetInfo(), "asking for free memory")
        return int(free), int(total)

    def aperture(self) -> Aperture | None:
        found = nvml()
        if found is None:
            return None
        try:
            handle = found.nvmlDeviceGetHandleByPciBusId(self.pci_address.encode())
            info = found.nvmlDeviceGetBAR1MemoryInfo(handle)
        except Exception:
            return None
        return Aperture(int(info.bar1Total), int(info.bar1Used))

    def host_allocate(self, size: int, *, shared: bool = False) -> HostMemory:
        self.ensure_usable()
        found = keeper.run(self._host_share, size) if shared else None
        return found or keeper.run(self._host_allocate, size)

    def _host_share(self, size: int) -> HostMemory | None:
        """The same in a file of its own; None where the driver gives it no address that is the CPU's."""
        d = driver()
        patient.begin()
        flags = d.CU_MEMHOSTREGISTER_PORTABLE | d.CU_MEMHOSTREGISTER_DEVICEMAP
        with contextlib.ExitStack() as undo, self.current():
            pages = SharedPages(size)
            undo.callback(pages.close)
            result = d.cuMemHostRegister(pages.ptr, pages.size, flags)
            if int(result[0]) in CANNOT_REGISTER:
                return None
            check(result, f"page-locking {pages.size} bytes of host memory")
            undo.callback(d.cuMemHostUnregister, pages.ptr)
            code, there = d.cuMemHostGetDevicePointer(pages.ptr, 0)
            if int(code) or int(there) != pages.ptr:
                return None
            undo.pop_all()
        return HostMemory(pages.ptr, size, partial(self._host_unshare, pages), pages.fd)

    def _host_unshare(self, pages: SharedPages) -> None:
        if not self.forked:
            with self.quiet(), self.current():
                check(driver().cuMemHostUnregister(pages.ptr), "unlocking host memory")
            pages.close()

    def _host_allocate(self, size: int) -> HostMemory:
        d = driver()
        patient.begin()
        with self.current():
            ptr = int(
                check(
                    d.cuMemHostAlloc(size, d.CU_MEMHOSTALLOC_PORTABLE | d.CU_MEMHOSTALLOC_DEVICEMAP),
                    f"allocating {size} bytes of page-locked host memory",
                )
            )
        return HostMemory(ptr, size, partial(self._host_free, ptr))

    def _host_free(self, ptr: int) -> None:
        if not self.forked:
            with self.quiet(), self.current():
                check(driver().cuMemFreeHost(ptr), "freeing page-locked host memory")

    def stream(self) -> Stream:
        self.ensure_usable()
        return keeper.run(self._stream)

    def _stream(self) -> Stream:
        d = driver()
        self.sweep()
        with self.current():
            handle = check(d.cuStreamCreate(d.CUstream_flags.CU_STREAM_NON_BLOCKING), "making a stream")
        queue = CudaQueue(self, int(handle), owned=True)
        self.queues.add(queue)
        return Stream(queue)

    def destroy_stream(self, handle: int) -> None:
        """Give a stream back to the driver. Keeper's."""
        if not self.forked:
            with self.current():
                check(driver().cuStreamDestroy(handle), "destroying a stream")

    def adopt_stream(self, handle: object) -> Stream:
        number = number_of(handle)
        if not number:
            return self.default_stream
        return Stream(self._adopted.queue(number, handle), owned=False)

    def copy_in(self, dst: int, src: int, size: int, stream: Stream | None = None) -> None:
        self.ensure_usable()
        doing = f"copying {size} bytes to {dst:#x}"
        if stream is None:
            code = _native.lib.gd_dma_in(self._dma, dst, _native.ffi.cast("char *", src), size)
            if code:
                raise self.error(code, doing)
            return
        with self.current(), counted(stream):
            result = driver().cuMemcpyHtoDAsync(dst, src, size, stream.handle)
        check(result, doing)

    def copy_out(self, dst: int, src: int, size: int, stream: Stream | None = None) -> None:
        self.ensure_usable()
        doing = f"copying {size} bytes from {src:#x}"
        if stream is None:
            code = _native.lib.gd_dma_out(self._dma, _native.ffi.cast("char *", dst), src, size)
            if code:
                raise self.error(code, doing)
            return
        with self.current(), counted(stream):
            result = driver().cuMemcpyDtoHAsync(dst, src, size, stream.handle)
        check(result, doing)

    def driver_functions(self) -> Any:
        return self._functions

    def _find_functions(self) -> Any:
        """Addresses of driver functions, for C. Raises DeviceError if one is missing."""
        d = driver()
        names = {"copy_in": b"cuMemcpyHtoD", "copy_out": b"cuMemcpyDtoH",
                 "settle": b"cuStreamSynchronize", "current": b"cuCtxGetCurrent",
                 "push": b"cuCtxPushCurrent", "pop": b"cuCtxPopCurrent",
                 "attribute": b"cuPointerGetAttribute", "launch": b"cuLaunchKernel",
                 "launch_cooperative": b"cuLaunchCooperativeKernel", "query": b"cuStreamQuery",
                 "event_new": b"cuEventCreate", "event_free": b"cuEventDestroy",
                 "event_record": b"cuEventRecord", "event_query": b"cuEventQuery",
                 "capturing": b"cuStreamIsCapturing", "stream_wait": b"cuStreamWaitEvent",
                 "stream_wait_word": b"cuStreamWaitValue32",
                 "capture_mode": b"cuThreadExchangeStreamCaptureMode",
                 "memory_create": b"cuMemCreate", "memory_release": b"cuMemRelease",
                 "memory_reserve": b"cuMemAddressReserve", "memory_unreserve": b"cuMemAddressFree",
                 "memory_map": b"cuMemMap", "memory_unmap": b"cuMemUnmap",
                 "memory_access": b"cuMemSetAccess"}  # fmt: skip
        ffi = _native.ffi
        found = ffi.new("struct gd_driver *", {"context": self._context_number})
        for field, value, size in ((found.memory_properties, self._properties, 32),
                                   (found.memory_access_of, self._access[0], 12)):  # fmt: skip
            ffi.memmove(field, ffi.cast("char *", int(value.getPtr())), size)
        for key, name in names.items():
            # as they were in CUDA 12.0, whose types _native/driver.c knows
            result = check(d.cuGetProcAddress(name, 12000, 0), f"finding {name.decode()}")
            setattr(found, key, int(result[0]))
        return found

    def error(self, code: int, doing: str) -> Error:
        """The exception for an error code of the driver that C met."""
        try:
            check((driver().CUresult(code),), doing)
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

    def copy_within(self, dst: int, src: int, size: int, stream: Stream) -> None:
        self.ensure_usable()
        with self.current(), counted(stream):
            result = driver().cuMemcpyDtoDAsync(dst, src, size, stream.handle)
        check(result, f"copying {size} bytes from {src:#x} to {dst:#x}")

    def fill(self, dst: int, value: int, size: int, stream: Stream | None = None,
             width: int = 1) -> None:  # fmt: skip
        self.ensure_usable()
        d = driver()
        target = stream or self.default_stream
        fill = {1: d.cuMemsetD8Async, 2: d.cuMemsetD16Async, 4: d.cuMemsetD32Async}[width]
        with self.current(), counted(target):
            check(fill(dst, value, size // width, target.handle), f"filling {size} bytes")

    def flush_writes(self) -> None:
        if not self.ordering.flush_by_host:
            raise DeviceError(
                f"{self.name} offers no flush of writes through BAR1 to a running kernel (device "
                f"attribute {RDMA_FLUSH_OPTIONS}); a launch or a stream synchronisation orders them"
            )
        d = driver()
        with self.current():
            check(
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
        self.ensure_usable()
        compiled = _nvrtc.compile_kernel(source, name, self.compute_capability, options)
        d = driver()
        # the driver loads code when nothing runs, and by default at the first launch only: then a
        # resident kernel would block that for ever
        with self.quiet(), self.current(), contextlib.ExitStack() as undo:
            module = check(d.cuModuleLoadData(compiled.code), f"loading {name}")
            undo.callback(d.cuModuleUnload, module)
            kernel = check(d.cuModuleGetFunction(module, compiled.symbol.encode()), f"finding {name}")
            if hasattr(d, "cuFuncLoad"):
                check(d.cuFuncLoad(kernel), f"loading {name}")
            undo.pop_all()
        return CudaFunction(self, module, kernel, name, compiled.parameters, compiled.code)

    def facts(self) -> dict[str, object]:
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
            "cuda_driver": self._version,
            "ordering": {
                "direct_writes": self.ordering.direct_writes,
                "flush_by_host": self.ordering.flush_by_host,
                "scope": self.ordering.scope,
            },
            "emulated": False,
        }

    def close(self) -> None:
        """Nothing to do: CUDA tears its context down with the process."""
