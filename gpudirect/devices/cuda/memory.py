"""Blocks of device memory: made with ``cuMemCreate``, or borrowed of somebody else."""

from __future__ import annotations

import ctypes
from functools import partial
from typing import TYPE_CHECKING, Any

from ..._descriptors import none_left, told
from ...errors import NotMappableError
from ..base import DeviceMemory
from ._driver import check, driver

if TYPE_CHECKING:
    from .device import CudaDevice


class CudaMemory(DeviceMemory):
    """A block of ``cuMemCreate`` at an address of its own; or a borrowed one of somebody else."""

    def __init__(self, device: CudaDevice, ptr: int, size: int, handle: Any, owned: bool) -> None:
        self.device: CudaDevice = device
        self.ptr = ptr
        self.size = size
        self.pci_address = device.pci_address
        self._handle = handle
        self._owned = owned
        self._gone = 0  # steps of giving it back that are done

    def export_fd(self) -> int:
        if self._handle is None:
            raise NotMappableError(
                f"memory at {self.ptr:#x} was not made by cuMemCreate, so it cannot be exported as "
                "a file descriptor. The bridges p2pmod, gdrdrv and dmabuf (CUDA 13.3 or newer) can "
                "map it; or let it come from gpudirect.empty()."
            )
        d = driver()
        with self.device.current():
            result = d.cuMemExportToShareableHandle(
                self._handle,
                d.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                0,
            )
        if int(result[0]):
            if none := none_left():
                raise told(none, f"exporting {self.size} bytes at {self.ptr:#x}")
            raise NotMappableError(
                f"memory at {self.ptr:#x} cannot be exported as a file descriptor "
                f"({result[0].name}): its maker did not ask for an exportable handle. PyTorch does "
                "with PYTORCH_ALLOC_CONF=expandable_segments:True; otherwise use p2pmod or gdrdrv."
            )
        return int(result[1])

    def dmabuf_fd(self, offset: int, length: int) -> int:
        d = driver()
        with self.device.current():
            return int(
                check(
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
        d = driver()
        one = ctypes.c_uint(1)
        with self.device.current():
            check(
                d.cuPointerSetAttribute(
                    ctypes.addressof(one),
                    d.CUpointer_attribute.CU_POINTER_ATTRIBUTE_SYNC_MEMOPS,
                    self.ptr,
                ),
                "setting SYNC_MEMOPS",
            )

    def free(self) -> None:
        if self._handle is None:
            return
        d = driver()
        release = partial(d.cuMemRelease, self._handle), "releasing device memory"
        steps = [
            (partial(d.cuMemUnmap, self.ptr, self.size), "unmapping device memory"),
            release,
            (partial(d.cuMemAddressFree, self.ptr, self.size), "freeing a device address"),
        ] if self._owned else [release]  # fmt: skip
        with self.device.current():
            for step, doing in steps[self._gone :]:
                check(step(), doing)
                self._gone += 1
        self._handle = None
