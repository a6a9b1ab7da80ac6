"""Where an Array looks like an array it means what NumPy means, or it raises and says what to write."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest

import gpudirect as gd

MIB = 1 << 20


@pytest.fixture(autouse=True)
def emulated():
    gd.use(device="emulated", bridge="emulated")
    yield
    gd.use()


DTYPES = ["u1", "i2", ">i2", "f4", ">f4", "f8", ">f8", "c8", ">c16", "?", "S5", "U3", ">U3", "V7",
          "M8[s]", ">m8[ms]", [("a", "i1"), ("b", ">f4")], [("x", "f4", (2, 3))]]  # fmt: skip
LAYOUTS = {
    "whole": lambda a: a,
    "every other": lambda a: a[:, ::2],
    "backwards": lambda a: a[::-1],
    "a column": lambda a: a[:, 1],
    "nothing": lambda a: a[:0],
    "one": lambda a: a[1, 2, ...],
}


def sample(dtype, shape=(3, 4)):
    kind = np.dtype(dtype)
    raw = np.random.default_rng(3).integers(0, 2, (*shape, kind.itemsize), np.uint8)
    if kind.kind == "U":  # not every bit pattern is a character
        return np.arange(np.prod(shape)).reshape(shape).astype(kind)
    return raw.view(kind)[..., 0]


# -- what NumPy sees -------------------------------------------------------------------------


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numpy_sees_what_read_gives(dtype, layout, mapped):
    want = sample(dtype)
    with gd.empty(want.shape, dtype, mapped=mapped) as whole:
        whole.write(want)
        a, want = layout(whole), layout(want)
        seen = np.asarray(a)
        assert seen.dtype == want.dtype and seen.shape == want.shape
        assert seen.tobytes() == a.read().tobytes() == want.tobytes()
        assert not seen.flags.writeable
        again = np.array(a)
        assert again.flags.writeable and again.tobytes() == want.tobytes()
        with pytest.raises(ValueError, match=r"\.host"):
            np.asarray(a, copy=False)


def test_numpy_functions_agree_with_read():
    want = np.random.default_rng(1).random((5, 6)).astype("f4")
    a = gd.asarray(want)
    for function in (np.sum, np.max, np.argsort, np.cumsum, np.linalg.norm, np.ravel, np.unique):
        assert np.array_equal(function(a), function(want)), function
    assert np.array_equal(np.concatenate([a, want]), np.concatenate([want, want]))
    assert np.array_equal(np.asarray(a, "f8"), want.astype("f8"))
    assert np.array_equal(np.add(a, 1), want + 1)
    c = np.zeros_like(want)
    c[...] = a
    assert np.array_equal(c, want)
    file = io.BytesIO()
    np.save(file, a)
    assert np.array_equal(np.load(io.BytesIO(file.getvalue())), want)
    b = gd.asarray(a, "f8")
    assert b.dtype == np.float64 and np.array_equal(b.read(), want)
    b[...] = a
    assert np.array_equal(b.read(), want)


def test_bytes_are_the_buffer():
    a = gd.zeros(3, "f4")
    with pytest.raises(TypeError):
        memoryview(a)
    a.buffer[4:8] = np.float32(2.5).tobytes()
    assert a.read().tolist() == [0, 2.5, 0] and a.buffer.format == "B"


# -- what a dtype may become -----------------------------------------------------------------


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("there,here", [(">f4", "<f4"), ("<f4", ">f4"), (">i8", "<i8"), (">c8", "<c8"),
                                        (">U3", "<U3"), (">M8[s]", "<M8[s]"),
                                        ([("a", ">i4"), ("b", "u1")], [("a", "<i4"), ("b", "u1")])],
                         ids=str)  # fmt: skip
def test_the_values_are_kept_whatever_the_byte_order(there, here, mapped):
    want = sample(here, (4, 6))
    with gd.zeros((4, 6), there, mapped=mapped) as a:
        a.write(want)
        assert np.array_equal(a.read(), want) and a.read().dtype == np.dtype(there)
        out = np.zeros((4, 6), here)
        assert a.read(out) is out and np.array_equal(out, want)
        assert np.array_equal(a.read(start=7, count=5), want.reshape(-1)[7:12])
        part = np.zeros(5, here)
        assert np.array_equal(a.read(part, start=7, count=5), want.reshape(-1)[7:12])
        a[:, ::2].write(want[:, 1::2])
        assert np.array_equal(a[:, ::2].read(), want[:, 1::2])
        a.scatter([3], want[1, :1])
        assert a[0, 3].read() == want[1, 0]
        a.scatter([(5, want[2, :2])])
        assert np.array_equal(a.read(start=5, count=2), want[2, :2])
        if np.dtype(here).kind in "fic":
            a.fill(3)
            assert (a.read() == 3).all()
            a.write([1, 2], 4)
            assert a.read(start=4, count=2).tolist() == [1, 2]


@pytest.mark.parametrize("dtype", ["f4", ">f4", "i4", "u1", "?"])
def test_other_dtypes_are_refused_both_ways(dtype):
    with gd.zeros((2, 4), dtype) as a:
        for other in ("i4", "f4", "f8", "i2", "u1", "i1", "?", "S1", "M8[s]", "V4", "O"):
            if np.dtype(other).newbyteorder("=") == np.dtype(dtype).newbyteorder("="):
                continue
            for call in (lambda o: a.write(np.zeros((2, 4), o)),
                         lambda o: a.scatter([0], np.zeros(1, o)),
                         lambda o: a.scatter([(0, np.zeros(1, o))]),
                         lambda o: a.read(np.zeros((2, 4), o)),
                         lambda o: a[:, ::2].write(np.zeros((2, 2), o)),
                         lambda o: a[:, ::2].read(np.zeros((2, 2), o))):  # fmt: skip
                with pytest.raises(gd.DTypeError, match="astype|object"):
                    call(other)
        assert not a.read().any()


def test_bytes_without_a_dtype_are_elements():
    with gd.zeros(4, ">i4") as a:
        a.write(np.array([1, 2], ">i4").tobytes(), 2)
        a.scatter([(0, bytearray(b"\0\0\0\7"))])
        assert a.read().tolist() == [7, 0, 1, 2]
        into = bytearray(16)
        assert a.read(into) is into and into[:4] == b"\0\0\0\7"
        with pytest.raises(gd.ArgumentError, match="whole number"):
            a.write(b"123")
        a.view("u1").write(b"\3", 7)
        assert a.read().tolist() == [7, 3, 1, 2]


def test_kernels_refuse_the_other_byte_order():
    f = gd.kernel("__global__ void f(float *p, void *q) { p[0] = 1; }", "f")
    with gd.zeros(4, ">f4") as a, gd.zeros(4) as b:
        f[1, 1](b, a)
        with pytest.raises(gd.DTypeError, match="byte order"):
            f[1, 1](a, b)


def test_positions_count_elements():
    with gd.zeros((3, 4), "i4") as a:
        a.write(np.int32([1, 2, 3]), 5)
        a.write([9], start=11)
        assert a.read().reshape(-1).tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 0, 0, 0, 9]
        assert a.read(start=5, count=3).tolist() == [1, 2, 3] and a.read(start=11).tolist() == [9]
        assert a.read(count=6).tolist() == [0, 0, 0, 0, 0, 1]
        for call in (lambda: a.write([1], offset=4), lambda: a.read(offset=4),
                     lambda: a.read(nbytes=4), lambda: a.read(start=0, nbytes=4)):  # fmt: skip
            with pytest.raises(gd.ArgumentError, match="elements"):
                call()
        with pytest.raises(gd.ArgumentError, match="keyword"):
            a.read(colour=1)
        for start in (-1, 10, 1 << 62, 1 << 63, 1 << 70):
            with pytest.raises(gd.RangeError, match="of 12"):
                a.write(np.int32([1, 2, 3]), start)


# -- what it is cannot be changed -------------------------------------------------------------


@pytest.mark.parametrize("name", ["shape", "dtype", "ptr", "strides", "nbytes", "host_ptr", "device",
                                  "size", "ndim", "itemsize", "bridge", "unified"])  # fmt: skip
def test_what_it_is_cannot_be_changed(name):
    a = gd.zeros((2, 2))
    before = getattr(a, name)
    with pytest.raises(AttributeError):
        setattr(a, name, 7)
    with pytest.raises((AttributeError, TypeError)):
        delattr(a, name)
    assert getattr(a, name) == before


# -- operators --------------------------------------------------------------------------------


def test_comparisons_are_numpys():
    want = np.arange(6, dtype="f4").reshape(2, 3)
    a, b = gd.asarray(want), gd.asarray(want[::-1].copy())
    assert np.array_equal(a == want, want == want) and (a == want).dtype == bool
    assert np.array_equal(a == b, want == want[::-1]) and np.array_equal(want == a, want == want)
    assert np.array_equal(a != 3, want != 3) and np.array_equal(a < 3, want < 3)
    assert np.array_equal(3 >= a, 3 >= want) and np.array_equal(a > b, want > want[::-1])
    assert 2.0 in a and 7.0 not in a
    assert len({a, b, a}) == 2 and {a: 1}[a] == 1


def test_iteration_gives_rows_and_elements():
    want = np.arange(6, dtype="f4").reshape(2, 3)
    a = gd.asarray(want)
    rows = list(a)
    assert [r.read().tolist() for r in rows] == want.tolist()
    rows[1].write([7, 8, 9])
    assert list(a[1]) == [7, 8, 9] and isinstance(next(iter(a[1])), np.float32)
    with pytest.raises(TypeError, match="item"):
        iter(a[0, 0])
    assert a.tolist() == [[0, 1, 2], [7, 8, 9]]


def test_conversions_are_numpys():
    a = gd.asarray(np.int32([[5]]))
    assert bool(a) and not bool(gd.zeros(1)) and bool(gd.ones(()))
    assert int(a[0, 0]) == 5 and float(a[0, 0]) == 5.0 and complex(a[0, 0]) == 5
    assert [10, 20, 30][gd.asarray(np.int32(1))] == 20
    with pytest.raises(TypeError):
        [1][gd.ones(())]
    for wrong in (gd.zeros(2), gd.zeros(0)):
        with pytest.raises(ValueError, match=r"any\(\)"):
            bool(wrong)
    b = gd.asarray(np.arange(6, dtype="i2").reshape(2, 3))
    assert b.item(4) == b.item(1, 1) == b.item((1, 1)) == b.item(-2) == 4 and type(b.item(0)) is int
    assert a.item() == 5
    for wrong in ((), (6,), (-7,), (2, 0), (0, 0, 0)):
        with pytest.raises(gd.ArgumentError):
            b.item(*wrong)


def test_arithmetic_says_read():
    a = gd.ones(3)
    for compute in (lambda: a + 1, lambda: 1 + a, lambda: a * a, lambda: np.ones(3) * a, lambda: -a,
                    lambda: a @ a, lambda: a // 2, lambda: 2**a, lambda: abs(a)):  # fmt: skip
        with pytest.raises(TypeError, match=r"read\(\)"):
            compute()
    before = a
    with pytest.raises(TypeError, match=r"read\(\)"):
        a += 1
    assert a is before
    x = np.ones(3)
    with pytest.raises(TypeError, match=r"read\(\)"):
        x += a
    assert np.add(x, a, out=x).tolist() == [2, 2, 2]


def test_it_is_not_pickled():
    a = gd.ones(3)
    with pytest.raises(TypeError, match=r"read\(\)"):
        pickle.dumps(a)
    for twin in (copy.copy(a), copy.deepcopy(a)):
        twin.fill(2)
        assert twin.ptr != a.ptr and a.read().tolist() == [1, 1, 1]


# -- what NumPy refuses is an error of the family ----------------------------------------------

UNION = np.dtype({"names": ["i", "f"], "formats": ["i4", "f4"], "offsets": [0, 0]})
PADDED = np.dtype({"names": ["b", "a"], "formats": ["u1", "f8"], "offsets": [9, 0], "itemsize": 24})
TITLED = np.dtype([(("a title", "a"), "i4"), (("another", "b"), "f4")])


@pytest.mark.parametrize("dtype", [UNION, PADDED, TITLED], ids=["union", "padded", "titled"])
@pytest.mark.parametrize("mapped", [True, False])
def test_fields_anywhere(dtype, mapped):
    with gd.zeros((4, 3), dtype, mapped=mapped) as a:
        names = dtype.names
        want = np.zeros((4, 3), dtype)
        want[names[-1]] = np.arange(12).reshape(4, 3)
        a.write(want)
        assert a.read().dtype == dtype and a.read().tobytes() == want.tobytes()
        assert np.array_equal(a[names[-1]].read(), want[names[-1]])
        assert np.array_equal(a[1:, ::2][names[0]].read(), want[1:, ::2][names[0]])
        if mapped:
            a.host[names[0]][2] = 7
            assert (a.host[names[0]][2] == 7).all()


@pytest.mark.parametrize("wrong", [
    lambda a: a[::0], lambda a: a["b":], lambda a: a[(None,) * 65], lambda a: gd.empty((1,) * 65),
    lambda a: a.reshape((1,) * 65), lambda a: a.fill("abc"), lambda a: a.fill([1, 2]),
    lambda a: a.fill(1j), lambda a: gd.full(3, "abc"), lambda a: gd.full(3, 300, "u1"),
    lambda a: gd.asarray([[1], [2, 3]]), lambda a: gd.asarray("x", "f4"), lambda a: gd.asarray(object()),
    lambda a: gd.asarray(a, device="nonsense"), lambda a: gd.asarray(a, bridge="nonsense"),
    lambda a: gd.asarray(a, "nonsense"), lambda a: gd.empty(3, "nonsense"), lambda a: gd.empty(3, "O"),
    lambda a: gd.empty(3, [("a", "O")]), lambda a: a.view("O"), lambda a: a.view("nonsense"),
    lambda a: gd.empty("3"), lambda a: gd.empty(3.0), lambda a: gd.empty(None), lambda a: a.reshape("x"),
    lambda a: a[{}], lambda a: a.scatter([[1], [2, 3]], 5), lambda a: a.window("x"),
    lambda a: a.read(start="x"), lambda a: a.read(count="x"), lambda a: a.write(1, "x"),
    lambda a: a.write("abc"), lambda a: a.read(3),
])  # fmt: skip
def test_it_is_an_error_of_the_family(wrong):
    with gd.zeros(4) as a:
        with pytest.raises(gd.Error):
            wrong(a)
        assert a.read().tolist() == [0, 0, 0, 0]


class Foreign:
    """Somebody's CUDA array interface."""

    def __init__(self, **given):
        self.__cuda_array_interface__ = {
            "version": 3, "data": (0x7000_0000_0000, False), "shape": (4,), "typestr": "<f4", **given
        }


