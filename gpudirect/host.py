"""``HostView``: the NumPy view of a mapping, which makes the slow-read trap hard to fall into.

A store to write-combined device memory is nearly free; a load costs about 1 us, however small, and
NumPy would make one for every few bytes. So wherever NumPy offers a hook, a HostView that is read
is first fetched in bulk with streaming loads. Stores are NumPy's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _native

# NumPy functions whose first argument is written
_WRITE_FIRST = {np.copyto, np.put, np.place, np.putmask, np.fill_diagonal, np.put_along_axis}


class HostView(np.ndarray[Any, Any]):
    """A NumPy array over a mapping of device memory. Write to it; read with ``Array.read()``."""

    def fetch(self) -> np.ndarray[Any, Any]:
        """A copy in ordinary memory, made with streaming loads. Does not synchronise."""
        plain = self.view(np.ndarray)
        out = np.empty(self.shape, self.dtype)
        if self.nbytes == 0:
            return out
        lib, ffi = _native.lib, _native.ffi
        source = plain.__array_interface__["data"][0]
        flags = lib.GD_GUARDED
        target = ffi.cast("char *", out.__array_interface__["data"][0])
        if plain.flags.c_contiguous:
            code = lib.gd_read(target, source, plain.nbytes, flags)
        elif plain.ndim <= lib.GD_MAX_DIMS:
            code = lib.gd_read_nd(
                target, ffi.new("int64_t[]", out.strides), source,
                ffi.new("int64_t[]", plain.strides), ffi.new("int64_t[]", plain.shape),
                plain.ndim, plain.itemsize, flags,
            )  # fmt: skip
        else:
            out[...] = plain
            code = 0
        if code:
            from .errors import RevokedError

            raise RevokedError(f"the memory at {source:#x} was revoked while it was read")
        return out

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None,
                        **kwargs: Any) -> Any:
        if method == "at":  # works in place on its first argument
            first = inputs[0]
            plain = first.view(np.ndarray) if isinstance(first, HostView) else first
            return getattr(ufunc, method)(plain, *map(_fetched, inputs[1:]), **kwargs)
        if out is not None:
            kwargs["out"] = tuple(
                o.view(np.ndarray) if isinstance(o, HostView) else o for o in out
            )
        if "where" in kwargs:
            kwargs["where"] = _fetched(kwargs["where"])
        result = getattr(ufunc, method)(*map(_fetched, inputs), **kwargs)
        if out is not None and len(out) == 1:
            return out[0]
        return result

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func in _WRITE_FIRST:
            args = (_plain(args[0]), *_deep(args[1:]))
        else:
            args = _deep(args)
        out = kwargs.get("out")
        kwargs = {k: v if k == "out" else _deep(v) for k, v in kwargs.items()}
        if isinstance(out, HostView):
            kwargs["out"] = out.view(np.ndarray)
        return func(*args, **kwargs)

    def copy(self, order: Any = "C") -> Any:
        return self.fetch()

    def astype(self, dtype: Any, *args: Any, **kwargs: Any) -> Any:
        return self.fetch().astype(dtype, *args, **kwargs)

    def tobytes(self, order: Any = "C") -> bytes:
        return self.fetch().tobytes(order)

    def tolist(self) -> Any:
        return self.fetch().tolist()

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape)) or "scalar"
        return f"<HostView {shape} {self.dtype}: mapped device memory; read it with Array.read()>"

    __str__ = __repr__

    def __reduce__(self) -> Any:
        return self.fetch().__reduce__()


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, HostView) else value


def _fetched(value: Any) -> Any:
    return value.fetch() if isinstance(value, HostView) else value


def _deep(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(map(_deep, value))
    return _fetched(value)
