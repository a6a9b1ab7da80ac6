"""Array.gather and Array.scatter: arrays of ordinary memory go in one call into C, all else means the same."""

from __future__ import annotations

import array
import gc
import sys

import numpy as np
import pytest
from alike import awake_courier, in_force, never_in_python, same

import gpudirect as gd
from gpudirect import _native
from gpudirect._transfer import copies, couriers

SIZE = 5000
KINDS = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"]


@pytest.fixture
def courier(monkeypatch):
    with awake_courier(monkeypatch) as c:
        yield c


@pytest.fixture
def in_c(monkeypatch):
    never_in_python(monkeypatch, "_gather_slow", "_scatter_slow")


@pytest.fixture
def slowly(monkeypatch):
    """How often something came to Python."""
    came = []

    def counting(really):
        def counted(*given, **how):
            came.append(given)
            return really(*given, **how)

        return counted

    for name in ("_gather_slow", "_scatter_slow"):
        monkeypatch.setattr(gd.Array, name, counting(getattr(gd.Array, name)))
    return came


def made(dtype="i4", size=SIZE, **how):
    raw = np.random.default_rng(3).integers(0, 256, size * np.dtype(dtype).itemsize, "u1")
    return gd.asarray(raw, **how).view(dtype), raw.view(dtype).copy()


# -- what stays in C -------------------------------------------------------------------------------


@pytest.mark.parametrize("via", ["map", "courier", None])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 100, 512, 513, 3000])
def test_indices_of_every_type_of_whole_numbers(in_c, courier, kind, count, via):
    a, twin = made()
    most = min(SIZE, np.iinfo(kind).max)
    at = np.random.default_rng(4).integers(max(-most, np.iinfo(kind).min), most, count).astype(kind)
    with in_force(a, gather_words=SIZE):
        same(a.gather(at, via=via), twin[at])
    items = np.arange(count, dtype="i4")
    rising = np.unique(np.abs(at.astype("i8"))).astype(kind)
    a.scatter(rising, items[: len(rising)], via=via)
    twin[rising] = items[: len(rising)]
    assert np.array_equal(a.read(via="map"), twin)


@pytest.mark.parametrize("via", ["map", "courier", None])
def test_destinations_of_every_shape(in_c, courier, via):
    a, twin = made("f4")
    at = np.random.default_rng(5).integers(-SIZE, SIZE, (3, 5))
    for out in (np.empty((3, 5), "f4"), np.empty(15, "f4"), gd.pinned((3, 5), "f4"), gd.pinned(40, "f4")[3:18],
                np.empty((9, 5), "f4")[3:6], np.empty(100, "f4")[5:20]):  # fmt: skip
        assert a.gather(at, out, via=via) is out
        same(np.array(out).reshape(3, 5), twin[at])
    out = np.empty((3, 5), "f4")
    assert a.gather(at, out=out, via=via) is out
    same(out, twin[at])
    found = a.gather(np.array(7), via=via)
    assert found.shape == () and found == twin[7]
    same(a.gather(np.empty((0, 4), int), via=via), np.empty((0, 4), "f4"))


@pytest.mark.parametrize("dtype", ["u1", "f8", "c16", ">u4", "S3", "i4,f8"])
def test_elements_of_every_type(in_c, courier, dtype):
    a, twin = made(dtype)
    at = np.random.default_rng(6).permutation(SIZE)[:300]
    for via in ("map", "courier"):
        same(a.gather(at, np.empty(300, dtype), via=via), twin[at])
        items = twin[::-1][:300].copy()
        a.scatter(at, items=items, via=via)
        twin[at] = items
    same(a.read(via="map"), twin)


@pytest.mark.parametrize("via", ["map", "courier", None])
def test_rows_are_scattered(in_c, courier, via):
    a, twin = made("i2")
    at, rows = np.arange(0, 4000, 13), np.random.default_rng(7).integers(0, 9999, (308, 2, 3), "i2")
    a.scatter(at, rows, via=via)
    for i, row in zip(at.tolist(), rows, strict=True):
        twin[i : i + 6] = row.ravel()
    same(a.read(via="map"), twin)
    a.scatter(at[:0], rows[:0], via=via)
    a.scatter(at, np.empty((308, 0), "i2"), via=via)
    same(a.read(via="map"), twin)


# -- what does not, and means the same ----------------------------------------------------------------


def test_all_else_goes_by_python_and_means_the_same(slowly):
    a, twin = made("f4")
    at = np.random.default_rng(8).integers(0, SIZE, 60)
    there = gd.asarray(at)
    frozen = np.empty(60, "f4")
    frozen.flags.writeable = False
    for indices in (at.tolist(), at[::2], np.asfortranarray(at.reshape(6, 10)), there, there.host,
                    np.asarray(there.buffer).view("i8"), array.array("l", at), at.astype(">i8")):  # fmt: skip
        plain = np.asarray(indices) if not isinstance(indices, gd.Array) else at
        before = len(slowly)
        same(a.gather(indices), twin[plain])
        assert len(slowly) == before + 1, type(indices)
    for out in (bytearray(240), memoryview(bytearray(240)), np.empty((60, 2), "f4")[:, 0], np.empty(60, ">f4")):
        before = len(slowly)
        assert a.gather(at, out) is out
        found = out if isinstance(out, np.ndarray) else np.frombuffer(out, "f4")
        assert np.array_equal(found, twin[at]) and len(slowly) == before + 1
    for wrong in (frozen, np.empty(59, "f4"), np.empty((6, 10), "f4"), np.empty(60, "i4"), a.host[:60],
                  np.asarray(a.buffer)[:240].view("f4"), there):  # fmt: skip
        before = len(slowly)
        with pytest.raises(gd.ArgumentError):
            a.gather(at, wrong)
        assert len(slowly) == before + 1
    same(a.read(), twin)


