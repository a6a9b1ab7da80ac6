"""What mapped.c and elements.c offer."""

from collections.abc import Callable
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike
from typing_extensions import Buffer

_Out = TypeVar("_Out", bound=np.ndarray[Any, Any] | Buffer)

class Mapped:
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def ptr(self) -> int: ...
    @property
    def buffer(self) -> memoryview: ...
    def write(
        self,
        data: ArrayLike | Buffer,
        start: int = 0,
        /,
        *,
        via: str | None = None,
        stream: Any = None,
    ) -> None: ...
    @overload
    def read(
        self,
        out: None = None,
        /,
        *,
        start: int = 0,
        count: int | None = None,
        via: str | None = None,
        synchronize: bool = True,
        stream: Any = None,
    ) -> np.ndarray[Any, Any]: ...
    @overload
    def read(
        self,
        out: _Out,
        /,
        *,
        start: int = 0,
        count: int | None = None,
        via: str | None = None,
        synchronize: bool = True,
        stream: Any = None,
    ) -> _Out: ...
    @overload
    def gather(
        self,
        indices: ArrayLike,
        out: None = None,
        *,
        via: str | None = None,
        synchronize: bool = True,
        stream: Any = None,
    ) -> np.ndarray[Any, Any]: ...
    @overload
    def gather(
        self,
        indices: ArrayLike,
        out: _Out,
        *,
        via: str | None = None,
        synchronize: bool = True,
        stream: Any = None,
    ) -> _Out: ...
    def scatter(
        self, places: Any, items: Any = None, *, via: str | None = None, stream: Any = None
    ) -> None: ...
    def flush(self) -> None: ...
    def _attach(
        self,
        address: int,
        nbytes: int,
        owner: object,
        format: str | None,
        flags: int,
        device: int,
        paths: int,
        work: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any] | str,
        itemsize: int,
        /,
    ) -> None: ...
    def _detach(self) -> None: ...

def bind(address: int, /) -> None: ...
def await_with(function: Callable[[int], object], /) -> None: ...
