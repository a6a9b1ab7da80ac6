"""Bridge ``dmabuf``: a dma-buf of device memory, mapped with mmap(2). CUDA 13.3 and newer.

Any device memory gives a dma-buf; only newer drivers let the CPU mmap it. The device attribute
CU_DEVICE_ATTRIBUTE_DMA_BUF_MMAP_SUPPORTED (152) says so, and the first mapping proves it. The
version of the driver is never asked. (Attribute 124 only says that the dma-buf can be made.)
"""

from __future__ import annotations

import errno
import os

from ..errors import BridgeError, NotMappableError
from .base import (
    Bridge,
    Facts,
    Mapping,
    PageRun,
    Source,
    Standing,
    check_span,
    map_file,
    page_span,
    unmap,
)

DMA_BUF_SUPPORTED, DMA_BUF_MMAP_SUPPORTED = 124, 152
KERNEL_ENOTSUPP = 524


class DmabufMapping(Mapping):
    """A mapped dma-buf. Write-combined on x86-64."""

    caching = "wc"

    def __init__(self, bridge: DmabufBridge, source: Source, offset: int, length: int,
                 at: int | None) -> None:
        self.bridge: DmabufBridge = bridge
        self.length = length
        start, self._size, lead = page_span(offset, length)
        fd = source.dmabuf_fd(start, self._size)
        try:
            self._base = map_file("dmabuf", fd, 0, self._size, at - lead if at else None)
        except BridgeError as e:
            if e.errno in (KERNEL_ENOTSUPP, errno.EOPNOTSUPP, errno.ENODEV):
                raise NotMappableError(
                    "dmabuf: this driver makes dma-bufs of device memory but does not let the CPU "
                    "map them (CUDA 13.3 or newer does). Use the bridge rm or p2pmod.", e.errno,
                ) from e  # fmt: skip
            raise
        finally:
            os.close(fd)
        self._device_address = source.ptr + start
        self._reserved = at is not None
        self._open = True
        self.address = self._base + lead

    def pages(self) -> list[PageRun]:
        return [PageRun(self._device_address, None, self._size)]

    def close(self) -> None:
        if self._open:
            unmap(self._base, self._size, self._reserved)
            self._open = False


class DmabufBridge(Bridge):
    """Maps what the driver exports as a CPU-mappable dma-buf."""

    name = "dmabuf"
    maps_foreign = True

    def standing(self, device: Facts) -> Standing:
        if device.kind != "cuda":
            return Standing(False, f"maps NVIDIA GPUs only, and {device.name} is {device.kind}")
        mappable = device.attribute(DMA_BUF_MMAP_SUPPORTED)
        if mappable:
            return Standing(True, f"device attribute {DMA_BUF_MMAP_SUPPORTED} (dma-buf mmap) is 1")
        known = "is 0" if mappable is not None else "is not known to this driver"
        made = device.attribute(DMA_BUF_SUPPORTED)
        return Standing(
            False,
            f"device attribute {DMA_BUF_MMAP_SUPPORTED} (dma-buf mmap, CUDA 13.3) {known}"
            + ("; dma-bufs can be made, but not mapped by the CPU" if made else ""),
        )

    def map(
        self, source: Source, offset: int, length: int, *, at: int | None = None, caching: str = "wc"
    ) -> DmabufMapping:
        check_span("dmabuf", source, offset, length, caching, ("wc",))
        return DmabufMapping(self, source, offset, length, at)