@pytest.mark.parametrize("given", [
    {"typestr": "|O"}, {"typestr": "O8"}, {"typestr": "nonsense"}, {"typestr": None},
    {"typestr": "|V8", "descr": [("a", "|O"), ("b", "f4")]}, {"shape": None}, {"shape": (-1,)},
    {"shape": ("x",)}, {"shape": (1,) * 65}, {"data": None}, {"data": ("x", False)}, {"strides": (1, 2)},
    {"strides": "x"}, {"typestr": "|V8", "descr": 7}, {"shape": (0,)}, {"data": (0, False)},
], ids=str)  # fmt: skip
def test_an_interface_that_makes_no_sense(given):
    with pytest.raises(gd.Error):
        gd.register(Foreign(**given))


def test_an_array_elsewhere_is_copied():
    a = gd.zeros(3)
    assert gd.asarray(a) is a and gd.asarray(a, "f4", device="emulated") is a
    b = gd.asarray(a, mapped=False)
    assert b is not a and b.read().tolist() == [0, 0, 0]
    c = gd.asarray(a, ">f4")
    assert c is not a and c.dtype == np.dtype(">f4")


# -- making arrays ------------------------------------------------------------------------------


def test_the_default_dtype_is_f4_everywhere():
    for a in (gd.empty(3), gd.zeros(3), gd.ones(3), gd.full(3, 7), gd.full(3, 2.5)):
        assert a.dtype == np.float32
    assert gd.asarray([1, 2]).dtype == np.int64


