"""gpudirect.Courier: what it moves is right, it is asked where it is faster, it ends and fails in order."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from alike import in_force, same
from waiting import LONG, until

import gpudirect as gd
from gpudirect import _native
from gpudirect._keeper import patient
from gpudirect._transfer import copies, couriers
from gpudirect.courier import _courier, _worker
from gpudirect.devices.base import Ordering
from gpudirect.limits import Limits
from gpudirect.service._life import Living

ROOT = Path(__file__).resolve().parents[2]
WORDS = 100_000


@pytest.fixture
def courier():
    with gd.Courier() as c:
        yield c


def made(dtype="i4", size=WORDS, **how):
    """An array on the device, and the same in ordinary memory."""
    raw = np.random.default_rng(3).integers(0, 256, size * np.dtype(dtype).itemsize, "u1")
    return gd.asarray(raw, **how).view(dtype), raw.view(dtype)


@pytest.fixture
def wakeful(monkeypatch):
    """One that never naps, however slow this machine is: then a little would go other ways."""
    monkeypatch.setattr(_worker, "NAP_AFTER", None)
    with gd.Courier() as c:
        yield c


def errands(courier, kind):
    return courier.info.errands[kind]


# -- what it moves -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 15, 16, 17, 4096, 32768, 32769, 65537, 200_001, 1_500_000])
def test_reads_of_every_size_and_alignment(courier, size):
    a, twin = made("u1", size + 40)
    for start in (0, 1, 5, 16):
        same(a.read(start=start, count=size, via="courier"), twin[start : start + size])
        for skip in (0, 1, start % 16):
            out = gd.pinned(size + 32, "u1")
            out[:] = 7
            part = out[skip : skip + size]
            a[start : start + size].read(part, via="courier")
            assert part.tobytes() == twin[start : start + size].tobytes()
            assert (out[:skip] == 7).all() and (out[skip + size :] == 7).all()


def test_a_read_of_many_parts_beside_a_slow_reader(courier):
    a, twin = made("i8", 400_000)
    out = np.empty(400_000, "i8")
    for _ in range(3):
        out[:] = 0
        assert a.read(out, via="courier") is out
        same(out, twin)


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8", "c16", ">u4", "S3", "i4,f8", "V24", "S1000"])
def test_gathers_of_elements_of_every_size(courier, dtype):
    a, twin = made(dtype, 3000)
    at = np.random.default_rng(4).integers(-3000, 3000, (7, 100))
    same(a.gather(at, via="courier"), twin[at])
    out = gd.pinned((7, 100), dtype)
    a.gather(at, out, via="courier")
    same(out.copy(), twin[at])


def test_a_gather_of_many_indices(courier):
    a, twin = made()
    at = np.random.default_rng(5).integers(-WORDS, WORDS, 300_000)
    same(a.gather(at, via="courier"), twin[at])


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8", "c16", "S3", "i4,f8"])
def test_scatters_of_elements_of_every_size(courier, dtype):
    a, twin = made(dtype, 3000)
    draw = np.random.default_rng(6)
    for at in (draw.permutation(3000)[:500], np.arange(0, 3000, 7), np.arange(2999, 0, -3)):
        items = draw.integers(0, 256, len(at) * a.itemsize, "u1").view(dtype)
        a.scatter(at, items, via="courier")
        twin = twin.copy()
        twin[at] = items
        same(a.read(via="map"), twin)


def test_of_items_for_one_place_the_last_one_stays(courier):
    """Within one call of the kernel, and from one to the next."""
    a, twin = made("i4", 500)
    draw = np.random.default_rng(7)
    for count in (2, 40, 1000, 30_000):
        at, items = draw.integers(0, 500, count), draw.integers(0, 1 << 30, count, "i4")
        a.scatter(at, items, via="courier")
        for i, v in zip(at.tolist(), items.tolist(), strict=True):
            twin[i] = v
        same(a.read(via="map"), twin)
    a.scatter(np.zeros(5000, int), np.full(5000, 3, "i4"), via="courier")
    assert a.gather([0]) == 3


def test_rows_that_overlap_are_stored_in_order(courier):
    a, twin = made("i2", 4000)
    draw = np.random.default_rng(8)
    at, rows = draw.integers(0, 3990, 700), draw.integers(0, 9999, (700, 5), "i2")
    for places in (at, np.sort(at), np.arange(0, 3500, 5), np.arange(0, 700, 1)):
        a.scatter(places, rows, via="courier")
        for i, row in zip(places.tolist(), rows, strict=True):
            twin[i : i + 5] = row
        same(a.read(via="map"), twin)


def test_one_value_for_many_places(courier):
    a, twin = made("f4", 5000)
    at = np.random.default_rng(9).integers(0, 5000, 3000)
    a.scatter(at, 1.5, via="courier")
    twin[at] = 1.5
    same(a.read(via="map"), twin)


@pytest.mark.parametrize("cut", [
    np.s_[::7, :, :, :], np.s_[:, 3, :, ::2], np.s_[..., 0], np.s_[::-1, ::2, 1:4, :],
    np.s_[2:9:3, ::-2, ::-1, 4:],
    np.s_[:, :, 2:5, :], np.s_[3, 2, ::2, 1], np.s_[5:5, ::2, :, :], np.s_[1:, :5, :, 1:],
])  # fmt: skip
@pytest.mark.parametrize("dtype", ["u1", "f4", "c16", "S3"])
def test_strided_arrays_are_read_and_written(courier, cut, dtype):
    a, twin = made(dtype, 11 * 6 * 5 * 8)
    a, twin = a.reshape(11, 6, 5, 8), twin.reshape(11, 6, 5, 8).copy()
    same(a[cut].read(via="courier"), np.ascontiguousarray(twin[cut]))
    new = np.random.default_rng(10).integers(0, 256, twin.nbytes, "u1").view(dtype).reshape(twin.shape)[cut]
    if not a[cut].contiguous:
        a[cut].write(new, via="courier")
        twin[cut] = new
        same(a.read(via="map"), twin)


def test_a_large_strided_array_goes_in_parts(courier):
    a, twin = made("i4", 300_000)
    part, wanted = a.reshape(1000, 300)[:, 1:251], twin.reshape(1000, 300)[:, 1:251]
    same(part.read(via="courier"), np.ascontiguousarray(wanted))
    out = gd.pinned((1000, 250), "i4")
    part.read(out, via="courier")
    same(out.copy(), np.ascontiguousarray(wanted))
    part.write(wanted + 1, via="courier")
    assert np.array_equal(part.read(via="map"), wanted + 1)
    same(a.reshape(1000, 300)[:, 0].read(via="map"), np.ascontiguousarray(twin.reshape(1000, 300)[:, 0]))


def test_five_dimensions_that_do_not_merge_are_refused_or_go_another_way(courier):
    a = gd.zeros((4, 4, 4, 4, 4, 4), "u1")[::2, ::2, ::2, ::2, ::2, ::2]
    with pytest.raises(gd.ArgumentError, match="dimensions"):
        a.read(via="courier")
    assert not a.read().any()


def test_arrays_that_are_not_mapped(courier):
    a, twin = made("i4", 50_000, mapped=False)
    at = np.random.default_rng(11).integers(-50_000, 50_000, 900)
    same(a.read(via="courier"), twin)
    same(a.gather(at, via="courier"), twin[at])
    same(a[::3].read(via="courier"), twin[::3].copy())
    a.scatter(at % 50_000, np.arange(900, dtype="i4"), via="courier")
    a[1::2].write(np.arange(25_000, dtype="i4"), via="courier")
    twin[at % 50_000] = np.arange(900)
    twin[1::2] = np.arange(25_000)
    same(a.read(via="dma"), twin)


def test_arrays_of_so_many_elements_that_an_index_takes_eight_bytes(courier):
    a, twin = made("i4", 5000)
    at, extent = np.random.default_rng(12).integers(0, 5000, 3000), a._extent()
    out, cast, lib = np.empty(3000, "i4"), _native.ffi.cast, _native.lib
    places = cast("int64_t *", copies.address_of(at))
    there = cast("char *", copies.address_of(out))
    assert couriers.errand(extent, True, out, lambda c, how, left: lib.gd_courier_gather(
        c, there, extent.address, 1 << 33, places, 3000, 4, how, left))  # fmt: skip
    same(out, twin[at])
    out[:] = np.arange(3000)
    assert couriers.errand(extent, True, out, lambda c, how, left: lib.gd_courier_scatter(
        c, extent.address, 1 << 33, 4, places, 3000, there, 4, how, left))  # fmt: skip
    twin[at] = out
    same(a.read(via="map"), twin)


# -- when it is asked ----------------------------------------------------------------------------


def test_it_is_asked_where_it_is_faster_and_nowhere_else(wakeful):
    courier = wakeful
    a, twin = made("u1", 1 << 20)
    with in_force(a, courier_pageable=(1000, 50_000), courier_pinned=(100, 2000), courier_gather=50,
                  courier_scatter=80):  # fmt: skip
        locked = gd.pinned(1 << 20, "u1")
        for size, out, asked in ((999, None, 0), (1000, None, 1), (50_000, None, 1), (50_001, None, 0),
                                 (99, locked, 0), (100, locked, 1), (2000, locked, 1),
                                 (51_000, locked, 0)):  # fmt: skip
            out = np.empty(size, "u1") if out is None else out[:size]
            part = a[:size]
            for via in (None, "map", "dma"):
                before = errands(courier, "reads")
                part.read(out, via=via)
                assert errands(courier, "reads") - before == (asked if via is None else 0), (size, via)
                same(np.asarray(out), twin[:size])
        for count, asked in ((49, 0), (50, 1)):
            before = errands(courier, "gathers"), errands(courier, "strided reads")
            a.gather(np.arange(count))
            a[: 2 * count : 2].read()
            after = errands(courier, "gathers"), errands(courier, "strided reads")
            assert (after[0] - before[0], after[1] - before[1]) == (asked, asked)
        for count, asked in ((79, 0), (80, 1)):
            before = errands(courier, "scatters"), errands(courier, "strided writes")
            a.scatter(np.arange(count), np.zeros(count, "u1"))
            a[: 2 * count : 2].write(np.zeros(count, "u1"))
            after = errands(courier, "scatters"), errands(courier, "strided writes")
            assert (after[0] - before[0], after[1] - before[1]) == (asked, asked)


def test_a_little_does_not_wait_for_one_that_naps_and_wakes_it(courier):
    a, twin = made("u1", 8000)
    service = courier._worker._service
    end = time.monotonic() + 60
    with in_force(a, courier_pageable=(1, 1 << 30)):
        while service.info.state != "napping":
            assert time.monotonic() < end
            time.sleep(1e-3)
        before, out = errands(courier, "reads"), np.empty(8000, "u1")
        a.read(out)
        same(out, twin)
        if errands(courier, "reads") == before:  # else somebody had just woken it
            while errands(courier, "reads") == before:
                assert time.monotonic() < end
                a.read(out)
        same(out, twin)


def test_without_one_via_says_what_to_do():
    a, _ = made()
    for call in (lambda: a.read(via="courier"), lambda: a.gather([1], via="courier"),
                 lambda: a.scatter([1], 1, via="courier"), lambda: a[::2].read(via="courier"),
                 lambda: a[::2].write(a[::2].read(), via="courier"),
                 lambda: a.read(np.empty(WORDS, "i4"), via="courier")):  # fmt: skip
        with pytest.raises(gd.ServiceError, match=r"gpudirect\.Courier"):
            call()


def test_what_it_does_not_do_is_refused(courier):
    a, _ = made("u1")
    with pytest.raises(gd.ArgumentError, match="strided"):
        a.write(np.zeros(9, "u1"), via="courier")
    with pytest.raises(gd.ArgumentError, match="one length"):
        a.scatter([(1, b"a")], via="courier")
    with pytest.raises(gd.ArgumentError, match="4096 bytes"):
        a.scatter([0], np.zeros((1, 5000), "u1"), via="courier")
    with pytest.raises(gd.ArgumentError, match="via"):
        a.scatter([0], [1], via="dma")
    with pytest.raises(gd.ArgumentError, match="via"):
        a[::2].read(via="pigeon")
    big = gd.zeros(4, "V5000")
    with pytest.raises(gd.ArgumentError, match="4096 bytes"):
        big.gather([0], via="courier")
    with in_force(big, courier_gather=0, courier_scatter=0):
        assert not np.any(big.gather([0, 1, 2]).view("u1"))
        a.scatter([0], np.ones((1, 5000), "u1"))
    assert a[:5000].read().all()


@pytest.mark.parametrize("wrong", [{"courier_pageable": (1,)}, {"courier_pinned": (-1, 4)},
                                   {"courier_gather": -1}, {"courier_scatter": 1.5},
                                   {"courier_pageable": 5}])  # fmt: skip
def test_limits_that_make_no_sense_are_refused(wrong):
    with pytest.raises(gd.ArgumentError, match=next(iter(wrong))):
        Limits(**wrong)


# -- order -------------------------------------------------------------------------------------

KERNELS = """
__global__ void add(int *a, int n, int v) { for (int i = 0; i < n; i++) a[i] += v; }
__global__ void sum(const int *a, int n, int *to) { int s = 0; for (int i = 0; i < n; i++) s += a[i]; *to = s; }
"""


def test_stores_before_and_kernels_before_and_behind(courier):
    add, total = gd.kernel(KERNELS, "add"), gd.kernel(KERNELS, "sum")
    a, to = gd.zeros(1000, "i4"), gd.zeros(1, "i4")
    at = np.arange(0, 1000, 3)
    for v in range(1, 20):
        a.host[:] = v
        assert (a.read(via="courier") == v).all()
        add[1, 1](a, 1000, 5)
        assert (a.read(via="courier") == v + 5).all()
        add[1, 1](a, 1000, 5)
        assert (a.gather(at, via="courier") == v + 10).all()
        add[1, 1](a, 1000, 5)
        assert (a[::2].read(via="courier") == v + 15).all()
        a.scatter(at, np.full(len(at), 7, "i4"), via="courier")
        total[1, 1](a, 1000, to)
        assert to.read()[0] == 7 * len(at) + (v + 15) * (1000 - len(at))
        a.host[at[0]] = 8  # a store behind the courier's
        assert a.gather(at[:2], via="courier").tolist() == [8, 7]


def test_many_callers_at_once(courier):
    a = gd.zeros(8 * 3000, "i4")
    failed = []

    def work(number):
        try:
            mine, draw = a[number * 3000 : (number + 1) * 3000], np.random.default_rng(number)
            twin = np.zeros(3000, "i4")
            for turn in range(12):
                at, items = draw.integers(0, 3000, 800), draw.integers(0, 1 << 30, 800, "i4")
                mine.scatter(at, items, via=(None, "courier")[turn % 2])
                for i, v in zip(at.tolist(), items.tolist(), strict=True):
                    twin[i] = v
                same(mine.read(via=(None, "courier")[turn // 2 % 2]), twin)
                same(mine.gather(at, via="courier"), twin[at])
                same(mine[::3].read(via="courier"), twin[::3].copy())
        except BaseException as e:
            failed.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert not failed and not any(t.is_alive() for t in threads)


# -- its life ------------------------------------------------------------------------------------


def test_a_second_one_shares_the_first():
    one, two = gd.Courier(seats=1), gd.Courier(seats=4)
    assert not one.running and one.info.state == "stopped"
    with one:
        with pytest.raises(gd.ServiceError, match="already"):
            one.start()
        with two:
            assert two.info.seats == 1 and two.info.shared == one.info.shared == 2
            assert two._worker is one._worker
        assert one.running and not two.running
        a, twin = made("i4", 100)
        same(a.read(via="courier"), twin)
        two.start()
        one.stop()
        one.stop()
        same(a.read(via="courier"), twin)
    two.stop()
    with pytest.raises(gd.ServiceError):
        a.read(via="courier")
    assert "stopped" in repr(one) and "emulated" in repr(one)
    with one:
        same(a.read(via="courier"), twin)
        assert "running" in repr(one)


def test_one_that_is_dropped_is_stopped():
    gd.Courier().start()
    gc.collect()
    patient.settle()
    a, _ = made("i4", 10)
    with pytest.raises(gd.ServiceError, match="none runs"):
        a.read(via="courier")
    assert not _courier._workers


def test_its_memory_goes_back():
    with gd.Courier():
        pass
    before = [(s.device, s.in_use) for s in gd.statistics()]
    for _ in range(3):
        with gd.Courier():
            pass
    assert [(s.device, s.in_use) for s in gd.statistics()] == before


def test_closed_while_others_read():
    a, twin = made("i4", 30_000)
    done, failed, refused = threading.Event(), [], []

    def work(via):
        out = np.empty(30_000, "i4")
        while not done.is_set():
            try:
                out[:] = -1
                a.read(out, via=via)
                same(out, twin)
                same(a.gather(np.arange(0, 30_000, 5), via=via), twin[::5].copy())
            except gd.ServiceError as e:
                refused.append(e)
            except BaseException as e:
                failed.append(e)
                return

    threads = [threading.Thread(target=work, args=(via,)) for via in (None, None, "courier", "courier")]
    for t in threads:
        t.start()
    for _ in range(5):
        with gd.Courier():
            time.sleep(0.05)
        time.sleep(0.01)
    until(lambda: refused or failed)  # none runs now: whoever asks for one by name is refused
    done.set()
    for t in threads:
        t.join(120)
    assert not failed and not any(t.is_alive() for t in threads)
    assert refused and all("courier" in str(e) for e in refused)


@pytest.mark.parametrize("wrong", [0, -1, 9, 1.5, "2", True, None])
def test_seats_that_make_no_sense(wrong):
    with pytest.raises(gd.ArgumentError, match="seats"):
        gd.Courier(seats=wrong)


def test_a_device_that_promises_no_order(monkeypatch):
    device = gd.device()
    monkeypatch.setattr(device, "ordering", Ordering(True, True, "none"), raising=False)
    with pytest.raises(gd.ServiceError, match="order"):
        gd.Courier().start()
    assert not _courier._workers


def can_be_revoked(a, monkeypatch):
    """Memory such as the array's, and arrays that are made of it from now on."""
    guarded = a.device.copying(True)
    monkeypatch.setattr(type(a._piece), "revocable", property(lambda self: True))
    monkeypatch.setattr(type(a._piece), "copying", property(lambda self: guarded))


