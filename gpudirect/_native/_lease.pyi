"""What lease.c offers."""

from collections.abc import Callable
from typing import Any, final

@final
class Yard:
    def __init__(self, bell: Callable[[], object] | None = None, limit: int = ...) -> None: ...
    def __len__(self) -> int: ...
    def take(self) -> list[Lease]: ...
    limit: int
    @property
    def weight(self) -> int: ...

@final
class Lease:
    def __init__(
        self,
        home: Yard | Callable[[Any], object] | None,
        of: Any = None,
        ptr: int = 0,
        nbytes: int = 0,
        host: int = 0,
        weight: int = 0,
    ) -> None: ...
    @property
    def of(self) -> Any: ...
    @property
    def ptr(self) -> int: ...
    @property
    def host(self) -> int: ...
    @property
    def weight(self) -> int: ...
    nbytes: int
    exported: bool
    def end(self) -> None: ...
