"""What calls hold, and how services end and start again: under callbacks, threads and signals."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
from waiting import inside, signalled, until

import gpudirect as gd
from gpudirect._keeper import patient

DEVICE = os.environ.get("GPUDIRECT_TEST_SERVICE_DEVICE", "emulated")
LIFETIME = 300.0  # seconds: a test that breaks off leaves no kernel behind
HANG = 60.0  # seconds that only a hang exceeds

SOURCE = """
__device__ int add(int a, int b) { return a + b; }
__device__ int positive(int a) { gd_require(a > 0, -1); return a; }
__device__ int hold(volatile int *go) { while (!*go) __nanosleep(1000); return 1; }
__device__ int put(volatile int *go, int *to, int value)
{
    while (!*go)
        __nanosleep(1000);
    *to = value;
    return to[1];
}
"""
FUNCTIONS = ["add", "positive", "hold", "put"]


def service(**options):
    return gd.Service(SOURCE, FUNCTIONS, **{"device": DEVICE, "lifetime": LIFETIME, **options})


@pytest.fixture(scope="module")
def made():
    return service(lanes=2, slots=16)


@pytest.fixture
def kept(made):
    """Stopped; and so it is left, however the test ends."""
    yield made
    made.stop()


@pytest.fixture
def svc(kept):
    with kept:
        yield kept


@contextlib.contextmanager
def gate():
    """A word on the device, and what opens it for functions that wait for it."""
    with gd.zeros(1, "i4", device=DEVICE) as go:

        def release():
            go.host[0] = 1
            go.flush()

        try:
            yield go, release
        finally:
            release()


# -- a call holds the memory itself --------------------------------------------------------------


def taken(piece_at, count=64):
    """Arrays made now, and whether one of them got the memory at an address."""
    arrays = [gd.zeros(2, "i4", device=DEVICE) for _ in range(count)]
    return arrays, any(a.ptr == piece_at for a in arrays)


@pytest.mark.parametrize("how", ["submit", "map", "timeout", "dropped", "long way"])
def test_memory_of_a_call_is_not_handed_on(svc, how):
    with gate() as (go, release):
        a = gd.asarray(np.array([7, 8], "i4"), device=DEVICE)
        at, future = a.ptr, None
        if how != "long way":  # from now on arrays go the quick way
            release()
            svc.call("put", go, a, 7)
            go.host[0] = 0
            go.flush()
        if how == "timeout":
            with pytest.raises(gd.CallTimeoutError):
                svc.call("put", go, a, 9, timeout=0.001, lane=0)
        elif how == "map":
            results = svc.map("put", [go] * 2, [a] * 2, [9, 9])
            thread = threading.Thread(target=lambda: list(results))
            thread.start()
            until(lambda: sum(svc.pending) == 2)
        else:
            future = svc.submit("put", go, a, 9, lane=0)
        if how == "dropped":
            a = future = None
            gc.collect()
        else:
            a.close()
        others, same = taken(at)
        assert not same, "the memory was handed on while a function may write to it"
        release()
        svc.call("add", 1, 1, timeout=HANG, lane=0)
        assert all((b.read() == 0).all() for b in others)
        if how == "map":
            thread.join(HANG)
        elif how in ("submit", "long way"):
            assert future.result(HANG) == 8
        future = results = None
    gc.collect()
    with gate():  # and given back when the call is over
        until(lambda: svc.pending == (0, 0))
        assert taken(at, 256)[1]


def test_a_with_block_left_while_its_array_is_used(svc):
    with gate() as (go, release):
        with gd.asarray(np.array([1, 5], "i4"), device=DEVICE) as a:
            future = svc.submit("put", go, a, 2)
            at = a.ptr
        others, same = taken(at)
        assert not same
        release()
        assert future.result(HANG) == 5
        assert all((b.read() == 0).all() for b in others)


def test_registered_arrays_hold_the_memory():
    a = gd.asarray(np.array([3, 4], "i4"), device=DEVICE)
    at = a.ptr
    b = gd.register(a)
    a.close()
    others, same = taken(at)
    assert not same
    assert b.read().tolist() == [3, 4]
    b.close()
    del others, b
    gc.collect()
    assert taken(at, 256)[1]


def test_numbers_are_let_go(svc):
    class Number:
        def __index__(self):
            return 5

    n = Number()
    seen = weakref.ref(n)
    assert svc.submit("add", n, 1).result(HANG) == 6
    del n
    gc.collect()
    assert seen() is None


def test_objects_of_other_libraries_are_held_while_it_runs(svc):
    class Foreign:
        def __init__(self, array):
            self.__cuda_array_interface__ = {
                "data": (array.ptr, False), "shape": (2,), "typestr": "<i4", "version": 3
            }  # fmt: skip

    with gate() as (go, release), gd.zeros(2, "i4", device=DEVICE) as a:
        foreign = Foreign(a)
        seen = weakref.ref(foreign)
        future = svc.submit("put", go, foreign, 3)
        del foreign
        gc.collect()
        assert seen() is not None
        release()
        assert future.result(HANG) == 0
        gc.collect()
        assert seen() is None and a.read()[0] == 3


@pytest.mark.parametrize("order", [">", "<"])
def test_byte_order_of_arrays(svc, order):
    with gate() as (go, release), gd.zeros(2, f"{order}i4", device=DEVICE) as a:
        release()
        if order == "<":
            svc.call("put", go, a, 1)
            return
        for what in (lambda: svc.call("put", go, a, 1), lambda: svc.submit("put", go, a, 1)):
            with pytest.raises(gd.DTypeError, match="byte order"):
                what()
        kernel = gd.kernel("__global__ void k(int *p) { *p = 1; }", "k", device=DEVICE)
        with pytest.raises(gd.DTypeError, match="byte order"):
            kernel[1, 1](a)


# -- stops in odd places --------------------------------------------------------------------------


def given_back(resident):
    """Whether a resident kernel's memory went back."""
    return lambda: resident() is None or not resident().memory._piece


