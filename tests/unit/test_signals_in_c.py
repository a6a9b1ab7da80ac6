"""What a signal's handler raises (Ctrl-C) in Python code that C called: it is raised to whoever called C,
whoever waits is told all the same, and results can still be asked for."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from concurrent.futures import wait

import numpy as np
import pytest
from interrupting import OURS, Interrupted
from waiting import inside, signalled, until

import gpudirect as gd
from gpudirect import _native

DEVICE = os.environ.get("GPUDIRECT_TEST_SERVICE_DEVICE", "emulated")
HANG = 60.0
SHUT, OPEN = np.zeros(1, "i4"), np.ones(1, "i4")

SOURCE = """
__device__ int add(int a, int b) { return a + b; }
__device__ int count(int *n) { return ++*n; }
__device__ int hold(volatile int *go) { while (!*go) __nanosleep(1000); return 1; }
__device__ int positive(int a) { gd_require(a > 0, -1); return a; }
"""


@pytest.fixture(scope="module")
def made():
    return gd.Service(SOURCE, ["add", "count", "hold", "positive"], device=DEVICE, lifetime=300, slots=4)


@pytest.fixture
def svc(made, monkeypatch):
    """Its thread that looks is not there: whoever calls sees what is over, and tells it."""
    monkeypatch.setattr(made._poller, "watch", lambda future: None)
    with made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_only_told(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: told.append(args.exc_value))
    yield
    assert not told


@pytest.fixture
def go():
    with gd.zeros(1, "i4", device=DEVICE) as word:
        yield word
        word.write(OPEN)


def replied(future):
    """Whether the reply is there, without taking it."""
    lane = future._awaited()
    awaited = _native.ffi.new("struct gd_awaited[]", [lane])
    word = _native.ffi.new("uint32_t *")
    address = int(_native.ffi.cast("uintptr_t", word))
    return _native.lib.gd_lane_wait_any(awaited, 1, address, 0, 0, 1000) >= 0


def interrupt(_):
    raise KeyboardInterrupt


ASKED = {
    "done": lambda svc, f: f.done(),
    "result": lambda svc, f: f.result(HANG),
    "exception": lambda svc, f: f.exception(HANG),
    "a callback more": lambda svc, f: f.add_done_callback(print),
    "pending": lambda svc, f: svc.pending,
    "call": lambda svc, f: svc.call("add", 5, 6),
    "submit": lambda svc, f: svc.submit("add", 5, 6),
    "lend": lambda svc, f: svc.lend(0),
    "stop": lambda svc, f: svc.stop(),
}


@pytest.mark.parametrize("what", ASKED)
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_it_is_raised_to_whoever_saw_that_a_call_was_over(svc, go, what, error):
    def first(_):
        raise error

    told = []
    future = svc.submit("hold", go)
    future.add_done_callback(told.append)
    future.add_done_callback(first)
    future.add_done_callback(told.append)
    go.write(OPEN)
    until(lambda: replied(future))
    with pytest.raises(error):
        ASKED[what](svc, future)
    assert told == [future, future]
    assert future.done() and future.result(0) == 1 and future.exception(0) is None
    told.clear()
    assert sys.getrefcount(future) == 2  # ours, and that of the question
    with svc:
        assert svc.call("add", 3, 4, timeout=HANG) == 7  # no lane is lent, none is full


@pytest.mark.parametrize("way", ["call", "submit"])
def test_a_call_that_raises_it_was_not_sent(svc, go, way):
    """It is seen where a place in a lane is looked for."""
    with gd.zeros(1, "i4", device=DEVICE) as n:
        future = svc.submit("hold", go)
        future.add_done_callback(interrupt)
        go.write(OPEN)
        until(lambda: replied(future))
        with pytest.raises(KeyboardInterrupt):
            getattr(svc, way)("count", n)
        assert svc.call("count", n) == 1


def test_a_callback_that_fails_is_logged_and_nobody_hears_of_it(svc, caplog):
    def fails(_):
        raise ValueError("mine")

    told = []
    future = svc.submit("add", 1, 2)
    future.add_done_callback(fails)
    future.add_done_callback(told.append)
    assert future.result(HANG) == 3 and told == [future]
    assert "mine" in caplog.text and "fails" in caplog.text


def test_an_interruption_is_raised_and_not_what_the_call_failed_with(svc, go):
    """The handler stops the service, so the call that is waited for fails as well."""
    future = svc.submit("hold", go)

    def handler(*_):
        svc._shut(gd.ServiceError("over"), None)
        raise KeyboardInterrupt

    def waits():
        return future.result(HANG)

    with pytest.raises(KeyboardInterrupt), signalled(handler, inside("waits")):
        waits()
    with pytest.raises(gd.ServiceError, match="over"):
        future.result(0)
    go.write(OPEN)


def test_what_a_handler_raises_is_not_taken_for_what_the_call_raised(svc, go):
    future = svc.submit("hold", go)

    def handler(*_):
        raise TimeoutError("an alarm")

    def waits():
        return future.exception(HANG)

    with pytest.raises(TimeoutError, match="alarm"), signalled(handler, inside("waits")):
        waits()
    with pytest.raises(gd.CallTimeoutError):
        future.exception(0)
    go.write(OPEN)
    assert future.exception(HANG) is None and future.result(0) == 1
    failed = svc.submit("positive", -1)
    assert isinstance(failed.exception(HANG), gd.Error) and failed.exception(0)


# -- at every place where Python can raise it --------------------------------------------------------


def raised_at(n, error, work, files=(OURS,)):
    """Whether the n-th place of these files was come to; it is an error if what is raised there is lost."""
    interrupted = Interrupted(n, error, files)
    try:
        with interrupted:
            work()
    except error:
        return True
    assert not interrupted.came, f"what was raised at place {n} is lost"
    return False


class Alarm(Exception):
    """As handlers of an alarm raise it."""


ERRORS = [KeyboardInterrupt, Alarm]


@pytest.mark.parametrize("error", ERRORS)
def test_an_await_ends_wherever_it_is_raised(svc, go, error):
    """In what wakes the loop: before it is called, in asyncio's own code, behind it."""
    async def result(future):
        return await future

    async def once(n):
        go.write(SHUT)
        future = svc.submit("hold", go)
        waiting = asyncio.ensure_future(result(future))
        await asyncio.sleep(0.001)
        assert not waiting.done()
        go.write(OPEN)
        until(lambda: replied(future))
        due = raised_at(n, error, future.done, (OURS, asyncio.__path__[0]))
        assert await asyncio.wait_for(waiting, HANG) == 1
        return due

    n = 1
    while asyncio.run(once(n)):
        n += 1
    assert n > 5


