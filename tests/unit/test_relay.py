"""Services across slices: the resident kernel ends and is launched again, and nobody notices.

The GPU counterpart, with other libraries beside it, is tests/gpu/test_neighbours.py.
"""

from __future__ import annotations

import gc
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from waiting import until

import gpudirect as gd
from gpudirect import _native
from gpudirect._keeper import keeper, patient

SOURCE = """
__device__ int add(int a, int b) { return a + b; }
__device__ void count(unsigned *a) { (*a)++; }
__device__ unsigned turn(unsigned *log, unsigned n) { unsigned at = log[0]++; log[1 + at] = n; return at; }
__device__ unsigned wait_for(volatile unsigned *flag)
{
    unsigned polls = 0;
    while (!*flag) { flag[1] = ++polls; __nanosleep(1000); }
    return polls;
}
__device__ float grid_sum(const float *a, int n, float *out)
{
    float mine = 0;
    for (unsigned i = gd_rank(); i < n; i += gd_size())
        mine += a[i];
    atomicAdd(out, mine);
    gd_sync();
    return *(volatile float *)out;
}
"""
QUICK = {"add": "thread", "count": "thread", "turn": "thread", "wait_for": "thread"}
SLICE = 2e-3


@pytest.fixture
def svc():
    with gd.Service(SOURCE, QUICK, lanes=2, slots=16, slice=SLICE, park_after=None,
                    lifetime=300) as service:  # fmt: skip
        yield service


def slices(service, at_least):
    """Wait until that many more launches were queued."""
    target, end = service.info.slices + at_least, time.monotonic() + 60
    while service.info.slices < target:
        assert time.monotonic() < end, f"{service.info.slices} launches, {target} awaited"
        time.sleep(1e-3)


def test_a_service_that_nobody_calls_is_launched_again_and_again(svc):
    slices(svc, 20)
    assert svc.call("add", 20, 22) == 42


def test_each_call_is_run_once_and_in_order_across_slices(svc):
    """More calls than a slice holds, sent ahead, while slices end."""
    end, rounds, before = time.monotonic() + 60, 0, svc.info.slices
    while rounds < 5 or svc.info.slices < before + 3:
        assert time.monotonic() < end, f"{rounds} rounds of calls, and {svc.info.slices - before} slices ended"
        log = gd.zeros(1001, "u4")
        turns = list(svc.map("turn", (log for _ in range(1000)), range(1000)))
        assert turns == list(range(1000)), "results are those of the calls, in their order"
        told = log.read()
        assert told[0] == 1000 and np.array_equal(told[1:], np.arange(1000))
        rounds += 1


def test_a_function_longer_than_a_slice_ends_none(svc):
    flag = gd.zeros(2, "u4")
    future = svc.submit("wait_for", flag, lane=0)
    until(lambda: flag.host[1])  # it runs, and waits
    for n in range(50):  # the other lane answers meanwhile
        assert svc.call("add", n, 1, lane=1, timeout=60) == n + 1
    flag.host[0] = 1
    flag.flush()
    assert future.result(60) > 0
    slices(svc, 5)
    assert svc.call("add", 1, 1, lane=0) == 2


def test_a_pause_stands_between_two_slices(svc):
    counter = gd.zeros(1, "u4")
    for _ in range(10):
        svc.call("count", counter)
        with svc.device.quiet():
            launched = svc.info.slices
            time.sleep(5 * SLICE)
            assert svc.info.slices == launched, "nothing is launched while the device is quiet"
        slices(svc, 2)
    assert counter.read()[0] == 10


def test_a_grid_team_goes_on_across_slices():
    a = gd.asarray(np.arange(1000, dtype="f4"))
    with gd.Service(SOURCE, {"grid_sum": "grid", "add": "thread"}, threads=64, blocks=3, slice=SLICE,
                    park_after=None, lifetime=300) as svc:  # fmt: skip
        for _ in range(10):
            out = gd.zeros(1, "f4")
            assert svc.call("grid_sum", a, 1000, out, timeout=60) == pytest.approx(499500)
            slices(svc, 2)
            assert svc.call("add", 2, 2, timeout=60) == 4


def test_several_services_share_the_clock():
    with (gd.Service(SOURCE, QUICK, slice=SLICE, park_after=None, lifetime=300) as one,
          gd.Service(SOURCE, QUICK, slice=10 * SLICE, park_after=None, lifetime=300) as two):  # fmt: skip
        counters = gd.zeros(2, "u4")
        for _ in range(20):
            for n, service in enumerate((one, two)):
                service.call("count", counters[n : n + 1], timeout=60)
            slices(two, 1)
        assert list(counters.read()) == [20, 20]

        def counted():
            """Of one, before and after two was looked at, however long that took; of two."""
            before, of_two = one.info.slices, two.info.slices
            return before, of_two, one.info.slices

        began = counted()
        slices(one, 10)
        ended = counted()
        least, most = ended[0] - began[2], ended[2] - began[0]
        assert least - 3 <= ended[1] - began[1] <= most + 3, "both are launched once a round"


