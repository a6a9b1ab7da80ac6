"""``HostView``: the NumPy view of a mapping, which makes the slow-read trap hard to fall into.

A store to write-combined device memory is nearly free; a load costs about 1 us, however small, and
NumPy would make one for every few bytes. So wherever NumPy offers a hook, a HostView that is only
read is first fetched in bulk with streaming loads. Stores are NumPy's own, and so are views: what
NumPy makes a view of an array is one of the mapping here. What is a copy is ordinary memory, and an
ordinary array.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

from . import _native
from .dtypes import typestr
from .errors import ArgumentError, RevokedError

# NumPy functions by name. Those that may give a view of an argument:
_VIEWS = frozenset("""
    array_split astype atleast_1d atleast_2d atleast_3d broadcast_arrays broadcast_to diag diagonal
    dsplit expand_dims flip fliplr flipud hsplit ix_ matrix_transpose meshgrid moveaxis nan_to_num
    real imag real_if_close rollaxis rot90 sliding_window_view as_strided split squeeze
    structured_to_unstructured unstructured_to_structured swapaxes transpose trim_zeros unstack vsplit
    repack_fields permute_dims
""".split())
# Those that write into an argument, and how that is called:
_WRITES = {
    "copyto": "dst", "put": "a", "place": "arr", "putmask": "a", "fill_diagonal": "a",
    "put_along_axis": "arr", "assign_fields_by_name": "dst", "recursive_fill_fields": "output",
}  # fmt: skip
# Methods of ndarray that are functions of NumPy as well, with the array as their first argument:
_METHODS = """
    all any argmax argmin argpartition argsort choose clip cumprod cumsum dot max mean min nonzero
    prod repeat round searchsorted std sum take trace var
""".split()  # fmt: skip


IN_BULK = 1 << 20
"""Bytes: a view of so many is fetched whole where single elements of it are asked for."""


class Span:
    """Lets NumPy make a view of mapped memory whose base keeps the memory alive."""

    __slots__ = ("__array_interface__", "memory")

    def __init__(self, memory: object, address: int, shape: tuple[int, ...],
                 strides: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.memory = memory
        self.__array_interface__ = {
            "version": 3, "data": (address, False), "shape": shape, "strides": strides,
            "typestr": typestr(dtype),
        }  # fmt: skip

    def seen(self, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """The NumPy array."""
        view = np.asarray(self)
        return view if view.dtype == dtype else view.view(dtype)


def mapped(array: np.ndarray[Any, Any]) -> bool:
    """Whether an array is a view of mapped memory."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, Span)


class HostView(np.ndarray[Any, Any]):
    """A NumPy array over a mapping of device memory. Write to it; read with ``Array.read()``."""

    def fetch(self) -> np.ndarray[Any, Any]:
        """A copy in ordinary memory, made with streaming loads. Does not synchronise."""
        plain = self.view(np.ndarray)
        out = np.empty(self.shape, self.dtype)
        if self.nbytes == 0:
            return out
        lib, ffi = _native.lib, _native.ffi
        source = _native.address_of(plain)
        flags = lib.GD_GUARDED
        target = ffi.cast("char *", _native.address_of(out))
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
            raise RevokedError(f"the memory at {source:#x} was revoked while it was read")
        return out

    # -- NumPy's hooks ------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None,
                        **kwargs: Any) -> Any:
        if method == "at":  # works in place on its first argument
            return getattr(ufunc, method)(_plain(inputs[0]), *map(_fetched, inputs[1:]), **kwargs)
        if out is not None:
            kwargs["out"] = tuple(map(_plain, out))
        if "where" in kwargs:
            kwargs["where"] = _fetched(kwargs["where"])
        result = getattr(ufunc, method)(*map(_fetched, inputs), **kwargs)
        return result if out is None else _restored(result, kwargs["out"], out)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        name = func.__name__
        if name in ("reshape", "ravel"):
            return _reshaped(func, args, kwargs)
        try:
            bound = _signature(func).bind(*args, **kwargs)
        except TypeError:  # NumPy says what is wrong
            return func(*_deep(_fetched, args), **_deep(_fetched, kwargs))
        given = bound.arguments
        if (name in _VIEWS and not _copies(func, given)) or (name == "einsum" and len(args) < 3):
            return _shown(func(*_deep(_plain, args), **_deep(_plain, kwargs)))
        written = [w for w in ("out", _WRITES.get(name)) if w in given]
        before = {w: given[w] for w in written}
        for parameter, value in given.items():
            given[parameter] = _deep(_plain if parameter in written else _fetched, value)
        result = func(*bound.args, **bound.kwargs)
        out = before.get("out")
        if out is None:
            return result
        many = isinstance(out, tuple)
        return _restored(result, given["out"] if many else (given["out"],), out if many else (out,))

    # -- what NumPy would do load by load -------------------------------------------------------

    def __getitem__(self, index: Any) -> Any:
        if _picks(index):  # a copy in any case: of few elements load by load
            source = self.fetch() if self.nbytes <= IN_BULK else _plain(self)
            return source[_deep(_fetched, index)]
        found = super().__getitem__(index)
        return found.view(np.ndarray) if type(found) is HostView and not mapped(found) else found

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fetch()) if self.ndim == 1 else super().__iter__()

    def __contains__(self, value: Any) -> bool:
        return value in self.fetch()

    def __copy__(self) -> Any:
        return self.fetch()

    def __deepcopy__(self, memo: Any) -> Any:
        return self.fetch()

    def copy(self, order: Any = "C") -> Any:
        return self.fetch().copy(order) if order not in ("C", "K", "A") else self.fetch()

    def flatten(self, order: Any = "C") -> Any:
        return self.fetch().flatten(order)

    def ravel(self, order: Any = "C") -> Any:
        return np.ravel(self, order)

    def reshape(self, *shape: Any, **options: Any) -> Any:
        if not options and self.flags.c_contiguous:  # a view in any case
            return super().reshape(*shape)
        return np.reshape(self, shape[0] if len(shape) == 1 else shape, **options)

    def astype(self, dtype: Any, *args: Any, **kwargs: Any) -> Any:
        return self.fetch().astype(dtype, *args, **kwargs)

    def compress(self, condition: Any, *args: Any, **kwargs: Any) -> Any:
        return np.compress(condition, self, *args, **kwargs)

    def byteswap(self, inplace: bool = False) -> Any:
        found = self.fetch().byteswap()
        if not inplace:
            return found
        self[...] = found
        return self

    def sort(self, *args: Any, **kwargs: Any) -> None:
        found = self.fetch()
        found.sort(*args, **kwargs)
        self[...] = found

    def partition(self, *args: Any, **kwargs: Any) -> None:
        found = self.fetch()
        found.partition(*args, **kwargs)
        self[...] = found

    def tobytes(self, order: Any = "C") -> bytes:
        return self.fetch().tobytes(order)

    def tofile(self, *args: Any, **kwargs: Any) -> None:
        self.fetch().tofile(*args, **kwargs)

    def tolist(self) -> Any:
        return self.fetch().tolist()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("shape", "strides", "dtype"):  # ``a.host`` is the same view each time
            raise ArgumentError(f"the {name} of a view of a mapping stays: make another with reshape() "
                                "or view()")  # fmt: skip
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        if not mapped(self):
            return repr(self.view(np.ndarray))
        shape = "x".join(map(str, self.shape)) or "scalar"
        return f"<HostView {shape} {self.dtype}: mapped device memory; read it with Array.read()>"

    def __str__(self) -> str:
        return repr(self) if mapped(self) else str(self.view(np.ndarray))

    def __reduce__(self) -> Any:
        return self.fetch().__reduce__()


