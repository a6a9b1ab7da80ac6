"""The C layer: copies, fences, waits and mappings. It knows addresses and sizes, nothing else."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

try:
    from ._cffi import ffi, lib
    from ._dlpack import borrow, lend
    from ._lease import Lease, Yard
    from ._mapped import Mapped, await_with, bind
except ImportError as e:
    raise ImportError(
        f"gpudirect's C extension is not built ({e}). In a checkout run `make`, or "
        "`pip install -e .` with a C compiler installed."
    ) from e

bind(int(ffi.cast("uintptr_t", lib.gd_api())))


library = str(importlib.import_module("._cffi", __name__).__file__)
"""The shared library of the C parts, for other libraries that look for functions in it."""


def bytes_at(address: int, nbytes: int) -> np.ndarray[Any, Any]:
    """Memory at an address as an array of ``uint8``. The caller keeps the memory alive."""
    import numpy as np

    return np.frombuffer(ffi.buffer(ffi.cast("char *", address), nbytes), np.uint8)


def address_of(array: np.ndarray[Any, Any]) -> int:
    """Address of an array's first element."""
    try:  # the array interface builds a dictionary: 2 us, where this takes 0.3
        return int(_cast("uintptr_t", _from_buffer(array)))
    except (ValueError, BufferError, TypeError):  # strided, or elements that no buffer can name
        return int(array.__array_interface__["data"][0])


_cast, _from_buffer = ffi.cast, ffi.from_buffer

__all__ = ["Lease", "Mapped", "Yard", "await_with", "borrow", "address_of", "bytes_at", "ffi", "lend", "lib", "library"]