def test_a_service_that_comes_and_goes_leaves_the_other_running(svc):
    for _ in range(5):
        with gd.Service(SOURCE, QUICK, slice=SLICE, lifetime=300) as other:
            assert other.call("add", 1, 2, timeout=60) == 3
            assert svc.call("add", 3, 4, timeout=60) == 7
        slices(svc, 3)
        assert svc.call("add", 5, 6, timeout=60) == 11


def test_a_started_service_goes_on_after_a_stop(svc):
    svc.stop()
    assert svc.info.slices == 0
    svc.start()
    slices(svc, 3)
    assert svc.call("add", 1, 1) == 2


def test_a_lifetime_counts_from_the_first_slice_on():
    for lifetime in (0.2, 1.6, 12.8):  # a busy machine may let one slice pass in it
        with gd.Service(SOURCE, QUICK, slice=SLICE, park_after=None, lifetime=lifetime) as svc:
            with pytest.raises(gd.ServiceError, match=rf"lifetime of {lifetime} s is over"):
                until(lambda svc=svc: svc.call("add", 1, 1, timeout=60) != 2 or time.sleep(5e-3))
            launched = svc.info.slices
            time.sleep(10 * SLICE)
            assert svc.info.slices == launched, "and no launch follows"
        if launched > 2:
            return
    raise AssertionError(f"{launched} launches in {lifetime} s")


def test_without_a_slice_one_launch_stays():
    with gd.Service(SOURCE, QUICK, slice=None, lifetime=300) as svc:
        time.sleep(5 * SLICE)
        assert svc.call("add", 1, 1) == 2
        assert svc.info.slice is None and (svc.info.slices, svc.info.late) == (1, 0)


def test_callers_on_all_lanes_lose_nothing(svc):
    """Calls from two threads, counted on the device, while slices end."""
    counters = gd.zeros(2, "u4")
    views = [counters[n : n + 1] for n in range(2)]
    failures: list[BaseException] = []

    def call(lane):
        try:
            for _ in range(2000):
                svc.call("count", views[lane], lane=lane, timeout=60)
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=call, args=(lane,)) for lane in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(110)
    assert not failures
    assert list(counters.read()) == [2000, 2000]


@pytest.mark.parametrize("slice", [0, -1, 1e-6, float("nan"), float("inf"), "x", True])
def test_a_slice_that_makes_no_sense_is_refused(slice):
    with pytest.raises(gd.ArgumentError, match="slice"):
        gd.Service(SOURCE, QUICK, slice=slice)


def test_a_slice_longer_than_the_lifetime_is_refused():
    with pytest.raises(gd.ArgumentError, match="slice is 2"):
        gd.Service(SOURCE, QUICK, slice=2, lifetime=1)


# -- naps --------------------------------------------------------------------------------------


def napping(service):
    until(lambda: service.info.state == "napping", f"{service.info}")


@pytest.fixture
def sleepy():
    with gd.Service(SOURCE, QUICK, lanes=2, slots=16, slice=SLICE, nap_after=SLICE, park_after=None,
                    lifetime=300) as service:  # fmt: skip
        yield service


def test_a_service_without_calls_naps_and_a_call_wakes_it(sleepy):
    for n in range(30):
        napping(sleepy)
        assert sleepy.call("add", n, 1, lane=n % 2, timeout=60) == n + 1


def test_until_the_time_to_nap_it_stays_awake():
    with gd.Service(SOURCE, QUICK, slice=SLICE, nap_after=60, lifetime=300) as svc:
        for n in range(20):
            assert svc.call("add", n, 1, timeout=60) == n + 1
            slices(svc, 1)
            assert svc.info.state == "awake"


def test_futures_maps_and_other_threads_wake_it(sleepy):
    napping(sleepy)
    assert sleepy.submit("add", 1, 2).result(60) == 3
    napping(sleepy)
    assert list(sleepy.map("add", range(100), range(100))) == [2 * n for n in range(100)]
    napping(sleepy)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda n: sleepy.call("add", n, n, timeout=60), range(50))) == [
            2 * n for n in range(50)
        ]


def test_a_caller_that_does_not_wait_is_served_within_slices(sleepy):
    """Fire and forget: the packet's own store of the wake word, or the waker."""
    counter = gd.zeros(1, "u4")
    lib, lane = _native.lib, sleepy.lend(1)
    argument = counter.ptr.to_bytes(8, "little")
    for n in range(1, 15):
        napping(sleepy)
        assert lib.gd_lane_submit(lane, sleepy.functions["count"].number, argument, 8) == 0
        until(lambda n=n: counter.read()[0] == n, f"call {n} was not run")