def test_arrays_like_others():
    a = gd.asarray(np.arange(6, dtype=">i2").reshape(2, 3))
    for made, value in ((gd.zeros_like(a), 0), (gd.ones_like(a), 1), (gd.full_like(a, 300), 300)):
        assert made.shape == (2, 3) and made.dtype == np.dtype(">i2") and made.device is a.device
        assert (made.read() == value).all()
    assert gd.empty_like(a, "f8").dtype == np.float64
    assert gd.zeros_like(np.ones((4, 5), "c8")).dtype == np.complex64
    assert gd.ones_like([[1, 2]], shape=3).read().tolist() == [1, 1, 1]


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("make", [gd.empty, gd.zeros, gd.ones])
def test_fortran_order(make, mapped):
    with make((2, 3, 4), "i4", order="F", mapped=mapped) as a:
        assert a.strides == np.empty((2, 3, 4), "i4", order="F").strides and a.shape == (2, 3, 4)
        if make is not gd.empty:
            assert (a.read() == (make is gd.ones)).all()
        want = np.arange(24, dtype="i4").reshape(2, 3, 4)
        a.write(want)
        assert np.array_equal(a.read(), want) and np.array_equal(a.read(np.empty_like(want)), want)
        assert np.array_equal(a.T.read(), want.T) and a.T.contiguous
        assert np.array_equal(a[1].read(), want[1])
        a.fill(3)
        assert (a.read() == 3).all()
    with pytest.raises(gd.ArgumentError, match="'C' or 'F'"):
        make(3, order="K")


