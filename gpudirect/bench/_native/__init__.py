"""The benchmarks' C part: bare loops and the stopwatch. Loaded by benchmarks only."""

from __future__ import annotations

from typing import Any

from ... import _native

try:
    from ._cffi import ffi, lib
except ImportError as e:
    raise ImportError(
        f"the C extension of gpudirect's benchmarks is not built ({e}). In a checkout run `make`, or "
        "`pip install -e .` with a C compiler installed."
    ) from e

_runtime = ffi.new("struct gd_bench_runtime *")
for _name, _field in ffi.typeof("struct gd_bench_runtime").fields:
    _function = _native.ffi.cast("uintptr_t", _native.ffi.addressof(_native.lib, f"gd_{_name}"))
    setattr(_runtime, _name, ffi.cast(_field.type, int(_function)))
lib.gd_bench_bind(_runtime)


def lane(of_runtime: Any) -> Any:
    """A ``struct gd_lane *`` of the runtime's extension, as this one takes it."""
    return ffi.cast("struct gd_lane *", int(_native.ffi.cast("uintptr_t", of_runtime)))


__all__ = ["ffi", "lane", "lib"]
