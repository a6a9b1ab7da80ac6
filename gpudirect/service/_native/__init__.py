"""The quick part, in C: what happens in every call."""

from __future__ import annotations

from ... import _native
from ...errors import Error

try:
    from ._calls import ARGUMENTS_MAX, Call, Caller, Function, bind
except ImportError as e:
    raise ImportError(
        f"gpudirect's C extension is not built ({e}). In a checkout run `make`, or "
        "`pip install -e .` with a C compiler installed."
    ) from e

bind(int(_native.ffi.cast("uintptr_t", _native.lib.gd_lane_api())), Error)

__all__ = ["ARGUMENTS_MAX", "Call", "Caller", "Function"]