@pytest.mark.parametrize("thread", ["of the caller", "that looks"])
def test_stopped_in_a_callback(kept, thread):
    device = gd.device(DEVICE)
    ended = threading.Event()
    took = []

    def stop(_):
        start = time.monotonic()
        kept.stop()
        took.append(time.monotonic() - start)
        ended.set()

    while len(took) < 3 or (min(took) >= 0.9 and len(took) < 20):  # a busy machine is slow now and then
        with gate() as (go, release):
            kept.start()
            resident = weakref.ref(kept._resident)
            future = kept.submit("hold", go)
            future.add_done_callback(stop)
            release()
            if thread == "of the caller":
                with contextlib.suppress(gd.ServiceError):
                    future.result(HANG)
            assert ended.wait(HANG)
            ended.clear()
            until(given_back(resident))
            assert future.result(0) == 1
    assert min(took) < 0.9, "it waited for its own thread"
    assert kept not in device.residents
    with kept:
        assert kept.call("add", 1, 2) == 3


@pytest.mark.parametrize("within", ["_launch", "_open_lanes", "_greet", "_shut", "_when_left"])
def test_stopped_by_a_signal_inside_start_or_stop(within):
    """A handler comes between any two steps: it takes nothing away from under the next one."""
    svc = service()
    seen = []
    real = getattr(svc, within)

    def step(*given):
        seen.append(svc.stop())  # as a signal's handler would here
        done = real(*given)
        seen.append(svc.stop())
        with pytest.raises(gd.ServiceError):
            svc.start()
        return done

    setattr(svc, within, step)
    svc.start()
    svc.stop()
    delattr(svc, within)
    assert len(seen) >= 2 and not svc.running and svc not in svc.device.residents
    with svc:
        assert svc.call("add", 1, 2, timeout=HANG) == 3


@pytest.mark.parametrize("then", ["left alone", "started again"])
def test_a_stop_that_a_signal_interrupts_is_ended_by_somebody_else(then):
    class FromNowhere(Exception):
        pass

    def handler(*_):
        raise FromNowhere

    svc = service(stop_timeout=HANG)
    with gate() as (go, release):
        svc.start()
        resident = weakref.ref(svc._resident)
        future = svc.submit("hold", go)
        with pytest.raises(FromNowhere), signalled(handler, inside("stop")):
            svc.stop()
        release()
        if then == "started again":
            with svc.start():
                assert svc.call("add", 1, 2, timeout=HANG) == 3
        until(given_back(resident))
        assert future.result(HANG) == 1
    until(lambda: svc not in svc.device.residents and not svc.running)


