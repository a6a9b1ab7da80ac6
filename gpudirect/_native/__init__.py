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


__all__ = ["Lease", "Mapped", "Yard", "await_with", "borrow", "bytes_at", "ffi", "lend", "lib", "library"]
