"""Windows and scattered stores, on every (device, bridge) pair."""

from __future__ import annotations

import gc
import io
import threading

import numpy as np
import pytest

from gpudirect import aperture

RANDOM = np.random.default_rng(6)
MIB = 1 << 20
BUDGET = 8 * MIB


def data(n: int) -> np.ndarray:
    return RANDOM.integers(0, 256, n, np.uint8)


@pytest.fixture
def budget(gd):
    """An aperture budget of 8 MiB above what is held already."""
    gc.collect()
    gd.trim()
    account = aperture.account(gd.device())
    account._peak = before = account.use().total
    aperture.set_budget(before + BUDGET, gd.device())
    yield before + BUDGET
    gc.collect()
    gd.trim()
    peak = account.use().peak
    aperture.set_budget(None, gd.device())
    assert peak <= before + BUDGET, "the budget was exceeded"
    assert account.use().total == before, "something is still held"


# -- windows of the user's -------------------------------------------------------------------


def test_a_window_shows_a_part_and_moves_over_the_rest(gd):
    want = data(3 * MIB)
    with gd.empty(3 * MIB, "u1", mapped=False) as a:
        with a.window(0, 100_000) as w:
            for offset in (0, 1, 4095, 65536, 2 * MIB - 50_000, 3 * MIB - 100_000):
                assert w.move(offset) is w and w.start == offset
                assert w.ptr == a.ptr + offset
                w.host[:] = want[offset : offset + 100_000]
                w.flush()
                seen = a.read(start=offset, count=100_000, via="dma")
                assert np.array_equal(seen, want[offset : offset + 100_000])
                assert np.array_equal(w.read(via="map"), seen)
                w.write(b"relative", 77)
                assert a.read(start=offset + 77, count=8).tobytes() == b"relative"
        assert w.closed and "closed" in repr(w)
        with pytest.raises(gd.ClosedError, match="closed"):
            _ = w.host
        with pytest.raises(gd.ClosedError):
            w.move(0)
        w.close()


def test_a_window_counts_elements_of_the_array(gd):
    with gd.zeros((64, 1024), "f4", mapped=False) as a:
        with a.window(2048, 1024) as w:
            w.host[:] = np.arange(1024)
            assert (w.start, w.size, len(w), w.nbytes) == (2048, 1024, 1024, 4096)
            assert w.host.dtype == w.dtype == np.float32 and w.array.shape == (1024,)
            w.move(3 * 1024)
            assert w.ptr == a.ptr + 3 * 4096
            w.write(np.float32([7, 8]), 5)
            assert w.read(start=4, count=3).tolist() == [0, 7, 8]
        assert np.array_equal(a.read()[2], np.arange(1024)) and a.read()[3, 6] == 8
        with a.view("u1").window(3, 5) as w:
            w.write(b"12345")
        assert a.read().tobytes()[3:8] == b"12345"
        with a.window(65535) as w:
            assert w.size == 1
        for old in ({"offset": 3}, {"size": 3}, {"nbytes": 3}):
            with pytest.raises(gd.ArgumentError, match="elements"):
                a.window(**old)
        with pytest.raises(gd.ArgumentError, match="keyword"):
            a.window(0, 5, dtype="u1")
        with pytest.raises(gd.ArgumentError, match="strides"):
            a[:, 0].window()


@pytest.mark.parametrize("offset,size", [(-1, 10), (0, 1001), (1000, 1), (991, 10), (0, 0), (5, -3),
                                         (1 << 70, 1)])  # fmt: skip
@pytest.mark.parametrize("mapped", [True, False])
def test_a_window_outside_the_array(gd, offset, size, mapped):
    with gd.zeros(1000, "u1", mapped=mapped) as a, pytest.raises(gd.RangeError, match="1000"):
        a.window(offset, size)
    with gd.zeros(1000, "u1", mapped=mapped) as a, a.window(0, 10) as w:
        with pytest.raises(gd.RangeError):
            w.move(991)
        assert w.start == 0
        w.write(b"still here")
        assert a.read(start=0, count=10).tobytes() == b"still here"


def test_views_of_a_window_stay_where_they_were(gd):
    a = gd.zeros(2 * MIB, "u1", mapped=False)
    w = a.window(0, 4096)
    view, raw, part = w.host, w.buffer, w.array[10:20]
    w.move(MIB)
    w.host[0] = 9
    view[0], raw[1] = 1, 2
    part.write(b"0123456789")
    keep = a[:]
    a.close()
    w.write(b"X", 1)
    w.close()
    gc.collect()
    view[2] = 3
    part.flush()
    seen = keep.read()
    assert seen[:3].tolist() == [1, 2, 3] and seen[10:20].tobytes() == b"0123456789"
    assert seen[MIB : MIB + 2].tobytes() == b"\x09X"