@pytest.mark.parametrize("mapped", [True, False])
def test_transposed_views_share_the_memory(mapped):
    want = np.arange(24, dtype="i2").reshape(2, 3, 4)
    with gd.zeros((2, 3, 4), "i2", mapped=mapped) as a:
        a.write(want)
        for axes in ((), ((1, 0, 2),), (2, 0, 1), (-1, 0, 1), (None,)):
            assert np.array_equal(a.transpose(*axes).read(), want.transpose(*axes))
            out = np.zeros(want.transpose(*axes).shape, ">i2")
            assert np.array_equal(a.transpose(*axes).read(out), want.transpose(*axes))
            a.transpose(*axes).write(want.transpose(*axes) + 1)
            want += 1
            assert np.array_equal(a.read(), want)
        assert np.array_equal(a[:, ::2].T.read(), want[:, ::2].T)
        assert np.array_equal(a.T.copy().read(), want.T) and a.T.copy().contiguous
        for wrong in ((0, 1), (0, 0, 1), (5, 0, 1), ("x",)):
            with pytest.raises(gd.ArgumentError):
                a.transpose(*wrong)


CUTS = [np.s_[1], np.s_[..., 2], np.s_[::-1], np.s_[:, ::-2, 1:4], np.s_[1, 2, 3], np.s_[...], np.s_[None],
        np.s_[:, None, 1], np.s_[-1], np.s_[2:0:-1, ..., ::2], np.s_[0:0],
        np.s_[..., None], np.s_[()]]  # fmt: skip


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_every_cut_is_numpy_s(cut, order):
    n = np.arange(60, dtype="f4").reshape(3, 4, 5)

    def both():
        a = gd.empty(n.shape, order=order)
        a.write(n)
        return a, n.copy()

    a, m = both()
    assert a[cut].shape == m[cut].shape
    for found, want in ((a[cut], m[cut]), (a[cut].copy(), m[cut]), (a[cut].T, m[cut].T),
                        (a[cut].squeeze(), m[cut].squeeze())):  # fmt: skip
        assert found.shape == want.shape and np.array_equal(found.read(), want)
    data = np.random.default_rng(1).random(m[cut].shape, np.float32)
    for change in (lambda x: x.__setitem__(cut, 7),
                   lambda x: x[cut].write(data) if isinstance(x, gd.Array) else x.__setitem__(cut, data),
                   lambda x: x[cut].fill(3) if isinstance(x, gd.Array) else x.__setitem__(cut, 3)):  # fmt: skip
        change(a), change(m)
        assert np.array_equal(a.read(), m)


