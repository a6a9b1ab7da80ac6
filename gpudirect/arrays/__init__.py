"""Arrays of device memory in NumPy's manner, which the CPU writes directly.

    a = empty((4096, 1024), "f4")   device memory, already mapped
    a.host[17, :] = row             plain CPU stores, straight to the GPU
    a.write(b"...", start=3)        the same through the copy engine, fenced
    out = a.read()                  by mapped loads or DMA, whichever is faster for the size
"""

from __future__ import annotations

from ._array import Array
from ._factories import (
    asarray,
    empty,
    empty_like,
    full,
    full_like,
    ones,
    ones_like,
    zeros,
    zeros_like,
)
from ._foreign import host, register, stream_of
from ._window import Window

__all__ = [
    "Array",
    "Window",
    "asarray",
    "empty",
    "empty_like",
    "full",
    "full_like",
    "host",
    "ones",
    "ones_like",
    "register",
    "stream_of",
    "zeros",
    "zeros_like",
]