def test_a_window_of_a_mapped_array_takes_no_aperture(gd):
    with gd.zeros(100_000, "u1") as a:
        before = aperture.account(a.device).use()
        with a.window(5000, 100) as w:
            assert w.host_ptr == a.host_ptr + 5000
            assert aperture.account(a.device).use() == before
            w.write(b"seen")
        assert a.read(start=5000, count=4).tobytes() == b"seen"


def test_windows_may_overlap(gd):
    with gd.zeros(100_000, "u1", mapped=False) as a:
        with a.window(0, 10_000) as one, a.window(5_000, 10_000) as other:
            one.write(b"abc", 5_000)
            other.write(b"d", 3)
            assert other.read(start=0, count=4, via="map").tobytes() == b"abcd"


def test_a_kernel_sees_what_was_stored_through_a_window(gd):
    total = gd.kernel(
        "__global__ void total(const unsigned *a, unsigned n, unsigned *r)"
        "{ unsigned s = 0; for (unsigned i = 0; i < n; i++) s += a[i]; *r = s; }",
        "total",
    )
    with gd.zeros(1000, "u4", mapped=False) as a, gd.zeros(1, "u4") as r:
        with a.window(100, 100) as w:
            w.host[:] = np.arange(100)
            total[1, 1](a, a.size, r)
            assert r.read()[0] == 4950
            total[1, 1](w.array, 100, r)
            assert r.read()[0] == 4950


def test_a_window_moves_though_only_one_fits(gd, budget):
    with gd.zeros(20 * MIB, "u1", mapped=False) as a, a.window(0, 6 * MIB) as w:
        for offset in range(0, 14 * MIB, MIB + 1):
            w.move(offset)
            w.write(b"here", 6 * MIB - 4)
        view = w.host
        with pytest.raises(gd.ApertureError, match="view of it is left"):
            w.move(0)
        assert w.start == offset
        view[0] = 1
        del view
        w.move(0)
        assert a.read(start=13 * MIB + 13 - MIB - 1 + 6 * MIB - 4, count=4).tobytes() == b"here"


def test_what_does_not_fit_says_who_holds_how_much(gd, budget):
    with gd.zeros(32 * MIB, "u1") as a, gd.zeros(4 * MIB, "u1") as b:
        assert "not mapped" in repr(a) and "not mapped" not in repr(b)
        # and what else this process has mapped, of tests before
        held = sum(heap.mapped for heap in gd.statistics() if heap.device == b.device.id)
        with pytest.raises(gd.ApertureError, match=f"{held} in arrays mapped whole") as caught:
            a.window(0, 5 * MIB)
        assert "this process" in str(caught.value) and str(budget) in str(caught.value)
        with pytest.raises(gd.ApertureError, match="GPUDIRECT_APERTURE"):
            gd.empty(32 * MIB, "u1", mapped=True)
        with pytest.raises(gd.NotMappableError, match="window"):
            _ = a.host
        with pytest.raises(gd.NotMappableError, match="window"):
            _ = a.buffer
        with a.window(0, 4 * MIB) as w:
            w.write(b"fits")


# -- windows mapped on demand ----------------------------------------------------------------


def test_an_array_larger_than_the_budget_is_written_from_start_to_end(gd, budget):
    want = data(40 * MIB + 12_345)
    with gd.empty(want.nbytes, "u1") as a:
        assert "not mapped" in repr(a)
        a.write(want, via="map")
        assert np.array_equal(a.read(), want)
        assert aperture.account(a.device).use().automatic > 0
        a.write(want[::-1], via="map")
        assert np.array_equal(a.read(via="map"), want[::-1])


def test_random_access_is_correct(gd, budget):
    want = np.zeros(30 * MIB, np.uint8)
    with gd.zeros(30 * MIB, "u1") as a:
        for _ in range(300):
            size = int(2 ** RANDOM.uniform(0, 20))
            offset = int(RANDOM.integers(0, want.nbytes - size))
            piece = data(size)
            a.write(piece, offset, via=(None, "map", "dma")[RANDOM.integers(3)])
            want[offset : offset + size] = piece
            at = int(RANDOM.integers(0, want.nbytes - 5000))
            via = (None, "map", "dma")[RANDOM.integers(3)]
            assert np.array_equal(a.read(start=at, count=5000, via=via), want[at : at + 5000])
        assert np.array_equal(a.read(), want)


