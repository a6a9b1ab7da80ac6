"""C code beside a port: compiled by the system's C compiler when it is first needed."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _cuda import address
from cffi import FFI

import gpudirect as gd


@functools.cache
def library(declarations: str, source: str) -> Any:
    """The functions of a C source. Raises gd.CompileError, with the compiler's words."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not shutil.which(compiler[0]):
        raise gd.CompileError(
            f"no C compiler ({compiler[0]}), which the sequential originals in C need: install gcc "
            "(Debian: apt install gcc), or set CC", "",
        )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "original.c"
        path.write_text(source)
        done = subprocess.run(
            [*compiler, "-O3", "-march=native", "-shared", "-fPIC", "-o", f"{folder}/original.so",
             str(path)], capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise gd.CompileError(f"the C code does not compile: {done.stderr[:500]}", done.stderr)
        ffi = FFI()
        ffi.cdef(declarations)
        return ffi.dlopen(f"{folder}/original.so")


_FFI = FFI()


def pointer(a: np.ndarray | int) -> Any:
    """A NumPy array, or an address, as C's pointer argument."""
    return _FFI.cast("void *", a if isinstance(a, int) else address(a))