def test_stopped_beside_a_callback_that_needs_what_stopping_holds(kept):
    """The thread that looks runs a callback; whoever stops the service does not wait for that one."""
    began, go_on, over = threading.Event(), threading.Event(), threading.Event()

    def callback(_):
        began.set()
        assert go_on.wait(HANG)
        with kept.device.quiet():  # as loading a kernel does
            over.set()

    with gate() as (go, release):
        kept.start()
        kept.submit("hold", go).add_done_callback(callback)
        release()
        assert began.wait(HANG)
        lock = kept.device.residents_lock
        with lock:  # as others' work would: the callback cannot end before the stop has
            go_on.set()
            start = time.monotonic()
            kept.stop()
            assert time.monotonic() - start < HANG / 2
        assert over.wait(HANG)
    with kept:
        assert kept.call("add", 1, 2) == 3


def test_stopped_by_a_signal_inside_a_call(kept):
    with gate() as (go, release):
        kept.start()
        resident = weakref.ref(kept._resident)

        def stop(*_):
            opening.start()  # the call, and so the stop, does not end before
            kept.stop()

        opening = threading.Timer(0.15, release)
        with signalled(stop, lambda: sum(kept.pending)), contextlib.suppress(gd.ServiceError):
            assert kept.call("hold", go, timeout=HANG) == 1
        until(given_back(resident))
        opening.join()
    with kept:
        assert kept.call("add", 1, 2) == 3


def test_started_again_while_threads_are_still_inside(kept):
    """Those inside the old lanes get their replies or an error; none waits on the new ones."""
    end = time.monotonic() + 2.0
    over, wrong, done = threading.Event(), [], []

    def work():
        while not over.is_set():
            try:
                assert kept.call("add", 20, 22, timeout=HANG) == 42
                assert [f.result(HANG) for f in [kept.submit("add", i, 1) for i in range(5)]] == [1, 2, 3, 4, 5]
                done.append(1)
            except gd.CallTimeoutError as e:
                wrong.append(e)
            except gd.ServiceError:
                pass
            except BaseException as e:
                wrong.append(e)

    threads = [threading.Thread(target=work) for _ in range(3)]
    try:
        for t in threads:
            t.start()
        while time.monotonic() < end or (not done and time.monotonic() < end + HANG):
            with kept:
                time.sleep(0.01)
    finally:  # in vain for ever otherwise
        over.set()
    for t in threads:
        t.join(HANG)
    assert not wrong and not any(t.is_alive() for t in threads)
    assert done


def test_callbacks_run_beside_a_signal_that_raises(svc):
    """The signal comes first, then the reply: the callback runs, and what the handler raised is raised."""

    class Told(BaseException):
        pass

    def handler(*_):
        release()
        until(lambda: futures[0]._awaited() is None or replied())
        raise Told

    def replied():
        time.sleep(0.05)
        return True

    def waits():
        return futures[0].result(HANG)

    seen = []
    with gate() as (go, release):
        futures = [svc.submit("hold", go)]
        # without the thread that looks: who waits runs it
        futures[0]._watch(lambda f: seen.append(f.result(0)), False)
        with pytest.raises(Told), signalled(handler, inside("waits")):
            waits()
        assert futures[0].result(HANG) == 1
        assert seen == [1]