def test_memory_that_was_revoked(courier, monkeypatch):
    a, _ = made("i4", 5000)
    can_be_revoked(a, monkeypatch)
    monkeypatch.setattr(type(a._piece), "revoked", lambda self: True)
    b = a[:5000]  # made with what the memory says of itself now
    at, items = np.arange(5), np.arange(5, dtype="i4")
    for call in (lambda: b.read(via="courier"), lambda: b.gather([1], via="courier"),
                 lambda: b.gather(at, via="courier"), lambda: b.scatter(at, items, via="courier"),
                 lambda: b.scatter([1], 1, via="courier"), lambda: b[::2].read(via="courier")):  # fmt: skip
        before = dict(courier.info.errands)
        with pytest.raises(gd.RevokedError):
            call()
        assert courier.info.errands == before


def test_memory_that_can_be_revoked_is_given_to_it_only_by_name(courier, monkeypatch):
    a, twin = made("i4", 5000)
    can_be_revoked(a, monkeypatch)
    b = a[:5000]
    with in_force(a, courier_pageable=(0, 1 << 30), courier_gather=0, courier_scatter=0):
        before, out = dict(courier.info.errands), np.empty(5000, "i4")
        same(b.read(out), twin)
        b.gather([1, 2])
        b.gather(np.arange(9))
        b.scatter([1], twin[[1]])
        b.scatter(np.array([1]), twin[[1]])
        b[::2].read()
        assert courier.info.errands == before
        same(b.read(via="courier"), twin)


