"""Parts of device memory that is not mapped whole, each mapped by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from .. import memory
from ..aperture import WINDOWS, Charged, account, holders
from ..bridges import Bridge, Mapping, PageRun
from ..devices import Device, DeviceMemory
from ..errors import ApertureError
from ..extent import Backing

T = TypeVar("T")


class Part:
    """Some bytes of a piece, mapped by themselves. Stands in for the piece in an extent."""

    __slots__ = ("__weakref__", "_charged", "host", "nbytes", "piece", "ptr")

    def __init__(self, piece: Backing, offset: int, nbytes: int) -> None:
        self._charged: Charged | None = None
        self.piece = piece
        self.ptr = piece.ptr + offset
        self.nbytes = nbytes
        if piece.host:
            self.host = piece.host + offset
            return
        block, start = piece.memory_at(offset, nbytes)
        if isinstance(piece, memory.Piece):
            piece.block.hold(piece.bridge)
        self._charged = with_room(
            piece.device,
            lambda: account(piece.device).map(WINDOWS, piece.bridge, block, start, nbytes),
        )
        self.host = self._charged.mapping.address

    @property
    def _mapping(self) -> Mapping | None:
        return self._charged.mapping if self._charged is not None else None

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
        mapping = self._mapping
        return self.piece.revocable if mapping is None else mapping.revocable

    @property
    def copying(self) -> int:
        return self.device.copying(self.revocable)

    def revoked(self) -> bool:
        mapping = self._mapping
        return self.piece.revoked() if mapping is None else mapping.revoked()

    def pages(self) -> list[PageRun]:
        mapping = self._mapping
        return self.piece.pages() if mapping is None else mapping.pages()

    def memory_at(self, offset: int, length: int) -> tuple[DeviceMemory, int]:
        return self.piece.memory_at(self.ptr - self.piece.ptr + offset, length)


def with_room(device: Device, make: Callable[[], T]) -> T:
    """Map something; where the aperture is full, once more without what the pools keep.

    Raises ApertureError that says who holds how much.
    """
    try:
        return make()
    except ApertureError as e:
        if not memory.shed(device):
            raise ApertureError(f"{e}\n{holders()}", e.errno) from e
    try:
        return make()
    except ApertureError as e:
        raise ApertureError(f"{e}\n{holders()}", e.errno) from e
