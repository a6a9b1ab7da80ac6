"""Memory that somebody else allocated, mapped at an address of its own."""

from __future__ import annotations

import mmap
import os
from typing import Any

from . import _native, aperture
from ._keeper import keeper
from .bridges import Bridge, PageRun
from .devices import Device, DeviceMemory
from .errors import ApertureError, BridgeError, NotMappableError

HOST_PAGE = mmap.PAGESIZE


class _Segments:
    """The physical blocks behind a range, each with its mapping. Made and undone by the keeper."""

    def __init__(self, device: Device, bridge: Bridge, ptr: int, nbytes: int) -> None:
        self._device = device
        self._bridge = bridge
        self._account = aperture.account(device)
        self._reserved: tuple[int, int] | None = None
        self.keep: object = None
        """Who owns the memory, where he goes together with the mapping: after it."""
        self.mapped: list[tuple[DeviceMemory, int, int, aperture.Charged]] = []
        self.host = 0
        found = device.locate(ptr, nbytes)
        try:
            self._map(found, ptr, nbytes)
        except BaseException:
            unmapped = found[len(self.mapped) :]
            keeper.give_back(self.release)
            for memory, _, _ in unmapped:
                keeper.give_back(memory.free)
            raise

    def _map(self, found: list[tuple[DeviceMemory, int, int]], ptr: int, nbytes: int) -> None:
        if not self._bridge.places:
            if len(found) > 1:
                raise NotMappableError(
                    f"{self._bridge.name} cannot map {nbytes} bytes at {ptr:#x} as one range: they "
                    f"lie in {len(found)} physical blocks, and it chooses addresses itself. Use the "
                    "bridge p2pmod, dmabuf or rm."
                )
            self.host = self._add(*found[0], None)
            return
        # one reservation, so that blocks that are neighbours on the device are neighbours here
        lead = ptr % HOST_PAGE
        span = -(-(lead + nbytes) // HOST_PAGE) * HOST_PAGE
        base = int(_native.lib.gd_reserve(0, span, HOST_PAGE))
        if base < 0:
            raise BridgeError(f"reserving {span} bytes of addresses: {os.strerror(-base)}", -base)
        self._reserved = (base, span)
        self.host = at = base + lead
        for memory, offset, length in found:
            self._add(memory, offset, length, at)
            at += length

    def _add(self, memory: DeviceMemory, offset: int, length: int, at: int | None) -> int:
        try:
            charged = self._account.map(
                aperture.REGISTERED, self._bridge, memory, offset, length, at=at
            )
        except ApertureError as e:
            raise ApertureError(f"{e}\n{aperture.holders()}", e.errno) from e
        self.mapped.append((memory, offset, length, charged))
        return charged.mapping.address

    def release(self) -> None:
        """Unmap, give the references to the blocks back, let the owner go. Safe twice, and goes on."""
        if not self._device.forked:
            while self.mapped:
                memory, _, _, charged = self.mapped[-1]
                charged.close()
                memory.free()
                self.mapped.pop()
            if self._reserved is not None:
                _native.lib.gd_unmap(*self._reserved)
        self._reserved = None
        self.mapped = []
        self.keep = None


class Registration:
    """Memory of somebody else. Stands in for a ``Piece``.

    The owner must keep the memory alive; where the bridge imports it (``rm``), the pages stay valid
    even if he does not.
    """

    __slots__ = ("__weakref__", "_keep", "_lease", "_segments", "bridge", "device", "exported",
                 "host", "nbytes", "ptr")  # fmt: skip

    def __init__(self, device: Device, bridge: Bridge, ptr: int, nbytes: int, keep: object) -> None:
        self._lease: Any = None
        self._keep = keep
        self._segments, self._lease = keeper.run(_registered, device, bridge, ptr, nbytes)
        self.device = device
        self.bridge = bridge
        self.ptr = ptr
        self.nbytes = nbytes
        self.exported = False
        self.host = self._segments.host

    @property
    def revocable(self) -> bool:
        return any(s[3].mapping.revocable for s in self._segments.mapped)

    @property
    def copying(self) -> int:
        return self.device.copying(self.revocable)

    def revoked(self) -> bool:
        return any(s[3].mapping.revoked() for s in self._segments.mapped)

    def pages(self) -> list[PageRun]:
        return [run for s in self._segments.mapped for run in s[3].mapping.pages()]

    def memory_at(self, offset: int, length: int) -> tuple[DeviceMemory, int]:
        """The physical block behind bytes of the range, and where in it they start."""
        at = 0
        for memory, start, extent, _ in self._segments.mapped:
            if at <= offset < at + extent:
                if offset + length > at + extent:
                    break
                return memory, start + offset - at
            at += extent
        raise NotMappableError(f"bytes {offset}..{offset + length} span several physical blocks")

    def __del__(self) -> None:
        # The owner goes after the mapping. Where this is interrupted he goes at once, and the lease
        # unmaps all the same.
        if self._lease is not None:
            self._segments.keep = self._keep
            self._lease = None


def _registered(device: Device, bridge: Bridge, ptr: int, nbytes: int) -> tuple[_Segments, Any]:
    segments = _Segments(device, bridge, ptr, nbytes)
    return segments, keeper.leave(segments.release)