def test_while_the_device_is_quiet_other_ways_are_taken(wakeful):
    courier = wakeful
    a, twin = made("i4", 5000)
    with in_force(a, courier_pageable=(0, 1 << 30), courier_gather=0):
        with gd.device().quiet():
            before, out = dict(courier.info.errands), np.empty(5000, "i4")
            assert courier.info.state == "paused"
            same(a.read(out), twin)
            same(a.gather(np.arange(99)), twin[:99])
            assert courier.info.errands == before
        same(a.read(via="courier"), twin)


def test_one_asked_for_by_name_waits_until_the_device_is_no_longer_quiet(courier):
    a, twin = made("i4", 5000)
    found = []
    thread = threading.Thread(target=lambda: found.append(a.read(via="courier")))
    with gd.device().quiet():
        thread.start()
        time.sleep(0.1)
        assert not found
    thread.join(60)
    same(found[0], twin)


@contextmanager
def paused_under_way(courier):
    """The kernel is gone, and nobody was told: what is asked now takes long."""
    service = courier._worker._service
    assert Living._pause(service)
    try:
        yield
    finally:
        Living._resume(service)


@contextmanager
def elsewhere(work, *given):
    """Something done by another thread meanwhile; it is over at the end. What it gave, in a list."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work(*given)))
    thread.start()
    try:
        yield found
    finally:
        thread.join(LONG)
    assert not thread.is_alive()


def begun(courier, count):
    """Wait until so many errands have been."""
    until(lambda: sum(courier.info.errands.values()) >= count, "the errand was not begun")


LONG_ERRANDS = {
    "read": lambda a, at, out: a.read(out, via="courier"),
    "read by Python": lambda a, at, out: a.read(out, synchronize=True, via="courier"),
    "gather": lambda a, at, out: a.gather(at, out, via="courier"),
    "gather by Python": lambda a, at, out: a.gather(at.tolist(), out, via="courier"),
    "scatter": lambda a, at, out: a.scatter(at, out, via="courier"),
    "scatter by Python": lambda a, at, out: a.scatter(at.tolist(), out, via="courier"),
}


def long_errand(what, locked):
    """(what is to be done, what shows that it was), of an errand that is not begun."""
    a, twin = made("i4", 50_000)
    at = np.random.default_rng(13).permutation(50_000)
    out = gd.pinned(50_000, "i4") if locked else np.empty(50_000, "i4")
    out[:] = np.arange(50_000)

    def arrived():
        if what.startswith("scatter"):
            twin[at] = out
            return np.array_equal(a.read(via="map"), twin)
        return np.array_equal(out, twin[at] if what.startswith("gather") else twin)

    return lambda: LONG_ERRANDS[what](a, at, out), arrived


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("what", LONG_ERRANDS)
def test_an_errand_that_takes_long_is_waited_for(courier, what, locked):
    do, arrived = long_errand(what, locked)
    with contextlib.ExitStack() as held:
        with paused_under_way(courier):
            found = held.enter_context(elsewhere(do))
            begun(courier, 1)
            time.sleep(0.15)
            assert not found
    assert len(found) == 1 and arrived()


@pytest.mark.parametrize("what", LONG_ERRANDS)
def test_an_interruption_comes_when_the_errand_is_over(courier, what):
    """The device may store to the destination until then."""
    do, arrived = long_errand(what, True)

    def stop(*_):
        raise KeyboardInterrupt

    def resume_behind_it(resumed):
        begun(courier, 1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)
        time.sleep(0.2)
        resumed.close()

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with contextlib.ExitStack() as held:
            held.enter_context(paused_under_way(courier))
            with elsewhere(resume_behind_it, held), pytest.raises(KeyboardInterrupt):
                do()
        assert arrived(), "it was raised while the device was still at it"
    finally:
        signal.signal(signal.SIGALRM, before)


def test_one_that_cannot_be_stopped_goes_on(courier, monkeypatch):
    """Whoever has the device quiet meanwhile, as code that is unloaded has, does not bring it back."""
    monkeypatch.setattr(_worker, "STOP_TIMEOUT", 0.1)
    a, twin = made("i4", 5000)

    def make_quiet():
        with gd.device().quiet():
            pass

    with contextlib.ExitStack() as held:
        with paused_under_way(courier):
            found = held.enter_context(elsewhere(lambda: a.read(via="courier")))
            begun(courier, 1)
            with elsewhere(make_quiet):
                pass
            assert courier.info.state == "paused"
            with pytest.raises(gd.ServiceError, match="not over within"):
                courier.stop()
            assert not found
    same(found[0], twin)
    assert courier.running
    same(a.read(via="courier"), twin)


# -- in processes of their own -------------------------------------------------------------------


def program(source):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_fault_of_the_device_is_told_and_nobody_hangs():
    said = program("""
        import numpy as np, gpudirect as gd
        a = gd.zeros(50_000, "i4")
        c = gd.Courier().start()
        a.read(via="courier")
        wild = gd.kernel("__global__ void wild(int *p) { p[1ll << 40] = 1; }", "wild")
        wild[1, 1](a)
        for read in (lambda: a.read(via="courier", synchronize=False), lambda: a.gather([1], via="courier"),
                     lambda: a.read(np.empty(50_000, "i4"), synchronize=False)):
            try:
                read()
            except gd.Error as e:
                print(type(e).__name__)
        c.stop()
    """)
    assert said.split() and {*said.split()} <= {"DeviceLostError", "ServiceError", "LaunchError", "DeviceError"}


def test_a_child_of_fork_has_none():
    said = program("""
        import os, warnings
        import numpy as np, gpudirect as gd
        warnings.simplefilter("ignore")
        a, p = gd.zeros(5000, "i4"), gd.pinned(5000, "i4")
        c = gd.Courier().start()
        a.read(via="courier")
        child = os.fork()
        if not child:
            code = 1
            try:
                assert not c.running
                try:
                    a.read(via="courier")
                except gd.ForkError:
                    pass
                c.stop()
                b = gd.asarray(np.arange(5000, dtype="i4"))
                try:
                    b.read(via="courier")
                except gd.ServiceError:
                    pass
                with gd.Courier():
                    assert np.array_equal(b.read(via="courier"), np.arange(5000))
                    q = gd.pinned(5000, "i4")
                    b.read(q, via="courier")
                    assert np.array_equal(q, np.arange(5000))
                code = 0
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not a.read(via="courier").any()
        print("fine")
    """)
    assert said.split() == ["fine"]


def test_a_process_may_end_with_one_running_and_threads_reading():
    program("""
        import threading, time
        import numpy as np, gpudirect as gd
        a = gd.zeros(50_000, "i4")
        gd.Courier().start()
        c = gd.Courier().start()
        def work():
            out = np.empty(50_000, "i4")
            while True:
                a.read(out)
                a.gather([1] * 50)
        for _ in range(3):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.3)
    """)


def test_page_locked_memory_is_known_while_it_is_there():
    def known(address, n, owner=1):
        return _native.lib.gd_locked(_native.ffi.cast("char *", address), n, owner)

    lib, at = _native.lib, 1 << 52  # nobody has memory there
    assert not lib.gd_locked_add(at, 4096, 1) and not lib.gd_locked_add(at + 8192, 4096, 0)
    try:
        assert known(at, 4096) and known(at + 4095, 1) and not known(at, 4097) and not known(at - 1, 2)
        assert not known(at, 4096, 2) and known(at + 8192, 10, 2) and not known(at + 4096, 1)
    finally:
        lib.gd_locked_remove(at)
        lib.gd_locked_remove(at + 8192)
    assert not known(at, 1) and not known(at + 8192, 1)
    p = gd.pinned(100, "u1")
    assert known(p.ptr, 100) and not known(np.empty(100).ctypes.data, 100)


def test_the_program_of_the_page_runs_as_it_stands():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "couriers.md").read_text(), re.DOTALL)
    found: dict = {}
    exec(compile(code, "couriers.md", "exec"), found)
    wanted = np.arange(1 << 16, dtype="i4")
    assert np.array_equal(found["found"], wanted[found["indices"]])
    wanted[found["indices"]] += 1
    assert np.array_equal(found["out"], wanted)
    assert np.array_equal(found["column"], wanted.reshape(256, 256)[:, 3])
