"""Kernels that are compiled and loaded: launching them, asking what fits, unloading them."""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Any

from ... import _native
from ..._keeper import patient
from ...errors import DeviceError, DeviceLostError, LaunchError
from ..base import Function, Parameter
from ..streams import Stream, counted
from ._driver import check, driver

if TYPE_CHECKING:
    from .device import CudaDevice

MULTIPROCESSORS = 16  # device attribute


@functools.lru_cache(256)
def _grid(grid: tuple[int, int, int], block: tuple[int, int, int], shared: int) -> Any:
    """A launch configuration as C wants it."""
    return _native.ffi.new("struct gd_grid *", (grid, block, shared))


def _launch_cooperative(
    device: CudaDevice,
    kernel: Any,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    shared: int,
    stream: Stream,
    arguments: bytes,
) -> int:
    """cuLaunchKernelEx with every block resident at once; the driver's code."""
    d = driver()
    size = ctypes.c_size_t(len(arguments))
    # CU_LAUNCH_PARAM_BUFFER_POINTER, _BUFFER_SIZE, _END of cuda.h
    buffer = ctypes.c_char_p(arguments)
    extra = (ctypes.c_void_p * 5)(1, ctypes.cast(buffer, ctypes.c_void_p), 2, ctypes.addressof(size), 0)
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
    with device.current(), counted(stream):
        (code,) = d.cuLaunchKernelEx(config, kernel, 0, ctypes.addressof(extra))
    return int(code)


def _unload(device: CudaDevice, module: Any) -> None:
    """Unload code, which waits until nothing runs on the device. The patient keeper's."""
    if not device.forked:
        with device.quiet(), device.current():
            check(driver().cuModuleUnload(module), "unloading a kernel")


class CudaFunction(Function):
    """A loaded kernel."""

    _lease: Any = None  # whose end has the code unloaded

    def __init__(
        self,
        device: CudaDevice,
        module: Any,
        kernel: Any,
        name: str,
        parameters: tuple[Parameter, ...],
        code: bytes,
    ) -> None:
        self.device = device
        self.name = name
        self.parameters = parameters
        self._code = code
        self._module = module  # keeps the code loaded
        self._kernel = kernel
        self.handle = int(kernel)
        self._shared_allowed = 48 << 10

    def _allow_shared(self, shared: int) -> None:
        d = driver()
        with self.device.current():
            check(
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
            code = _launch_cooperative(device, self._kernel, grid, block, shared, stream, arguments)
        else:
            code = _native.lib.gd_driver_launch(
                device.driver_functions(), self.handle, _grid(grid, block, shared), stream.handle,
                arguments, len(arguments), stream.work,
            )  # fmt: skip
        if code:
            try:
                check(
                    (driver().CUresult(code),),
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
            each = check(
                driver().cuOccupancyMaxActiveBlocksPerMultiprocessor(self._kernel, threads, 0),
                f"asking how many blocks of {self.name} fit",
            )
        return int(each) * (self.device.attribute(MULTIPROCESSORS) or 0)
