"""What a bridge is: one way to make a range of device memory addressable by the CPU.

A bridge knows file descriptors, handles and addresses. It knows nothing of arrays or kernels,
and it does not import devices: the two protocols below say what it may ask of one.
"""

from __future__ import annotations

import errno
import mmap
import os
from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

from .. import _native
from ..errors import ApertureError, BridgeError

PAGE = mmap.PAGESIZE
"""Bytes of a page of this system: 4096, and 16 or 64 KiB on some arm64 machines."""


class Source(Protocol):
    """A physical block of device memory, as a bridge sees it."""

    ptr: int
    size: int
    pci_address: str

    def export_fd(self) -> int: ...
    def dmabuf_fd(self, offset: int, length: int) -> int: ...
    def prepare_pinning(self) -> None: ...


class Facts(Protocol):
    """A device, as a bridge sees it."""

    kind: str
    name: str
    pci_address: str

    def attribute(self, number: int) -> int | None: ...


class PageRun(NamedTuple):
    """A run of device pages that is contiguous on both sides."""

    device_address: int
    bus_address: int | None
    """PCI (BAR1) physical address; None when the bridge cannot tell or you may not know."""
    size: int
    """Bytes."""
    emulated: bool = False
    """The bus address is made up."""


class Standing(NamedTuple):
    """Whether a bridge works on a device, and why (not)."""

    usable: bool
    reason: str


class Mapping(ABC):
    """A CPU address range backed by pinned device pages. Made by ``Bridge.map``."""

    bridge: Bridge
    address: int
    """Where the CPU sees the first byte asked for."""
    length: int
    caching: str
    """"wc" write-combined, "uc" uncached, "wb" cached."""
    revocable: bool = False
    """The driver may take the pages back: an access then raises SIGBUS."""

    @abstractmethod
    def pages(self) -> list[PageRun]:
        """The runs of pages behind the mapping, in address order."""

    @abstractmethod
    def close(self) -> None:
        """Remove the mapping. An address that was asked for is left reserved. Safe twice.

        Raises Error where the system or the driver refuses a step; called again, it goes on from there.
        """

    def revoked(self) -> bool:
        """Whether the driver has taken the pages back."""
        return False


class Held(Protocol):
    """What a bridge keeps of a block between mappings."""

    def close(self) -> None:
        """Let go of it. Safe twice, and may be called again after an error."""


class Bridge(ABC):
    """One way to map device memory. One object a process, made on first use."""

    name: str
    maps_foreign = False
    """Maps memory that another library allocated with cudaMalloc."""
    places = True
    """Maps at an address that the caller chooses."""
    bus_addresses = False
    """Tells the bus addresses of the pages."""

    @abstractmethod
    def standing(self, device: Facts) -> Standing:
        """Whether this bridge works on ``device`` here and now, and the reason. Cheap; no effect."""

    @abstractmethod
    def map(
        self, source: Source, offset: int, length: int, *, at: int | None = None, caching: str = "wc"
    ) -> Mapping:
        """Map ``length`` bytes from ``offset`` of ``source``; neither need be aligned.

        at: the CPU address wanted for the first byte (it must be reserved by the caller, and
            congruent to the offset modulo the page); None lets the system choose.
        Raises NotMappableError, ApertureError or BridgeError; nothing is left mapped then.
        """

    def hold(self, source: Source) -> Held | None:
        """Keep what mapping the block takes at first, for the mappings that will follow; None
        where there is nothing to keep. The caller closes it before the block is freed."""
        return None

    def after_fork(self) -> None:  # noqa: B027 - most bridges hold nothing
        """In a child process: close inherited descriptors, forget everything."""

    def __repr__(self) -> str:
        return f"<Bridge {self.name}>"


def page_span(offset: int, length: int) -> tuple[int, int, int]:
    """(page-aligned start, page-aligned length, offset of the first byte in it)."""
    start = offset & ~(PAGE - 1)
    end = (offset + length + PAGE - 1) & ~(PAGE - 1)
    return start, end - start, offset - start


def check_span(bridge: str, source: Source, offset: int, length: int, caching: str,
               allowed: tuple[str, ...]) -> None:
    """Raises BridgeError unless the range lies in the block and the caching type is offered."""
    if offset < 0 or length <= 0 or offset + length > source.size:
        raise BridgeError(
            f"{bridge}: bytes {offset}..{offset + length} are not inside the block of "
            f"{source.size} bytes at {source.ptr:#x}"
        )
    if caching not in allowed:
        raise BridgeError(
            f"{bridge} cannot map {caching!r}; it offers {', '.join(map(repr, allowed))}"
        )


def map_file(
    bridge: str, fd: int, file_offset: int, length: int, at: int | None, writable: bool = True
) -> int:
    """mmap(2) a descriptor for reading and writing (or reading), never inherited over fork; the address.

    Raises BridgeError (ApertureError where the kernel is out of room) with the system's reason.
    """
    address = _native.lib.gd_map(at or 0, length, 1, writable, fd, file_offset, 0)
    if address < 0:
        code = -address
        kind = ApertureError if code in (errno.ENOMEM, errno.ENOSPC) else BridgeError
        # 524 is the kernel's own ENOTSUPP, which libc has no words for
        words = "not supported by this driver" if code == 524 else os.strerror(code)
        raise kind(f"{bridge}: mmap of {length} bytes failed: {words} (errno {code})", code)
    return int(address)


def unmap(address: int, length: int, reserved: bool) -> None:
    """Remove a mapping; put a PROT_NONE reservation in its place where the address was given.

    Raises BridgeError with the system's reason; the mapping is there still.
    """
    if reserved:
        code = min(int(_native.lib.gd_reserve(address, length, 0)), 0)
    else:
        code = int(_native.lib.gd_unmap(address, length))
    if code:
        words = f"unmapping {length} bytes at {address:#x} failed: {os.strerror(-code)} (errno {-code})"
        raise BridgeError(words, -code)