def test_sources_in_mapped_memory_are_fetched_first(slowly):
    a, twin = made("i4")
    at = np.arange(100, 160)
    for items in (a.host[130:190], np.asarray(a.buffer)[520:760].view("i4")):
        a.scatter(at, items)
        twin[at] = twin[130:190].copy()
        same(a.read(), twin)
    assert len(slowly) == 2


@pytest.mark.parametrize("via", ["map", "courier", None])
def test_an_index_outside_is_refused_before_anything_moves(courier, via):
    """The last one of many parts, too."""
    a, twin = made()
    for count in (1, 10, 50_000):
        for wrong in (SIZE, -SIZE - 1, 1 << 62, -(1 << 63)):
            at = np.arange(count) % SIZE
            at[-1] = wrong
            out = gd.pinned(count, "i4")
            out[:] = 77
            with in_force(a, courier_gather=0, courier_scatter=0), pytest.raises(gd.RangeError):
                a.gather(at, out, via=via)
            assert (out == 77).all()
            with in_force(a, courier_gather=0, courier_scatter=0), pytest.raises(gd.RangeError):
                a.scatter(at, np.zeros(count, "i4"), via=via)
        with pytest.raises(gd.RangeError):
            a.scatter(np.append(np.arange(count) % 9, -1), np.zeros(count + 1, "i4"), via=via)
        with pytest.raises(gd.RangeError):  # rows that begin inside and end outside
            a.scatter(np.append(np.arange(count) % 9, SIZE - 1), np.zeros((count + 1, 2), "i4"), via=via)
    same(a.read(via="map"), twin)


@pytest.mark.parametrize("wide", [False, True])
def test_an_index_that_was_changed_since_it_was_checked_reaches_nothing(courier, wide):
    """As another thread can: the courier is given what was looked at, and no other."""
    a, twin = made()
    at, out, extent = np.arange(3000), np.full(3000, 77, "i4"), a._extent()
    lib, cast = _native.lib, _native.ffi.cast
    size = 1 << 33 if wide else SIZE
    for wrong in (size, -size - 1, -(1 << 63), (1 << 63) - 1):
        at[2999] = wrong
        places, there = cast("int64_t *", copies.address_of(at)), cast("char *", copies.address_of(out))
        for begin in (
            lambda c, how, left, p=places, t=there: lib.gd_courier_gather(
                c, t, extent.address, size, p, 3000, 4, how, left),
            lambda c, how, left, p=places, t=there: lib.gd_courier_scatter(
                c, extent.address, size, 4, p, 3000, t, 4, how, left),
        ):  # fmt: skip
            with pytest.raises(gd.RangeError, match="changed"):
                couriers.errand(extent, True, out, begin)
    assert (out == 77).all()
    same(a.read(via="map"), twin)


@pytest.mark.parametrize("via", ["map", "dma", "courier"])
def test_indices_that_are_the_destination(courier, via):
    a, twin = made("i8", 40_000)
    at = np.random.default_rng(9).integers(0, 40_000, 40_000)
    wanted = twin[at]
    assert a.gather(at, at, via=via) is at
    same(at, wanted)


def test_what_is_queued_is_waited_for():
    add = gd.kernel("__global__ void add(int *a, int n) { for (int i = 0; i < n; i++) a[i]++; }", "add")
    a = gd.zeros(SIZE, "i4")
    at, out = np.arange(0, SIZE, 7), np.empty(715, "i4")
    for turn in range(1, 30):
        add[1, 1](a, SIZE)
        assert (a.gather(at, out, via="map") == turn).all()


def test_a_closed_array_and_unknown_words():
    a, _ = made()
    at, items = np.arange(5), np.arange(5, dtype="i4")
    for wrong in (lambda: a.gather(), lambda: a.gather(at, items, at), lambda: a.gather(at, items, out=items),
                  lambda: a.scatter(at, items, items=items), lambda: a.gather(at, pigeon=1),
                  lambda: a.scatter()):  # fmt: skip
        with pytest.raises(TypeError):
            wrong()
    for wrong in (lambda: a.gather(at, via="pigeon"), lambda: a.gather(at, via=7),
                  lambda: a.scatter(at, items, via="dma")):  # fmt: skip
        with pytest.raises(gd.ArgumentError, match="via"):
            wrong()
    same(a.gather(indices=at), a.read()[:5])
    a.scatter(places=at, items=items)
    a.close()
    with pytest.raises(gd.ClosedError):
        a.gather(at)
    with pytest.raises(gd.ClosedError):
        a.scatter(at, items)


def test_nothing_is_held_behind_a_call():
    a, _ = made()
    at, narrow, wrong = np.arange(900), np.arange(900, dtype="i4"), np.full(900, SIZE)
    out = np.empty(900, "i4")
    kept = (at, narrow, wrong, out, a, None, np.dtype("i4"))

    def calls():
        for indices in (at, narrow, wrong):
            for to in (out, None):
                try:
                    a.gather(indices, to)
                    a.scatter(indices, out)
                except gd.RangeError:
                    pass

    calls()
    gc.collect()
    before = [sys.getrefcount(o) for o in kept]
    for _ in range(50):
        calls()
    gc.collect()
    after = [sys.getrefcount(o) for o in kept]
    assert all(abs(x - y) < 25 for x, y in zip(before, after, strict=True)), (before, after)
    at.resize(10, refcheck=False)
    out.setflags(write=False)
