"""Blocks of emulated device memory, the addresses they are given, and where their bytes come from."""

from __future__ import annotations

import bisect
import errno
import fcntl
import os
from typing import TYPE_CHECKING

from ... import _native
from ..._descriptors import telling
from ...errors import DeviceError, NotMappableError, OutOfMemoryError
from ..base import DeviceMemory

if TYPE_CHECKING:
    from ..emulated import EmulatedDevice


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
        with telling(f"naming {self.size} bytes at {self.ptr:#x} by a descriptor"):
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
        super().__init__(owner.device, owner.ptr, owner.size, owner.export_fd())

    def free(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


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
        with telling(f"opening {self.NODE}"):
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