def test_a_wake_that_was_lost_is_made_up_for_by_the_waker(sleepy):
    """The packet alone, as if the kernel had decided to nap in the same moment."""
    counter = gd.zeros(1, "u4")
    lib, lane = _native.lib, sleepy.lend(1)
    lane.told = 0  # the sender knows nothing of naps
    argument = counter.ptr.to_bytes(8, "little")
    for n in range(1, 15):
        napping(sleepy)
        assert lib.gd_lane_submit(lane, sleepy.functions["count"].number, argument, 8) == 0
        until(lambda n=n: counter.read()[0] == n, f"call {n} was not run")


def test_one_naps_while_the_other_is_called():
    with (gd.Service(SOURCE, QUICK, slice=SLICE, nap_after=SLICE, lifetime=300) as one,
          gd.Service(SOURCE, QUICK, slice=SLICE, nap_after=SLICE, lifetime=300) as two):  # fmt: skip
        for n in range(20):
            end = time.monotonic() + 5 * SLICE
            while time.monotonic() < end:
                assert one.call("add", n, 1, timeout=60) == n + 1
            assert two.call("add", n, 2, timeout=60) == n + 2


def test_a_napping_service_stops_pauses_and_starts_again(sleepy):
    for _ in range(3):
        napping(sleepy)
        with sleepy.device.quiet():
            assert sleepy.info.state == "paused"
        assert sleepy.call("add", 1, 1, timeout=60) == 2
        napping(sleepy)
        sleepy.stop()
        assert sleepy.info.state == "stopped"
        sleepy.start()


def test_a_grid_team_is_woken():
    a = gd.asarray(np.arange(1000, dtype="f4"))
    with gd.Service(SOURCE, {"grid_sum": "grid"}, threads=64, blocks=3, slice=SLICE, nap_after=SLICE,
                    park_after=None, lifetime=300) as svc:  # fmt: skip
        for _ in range(10):
            napping(svc)
            out = gd.zeros(1, "f4")
            assert svc.call("grid_sum", a, 1000, out, timeout=60) == pytest.approx(499500)


def test_calls_at_random_moments_lose_nothing(sleepy):
    """Around the time to nap, so that packets come while the kernel makes up its mind."""
    counter = gd.zeros(1, "u4")
    draw = random.Random(7)
    for _ in range(300):
        sleepy.call("count", counter, timeout=60)
        time.sleep(draw.uniform(0, 2 * SLICE))
    assert counter.read()[0] == 300


def test_a_call_behind_a_nap_waits_for_no_slice():
    """However long that is: nobody makes up for a wake that is lost before it is over."""
    draw = random.Random(5)
    for _ in range(60):
        after = 10 ** draw.uniform(-3.5, -2)
        with gd.Service(SOURCE, QUICK, slice=120.0, nap_after=after, park_after=None, lifetime=300) as svc:
            for n in range(3):
                time.sleep(draw.uniform(0, 3 * after))
                start = time.monotonic()
                assert svc.call("add", n, 1, timeout=300) == n + 1
                assert time.monotonic() - start < 10


def test_without_naps_it_stays(svc):
    with gd.Service(SOURCE, QUICK, slice=SLICE, nap_after=None, lifetime=300) as awake:
        slices(awake, 10)
        assert awake.info.state == "awake" and awake.info.nap_after is None


@pytest.mark.parametrize("nap_after", [0, -1, 1e-9, float("nan"), "x", True])
def test_a_time_to_nap_that_makes_no_sense_is_refused(nap_after):
    with pytest.raises(gd.ArgumentError, match="nap_after"):
        gd.Service(SOURCE, QUICK, nap_after=nap_after)


def test_the_wake_word_goes_with_the_last_service():
    def held():
        return sum(h.in_use for h in gd.statistics() if h.device == gd.device().id)

    gd.synchronize()
    gc.collect()  # what other tests have dropped
    keeper.settle()
    patient.settle()
    before = held()
    with gd.Service(SOURCE, QUICK, slice=SLICE, lifetime=300) as one:
        with gd.Service(SOURCE, QUICK, slice=SLICE, lifetime=300) as two:
            assert one._resident._word is two._resident._word
        assert one.call("add", 1, 2, timeout=60) == 3
    gc.collect()
    until(lambda: held() == before, f"{held() - before} bytes are still held")


def test_a_service_that_ended_by_itself_goes_with_its_memory():
    """Its failure's traceback leads back to it: a collection takes both."""

    def held():
        return sum(h.in_use for h in gd.statistics() if h.device == gd.device().id)

    def serve():
        with gd.Service(SOURCE, QUICK, slice=SLICE, lifetime=0.1) as svc:
            with pytest.raises(gd.ServiceError):
                until(lambda: svc.call("add", 1, 1, timeout=60) != 2, "its lifetime is over")

    gc.collect()
    before = held()
    serve()
    gc.collect()
    until(lambda: held() == before, f"{held() - before} bytes are still held")
