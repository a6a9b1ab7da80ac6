"""What ``Array.share`` does."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from .._heap import Piece
from ..dtypes import letter
from ..errors import ArgumentError
from ..sharing import Token
from ..sharing._owner import Share, placed, read_only, server

if TYPE_CHECKING:
    from ._array import Array

_shares: weakref.WeakKeyDictionary[Any, list[Share]] = weakref.WeakKeyDictionary()


def share(array: Array, mode: str, uses: int | None) -> Token:
    """``Array.share``."""
    piece = array._open()
    if not isinstance(mode, str) or mode not in ("r", "rw"):
        raise ArgumentError(f"mode is {mode!r}: give 'r' or 'rw'")
    if uses is not None and (type(uses) is not int or uses < 1):
        raise ArgumentError(f"uses is {uses!r}: give how many processes may attach with the token, 1 or more, "
                            "or None for any number")  # fmt: skip
    if not isinstance(piece, Piece) or not piece.block.shareable:
        raise ArgumentError("only memory of its own can be shared, and the pool packs others beside this "
                            "array: make it with shareable=True")  # fmt: skip
    if not array.contiguous:
        raise ArgumentError("a non-contiguous array cannot be shared; share the whole and slice it there")
    memory = piece.block.memory
    descriptor = memory.export_fd()
    if array.device.emulated and mode == "r":
        descriptor = read_only(descriptor)
    one = Share((descriptor,), uses, {
        **placed(memory, array.ptr - memory.ptr, array.nbytes), "emulated": array.device.emulated,
        "mode": mode, "pid": os.getpid(), "shape": array.shape,
        "dtype": array.dtype.str, "descr": np.lib.format.dtype_to_descr(array.dtype),
        "itemsize": array.itemsize, "format": letter(array.dtype), "ptr": array.ptr,
    })  # fmt: skip
    try:
        token, end = server().offer(one)
    except BaseException:
        os.close(descriptor)
        raise
    _shares.setdefault(piece, []).append(one)
    weakref.finalize(piece, end).atexit = False
    return token


def peers(array: Array) -> tuple[int, ...]:
    """``Array.peers``."""
    shares = tuple(_shares.get(array._open(), ()))
    return tuple(pid for one in shares for pid in tuple(one.peers.values()))
