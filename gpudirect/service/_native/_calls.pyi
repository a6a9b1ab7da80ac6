"""What the C files of this folder offer."""

from collections.abc import Callable
from typing import Any

ARGUMENTS_MAX: int

class Function:
    def __init__(
        self,
        name: str,
        array_type: type,
        number: int,
        size: int,
        result_kind: str,
        result_size: int,
        parameters: tuple[tuple[str, int, int], ...],
        /,
    ) -> None: ...

class Caller:
    def call(
        self, function: str, /, *arguments: Any, timeout: float | None = None, lane: int | None = None
    ) -> Any: ...
    def submit(
        self, function: str, /, *arguments: Any, timeout: float | None = None, lane: int | None = None
    ) -> Any: ...
    @property
    def pending(self) -> tuple[int, ...]: ...
    @property
    def _opened(self) -> bool: ...
    @property
    def _waiting(self) -> int: ...
    def _open(
        self,
        lanes: tuple[tuple[int, ...], ...],
        slots: int,
        flags: int,
        store: int,
        functions: dict[str, Function],
        device: object,
        call_type: type[Call],
        /,
    ) -> None: ...
    def _shut(self, failure: BaseException, kept: list[object] | None, /) -> None: ...
    def _when_left(self, then: Callable[[], object], /) -> None: ...
    def _lend(self, lane: int, /) -> int: ...

class Call:
    @property
    def function(self) -> str: ...
    @property
    def lane(self) -> int: ...
    def done(self) -> bool: ...
    def result(self, timeout: float | None = None) -> Any: ...
    def _watch(self) -> bool: ...
    def _awaited(self) -> tuple[int, int, int] | None: ...

def bind(address: int, /) -> None: ...