def test_several_arrays_share_the_budget(gd, budget):
    arrays = [gd.empty(12 * MIB, "u1", mapped=False) for _ in range(4)]
    wants = [data(12 * MIB) for _ in arrays]
    for start in range(0, 12 * MIB, MIB):
        for a, want in zip(arrays, wants, strict=True):
            a.write(want[start : start + MIB], start)
    for a, want in zip(arrays, wants, strict=True):
        assert np.array_equal(a.read(), want)
        a.close()


def test_windows_on_demand_make_room_for_everything_else(gd, budget):
    with gd.empty(30 * MIB, "u1") as a:
        a.write(data(30 * MIB), via="map")
        with gd.zeros(6 * MIB, "u1", pool=False) as b:
            assert "not mapped" not in repr(b)
        with a.window(0, 7 * MIB) as w:
            w.write(b"x")


def test_threads_write_one_array_at_once(gd, budget):
    want = data(32 * MIB)
    failures = []
    with gd.empty(32 * MIB, "u1") as a:

        def work(first: int) -> None:
            try:
                for start in range(first, 32 * MIB, 4 * MIB):
                    a.write(want[start : start + MIB], start)
            except BaseException as e:
                failures.append(repr(e))

        threads = [threading.Thread(target=work, args=(k * MIB,)) for k in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not failures
        assert np.array_equal(a.read(), want)


def test_strided_parts_of_an_array_that_is_not_mapped(gd, budget):
    want = np.arange(2000 * 3000, dtype="i4").reshape(2000, 3000)
    with gd.zeros((2000, 3000), "i4") as a:
        assert "not mapped" in repr(a)
        for index in (np.s_[:, 5], np.s_[::2, 100:2000], np.s_[1::2, ::3], np.s_[::-1, 7:9]):
            a[index].write(want[index])
            assert np.array_equal(a[index].read(), want[index])
        a[3].write(want[3])
        assert np.array_equal(a[3].read(via="map"), want[3])


# -- the writer ------------------------------------------------------------------------------


@pytest.mark.parametrize("mapped", [True, False])
def test_a_writer_is_a_file(gd, mapped):
    want = data(5 * MIB + 77)
    with gd.zeros(want.nbytes + 10, "u1", mapped=mapped) as a, a.writer() as file:
        with pytest.raises(gd.ArgumentError, match="seek"):
            a.writer(10)
        assert file.seek(10) == file.tell() == 10
        assert isinstance(file, io.RawIOBase) and file.writable() and file.seekable()
        at = 0
        while at < want.nbytes:
            n = min(int(2 ** RANDOM.uniform(0, 19)), want.nbytes - at)
            assert file.write(want[at : at + n]) == n
            at += n
        assert file.tell() == want.nbytes + 10
        assert file.write(b"") == 0
        with pytest.raises(gd.RangeError, match="do not fit"):
            file.write(b"x")
        assert file.seek(-3, io.SEEK_END) == want.nbytes + 7
        file.write(np.array([1, 2, 3], "u1"))
        file.flush()
        want[-3:] = 1, 2, 3
        assert np.array_equal(a.read(via="dma")[10:], want)
        for bad, whence in ((-1, 0), (want.nbytes + 11, 0), (1, 2)):
            with pytest.raises(gd.RangeError):
                file.seek(bad, whence)
        with pytest.raises(gd.ArgumentError, match="whence"):
            file.seek(0, 7)
    with pytest.raises(gd.ClosedError):
        file.write(b"x")
    file.close()


def test_a_writer_takes_other_dtypes_bytes(gd):
    with gd.zeros(8, "f8", mapped=False) as a, a.writer() as file:
        assert file.write(np.arange(4.0)) == 32
        assert file.write(np.arange(8.0)[::2]) == 32
        file.flush()
        assert a.read().tolist() == [0, 1, 2, 3, 0, 2, 4, 6]


def test_a_writer_goes_by_dma_where_the_aperture_is_full(gd, budget):
    want = data(3 * MIB)
    with gd.zeros(BUDGET, "u1", pool=False), gd.zeros(3 * MIB, "u1", mapped=False) as a:
        with a.writer() as file:
            file.write(want)
        a.write(b"and write", 5)
        want[5:14] = np.frombuffer(b"and write", "u1")
        assert np.array_equal(a.read(), want)
        with pytest.raises(gd.ApertureError, match="this process"):
            a.write(b"only mapped", via="map")


# -- scattered stores ------------------------------------------------------------------------


@pytest.mark.parametrize("mapped", [True, False])
def test_scattered_items_arrive(gd, mapped):
    want = np.zeros(3 * MIB // 4, "f4")
    places = RANDOM.permutation(want.size)[:5000]
    items = RANDOM.random(5000, np.float32)
    want[places] = items
    with gd.zeros(want.size, "f4", mapped=mapped) as a:
        a.scatter(places, items)
        assert np.array_equal(a.read(via="dma"), want)
        a.scatter([0, 17], np.arange(6, dtype="f4").reshape(2, 3))
        want[:3], want[17:20] = (0, 1, 2), (3, 4, 5)
        assert np.array_equal(a.read(via="dma"), want)
        a.scatter([], np.empty(0, "f4"))
        a.scatter(np.array([40, 30], "u2"), 7)  # one value for all
        a.scatter([3, 5], np.array([1, 2], ">f4"))  # the same values, in the other byte order
        want[[30, 40]], want[3], want[5] = 7, 1, 2
        assert np.array_equal(a.read(via="dma"), want)
        a.view("u1").scatter([17], np.arange(6, dtype="u1").reshape(1, 6))  # bytes, anywhere
        want.view("u1")[17:23] = range(6)
        assert np.array_equal(a.read(via="dma"), want)


@pytest.mark.parametrize("mapped", [True, False])
def test_scattered_pieces_arrive_in_order(gd, mapped):
    want = np.zeros(3 * MIB, np.uint8)
    pieces = []
    for _ in range(400):
        size = int(2 ** RANDOM.uniform(0, 16)) - 1
        pieces.append((int(RANDOM.integers(0, want.size - size)), data(size)))
    pieces += [(5, b"bytes"), (7, bytearray(b"later")), (want.size, b""), (9, memoryview(b"last"))]
    for offset, piece in pieces:
        want[offset : offset + len(piece)] = np.frombuffer(piece, "u1")
    with gd.zeros(want.size, "u1", mapped=mapped) as a:
        a.scatter(pieces)
        assert np.array_equal(a.read(via="dma"), want)
        a.scatter([])


def test_scattered_pieces_cross_windows(gd, budget):
    want = np.zeros(40 * MIB, np.uint8)
    pieces = [(0, data(40 * MIB)), (3 * MIB, data(10 * MIB)), (100, data(20 * MIB)),
              (39 * MIB, data(MIB))]  # fmt: skip
    for offset, piece in pieces:
        want[offset : offset + len(piece)] = piece
    with gd.empty(40 * MIB, "u1") as a:
        a.scatter(pieces)
        assert np.array_equal(a.read(), want)


@pytest.mark.parametrize("mapped", [True, False])
def test_scatter_refuses_and_stores_nothing(gd, mapped):
    with gd.zeros(100, "i4", mapped=mapped) as a:
        ones = np.ones(2, "i4")
        for places in ([0, 100], [-1, 0], [0, 1 << 62], np.array([0, 1 << 63], "u8")):
            with pytest.raises(gd.RangeError):
                a.scatter(places, ones)
        one = b"1234"
        for pieces in ([(0, one), (100, one)], [(0, one), (-1, one)], [(0, one), (1 << 70, one)],
                       [(0, one), (0, bytes(404))], [(0, one), (99, ones)]):  # fmt: skip
            with pytest.raises(gd.RangeError, match="nothing was stored"):
                a.scatter(pieces)
        with pytest.raises(gd.ArgumentError, match="5 bytes are no whole number of int32"):
            a.scatter([(0, one), (0, bytes(5))])
        for places, items in (([0.0, 4.0], ones), ([[0, 4]], ones), ([0, 4], np.ones(2, "f4")),
                              (["a", "b"], ones), ([0, [1]], ones), ([0, 1], ["a", "b"])):  # fmt: skip
            with pytest.raises(gd.DTypeError):
                a.scatter(places, items)
        with pytest.raises(gd.ArgumentError, match="one item for each"):
            a.scatter([0, 4, 8], ones)
        with pytest.raises(gd.DTypeError, match="piece 1"):
            a.scatter([(0, b"1234"), 7])
        with pytest.raises(gd.DTypeError, match="piece 0"):
            a.scatter([(0, np.ones(2, "f4"))])
        with pytest.raises(gd.ArgumentError, match="strides"):
            a[::2].scatter([0, 4], ones)
        assert not a.read().any()
    with pytest.raises(gd.ClosedError):
        a.scatter([0, 4], ones)


def test_scatter_of_the_array_onto_itself(gd):
    with gd.zeros(100, "u1") as a:
        a.write(bytes(range(100)))
        a.scatter([(0, a.host[50:60]), (5, a.buffer[90:])])
        assert a.read()[:15].tolist() == [50, 51, 52, 53, 54, *range(90, 100)]
        a.scatter([20, 30], a.host[:10].reshape(2, 5))
        assert a.read()[30:35].tolist() == list(range(90, 95))
