"""A function of a service as an object: ``svc.scale(2.0, a, 3)``, ``svc["scale"].submit(2.0, a, 3)``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ._info import declaration

if TYPE_CHECKING:
    from ._future import Future
    from ._service import Service


class ServiceFunction:
    """A function of a service. Calling it is ``svc.call(name, ...)``."""

    __slots__ = ("_service", "name")

    def __init__(self, service: Service, name: str) -> None:
        self._service = service
        self.name = name

    def __call__(self, *arguments: Any, timeout: float | None = None, lane: int | None = None) -> Any:
        """Call it, and return its result: as ``svc.call``."""
        return self._service.call(self.name, *arguments, timeout=timeout, lane=lane)

    def submit(self, *arguments: Any, timeout: float | None = None, lane: int | None = None) -> Future:
        """Send a call and return its Future: as ``svc.submit``."""
        return self._service.submit(self.name, *arguments, timeout=timeout, lane=lane)

    def map(
        self, *iterables: Iterable[Any], timeout: float | None = None, lane: int | None = None
    ) -> Iterator[Any]:
        """Its results for each set of arguments, in order: as ``svc.map``."""
        return self._service.map(self.name, *iterables, timeout=timeout, lane=lane)

    def __repr__(self) -> str:
        result, _, rest = declaration(self._service.functions[self.name]).partition(" ")
        return f"<ServiceFunction {result} {self.name} {rest}>"
