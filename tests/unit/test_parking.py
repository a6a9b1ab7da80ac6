"""Services that nobody calls for long: nothing of them is queued, and the next call brings them back.

What only a GPU's relay does is forced in tests/native/relay_test.c.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import threading
import time

import pytest
from waiting import LONG, until

import gpudirect as gd

DEVICE = os.environ.get("GPUDIRECT_TEST_SERVICE_DEVICE", "emulated")
CALLS = int(os.environ.get("GPUDIRECT_PARKING_CALLS", 300))
SOURCE = """
__device__ int add(int a, int b) { return a + b; }
__device__ void count(unsigned *a) { atomicAdd(a, 1); }
__device__ unsigned all(unsigned *a) { atomicAdd(a, 1); gd_sync(); return *(volatile unsigned *)a; }
"""
FUNCTIONS = {"add": "thread", "count": "thread"}
SLICE, NAP_AFTER, PARK_AFTER = 2e-3, 2e-3, 6e-3


def serve(functions=FUNCTIONS, **options):
    given = {"slots": 16, "slice": SLICE, "nap_after": NAP_AFTER, "park_after": PARK_AFTER, "lifetime": 600}
    return gd.Service(SOURCE, functions, **{**given, "device": DEVICE, **options})


@pytest.fixture
def svc():
    with serve(lanes=2) as service:
        yield service


def parked(service):
    until(lambda: service.info.state == "parked", f"{service.info}")


def test_a_service_without_calls_is_parked_and_a_call_brings_it_back(svc):
    for n in range(10):
        parked(svc)
        assert svc.info.parks == n + 1
        launched = svc.info.slices
        time.sleep(5 * SLICE)
        assert (svc.info.slices, svc.info.state) == (launched, "parked"), "nothing is launched meanwhile"
        assert svc.call("add", n, 1, lane=n % 2, timeout=60) == n + 1
    assert svc.info.napped > 0


def test_nothing_is_queued_while_it_is_parked(svc):
    parked(svc)
    assert svc._resident.stream.idle()


def test_futures_maps_threads_and_coroutines_bring_it_back(svc):
    parked(svc)
    assert svc.submit("add", 1, 2).result(60) == 3
    parked(svc)
    assert list(svc.map("add", range(50), range(50))) == [2 * n for n in range(50)]
    parked(svc)
    found = []
    thread = threading.Thread(target=lambda: found.append(svc.call("add", 4, 5, timeout=60)))
    thread.start()
    thread.join(90)
    assert found == [9]
    parked(svc)

    async def called():
        return await svc.submit("add", 6, 7)

    assert asyncio.run(called()) == 13


def test_a_call_that_nobody_waits_for_is_run(svc):
    counter = gd.zeros(1, "u4", device=DEVICE)
    for n in range(1, 6):
        parked(svc)
        svc.submit("count", counter)
        until(lambda n=n: counter.read()[0] == n, f"call {n} was not run: {svc.info}")


def test_calls_at_the_moment_in_which_it_is_parked_are_run_once(svc):
    """At random around it, and just when it is seen to leave; half of them are not waited for."""
    counter, draw = gd.zeros(1, "u4", device=DEVICE), random.Random(5)
    relayed = svc._resident._relayed
    futures, began = [], time.monotonic()

    def enough(n):
        """A busy machine may hardly have parked it in so few."""
        return n >= CALLS and (svc.info.parks > CALLS // 20 or time.monotonic() > began + LONG)

    for n in itertools.takewhile(lambda n: not enough(n), itertools.count()):
        if n % 3:
            time.sleep(draw.uniform(0, 1.5 * (PARK_AFTER + NAP_AFTER)))
        else:
            state = gd._native.ffi.cast("struct gd_park *", relayed.park)
            end = time.monotonic() + 5 * PARK_AFTER
            while state.state == 0 and time.monotonic() < end:
                pass
        if n % 2:
            svc.call("count", counter, timeout=60)
        else:
            futures.append(svc.submit("count", counter))
    calls = n + 1
    until(lambda: counter.read()[0] == calls, f"{counter.read()[0]} of {calls} were run: {svc.info}")
    for future in futures:
        future.result(60)
    assert svc.info.parks > CALLS // 20, "it was hardly ever parked: the test shows nothing"
    assert counter.read()[0] == calls


def test_two_services_park_each_for_itself():
    # what is called all the time is late on a busy machine; it is counted from the last such call on
    called_for, often = 20 * PARK_AFTER, 0.4
    with serve(park_after=often) as one, serve() as two:
        end = time.monotonic() + LONG
        calls, parks = [time.monotonic()], one.info.parks
        while calls[-1] < calls[0] + called_for or two.info.state != "parked":
            assert one.call("add", 1, 1, timeout=60) == 2
            calls.append(time.monotonic())
            assert calls[-1] < end, f"{one.info} {two.info}"
            if calls[-1] - calls[-2] > often / 4:
                calls, parks = [calls[-1]], one.info.parks
        assert one.info.parks == parks
        assert two.call("add", 2, 2, timeout=60) == 4
        parked(one)
        parked(two)
        assert one.call("add", 3, 3, timeout=60) == 6


def test_a_lent_lane_keeps_the_service_from_being_parked(svc):
    parked(svc)
    lane, lib = svc.lend(1), gd._native.lib
    until(lambda: svc.info.state != "parked", "it did not come back")
    reply = gd._native.ffi.new("struct p2pmod_reply *")
    argument = (20).to_bytes(4, "little") + (22).to_bytes(4, "little")
    for _ in range(5):
        time.sleep(2 * (PARK_AFTER + NAP_AFTER))
        assert svc.info.state != "parked"
        assert lib.gd_lane_call(lane, svc.functions["add"].number, argument, 8, 60 * 10**9, reply) == 0
        assert reply.value == 42
    svc.stop()
    svc.start()
    parked(svc)


def test_a_parked_service_is_paused_stopped_and_started(svc):
    for _ in range(3):
        parked(svc)
        with svc.device.quiet():
            assert svc.info.state == "paused"
        assert svc.call("add", 1, 1, timeout=60) == 2
        parked(svc)
        svc.stop()
        assert (svc.info.state, svc.info.parks) == ("stopped", 0)
        svc.start()


def test_a_parked_service_whose_lifetime_is_over_says_so():
    for lifetime in (0.2, 1.6, 12.8):
        with serve(lifetime=lifetime) as svc:
            over = time.monotonic() + lifetime
            until(lambda svc=svc, over=over: svc.info.state == "parked" or time.monotonic() > over)
            was_parked = svc.info.state == "parked"
            time.sleep(max(over + 0.1 - time.monotonic(), 0))
            with pytest.raises(gd.ServiceError, match=r"lifetime of .* s is over|told to stop|stopped"):
                until(lambda svc=svc: svc.call("add", 1, 1, timeout=60) != 2, "its lifetime is over")
        if was_parked:  # else the machine was so busy that its life was over before
            return
    raise AssertionError(f"it was not parked in {lifetime} s")


def test_a_grid_comes_back():
    with serve({"all": "grid"}, blocks=3, threads=64) as svc:
        for _ in range(3):
            parked(svc)
            out = gd.zeros(1, "u4", device=DEVICE)
            assert svc.call("all", out, timeout=60) == 192


@pytest.mark.parametrize("options", [{"park_after": None}, {"nap_after": None}, {"slice": None}])
def test_without_parking_or_naps_it_is_never_parked(options):
    with serve(**options) as svc:
        assert svc.info.park_after is None
        time.sleep(4 * (PARK_AFTER + NAP_AFTER))
        assert svc.info.state != "parked" and svc.info.parks == 0


@pytest.mark.parametrize("park_after", [0, -1, 1e-9, float("nan"), float("inf"), "x", True, [1]])
def test_a_time_to_park_that_makes_no_sense_is_refused(park_after):
    with pytest.raises(gd.ArgumentError, match="park_after"):
        serve(park_after=park_after)


def test_where_threads_cannot_be_fenced_it_goes_on_napping(monkeypatch):
    """An old kernel, or a sandbox without membarrier(2)."""
    if DEVICE != "emulated":
        pytest.skip("the relay of a GPU is C: tests/native has it")
    from gpudirect.devices.emulation import relayed

    class Lib:
        def __getattr__(self, name):
            return (lambda: -38) if name == "gd_fence_all" else getattr(gd._native.lib, name)

    class Native:
        ffi, lib = gd._native.ffi, Lib()

    monkeypatch.setattr(relayed, "_native", Native)
    with serve() as svc:
        time.sleep(6 * (PARK_AFTER + NAP_AFTER))
        assert svc.info.parks == 0
        assert svc.call("add", 1, 1, timeout=60) == 2
