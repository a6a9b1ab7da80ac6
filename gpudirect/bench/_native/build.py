"""Builds gpudirect.bench._native._cffi, as gpudirect/_native/build.py does the runtime's extension."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cffi

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent

_spec = importlib.util.spec_from_file_location("native_build", ROOT / "gpudirect" / "_native" / "build.py")
assert _spec and _spec.loader
runtime = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(runtime)

HEADERS = (HERE / "timing.h", HERE / "bare.h")


def builder() -> cffi.FFI:
    """The extension, ready to compile."""
    ffi = cffi.FFI()
    for header in HEADERS:
        ffi.cdef(runtime.declarations(header))
    lane = ROOT / "gpudirect" / "_native" / "lane.h"
    ffi.set_source(
        "gpudirect.bench._native._cffi",
        "\n".join(f'#include "{h.relative_to(ROOT)}"' for h in (lane, *HEADERS)),
        sources=[str((HERE / name).relative_to(ROOT)) for name in ("bare.c", "timing.c")],
        include_dirs=[".", "p2pmod"],
        depends=sorted(str(f.relative_to(ROOT)) for f in (*HERE.glob("*.h"), lane)),
        extra_compile_args=[*runtime.C_OPTIONS, "-fvisibility=hidden"],
        libraries=["pthread"],
    )  # fmt: skip
    return ffi


ffibuilder = builder()

if __name__ == "__main__":
    ffibuilder.compile(tmpdir=str(ROOT), verbose=True)