def test_threads_that_cannot_be_started(svc, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    with gate() as (go, release):
        future = svc.submit("hold", go)
        with monkeypatch.context() as m:
            m.setattr(threading.Thread, "start", refuse)
            with pytest.raises(gd.ServiceError, match="no thread could be started"):
                future.add_done_callback(print)
            with pytest.raises(gd.ServiceError, match="no thread could be started"):
                concurrent.futures.wait([future], timeout=1)
        seen = threading.Event()
        future.add_done_callback(lambda _: seen.set())
        release()
        assert seen.wait(HANG)
        assert concurrent.futures.wait([future], timeout=HANG).done == {future}
    svc.stop()


def test_a_forgotten_service_whose_thread_still_looks():
    svc = service().start()
    svc.submit("add", 1, 1).add_done_callback(lambda f: None)
    device, before = svc.device, len(svc.device.residents)
    seen = weakref.ref(svc)
    del svc
    until(lambda: gc.collect() >= 0 and seen() is None and len(device.residents) == before - 1)


def test_a_dropped_service_that_runs_is_stopped_by_somebody_else():
    """A collection may come in the middle of anything: the finalizer itself stops nothing."""
    device = gd.device(DEVICE)
    svc = service().start()
    resident = weakref.ref(svc._resident)
    hold = threading.Event()
    patient.post(lambda: hold.wait(HANG))
    start = time.monotonic()
    del svc
    until(lambda: gc.collect() >= 0 and time.monotonic() > start + 0.1)
    assert resident() is not None
    hold.set()
    patient.settle()
    gc.collect()
    assert resident() is None
    with device.quiet():
        pass


def test_locks_are_free_after_signals_that_raise(svc):
    """Whatever moment of a waiting call a signal's handler raises in."""

    class Told(Exception):
        pass

    def handler(*_):
        raise Told

    old = signal.signal(signal.SIGALRM, handler)
    try:
        with gate() as (go, release):
            for i in range(60):
                with contextlib.suppress(Told):
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 0.006 + i * 1e-5)
                        svc.call("hold", go, lane=0, timeout=0.008 + i % 7 * 1e-3)
                    except (gd.CallTimeoutError, gd.ServiceError):
                        pass
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                if i % 12 == 0:
                    release()
                    assert svc.call("add", 1, 2, lane=0, timeout=HANG) == 3
                    go.host[0] = 0
                    go.flush()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    free = threading.Event()

    def other():
        with svc.device.residents_lock:
            free.set()

    threading.Thread(target=other, daemon=True).start()
    assert free.wait(HANG)


def test_code_of_a_dropped_service_is_unloaded_in_a_quiet_moment(monkeypatch):
    from gpudirect.devices.cuda import function as functions

    told, mine = [], object()

    class Driver:
        @staticmethod
        def cuModuleUnload(module):
            if module is mine:  # not what a run that was interrupted has left
                told.append("module")
            return (0,)

    class Device:
        forked = False
        current = staticmethod(contextlib.nullcontext)

        @contextlib.contextmanager
        def quiet(self):
            told.append("quiet")
            yield
            told.append("over")

    monkeypatch.setattr(functions, "driver", lambda: Driver)
    function = functions.CudaFunction(Device(), mine, 7, "name", (), b"")
    function.unload_when_dropped()
    patient.settle()
    assert not told
    del function
    patient.settle()
    assert told == ["quiet", "module", "over"]


# -- what is wrong is said in the family -----------------------------------------------------------


@pytest.mark.parametrize("lane", [1.5, "0", -1, 2, 10**30, [], np.float32(1)])
def test_lanes_that_are_none(svc, lane):
    for what in (svc.call, svc.submit):
        with pytest.raises(gd.ArgumentError, match="the service has lanes 0 to 1"):
            what("add", 1, 1, lane=lane)
    with pytest.raises(gd.ArgumentError, match="the service has lanes 0 to 1"):
        svc.lend(lane)
    assert svc.call("add", 1, 1, lane=np.int64(1)) == 2


def test_the_same_mistake_is_the_same_error(svc):
    kernel = gd.kernel("__global__ void k(int *p) { *p = 1; }", "k", device=DEVICE)
    for what in (lambda: kernel[1, 1](), lambda: svc.call("add", 1)):
        with pytest.raises(gd.ArgumentError, match=r"takes \d argument\(s\)"):
            what()


@pytest.mark.parametrize("options", [None, "-DN=3", [3], 7])
def test_options_that_are_none(options):
    for what in (lambda: service(options=options),
                 lambda: gd.kernel(SOURCE, "add", device=DEVICE, options=options)):  # fmt: skip
        with pytest.raises(gd.ArgumentError, match="options"):
            what()