def _as_function(name: str) -> Callable[..., Any]:
    function = getattr(np, name)

    def method(self: HostView, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    method.__name__ = name
    return method


for _name in _METHODS:
    setattr(HostView, _name, _as_function(_name))


def _copies(function: Any, given: dict[str, Any]) -> bool:
    """Whether a function that could give a view is asked for a copy."""
    parameter = _signature(function).parameters.get("copy")
    return parameter is not None and bool(given.get("copy", parameter.default))


@cache
def _signature(function: Any) -> inspect.Signature:
    return inspect.signature(function)


def _picks(index: Any) -> bool:
    """Whether an index picks single elements, so that NumPy copies them: lists, arrays, masks."""
    return any(
        (isinstance(part, (list, bool, np.bool_))
        and not (isinstance(part, list) and part and isinstance(part[0], str)))  # fields: a view
        or (isinstance(part, np.ndarray) and (part.ndim > 0 or part.dtype.kind == "b"))
        for part in (index if type(index) is tuple else (index,))
    )


def _reshaped(function: Any, args: Any, kwargs: Any) -> Any:
    """reshape and ravel: a view where that takes no copy, else one of the array fetched."""
    bound = _signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    array, order, plain = given["a"], given["order"], _plain(given["a"])
    shape = given.get("shape", given.get("newshape", -1))
    if order == "K":
        order = "F" if plain.flags.f_contiguous and not plain.flags.c_contiguous else "C"
    packed = plain.flags.f_contiguous if order == "F" else plain.flags.c_contiguous
    # what ravel gives is contiguous, always
    if not given.get("copy") and (packed or function.__name__ == "reshape"):
        try:
            return _shown(plain.reshape(shape, order=order, copy=False))
        except TypeError:  # NumPy 2.0 has no copy=
            if packed:
                return _shown(plain.reshape(shape, order=order))
        except ValueError:  # it takes a copy, or makes no sense: which NumPy says below
            pass
    given["a"] = _fetched(array)
    return function(*bound.args, **bound.kwargs)


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, HostView) else value


def _fetched(value: Any) -> Any:
    return value.fetch() if isinstance(value, HostView) else value


def _shown(value: Any) -> Any:
    """Views of mappings as HostViews again."""
    if type(value) is np.ndarray:
        return value.view(HostView) if mapped(value) else value
    if type(value) in (tuple, list):
        return type(value)(map(_shown, value))
    return value


def _deep(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _deep(change, v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return (tuple if isinstance(value, tuple) else list)(_deep(change, v) for v in value)
    return change(value)


def _restored(result: Any, plain: tuple[Any, ...], given: tuple[Any, ...]) -> Any:
    """Where a function gives back what it was to write into, what it was given."""
    if type(result) is tuple:
        return tuple(_restored(r, plain, given) for r in result)
    return next((g for p, g in zip(plain, given, strict=True) if p is result), result)
