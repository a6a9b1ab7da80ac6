"""Array.read in C: whole arrays and parts, with a destination and without; all else means the same."""

from __future__ import annotations

import numpy as np
import pytest
from alike import awake_courier, in_force, never_in_python, same

import gpudirect as gd


@pytest.fixture
def in_c(monkeypatch):
    never_in_python(monkeypatch, "_read_slow", "_write_slow")


@pytest.fixture
def courier(monkeypatch):
    with awake_courier(monkeypatch) as c:
        yield c


def made(dtype="i4", shape=(50, 100), **how):
    raw = np.random.default_rng(3).integers(0, 256, np.prod(shape) * np.dtype(dtype).itemsize, "u1")
    return gd.asarray(raw, **how).view(dtype).reshape(shape), raw.view(dtype).reshape(shape).copy()


@pytest.mark.parametrize("via", ["map", "courier", None])
@pytest.mark.parametrize("dtype", ["u1", "f4", "c16", ">i4", "S3", "i4,f8"])
def test_whole_arrays_and_parts(in_c, courier, dtype, via):
    a, twin = made(dtype)
    with in_force(a, courier_pageable=(1000, 1 << 30), read_pageable=()):
        same(a.read(via=via), twin)
        same(a.read(None, via=via), twin)
        same(a.read(start=0, via=via), twin)
        flat = twin.reshape(-1)
        for start, count in ((0, 0), (0, 1), (3, 997), (4999, 1), (5000, 0), (0, 5000)):
            same(a.read(start=start, count=count, via=via), flat[start : start + count])
            out = np.empty(count, dtype)
            assert a.read(out, start=start, count=count, via=via) is out
            same(out, flat[start : start + count])
        same(a.read(start=4000, via=via), flat[4000:])
        same(a[3].read(via=via), twin[3])
        same(a[0, 0].read(via=via), twin[0, 0, ...])
    assert a.read().flags.writeable and a.read().base is None


@pytest.mark.parametrize("via", ["dma", None])
def test_what_a_read_refuses_it_still_refuses(via):
    a, twin = made()
    for start, count in ((0, 5001), (5001, None), (-1, 1), (1, -1), (4999, 2), (1 << 70, 1), (1, 1 << 70)):
        with pytest.raises(gd.RangeError):
            a.read(start=start, count=count, via=via)
    for out in (np.empty((2, 3), "i4"), np.empty(5, "i4"), np.empty(6, "f4")):
        with pytest.raises(gd.ArgumentError):
            a.read(out, start=0, count=6, via=via)
    with pytest.raises(gd.DTypeError, match="start"):
        a.read(start=1.5)
    with pytest.raises(gd.ArgumentError, match="elements"):
        a.read(nbytes=4)
    same(a.read(start=np.int64(7), count=True, via=via), twin.reshape(-1)[7:8])
    same(a.read(start=5, count=None, synchronize=True, via=via), twin.reshape(-1)[5:])
    out = bytearray(24)
    assert a.read(out, start=2, count=6, via=via) is out
    assert bytes(out) == twin.reshape(-1)[2:8].tobytes()


def test_strided_and_unmapped_arrays_are_read_as_ever():
    a, twin = made()
    same(a[::3, 2:].read(), twin[::3, 2:].copy())
    b, twin = made(mapped=False)
    same(b.read(), twin)
    same(b.read(start=10, count=20), twin.reshape(-1)[10:30])


def test_what_is_queued_is_waited_for():
    add = gd.kernel("__global__ void add(int *a, int n) { for (int i = 0; i < n; i++) a[i]++; }", "add")
    a = gd.zeros(3000, "i4")
    for turn in range(1, 30):
        add[1, 1](a, 3000)
        assert (a.read() == turn).all()
        add[1, 1](a, 3000)
        add[1, 1](a, 3000)
        assert (a.read(start=2990, count=5, via="map") == turn + 2).all()
        a.host[:] = turn


def test_an_array_that_is_closed_while_its_argument_is_looked_at():
    """By code of the argument's: nothing is read, nothing written, nothing crashes."""

    class Closing(np.ndarray):
        closes = None

        def closed(self):
            if self.closes is not None:
                self.closes.close()

        @property
        def dtype(self):
            self.closed()
            return np.ndarray.dtype.__get__(self)

        @property
        def base(self):
            self.closed()
            return np.ndarray.base.__get__(self)

    def argument(a, dtype, shape=5000):
        found = np.zeros(shape, dtype).view(Closing)
        found.closes = a
        return found

    words, at = "i4,f4", np.arange(5000)
    for dtype, call in ((words, lambda a: a.read(argument(a, words))),
                        (words, lambda a: a.write(argument(a, words))),
                        ("i4", lambda a: a.gather(argument(a, "i8"))),
                        ("i4", lambda a: a.gather(at, argument(a, "i4"))),
                        ("i4", lambda a: a.scatter(argument(a, "i8"), at.astype("i4"))),
                        ("i4", lambda a: a.scatter(at, argument(a, "i4")))):  # fmt: skip
        a, _ = made(dtype, (5000,))
        with pytest.raises(gd.ClosedError):
            call(a)
