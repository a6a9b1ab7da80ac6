"""What moves data between ordinary memory and device memory. It knows extents, and no arrays.

    paths      mapped stores and loads, or DMA: the choice
    couriers   errands of a courier that runs on the device
    copies     the copy itself, of an extent that is mapped whole
    parts      parts of an extent, mapped by themselves
    ondemand   windows mapped on demand, for an extent that is not
    ordered    copies in the order of a stream
    scatter    many small pieces at once
    gather     single elements, wherever they are
    writer     an extent as a file, written from start to end
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..extent import Extent
from . import copies, ondemand


def write(extent: Extent, source: np.ndarray[Any, Any], offset: int, via: str | None) -> None:
    """Copy ``source`` to byte ``offset`` of a contiguous extent. The range was checked."""
    (copies if extent.mapped else ondemand).write(extent, source, offset, via)


def read(extent: Extent, out: np.ndarray[Any, Any], offset: int, via: str | None) -> None:
    """Copy from byte ``offset`` of a contiguous extent to ``out``. The range was checked."""
    (copies if extent.mapped else ondemand).read(extent, out, offset, via)


def write_nd(extent: Extent, source: np.ndarray[Any, Any], via: str | None = None) -> None:
    """Copy ``source`` to a strided extent of the same shape."""
    (copies if extent.mapped else ondemand).write_nd(extent, source, via)


def read_nd(extent: Extent, out: np.ndarray[Any, Any], via: str | None = None) -> None:
    """Copy a strided extent to ``out`` of the same size."""
    (copies if extent.mapped else ondemand).read_nd(extent, out, via)