# -- futures ----------------------------------------------------------------------------------------


def test_waited_for_by_concurrent_futures(svc):
    with gate() as (go, release), concurrent.futures.ThreadPoolExecutor(1) as pool:
        slow, quick = svc.submit("hold", go, lane=0), svc.submit("add", 1, 2, lane=1)
        wrong = svc.submit("positive", -1, lane=1)
        other = pool.submit(lambda: 5)
        every = {slow, quick, wrong, other}
        until(lambda: concurrent.futures.wait(every, timeout=0.05) == ({quick, wrong, other}, {slow}))
        first = concurrent.futures.wait([slow, quick], return_when="FIRST_COMPLETED", timeout=HANG)
        assert first.done == {quick}
        threading.Timer(0.05, release).start()
        assert concurrent.futures.wait([slow, quick], timeout=HANG).not_done == set()
        assert slow.result() == 1 and isinstance(wrong.exception(), gd.RefusedArgumentError)
    many = [svc.submit("add", i, 1) for i in range(100)]
    assert sorted(f.result() for f in concurrent.futures.as_completed(many, HANG)) == list(range(1, 101))
    assert isinstance(many[0], concurrent.futures.Future)
    for what in (lambda: many[0].set_result(1), lambda: many[0].set_exception(ValueError())):
        with pytest.raises(concurrent.futures.InvalidStateError):
            what()


def test_waits_and_ends_meet_at_every_moment(svc):
    """wait() installs itself while calls come to their end: it never waits for one that is over."""
    for _ in range(200):
        futures = [svc.submit("add", i, 1) for i in range(4)]
        assert not concurrent.futures.wait(futures, timeout=HANG).not_done


def test_wrapped_by_asyncio(svc):
    async def main():
        futures = [asyncio.wrap_future(svc.submit("add", i, 1)) for i in range(20)]
        assert await asyncio.gather(*futures) == list(range(1, 21))
        with pytest.raises(gd.RefusedArgumentError):
            await asyncio.wrap_future(svc.submit("positive", -1))

    asyncio.run(asyncio.wait_for(main(), HANG))


# -- functions by name ------------------------------------------------------------------------------


def test_functions_as_attributes_and_items(svc):
    assert svc.add(1, 2) == 3
    assert svc["add"](1, 2, lane=1, timeout=HANG) == 3
    assert svc.add.submit(1, 2).result(HANG) == 3
    assert list(svc.add.map([1, 2], [3, 4])) == [4, 6]
    assert svc.add.name == "add" and "i4 add (i4, i4)" in repr(svc.add)
    assert "add" in dir(svc) and "hold" in dir(svc)
    with pytest.raises(AttributeError, match="no function 'nope'"):
        svc.nope  # noqa: B018
    with pytest.raises(gd.KernelNotFoundError, match="no function 'nope'"):
        svc["nope"]
    assert not hasattr(svc, "nope") and "nope" not in dir(svc)


def test_names_that_the_service_itself_has():
    source = """
        namespace a { __device__ int stop(int x) { return x + 1; } }
        __device__ int call(int x) { return x; }
        """
    with gd.Service(source, ["a::stop", "call"], device=DEVICE, lifetime=LIFETIME) as svc:
        assert svc["a::stop"](1) == 2 and svc["call"](5) == 5
        assert svc.call("call", 6) == 6


@pytest.mark.parametrize(("name", "value", "words"), [
    ("CUDA_LAUNCH_BLOCKING", "1", "CUDA_LAUNCH_BLOCKING is set"),
    ("NV_COMPUTE_PROFILER_PERFWORKS_DIR", "/opt", "Nsight Compute (ncu) profiles"),
])  # fmt: skip
def test_where_launches_block_a_service_says_so(name, value, words):
    """It would wait for its own kernel for ever."""
    code = (
        "import gpudirect as gd\n"
        f"try: gd.Service('__device__ int f() {{ return 1; }}', 'f', device={DEVICE!r})\n"
        "except gd.ServiceError as e: print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, name: value}, timeout=HANG)  # fmt: skip
    assert words in done.stdout, done.stdout + done.stderr
