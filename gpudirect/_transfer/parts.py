"""Parts of device memory that is not mapped whole, each mapped by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from .. import _native, memory
from ..aperture import WINDOWS, account, charge
from ..bridges import Bridge, Mapping, PageRun
from ..devices import Device, DeviceMemory
from ..errors import ApertureError
from ..extent import Backing

T = TypeVar("T")


class Part:
    """Some bytes of a piece, mapped by themselves. Stands in for the piece in an extent."""

    __slots__ = ("__weakref__", "_account", "_mapping", "host", "nbytes", "piece", "ptr")

    def __init__(self, piece: Backing, offset: int, nbytes: int) -> None:
        self._mapping: Mapping | None = None
        self.piece = piece
        self.ptr = piece.ptr + offset
        self.nbytes = nbytes
        self._account = account(piece.device)
        if piece.host:
            self.host = piece.host + offset
            return
        block, start = piece.memory_at(offset, nbytes)
        if isinstance(piece, memory.Piece):
            piece.block.hold(piece.bridge)
        self._mapping = with_room(
            piece.device,
            lambda: self._account.map(WINDOWS, piece.bridge, block, start, nbytes),
        )
        self.host = self._mapping.address

    @property
    def device(self) -> Device:
        return self.piece.device

    @property
    def bridge(self) -> Bridge:
        return self.piece.bridge

    @property
    def exported(self) -> bool:
        return self.piece.exported

    @exported.setter
    def exported(self, value: bool) -> None:
        self.piece.exported = value

    @property
    def revocable(self) -> bool:
        return self.piece.revocable if self._mapping is None else self._mapping.revocable

    def revoked(self) -> bool:
        return self.piece.revoked() if self._mapping is None else self._mapping.revoked()

    def pages(self) -> list[PageRun]:
        return self.piece.pages() if self._mapping is None else self._mapping.pages()

    def memory_at(self, offset: int, length: int) -> tuple[DeviceMemory, int]:
        return self.piece.memory_at(self.ptr - self.piece.ptr + offset, length)

    def __del__(self) -> None:
        mapping = self._mapping
        if mapping is None or not memory.alive() or self.piece.device.forked:
            return
        _native.lib.gd_fence()  # stores on their way must not meet what is mapped there next
        _, start = self.memory_at(0, self.nbytes)
        self._account.give(WINDOWS, charge(start, self.nbytes), mapping.close)


def with_room(device: Device, make: Callable[[], T]) -> T:
    """Map something; where the aperture is full, once more without what the pools keep.

    Raises ApertureError that says who holds how much.
    """
    try:
        return make()
    except ApertureError as e:
        if not memory.shed(device):
            raise ApertureError(f"{e}\n{memory.holders()}", e.errno) from e
    try:
        return make()
    except ApertureError as e:
        raise ApertureError(f"{e}\n{memory.holders()}", e.errno) from e
