"""Bridge ``emulated``: maps emulated device memory, so that everything runs without a GPU.

The bus addresses are made up: they count up from a made-up BAR1 base in 64 KiB steps and are
marked ``emulated=True``.
"""

from __future__ import annotations

import errno
import os
from typing import Protocol, cast

from ..errors import ApertureError
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

MADE_UP_BAR1 = 0x3800_0000_0000  # where a server's 64-bit BARs often stand


class EmulatedSource(Source, Protocol):
    """A block of emulated memory. The emulated GPU keeps the book of its aperture."""

    def aperture_take(self, length: int) -> int | None:
        """Room for ``length`` bytes: its offset in the aperture, or None when it is full."""
        ...

    def aperture_give(self, offset: int, length: int) -> None: ...

    def aperture_state(self) -> tuple[int, int]:
        """(total, used) bytes."""
        ...


class EmulatedMapping(Mapping):
    """A second mapping of the memfd (or of the stand-in driver's memory) behind a block."""

    caching = "wb"

    def __init__(self, bridge: EmulatedBridge, source: EmulatedSource, offset: int, length: int,
                 at: int | None) -> None:
        self.bridge: EmulatedBridge = bridge
        self.length = length
        start, self._size, lead = page_span(offset, length)
        room = source.aperture_take(self._size)
        if room is None:
            total, used = source.aperture_state()
            raise ApertureError(
                f"emulated: no room for {self._size} bytes in the aperture: {used} of {total} "
                "bytes are mapped. Close arrays, map a smaller window, or raise "
                "GPUDIRECT_EMULATED_BAR1.",
                errno.ENOMEM,
            )
        try:
            fd = source.export_fd()
            try:
                self._base = map_file("emulated", fd, start, self._size, at - lead if at else None)
            finally:
                os.close(fd)
        except BaseException:
            source.aperture_give(room, self._size)
            raise
        self._source: EmulatedSource | None = source
        self._room = room
        self._reserved = at is not None
        self._run = PageRun(source.ptr + start, MADE_UP_BAR1 + room, self._size, emulated=True)
        self.address = self._base + lead

    def pages(self) -> list[PageRun]:
        return [self._run]

    def close(self) -> None:
        if self._source is not None:
            unmap(self._base, self._size, self._reserved)
            source, self._source = self._source, None
            source.aperture_give(self._room, self._size)


class EmulatedBridge(Bridge):
    """Maps the emulated device's memory and nothing else."""

    name = "emulated"
    bus_addresses = True

    def standing(self, device: Facts) -> Standing:
        if device.kind != "emulated":
            return Standing(False, "maps the emulated device's memory only")
        return Standing(True, "maps the emulated device's memory; no GPU is involved")

    def map(
        self, source: Source, offset: int, length: int, *, at: int | None = None, caching: str = "wc"
    ) -> EmulatedMapping:
        check_span("emulated", source, offset, length, caching, ("wc", "uc", "wb"))
        return EmulatedMapping(self, cast(EmulatedSource, source), offset, length, at)
