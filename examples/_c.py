"""C code beside a port: compiled by the system's C compiler when it is first needed, and given the
driver's own calls."""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
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
    return _FFI.cast("void *", a if isinstance(a, int) else a.__array_interface__["data"][0])


def driver_calls(kernel: gd.Kernel, types: str, streams: Sequence[gd.Stream] = ()) -> tuple[Any, Any]:
    """(struct calls, kernel) for C code that calls the driver itself: cuMemcpyHtoDAsync,
    cuMemcpyDtoHAsync, cuStreamSynchronize and cuLaunchKernel, as ``types`` declares them.

    The struct must be kept. On the emulated device the four lead back to its streams.
    """
    ffi = FFI()
    ffi.cdef(types)
    fields = dict(ffi.typeof("struct calls").fields)
    handle = 0 if gd.device().emulated else kernel.handle
    if handle:
        from cuda.core import Device

        Device(gd.device().ordinal).set_current()  # the calls are made by this thread
        driver = ctypes.CDLL("libcuda.so.1")
        names = "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuStreamSynchronize", "cuLaunchKernel"
        found = (ctypes.cast(driver[name], ctypes.c_void_p).value for name in names)
        table = {f: ffi.cast(fields[f].type, at) for f, at in zip(fields, found, strict=True)}
    else:
        table = {f: ffi.callback(fields[f].type, call, error=-1)
                 for f, call in zip(fields, _emulated(kernel, streams, ffi), strict=True)}  # fmt: skip
    calls = ffi.new("struct calls *", table)
    _KEPT[calls] = table
    return calls, ffi.cast("void *", handle)


_KEPT: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def _emulated(kernel: gd.Kernel, streams: Sequence[gd.Stream], ffi: FFI) -> list[Any]:
    """The four calls as functions of Python."""
    device = gd.device()
    by_handle = {s.handle: s for s in (device.default_stream, *streams)}

    def number(p: Any) -> int:
        return int(ffi.cast("uintptr_t", p))

    def copy_in(to: int, source: Any, nbytes: int, stream: Any) -> int:
        device.copy_in(to, number(source), nbytes, by_handle[number(stream)])
        return 0

    def copy_out(to: Any, source: int, nbytes: int, stream: Any) -> int:
        device.copy_out(number(to), source, nbytes, by_handle[number(stream)])
        return 0

    def wait(stream: Any) -> int:
        by_handle[number(stream)].synchronize()
        return 0

    def launch(_: Any, *more: Any) -> int:
        grid, block, stream, arguments = more[:3], more[3:6], more[7], more[8]
        kinds = ("uint64_t *" if p.size == 8 else "int32_t *" for p in kernel.parameters)
        values = [ffi.cast(kind, arguments[i])[0] for i, kind in enumerate(kinds)]
        kernel[grid, block, by_handle[number(stream)]](*values)
        return 0

    return [copy_in, copy_out, wait, launch]
