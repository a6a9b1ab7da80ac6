"""Array.gather: NumPy's meaning of one index array, by loads, by DMA, and refused where it must be."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from alike import in_force, same

import gpudirect as gd
from gpudirect import _native, limits
from gpudirect._transfer import gather
from gpudirect._transfer import ondemand as on_demand
from gpudirect.limits import Limits

VIAS = ("map", "dma", None)
SIZE = 5000


def made(dtype, size=SIZE, **how):
    """An array on the device, and the same in ordinary memory."""
    raw = np.random.default_rng(3).integers(0, 256, size * np.dtype(dtype).itemsize, "u1")
    return gd.asarray(raw, **how).view(dtype), raw.view(dtype)


@pytest.mark.parametrize("via", VIAS)
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8", "c16", ">u4", "S3", "i4,f8", "V24"])
def test_elements_of_every_size_come_as_numpy_gives_them(dtype, via):
    a, twin = made(dtype)
    with a:
        indices = np.random.default_rng(4).integers(-SIZE, SIZE, 700)
        same(a.gather(indices, via=via), twin[indices])
        assert a.gather(indices, via=via).flags.writeable


@pytest.mark.parametrize("engine", [
    _native.ffi.string(_native.lib.gd_isa_name(i)).decode() for i in range(_native.lib.gd_isa_count())
    if _native.lib.gd_isa_usable(i)
])  # fmt: skip
def test_every_way_to_load_gathers_the_same(engine):
    try:
        assert not _native.lib.gd_isa_select(engine.encode())
        for dtype in ("u1", "f4", "c16", "S5"):
            a, twin = made(dtype)
            at = np.random.default_rng(5).integers(-SIZE, SIZE, 300)
            same(a.gather(at, via="map"), twin[at])
    finally:
        _native.lib.gd_isa_select(_native.ffi.NULL)


@pytest.mark.parametrize("via", VIAS)
def test_elements_that_are_not_aligned_to_their_size(via):
    a, twin = made("u1", 8001)
    shifted, wanted = a[1:].view("f8"), twin[1:].view("f8")
    at = [0, 999, -1, -1000, 500]
    same(shifted.gather(at, via=via), wanted[at])


@pytest.mark.parametrize("via", VIAS)
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (4, 1, 5), (0,), (3, 0)])
def test_the_result_has_the_shape_of_the_indices(shape, via):
    a, twin = made("f4")
    indices = np.random.default_rng(6).integers(0, SIZE, shape)
    same(a.gather(indices, via=via), np.asarray(twin[indices]))


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4"])
def test_indices_of_every_type_of_whole_numbers(kind):
    a, twin = made("i4")
    indices = np.array([3, 100, 7, 7, 0], kind)
    same(a.gather(indices), twin[indices.astype(int)])


@pytest.mark.parametrize("given", [[5, 2, -1], (5, 2), range(3, 900, 7), [[1, 2], [3, 4]], 5, [], np.int8(3)])
def test_indices_as_python_has_them(given):
    a, twin = made("i4")
    same(a.gather(given), np.asarray(twin[np.asarray(given, int)]))


def test_indices_that_do_not_lie_one_behind_the_other_or_on_the_device():
    a, twin = made("i4")
    at = np.arange(4000)
    same(a.gather(at[::-7]), twin[at[::-7]])
    same(a.gather(at.reshape(40, 100).T), twin[at.reshape(40, 100).T])
    with gd.asarray(at[:9]) as there:
        same(a.gather(there), twin[:9])
        same(a.gather(there.host), twin[:9])


def test_an_array_of_several_dimensions_is_gathered_flat():
    a, twin = made("f4")
    b = a.reshape(50, 100)
    same(b.gather([4999, 100, -5000]), twin[[4999, 100, -5000]])
    same(b[3:5].gather([0, 199, -1]), twin[300:500][[0, 199, -1]])


@pytest.mark.parametrize("via", VIAS)
def test_millions_of_indices(via):
    a, twin = made("f4", 1 << 20)
    indices = np.random.default_rng(7).integers(-(1 << 20), 1 << 20, 2_000_000)
    same(a.gather(indices, via=via), twin[indices])


# -- where they go -----------------------------------------------------------------------------


@pytest.mark.parametrize("via", VIAS)
def test_into_memory_of_the_caller(via):
    a, twin = made("f4")
    at = np.random.default_rng(8).integers(0, SIZE, (6, 7))
    for out in (np.empty((6, 7), "f4"), np.empty(42, "f4"), gd.pinned((6, 7)), bytearray(168),
                np.empty((6, 7), ">f4"), np.empty((7, 6), "f4").T, np.empty((12, 7), "f4")[::2]):  # fmt: skip
        assert a.gather(at, out, via=via) is out
        found = np.frombuffer(out, "f4") if isinstance(out, bytearray) else np.asarray(out)
        assert np.array_equal(found.reshape(6, 7).astype("f4").view("u4"), twin[at].view("u4"))


def test_bytes_of_another_array_are_bytes():
    a, twin = made("f4")
    with gd.empty(3) as b:
        a.gather([1, 2, 3], b.buffer)
        assert b.read().tobytes() == twin[[1, 2, 3]].tobytes()


def readonly():
    out = np.empty(3, "f4")
    out.flags.writeable = False
    return out


def released():
    view = memoryview(bytearray(12))
    view.release()
    return view


def closed_mmap():
    m = mmap.mmap(-1, 12)
    m.close()
    return m


@pytest.mark.parametrize("out", [
    readonly, released, closed_mmap, lambda: b"x" * 12, lambda: np.empty(4, "f4"),
    lambda: np.empty((3, 1), "f4"), lambda: np.empty(3, "i4"), lambda: np.empty(3, "f8"), lambda: [0, 0, 0],
    lambda: bytearray(11), lambda: gd.empty(3), lambda: gd.empty(3).host, object,
])  # fmt: skip
def test_a_destination_that_cannot_take_them_is_refused(out):
    a, _ = made("f4")
    with pytest.raises(gd.ArgumentError):
        a.gather([1, 2, 3], out())


def test_a_closed_array_is_no_destination_and_no_source():
    a, _ = made("f4")
    b = gd.empty(3)
    b.close()
    with pytest.raises(gd.ArgumentError, match="on a device"):
        a.gather([1, 2, 3], b)
    a.close()
    with pytest.raises(gd.ClosedError):
        a.gather([1])


def test_the_array_itself_is_no_destination():
    a, twin = made("f4")
    for out in (a, a.host[:3], a[:3], a.buffer[:12], np.asarray(a.buffer)[:12].view("f4")):
        with pytest.raises(gd.ArgumentError):
            a.gather([7, 8, 9], out)
    same(a.read(), twin)


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(("indices", "error"), [
    ([1.0], gd.DTypeError), (np.empty(0, "f8"), gd.DTypeError), ([True, False], gd.DTypeError),
    (np.ones(SIZE, bool), gd.DTypeError), (["a"], gd.DTypeError), ([[1], [2, 3]], gd.DTypeError),
    (None, gd.DTypeError), ([1j], gd.DTypeError), (slice(3), gd.DTypeError),
    (np.array([1], "m8[s]"), gd.DTypeError),
    ([SIZE], gd.RangeError), ([0, -SIZE - 1], gd.RangeError), (np.array([2**63], "u8"), gd.RangeError),
    ([2**63 - 1], gd.RangeError), ([-(2**63)], gd.RangeError), ([2**70], gd.DTypeError),
])  # fmt: skip
@pytest.mark.parametrize("via", VIAS)
def test_indices_that_mean_nothing_are_refused_and_nothing_moves(indices, error, via):
    a, _ = made("i4")
    out = np.full(np.shape(indices) if not isinstance(indices, (slice, list)) else 2, 77, "i4")
    with pytest.raises(error):
        a.gather(indices, out, via=via)
    assert (out == 77).all()


def test_the_error_says_which_index():
    a, _ = made("i4")
    indices = np.zeros(100_000, int)
    indices[77_777] = -SIZE - 1
    with pytest.raises(gd.RangeError, match=rf"index -{SIZE + 1}, number 77777 of 100000.* {SIZE} elements"):
        a.gather(indices)
    with pytest.raises(IndexError):
        a.gather([SIZE])


def test_an_empty_array_has_no_element():
    a = gd.empty(0)
    same(a.gather([]), np.empty(0, "f4"))
    with pytest.raises(gd.RangeError):
        a.gather([0])


def test_strides_and_unknown_ways_are_refused():
    a, _ = made("i4")
    with pytest.raises(gd.ArgumentError, match="strides"):
        a[::2].gather([0])
    with pytest.raises(gd.ArgumentError, match="via"):
        a.gather([0], via="pigeon")


# -- the choice --------------------------------------------------------------------------------


def chosen(a, indices):
    return gather._choose(a._extent(), gather.picked(indices, a.size))


def test_few_words_are_loaded_and_many_come_by_dma():
    a, _ = made("f4", 1 << 20)
    with in_force(a, gather_words=10, gather_span=1000):
        assert chosen(a, np.arange(10)) == "map"
        assert chosen(a, np.arange(11)) == "dma"
        wide = np.linspace(0, (1 << 20) - 1, 4000).astype(int)  # 4 MiB: 4194 loads
        assert chosen(a, wide) == "map"
        assert chosen(a, np.r_[wide, wide]) == "dma"


@pytest.mark.parametrize("wrong", [{"gather_words": -1}, {"gather_span": 0}, {"gather_words": 1.5}])
def test_limits_of_gathering_that_make_no_sense_are_refused(wrong):
    with pytest.raises(gd.ArgumentError, match=next(iter(wrong))):
        Limits(**wrong)


def test_limits_kept_before_there_was_gathering_are_still_read(tmp_path):
    path = tmp_path / "limits.json"
    limits.store(Limits(read_pageable=(123,)), path)
    text = [line for line in path.read_text().splitlines() if "gather" not in line]
    path.write_text("\n".join(text))
    assert limits.load(path).read_pageable == (123,)


# -- arrays that are far larger than what is asked for, and not mapped whole ---------------------


@pytest.mark.parametrize("via", VIAS)
def test_an_array_that_is_not_mapped(via, monkeypatch):
    monkeypatch.setattr(gather, "AT_ONCE", 64 << 10)
    monkeypatch.setattr(gather, "NEAR", 4 << 10)
    monkeypatch.setattr(on_demand.OnDemand, "_fitting_width", lambda self: 64 << 10)
    a, twin = made("i4", 100_000, mapped=False)
    assert not a._extent().mapped
    dice = np.random.default_rng(9)
    at = np.r_[dice.integers(-100_000, 100_000, 500), 16383, 16384, 0, 99_999, dice.integers(500, 600, 99)]
    same(a.gather(at, via=via), twin[at])
    odd, wanted = a.view("u1")[2:-2].view("i4"), twin.view("u1")[2:-2].view("i4")
    same(odd.gather(at % 99_999, via=via), wanted[at % 99_999])


def test_only_what_lies_together_is_brought_at_once(monkeypatch):
    monkeypatch.setattr(gather, "AT_ONCE", 4000)
    monkeypatch.setattr(gather, "NEAR", 400)
    rising = np.array([0, 5, 105, 206, 1300, 2250, 2300])
    assert gather._together(rising, 4) == [(0, 3), (3, 4), (4, 5), (5, 7)]
    assert gather._together(np.arange(2500), 4) == [(0, 1000), (1000, 2000), (2000, 2500)]
    assert gather._together(np.zeros(9, int), 4) == [(0, 9)]


# -- order -------------------------------------------------------------------------------------


def test_it_waits_for_what_is_queued_and_sees_the_stores_before():
    source = "__global__ void count(int *a, int n) { for (int i = 0; i < n; i++) a[i] = i + a[i]; }"
    count = gd.kernel(source, "count")
    with gd.asarray(np.zeros(SIZE, "i4")) as a:
        a.host[:] = 1000
        count[1, 1](a, SIZE)
        assert a.gather([0, 7, -1]).tolist() == [1000, 1007, 1000 + SIZE - 1]
        a.host[7] = 5
        assert a.gather([7], via="map").tolist() == [5]
        a.host[7] = 6
        assert a.gather([7], via="dma").tolist() == [6]