@pytest.mark.parametrize("make", ["zeros_like", "ones_like", "empty_like"])
def test_an_array_like_another_has_its_order(make):
    n = np.zeros((3, 4), order="F")
    for prototype in (n, gd.zeros((3, 4), "f8", order="F"), np.zeros((3, 4)), gd.zeros((3, 4), "f8")):
        for order in ("K", "A", "C", "F"):
            like = n if _lies_in_f_order(prototype) else np.zeros((3, 4))
            want = getattr(np, make)(like, order=order)
            assert getattr(gd, make)(prototype, order=order).strides == want.strides
        assert getattr(gd, make)(prototype).strides == getattr(np, make)(like).strides
    assert gd.zeros_like(n, shape=(4, 5)).contiguous
    for wrong in ("X", None, 3):
        with pytest.raises(gd.ArgumentError, match="order"):
            gd.zeros_like(n, order=wrong)


def _lies_in_f_order(a):
    return not a.contiguous if isinstance(a, gd.Array) else a.flags.f_contiguous


def test_views_of_other_shapes():
    n = np.arange(24, dtype="i4").reshape(2, 1, 12)
    a = gd.asarray(n)
    assert np.array_equal(a.swapaxes(0, 2).read(), n.swapaxes(0, 2))
    assert np.array_equal(a.squeeze(1).read(), n.squeeze(1)) and a.ravel().shape == (24,)
    a.swapaxes(0, -1)[3].fill(9)
    assert (a.read()[..., 3] == 9).all()
    for wrong in (lambda: a.squeeze(0), lambda: a.swapaxes(0, 7), lambda: a.swapaxes("x", 1),
                  lambda: a[..., ::2].ravel()):  # fmt: skip
        with pytest.raises(gd.ArgumentError):
            wrong()


@pytest.mark.parametrize("name", ["sum", "max", "astype", "flatten", "flat", "tobytes", "real", "clip"])
def test_what_numpy_has_and_an_array_not_says_what_to_write(name):
    a = gd.zeros(3)
    with pytest.raises(AttributeError, match=rf"a\.read\(\)\.{name}"):
        getattr(a, name)
    with pytest.raises(AttributeError, match="no attribute 'wirte'"):
        a.wirte  # noqa: B018