@pytest.mark.parametrize("error", ERRORS)
def test_those_in_wait_are_told_wherever_it_is_raised(svc, go, error):
    n, due = 1, True
    while due:
        go.write(SHUT)
        future = svc.submit("hold", go)
        found = []
        thread = threading.Thread(target=lambda f=future, to=found: to.append(wait([f], HANG)))
        thread.start()
        until(lambda f=future: f._waiters)
        go.write(OPEN)
        until(lambda f=future: replied(f))
        due = raised_at(n, error, future.done)
        thread.join(HANG)
        assert not thread.is_alive() and future in found[0].done and not found[0].not_done
        assert future.result(0) == 1
        n += 1
    assert n > 5


@pytest.mark.parametrize("error", ERRORS)
def test_a_call_with_an_array_loses_nothing(svc, error):
    with gd.zeros(1, "i4", device=DEVICE) as n:
        svc.call("count", n)  # from now on the quick way
        place = 1
        while raised_at(place, error, lambda: svc.call("count", n)):
            place += 1
        before = int(n.read()[0])
        assert svc.call("count", n) == before + 1


# -- values whose own code runs in a quick way of C ---------------------------------------------------


class Index:
    def __index__(self):
        raise KeyboardInterrupt


class Number:
    def __float__(self):
        raise KeyboardInterrupt


class Elements(np.ndarray):
    @property
    def dtype(self):
        raise KeyboardInterrupt


class Lent(np.ndarray):
    @property
    def base(self):
        raise KeyboardInterrupt


def with_array(code):
    def run(svc):
        with gd.zeros(8, "i4,f8", device=DEVICE) as a, gd.zeros(8, "i4", device=DEVICE) as b:
            code(a, b)

    return run


QUICK = {
    "lane": lambda svc: svc.call("add", 1, 2, lane=Index()),
    "lend": lambda svc: svc.lend(Index()),
    "timeout": lambda svc: svc.call("add", 1, 2, timeout=Number()),
    "timeout of a result": lambda svc: svc.submit("add", 1, 2).result(Number()),
    "dtype, write": with_array(lambda a, b: a.write(np.zeros(8, "i4,f8").view(Elements))),
    "dtype, read": with_array(lambda a, b: a.read(np.zeros(8, "i4,f8").view(Elements))),
    "base, gather": with_array(lambda a, b: b.gather(np.zeros(8, "i8").view(Lent))),
    "base, gather into": with_array(lambda a, b: b.gather(np.zeros(8, "i8"), np.zeros(8, "i4").view(Lent))),
    "base, scatter": with_array(lambda a, b: b.scatter(np.arange(8), np.zeros(8, "i4").view(Lent))),
}


@pytest.mark.parametrize("what", QUICK)
def test_a_quick_way_that_was_interrupted_is_not_followed_by_the_slow_one(svc, what):
    with pytest.raises(KeyboardInterrupt):
        QUICK[what](svc)
    assert svc.call("add", 1, 2, timeout=HANG) == 3


def test_a_thread_that_looks_goes_on_where_a_callback_ends_it(made, caplog):
    """Nobody called it: what it raised is logged, and the others are told."""

    def leave(_):
        raise SystemExit("leave")

    with made, gd.zeros(1, "i4", device=DEVICE) as go:
        future, event, later = made.submit("hold", go), threading.Event(), threading.Event()
        future.add_done_callback(leave)
        future.add_done_callback(lambda _: event.set())
        go.write(OPEN)
        assert event.wait(HANG) and future.result(HANG) == 1
        again = made.submit("hold", go)
        again.add_done_callback(lambda _: later.set())
        assert later.wait(HANG)
    assert "leave" in caplog.text
