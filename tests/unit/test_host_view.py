"""NumPy on views of a mapping: views are views, what is written is written there, copies are ordinary."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import numpy.lib.recfunctions
import pytest

import gpudirect as gd
from gpudirect import _host as host


@pytest.fixture(autouse=True)
def emulated():
    gd.use(device="emulated", bridge="emulated")
    yield
    gd.use()


WANT = np.arange(24, dtype="f4").reshape(4, 6) % 7


@pytest.fixture
def h():
    a = gd.asarray(WANT)
    yield a.host


def ordinary(found):
    return type(found) is np.ndarray and not host.mapped(found)


VIEWS = {
    "reshape": lambda x: np.reshape(x, (6, 4)),
    "reshape, method": lambda x: x.reshape(2, -1),
    "reshape, tuple": lambda x: x.reshape((3, 8)),
    "reshape, fortran": lambda x: np.reshape(x.T, (8, 3), order="F"),
    "reshape a part": lambda x: x[1:3].reshape(3, 4),
    "ravel": np.ravel,
    "ravel, method": lambda x: x.ravel(),
    "ravel, transposed": lambda x: x.T.ravel("F"),
    "ravel, as it lies": lambda x: np.ravel(x.T, "K"),
    "transpose": np.transpose,
    "T": lambda x: x.T,
    "split": lambda x: np.split(x, 2)[1],
    "hsplit": lambda x: np.hsplit(x, 3)[0],
    "flip": np.flip,
    "squeeze": lambda x: np.squeeze(x[None]),
    "expand_dims": lambda x: np.expand_dims(x, 1),
    "swapaxes": lambda x: np.swapaxes(x, 0, 1),
    "moveaxis": lambda x: np.moveaxis(x, 0, 1),
    "rot90": np.rot90,
    "atleast_3d": np.atleast_3d,
    "slice": lambda x: x[1:, ::2],
    "row": lambda x: x[2],
    "einsum": lambda x: np.einsum("ij->ji", x),
    "nan_to_num": lambda x: np.nan_to_num(x, copy=False),
}


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)
def test_views_are_views(make):
    a, want = gd.asarray(WANT), WANT.copy()
    found, like = make(a.host), make(want)
    assert type(found) is gd.HostView and found.shape == like.shape and "mapped" in repr(found)
    assert np.array_equal(found.fetch(), like)
    found[...] = like[...] = 9
    assert np.array_equal(a.read(), want)


COPIES = {
    "list": lambda x: x[[0, 1]],
    "mask": lambda x: x[x > 3],
    "array": lambda x: x[np.array([[0, 1], [2, 3]])],
    "list and slice": lambda x: x[1:, [0, 2]],
    "flatten": lambda x: x.flatten(),
    "flatten, fortran": lambda x: x.flatten("F"),
    "reshape that copies": lambda x: x.T.reshape(-1),
    "ravel that copies": lambda x: np.ravel(x[:, ::2]),
    "copy": lambda x: x.copy(),
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "astype": lambda x: x.astype("f8"),
    "np.astype": lambda x: np.astype(x, "f8"),
    "nan_to_num": np.nan_to_num,
    "cumsum": lambda x: x.cumsum(1),
    "take": lambda x: x.take([1, 2], 0),
    "repeat": lambda x: x.repeat(2),
    "round": lambda x: x.round(),
    "clip": lambda x: x.clip(1, 2),
    "compress": lambda x: x.compress([True, False, True], 0),
    "argsort": lambda x: x.argsort(),
    "nonzero": lambda x: x.nonzero()[0],
    "dot": lambda x: x.dot(x.T),
    "byteswap": lambda x: x.byteswap(),
    "concatenate": lambda x: np.concatenate([x, x]),
    "where": lambda x: np.where(x > 2, x, 0),
    "max": lambda x: x.max(0),
    "empty_like": lambda x: np.zeros_like(x),
    "arithmetic": lambda x: x + x[0],
    "unique": lambda x: np.unique(x),
    "pad": lambda x: np.pad(x, 1),
    "sort": lambda x: np.sort(x),
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_copies_are_ordinary_memory(make, h):
    found, like = make(h), make(WANT)
    assert ordinary(found) and np.array_equal(found, like) and found.dtype == like.dtype
    assert "mapped" not in repr(found) and repr(found) == repr(like)


OUTS = {
    "add, positional": lambda x, out: np.add(x, 1, out),
    "add": lambda x, out: np.add(x, 1, out=out),
    "sum, positional": lambda x, out: np.sum(x, 0, None, out[0]),
    "sum, method": lambda x, out: x.sum(0, None, out[0]),
    "cumsum, positional": lambda x, out: np.cumsum(x, 0, None, out),
    "cumsum, method": lambda x, out: x.cumsum(0, None, out),
    "clip, positional": lambda x, out: np.clip(x, 1, 2, out),
    "dot": lambda x, out: np.dot(np.eye(4, dtype="f4"), x, out),
    "take": lambda x, out: np.take(x, [3, 2, 1, 0], 0, out),
    "concatenate": lambda x, out: np.concatenate([x[:2], x[2:]], 0, out),
    "einsum": lambda x, out: np.einsum("ij,ij->ij", x, x, out=out),
    "maximum.accumulate": lambda x, out: np.maximum.accumulate(x, 0, None, out),
    "add.reduce": lambda x, out: np.add.reduce(x, 0, None, out[0]),
    "round": lambda x, out: np.round(x, 0, out),
    "max": lambda x, out: np.max(x, 0, out[0]),
    "choose": lambda x, out: np.choose((x > 3).astype(int), [x, x + 1], out),
    "stack": lambda x, out: np.stack([x[0], x[1], x[2], x[3]], 0, out),
    "mean": lambda x, out: x.mean(0, None, out[0]),
}


@pytest.mark.parametrize("call", OUTS.values(), ids=OUTS)
@pytest.mark.parametrize("from_mapping", [True, False])
def test_out_is_found_wherever_it_is_given(call, from_mapping, h):
    a, want = gd.zeros((4, 6)), np.zeros((4, 6), "f4")
    out = a.host
    result = call(h if from_mapping else WANT, out)
    like = call(WANT, want)
    assert np.array_equal(a.read(), want) and np.array_equal(result, like)
    assert type(result) is gd.HostView


WRITES = {
    "copyto": lambda x: np.copyto(x, 3),
    "copyto, by name": lambda x: np.copyto(dst=x, src=WANT[::-1], where=WANT > 2),
    "put": lambda x: np.put(x, [1, 5], [7, 8]),
    "put, method": lambda x: x.put([1, 5], [7, 8]),
    "place": lambda x: np.place(x, WANT > 3, [1, 2]),
    "putmask": lambda x: np.putmask(x, WANT > 3, 9),
    "fill_diagonal": lambda x: np.fill_diagonal(x, 5),
    "put_along_axis": lambda x: np.put_along_axis(x, np.array([[0, 1]] * 4), 9, 1),
    "nan_to_num": lambda x: np.nan_to_num(x, False, nan=3),
    "sort": lambda x: x.sort(),
    "sort, axis": lambda x: x.sort(0),
    "partition": lambda x: x.partition(2),
    "byteswap": lambda x: x.byteswap(True),
    "fill": lambda x: x.fill(4),
    "mask": lambda x: x.__setitem__(x > 2, 0),
    "in place": lambda x: x.__imul__(2),
    "at": lambda x: np.add.at(x, [0, 0, 1], 1),
    "divmod": lambda x: np.divmod(WANT, 3, x, np.empty((4, 6), "f4")),
}


@pytest.mark.parametrize("call", WRITES.values(), ids=WRITES)
def test_what_is_written_is_written_there(call):
    a, want = gd.asarray(WANT), WANT.copy()
    call(a.host), call(want)
    assert np.array_equal(a.read(), want)


def test_two_outs_come_back_as_they_were_given():
    a, b = gd.zeros((4, 6)), np.zeros((4, 6), "f4")
    found = np.modf(WANT, a.host, b)
    assert found[0] is a.host and found[1] is b


def test_fields_are_views():
    a = gd.zeros(4, [("a", "i4"), ("b", "f4"), ("c", "u1")])
    a.host["b"] = 3
    a.host[["a", "c"]][1:] = (7, 8)
    assert a.read()["b"].tolist() == [3] * 4 and a.read()["a"].tolist() == [0, 7, 7, 7]
    assert type(a.host[["a", "c"]]) is gd.HostView


def test_it_is_the_same_view_for_everybody(h):
    for name, value in (("shape", (6, 4)), ("strides", (4, 4)), ("dtype", "i4")):
        with pytest.raises(gd.ArgumentError, match="view"):
            setattr(h, name, value)
    assert h.shape == (4, 6)


def test_iteration_and_membership(h):
    assert [r.tolist() for r in h] == WANT.tolist() and type(next(iter(h))) is gd.HostView
    assert list(h[1]) == list(WANT[1]) and 3.0 in h and 99.0 not in h


def test_mistakes_are_numpys(h):
    for wrong in (lambda x: np.reshape(x, (5, 5)), lambda x: x.reshape(7), lambda x: np.sum(x, 7),
                  lambda x: np.sum(x, colour=1), lambda x: x[[99]], lambda x: np.ravel(x, "Q"),
                  lambda x: np.split(x, 5)):  # fmt: skip
        with pytest.raises((ValueError, TypeError, IndexError)) as caught:
            wrong(WANT)
        with pytest.raises(type(caught.value)):
            wrong(h)


# -- NumPy's functions, all of them --------------------------------------------------------------

ARRAYS = (
    lambda: np.arange(1.0, 17).reshape(4, 4), lambda: np.arange(16),
    lambda: np.arange(1.0, 25).reshape(2, 3, 4),
    lambda: np.zeros(4, [("a", "f4"), ("b", "f4")]), lambda: np.arange(4.0).reshape(1, 4, 1),
    lambda: np.ones(4, bool),
)  # fmt: skip
MORE = ((), (0,), (1,), (2,), (0, 1), ((2, 2),), ([0],), ([0], [1.0]), ("f8",), ((4, 4),), ((1,),), (1, 0, 2),
        (np.array([[0]]), 1.0, 0), (np.ones(4, bool), 1.0))  # fmt: skip
# give back what they were given in odd cases only (no difference, bins, an exponent of 1)
HARMLESS = {"diff", "histogram", "histogram_bin_edges", "histogramdd", "matrix_power", "polyder", "polyint",
            "merge_arrays", "stack_arrays", "fix", "isneginf", "isposinf", "array_repr", "einsum",
            "reshape", "ravel"}  # fmt: skip


def found_in(result):
    if isinstance(result, (tuple, list)):
        for part in result:
            yield from found_in(part)
    elif isinstance(result, np.ndarray):
        yield result


def test_numpys_functions_are_known():
    """Whatever NumPy's function gives as a view, or writes into, is listed: another NumPy may have
    more of them."""
    kind = type(np.sum)
    modules = (np, np.linalg, np.fft, np.lib.stride_tricks, numpy.lib.recfunctions)
    functions = {f for m in modules for n in dir(m) if isinstance(f := getattr(m, n, None), kind)}
    assert len(functions) > 200
    views, writes = set(), set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for function in functions:
            for make in ARRAYS:
                for more in MORE:
                    for options in ({}, {"copy": False}):
                        array = make()
                        before = array.tobytes()
                        try:
                            result = function(array, *more, **options)
                        except Exception:
                            continue
                        if any(np.shares_memory(part, array) for part in found_in(result)):
                            views.add(function.__name__)
                        if array.tobytes() != before:
                            writes.add(function.__name__)
    assert views - host._VIEWS - set(host._WRITES) - HARMLESS == set()
    assert writes - set(host._WRITES) - {"nan_to_num"} - HARMLESS == set()
    assert {"transpose", "split", "squeeze"} <= views and {"put", "copyto"} <= writes
