"""gpudirect.Service: calls, futures, teams, life and errors, on the emulated device."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import gpudirect as gd
from gpudirect import _native
from gpudirect._keeper import patient
from gpudirect.devices.base import Ordering

ROOT = Path(__file__).resolve().parents[2]
DEVICE = os.environ.get("GPUDIRECT_TEST_SERVICE_DEVICE", "emulated")
LIFETIME = 300.0  # seconds: a test that breaks off leaves no kernel behind
HANG = 60.0  # seconds: what only a hang exceeds

SOURCE = """
struct pair { float a; int b; };
enum colour : short { RED = 1, BLUE = 300 };
namespace inner { __device__ int twice(int a) { return 2 * a; } }

__device__ int add(int a, int b) { return a + b; }
__device__ float scale(float x, const float *a, int n) { return x * a[n]; }
__device__ void store(float *a, int i, float v) { gd_assert(i >= 0); gd_require(i < 10); a[i] = v; }
__device__ int positive(int a) { gd_require(a > 0, -1); return a; }
__device__ int odd(int a) { if (a % 2 == 0) gd_status(300 + a); return a; }
__device__ unsigned char byte(unsigned char a, bool invert) { return invert ? ~a : a; }
__device__ bool both(bool a, bool b) { return a && b; }
__device__ short narrow(signed char a, short b) { return short(a + b); }
__device__ unsigned long long wide(unsigned long long a) { return a; }
__device__ long long minus(long long a) { return -a; }
__device__ double half(double a) { return a / 2; }
__device__ float product(pair p) { return p.a * p.b; }
__device__ pair swap(float a, int b) { pair p = {float(b), int(a)}; return p; }
__device__ int shade(colour c) { return c; }
__device__ float *next(float *a) { return a + 1; }
__device__ void nothing() {}
__device__ unsigned full(unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned f,
    unsigned g, unsigned h, unsigned i, unsigned j, unsigned k, unsigned l, unsigned m, unsigned n)
{ return a ^ b ^ c ^ d ^ e ^ f ^ g ^ h ^ i ^ j ^ k ^ l ^ m ^ n; }
__device__ double many(double a, double b, double c, double d, double e, double f, double g, double h)
{ return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h; }
struct large { int v[100]; };
__device__ int last(large l, int i) { return l.v[i]; }

__device__ int linger(long long ns)
{
    for (long long t = gd_service::now(); (long long)gd_service::now() - t < ns;)
        ;
    return 1;
}
__device__ int hold(volatile int *go)                  // of two: it goes on, it has begun
{
    go[1] = 1;
    while (!*go)
        __nanosleep(1000);
    return 1;
}
__device__ float warp_sum(const float *a, int n)
{
    float s = 0;
    for (int i = gd_rank(); i < n; i += gd_size()) s += a[i];
    for (int o = 16; o; o /= 2) s += __shfl_xor_sync(0xffffffff, s, o);
    return s;
}
__device__ float block_sum(const float *a, int n)
{
    __shared__ float total;
    if (gd_rank() == 0) total = 0;
    gd_sync();
    for (int i = gd_rank(); i < n; i += gd_size()) atomicAdd(&total, a[i]);
    gd_sync();
    return total;
}
__device__ int grid_sum(int *count, int n)
{
    for (int i = gd_rank(); i < n; i += gd_size()) atomicAdd(count, i);
    gd_sync();
    return *(volatile int *)count;
}
__device__ int grid_fails(int rank) { gd_assert(gd_rank() != rank, 0); return gd_size(); }
__device__ void fail_in_block(int rank) { gd_assert(gd_rank() != rank); }
"""
FUNCTIONS = {
    **dict.fromkeys(
        ["add", "inner::twice", "scale", "store", "positive", "odd", "byte", "both", "narrow", "wide",
         "minus", "half", "product", "swap", "shade", "next", "nothing", "full", "many", "last",
         "linger", "hold"], "thread"),
    "warp_sum": "warp", "block_sum": "block", "fail_in_block": "block",
    "grid_sum": "grid", "grid_fails": "grid",
}  # fmt: skip
SMALL = "__device__ int add(int a, int b) { return a + b; }"
LINE = {name: 1 + SOURCE[: SOURCE.index(name + "(")].count("\n") for name in ("store", "positive")}


@contextlib.contextmanager
def held(svc, lane=None):
    """(future of a call that keeps its lane busy, what lets it end)."""
    with gd.zeros(2, "i4", device=DEVICE) as go:
        future = svc.submit("hold", go, lane=lane)
        end = time.monotonic() + 60
        while not go.host[1]:
            assert time.monotonic() < end
            time.sleep(0.001)

        def release():
            go.host[0] = 1
            go.flush()

        try:
            yield future, release
        finally:
            release()
            future.exception(timeout=HANG)


def service(source=SMALL, functions=("add",), **options):
    return gd.Service(source, functions, **{"device": DEVICE, "lifetime": LIFETIME, **options})


@pytest.fixture(scope="module")
def svc():
    with service(SOURCE, FUNCTIONS, lanes=2, threads=64, blocks=3, slots=16) as running:
        yield running


@pytest.fixture(scope="module")
def array():
    with gd.asarray(np.arange(10, dtype="f4"), device=DEVICE) as a:
        yield a


# -- calls -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("add", (3, -4), -1),
        ("add", (np.int32(3), np.int64(4)), 7),
        ("add", (True, 2**31 - 2), 2**31 - 1),
        ("inner::twice", (21,), 42),
        ("byte", (5, True), 250),
        ("byte", (255, False), 255),
        ("both", (True, False), False),
        ("both", (True, True), True),
        ("narrow", (-128, -1000), -1128),
        ("wide", (2**64 - 1,), 2**64 - 1),
        ("minus", (2**63 - 1,), 1 - 2**63),
        ("half", (1e300,), 5e299),
        ("half", (3,), 1.5),
        ("half", (np.float32(0.5),), 0.25),
        ("nothing", (), None),
        ("shade", (300,), 300),
        ("product", (b"\0\0\x80?\5\0\0\0",), 5.0),
        ("product", (np.array((1.5, 4), [("a", "f4"), ("b", "i4")]),), 6.0),
        ("swap", (7.0, 3), np.array((3.0, 7), [("a", "f4"), ("b", "i4")]).tobytes()),
        ("full", tuple(2**i for i in range(14)), 2**14 - 1),
        ("many", tuple(float(i) for i in range(8)), 168.0),
    ],
)
def test_arguments_and_results(svc, name, arguments, result):
    found = svc.call(name, *arguments)
    assert found == result
    assert type(found) is type(result)


def test_arrays_go_by_reference(svc, array):
    assert svc.call("scale", 2.5, array, 4) == 10.0
    assert svc.call("scale", 2.0, array[3:], 1) == 8.0
    assert svc.call("next", array) == array.ptr + 4
    assert svc.call("next", None) == 4
    svc.call("store", array, 9, 77.0)
    assert array.read()[9] == 77.0
    array.host[9] = 9.0  # plain stores are fenced by the call
    assert svc.call("scale", 1.0, array, 9) == 9.0


def test_long_arguments_go_through_memory(svc):
    values = np.arange(100, dtype="i4")
    assert [svc.call("last", values.tobytes(), i) for i in (0, 50, 99)] == [0, 50, 99]


def test_teams(svc, array):
    assert svc.call("warp_sum", array, 10) == 45.0
    assert svc.call("block_sum", array, 10) == 45.0
    with gd.zeros(1, "i4", device=DEVICE) as count:
        assert svc.call("grid_sum", count, 1000) == 499500
        assert svc.call("grid_sum", count, 10, lane=1) == 499545


def test_signatures_are_the_compilers(svc):
    assert svc.info.functions["scale"] == "f4 (f4, f4*, i4), by a thread"
    assert svc.info.functions["grid_sum"] == "i4 (i4*, i4), by a grid"
    assert svc.functions["last"].size == 404


def test_every_slot_is_used_many_times(svc):
    for i in range(100):
        assert svc.call("add", i, 1, lane=i % 2) == i + 1


# -- futures ---------------------------------------------------------------------------------


def test_futures_in_any_order(svc):
    futures = [svc.submit("add", i, 1) for i in range(100)]  # more than both lanes hold
    for i in np.random.default_rng(1).permutation(100):
        assert futures[i].result(timeout=HANG) == i + 1
    assert all(f.done() for f in futures)
    assert not futures[0].cancel() and not futures[0].running()
    assert svc.pending == (0, 0)


def test_results_that_nobody_reads(svc):
    for i in range(100):
        svc.submit("add", i, 1)
    assert svc.call("add", 1, 1) == 2


def test_a_future_keeps_its_arrays(svc):
    with held(svc, lane=0) as (_, release):
        a = gd.asarray(np.array([1.0, 2.0], "f4"), device=DEVICE)
        future = svc.submit("scale", 3.0, a, 1, lane=0)
        at = a.ptr
        del a
        gc.collect()
        with gd.full(2, 5.0, "f4", device=DEVICE) as other:
            assert other.ptr != at
            release()
            assert future.result(timeout=HANG) == 6.0


def test_a_failed_call_says_so_by_its_future(svc, array):
    future = svc.submit("store", array, -1, 1.0)
    assert isinstance(future.exception(timeout=HANG), gd.DeviceAssertionError)
    with pytest.raises(gd.DeviceAssertionError):
        future.result()


def test_map_is_in_order(svc):
    assert list(svc.map("add", range(200), range(200))) == [2 * i for i in range(200)]
    assert list(svc.map("add", range(3), range(5))) == [0, 2, 4]
    first = svc.map("add", iter(range(10**9)), iter(range(10**9)))  # never asked for at once
    assert [next(first) for _ in range(3)] == [0, 2, 4]
    with pytest.raises(gd.KernelNotFoundError):
        svc.map("nope", [1])
    with pytest.raises(gd.RefusedArgumentError):
        list(svc.map("positive", [1, 2, -3, 4]))


def test_callbacks(svc):
    seen: list[object] = []
    event = threading.Event()
    future = svc.submit("linger", 5_000_000)
    future.add_done_callback(lambda f: (seen.append(f.result()), event.set()))
    assert event.wait(HANG)
    future.add_done_callback(lambda f: seen.append("late"))
    assert seen == [1, "late"]


def test_callbacks_may_use_the_service(svc):
    """What a callback does to a lane must not confuse whoever was looking at it."""
    seen = []

    def over(future):
        seen.append((future.result(), svc.call("add", future.result(), 1, timeout=HANG), svc.pending))

    with held(svc, lane=0):
        futures = [svc.submit("add", i, 0, lane=0) for i in range(10)]
        for f in futures:
            f.add_done_callback(over)
    while len(seen) < 10:
        time.sleep(0.001)
    assert [(a, b) for a, b, _ in sorted(seen)] == [(i, i + 1) for i in range(10)]
    assert all(0 <= n <= 16 for _, _, pending in seen for n in pending)
    assert svc.pending == (0, 0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of two, one is told
def test_a_signal_while_the_waiting_are_told_leaves_nobody_waiting(svc):
    """Its handler may raise in the first one told, and inside asyncio's own call."""
    told, interrupted = [], []

    def first(_):
        interrupted.append("a callback")
        raise KeyboardInterrupt

    async def main():
        loop = asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe

        def once(*given):
            if "the loop" not in interrupted:
                interrupted.append("the loop")
                raise KeyboardInterrupt
            return wake(*given)

        loop.call_soon_threadsafe = once
        flag = gd.zeros(2, "i4", device=DEVICE)
        future = svc.submit("hold", flag)
        future.add_done_callback(first)
        future.add_done_callback(told.append)
        loop.call_soon(flag.write, np.array([1], "i4"))  # done once this waits
        assert await future == 1 and told == [future]

    asyncio.run(asyncio.wait_for(main(), HANG))
    assert sorted(interrupted) == ["a callback", "the loop"]


def test_await(svc, array):
    async def main():
        before = threading.active_count()
        many = await asyncio.gather(*[one(i) for i in range(200)])
        assert many == [i + 1 for i in range(200)]
        assert threading.active_count() <= before + 1  # no thread for each call
        with held(svc, lane=0) as (future, release):
            slow = asyncio.ensure_future(result(future))
            quick = asyncio.ensure_future(result(svc.submit("linger", 1_000_000, lane=1)))
            over, _ = await asyncio.wait({slow, quick}, return_when=asyncio.FIRST_COMPLETED)
            assert over == {quick}  # the loop went on beside the slow one
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(result(svc.submit("add", 1, 1, lane=0)), 0.005)
            release()
            assert await slow == 1
        with pytest.raises(gd.DeviceAssertionError):
            await svc.submit("store", array, -1, 1.0)

    async def one(i):
        return await svc.submit("add", i, 1, timeout=HANG)

    async def result(future):
        return await future

    asyncio.run(main())


def test_threads(svc):
    def work(k):
        return all(svc.call("add", i, k) == i + k for i in range(50))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_threads_mix_everything(svc, array):
    """Threads take each other's replies off the rings while they look for their own."""
    end = time.monotonic() + 1.0

    def work(k):
        dice, n = np.random.default_rng(k), 0
        while time.monotonic() < end:
            n += 1
            futures = [svc.submit("add", i, n) for i in range(dice.integers(20))]
            for i in dice.permutation(len(futures))[: dice.integers(20)]:
                assert futures[i].result(timeout=HANG) == i + n
            assert svc.call("scale", 1.0, array, n % 9, timeout=HANG) == n % 9
            assert list(svc.map("add", range(12), range(12))) == [2 * i for i in range(12)]
            with contextlib.suppress(gd.CallTimeoutError):
                svc.call("add", 1, 2, timeout=float(dice.choice([0, 1e-6, 1e-4])))
        return n

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(n > 0 for n in pool.map(work, range(4)))


# -- what goes wrong ---------------------------------------------------------------------------


def test_a_function_may_refuse(svc, array):
    with pytest.raises(gd.DeviceAssertionError, match=f"store: the assertion in line {LINE['store']}") as e:
        svc.call("store", array, -1, 1.0)
    assert isinstance(e.value, AssertionError) and e.value.value == LINE["store"]
    with pytest.raises(gd.RefusedArgumentError, match="positive refused") as e:
        svc.call("positive", -1)
    assert isinstance(e.value, ValueError) and isinstance(e.value, gd.ServiceError)
    with pytest.raises(gd.CallError, match="status 304") as e:
        svc.call("odd", 4)
    assert (e.value.function, e.value.status) == ("odd", 304)
    assert svc.call("odd", 5) == 5  # and is forgotten


@pytest.mark.parametrize("how", ["source", "option", "header"])
def test_a_function_refuses_by_whatever_name(how, tmp_path):
    (tmp_path / "mine.h").write_text("#define need(c) gd_require(c, 0)\n")
    source, options = {
        "source": ("#define need(c) gd_require(c, 0)\n", []),
        "option": ("", ["-Dneed(c)=gd_require(c, 0)"]),
        "header": ('#include "mine.h"\n', [f"-I{tmp_path}"]),
    }[how]
    source += "__device__ int f(int a) { need(a > 0); return a; }"
    with service(source, "f", options=options) as svc:
        assert svc.call("f", 3) == 3
        with pytest.raises(gd.RefusedArgumentError):
            svc.call("f", -3)


@pytest.mark.parametrize("rank", [0, 40, 100])
def test_any_thread_of_a_team_may_refuse(svc, rank):
    with pytest.raises(gd.DeviceAssertionError):
        svc.call("grid_fails", rank)
    assert svc.call("grid_fails", -1) == 192
    if rank < 64:
        with pytest.raises(gd.DeviceAssertionError):
            svc.call("fail_in_block", rank)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("nope", 1), gd.KernelNotFoundError, "no function 'nope'; it has add"),
        (((),), gd.KernelNotFoundError, "no function"),
        (("add", 1), gd.ArgumentError, r"add takes 2 argument\(s\).*; 1 given"),
        (("add", 1, 2, 3), gd.ArgumentError, "3 given"),
        (("add", 1.5, 2), gd.DTypeError, "argument 1 of add is a signed integer"),
        (("add", 1, 2**31), gd.DTypeError, "out of the range"),
        (("byte", -1, True), gd.DTypeError, "out of the range"),
        (("byte", 256, True), gd.DTypeError, "out of the range"),
        (("wide", 2**64), gd.DTypeError, "out of the range"),
        (("wide", -1), gd.DTypeError, "out of the range"),
        (("half", None), gd.DTypeError, "argument 1 of half"),
        (("scale", 1.0, np.zeros(3, "f4"), 1), gd.DTypeError, "CPU memory"),
        (("product", b"1234567"), gd.DTypeError, "7 bytes"),
        (("product", 1.0), gd.DTypeError, "structured"),
    ],
)
def test_wrong_arguments(svc, arguments, error, words):
    for how in (svc.call, svc.submit):
        with pytest.raises(error, match=words):
            how(*arguments)
    assert svc.call("add", 1, 1) == 2


def test_wrong_arrays(svc):
    with gd.zeros(3, "i4", device=DEVICE) as integers, pytest.raises(gd.DTypeError, match="i4"):
        svc.call("scale", 1.0, integers, 1)
    a = gd.zeros(3, "f4", device=DEVICE)
    svc.call("scale", 1.0, a, 1)  # goes the quick way from now on
    a.close()
    with pytest.raises(gd.ClosedError):
        svc.call("scale", 1.0, a, 1)


def test_wrong_options_of_a_call(svc):
    with pytest.raises(gd.ArgumentError, match="lanes 0 to 1"):
        svc.call("add", 1, 1, lane=2)
    for timeout in (-1, float("nan")):
        with pytest.raises(gd.ArgumentError, match="timeout"):
            svc.call("add", 1, 1, timeout=timeout)
    with pytest.raises(TypeError, match="timeout and lane"):
        svc.call("add", 1, 1, when=2)
    with pytest.raises(TypeError):
        svc.call()


def test_timeouts(svc):
    with gd.zeros(2, "i4", device=DEVICE) as go:
        with pytest.raises(gd.CallTimeoutError, match=r"hold has not answered within 0\.005 s"):
            svc.call("hold", go, timeout=0.005, lane=0)
        with pytest.raises(TimeoutError):
            svc.call("add", 1, 2, timeout=0, lane=0)  # looked once: the one before still runs
        future = svc.submit("add", 2, 3, lane=0)
        with pytest.raises(gd.CallTimeoutError):
            future.result(timeout=0)
        go.host[0] = 1
        go.flush()
        assert future.result(timeout=HANG) == 5  # what came too late does not come now
    assert svc.call("add", 3, 4, timeout=HANG) == 7


def test_a_full_lane_pushes_back(svc):
    with held(svc, lane=0) as (_, release):
        for i in range(15):
            svc.submit("add", i, 1, lane=0, timeout=0)
        with pytest.raises(gd.CallTimeoutError, match="all 16 slots"):
            svc.submit("add", 1, 1, lane=0, timeout=0)
        with pytest.raises(gd.CallTimeoutError, match="all 16 slots"):
            svc.call("add", 1, 1, lane=0, timeout=0.01)
        assert svc.call("add", 5, 5, lane=1, timeout=HANG) == 10
        threading.Timer(0.02, release).start()
        assert svc.submit("add", 1, 1, lane=0).result() == 2  # waits for room


def test_interrupted():
    program = """
        import os, signal, threading
        import gpudirect as gd
        # a program that was started in the background ignores it otherwise
        signal.signal(signal.SIGINT, signal.default_int_handler)
        source = "__device__ int f(volatile int *go) { go[1] = 1; while (!*go) __nanosleep(1000); return 7; }"
        go = gd.zeros(2, "i4")
        def interrupt():
            while not go.host[1]:
                pass
            os.kill(os.getpid(), signal.SIGINT)
        with gd.Service(source, "f", lifetime=60) as svc:
            try:
                threading.Thread(target=interrupt).start()
                svc.call("f", go)
            except KeyboardInterrupt:
                go.host[0] = 1
                print("interrupted", svc.call("f", go))
        """
    assert _run(program).stdout.split() == ["interrupted", "7"]


@pytest.mark.parametrize(
    ("source", "functions", "options", "error", "words"),
    [
        ("", ["f"], {}, gd.ArgumentError, "source is empty"),
        (SMALL, [], {}, gd.ArgumentError, "functions is empty"),
        (SMALL, 3, {}, gd.ArgumentError, "give names"),
        (SMALL, {"add": "everybody"}, {}, gd.ArgumentError, "thread, warp, block, grid"),
        (SMALL, ["add<int>"], {}, gd.ArgumentError, "wrap it"),
        (SMALL, ["sub"], {}, gd.KernelNotFoundError, "no function 'sub'"),
        ("__device__ int f(int a) { return b; }", ["f"], {}, gd.CompileError, "does not compile"),
        ("struct s { long long a, b; }; __device__ s f() { return {}; }", ["f"], {}, gd.CompileError,
         "does not compile"),
        ("struct s { char a[5000]; }; __device__ int f(s x) { return 0; }", ["f"], {}, gd.ArgumentError,
         "5000 bytes"),
        (SMALL, ["add"], {"lanes": 0}, gd.ArgumentError, "lanes"),
        (SMALL, ["add"], {"slots": 100}, gd.ArgumentError, "power of two"),
        (SMALL, ["add"], {"slots": 1}, gd.ArgumentError, "slots"),
        (SMALL, ["add"], {"threads": 33}, gd.ArgumentError, "multiple of 32"),
        (SMALL, ["add"], {"blocks": 2}, gd.ArgumentError, "for a grid"),
        (SMALL, ["add"], {"idle_after": -1}, gd.ArgumentError, "idle_after"),
        (SMALL, ["add"], {"idle_sleep": 0.01}, gd.ArgumentError, "0.001 s at most"),
        (SMALL, ["add"], {"lifetime": 0}, gd.ArgumentError, "lifetime is 0"),
        (SMALL, {"add": "grid"}, {"lanes": 64, "blocks": 100}, gd.ServiceError, "6400 blocks of 256"),
    ],
)  # fmt: skip
def test_wrong_services(source, functions, options, error, words):
    with pytest.raises(error, match=words):
        service(source, functions, **options)


def test_lines_of_compiler_messages_are_those_of_the_source():
    with pytest.raises(gd.CompileError) as e:
        service("\n\n__device__ int f(int a) { return b; }", ["f"])
    assert "kernel.cu:3" in e.value.log or "kernel.cu(3)" in e.value.log


def test_a_device_without_order_is_refused(monkeypatch):
    device = gd.device(DEVICE)
    monkeypatch.setattr(device, "ordering", Ordering(True, True, "none"), raising=False)
    with pytest.raises(gd.ServiceError, match="does not promise"):
        service()


# -- its life ----------------------------------------------------------------------------------


def test_started_stopped_and_again():
    svc = service(lanes=2)
    with pytest.raises(gd.ServiceError, match="not started"):
        svc.call("add", 1, 1)
    for _ in range(3):
        with svc:
            assert svc.running and svc.call("add", 1, 1) == 2
            with pytest.raises(gd.ServiceError, match="runs already"):
                svc.start()
        svc.stop()
        assert not svc.running
        with pytest.raises(gd.ServiceError, match="it was stopped"):
            svc.call("add", 1, 1)
        with pytest.raises(gd.ServiceError, match="it was stopped"):
            svc.map("add", [1], [1])
    assert svc not in svc.device.residents


def test_nothing_is_left_behind():
    device = gd.device(DEVICE)
    svc = service()
    with svc:
        svc.call("add", 1, 1)
    gc.collect()
    gd.trim()
    free = device.memory()[0]
    for _ in range(5):
        with svc:
            svc.submit("add", 1, 1)
    gc.collect()
    gd.trim()
    assert device.memory()[0] == free


def test_stop_with_a_full_ring():
    with service(SOURCE, ["hold", "add"], slots=16) as svc:
        with held(svc) as (first, release):
            rest = [svc.submit("add", i, 1) for i in range(15)]
            svc._resident.end(1)  # as stop() does: it is seen when the first call is over
            release()
            svc.stop()  # raises where the kernel does not end within stop_timeout
        assert first.result() == 1
        for f in rest:
            with pytest.raises(gd.ServiceError, match="add was not run"):
                f.result()


def test_stop_wakes_threads_that_wait():
    svc = service(SOURCE, ["hold", "add"]).start()
    errors = []

    def work():
        try:
            svc.call("add", 1, 1)
        except gd.ServiceError as e:
            errors.append(str(e))

    thread = threading.Thread(target=work)
    with held(svc) as (_, release):
        thread.start()
        while svc.pending != (2,):
            time.sleep(0.001)
        svc._resident.end(1)
        release()
        svc.stop()
    thread.join(HANG)
    assert not thread.is_alive() and "add was not run" in errors[0]


def test_a_function_that_does_not_end():
    program = """
        import gpudirect as gd
        source = "__device__ void f(volatile int *p) { p[1] = 1; while (!*p) ; }"
        go = gd.zeros(2, "i4")
        svc = gd.Service(source, "f", stop_timeout=0.1).start()
        future = svc.submit("f", go)
        while not go.read(via="map", synchronize=False)[1]:
            pass
        try:
            svc.stop()
        except gd.ServiceError as e:
            print("did not end" in str(e), isinstance(future.exception(), gd.ServiceError))
        for what in (lambda: svc.call("f", go), svc.start):
            try:
                what()
            except gd.ServiceError:
                print("refused")
        """
    assert _run(program).stdout.split() == ["True", "True", "refused", "refused"]


def test_a_fault_is_no_hang():
    program = """
        import gpudirect as gd
        source = "__device__ int f(int *p) { return *p; }"
        svc = gd.Service(source, "f", lifetime=20).start()
        for what in (lambda: svc.call("f", 16), lambda: svc.call("f", 16), svc.start):
            try:
                what()
            except gd.Error as e:
                print(type(e).__name__)
        print(svc._end)
        svc.stop()
        """
    lines = _run(program).stdout.splitlines()
    assert lines[0] == "ServiceError" and set(lines[:3]) <= {"ServiceError", "DeviceLostError"}
    assert "illegal" in lines[3]


def test_the_end_of_its_lifetime():
    svc = gd.Service(SMALL, "add", device=DEVICE, lifetime=0.5)
    with svc:
        assert svc.call("add", 1, 1) == 2
        with pytest.raises(gd.ServiceError, match="lifetime of 0.5 s is over"):
            while True:
                svc.call("add", 1, 1)
        with pytest.raises(gd.ServiceError, match="lifetime of 0.5 s is over"):
            svc.call("add", 1, 1)
        with pytest.raises(gd.ServiceError, match="lifetime"):
            svc.submit("add", 1, 1)
    with svc:
        assert svc.call("add", 2, 2) == 4


def test_a_killed_process_leaves_nothing():
    program = """
        import os
        import gpudirect as gd
        svc = gd.Service("__device__ int add(int a, int b) { return a + b; }", "add", lanes=8, lifetime=20)
        svc.start()
        print(svc.call("add", 1, 1), flush=True)
        if svc.device.emulated:
            print(svc.device.process.pid, flush=True)
        os.kill(os.getpid(), 9)
        """
    device = gd.device(DEVICE)
    free = device.memory()[0]
    done = _run(program, check=False)
    assert done.returncode == -signal.SIGKILL
    result, *gpu = map(int, done.stdout.split())
    assert result == 2
    end = time.monotonic() + HANG
    while any(map(_alive, gpu)) or device.memory()[0] < free:
        assert time.monotonic() < end, "something of the device outlived its process"
        time.sleep(0.01)


def test_a_forgotten_service_ends_with_the_process():
    program = """
        import gpudirect as gd
        svc = gd.Service("__device__ int add(int a, int b) { return a + b; }", "add", lifetime=300)
        print(svc.start().call("add", 1, 1))
        """
    assert _run(program).stdout.split() == ["2"]  # within its limit: long before the lifetime is over


def test_a_forgotten_service_is_stopped_when_collected():
    device = gd.device(DEVICE)
    before = len(device.residents)
    svc = service().start()
    assert len(device.residents) == before + 1
    svc.submit("add", 1, 1)
    del svc
    gc.collect()
    patient.settle()
    assert len(device.residents) == before


def test_a_child_process_is_refused():
    program = """
        import os
        import gpudirect as gd
        svc = gd.Service("__device__ int add(int a, int b) { return a + b; }", "add", lifetime=300)
        svc.start()
        future = svc.submit("add", 1, 1)
        pid = os.fork()
        if not pid:
            for what in (lambda: svc.call("add", 1, 1), lambda: svc.submit("add", 1, 1), svc.start,
                         svc.stop):
                try:
                    what()
                except gd.ForkError as e:
                    print("refused", flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        print(future.result(), svc.call("add", 1, 2))
        svc.stop()
        """
    assert _run(program).stdout.split() == ["refused", "refused", "refused", "2", "3"]


# -- beside other work -------------------------------------------------------------------------


def test_other_work_goes_on(svc, array):
    device = gd.device(DEVICE)
    number = time.time_ns() % 100_000  # so that it is compiled now, which pauses the service
    kernel = gd.kernel(f"__global__ void k(int *p) {{ *p = {number}; }}", "k", device=device)
    with gd.zeros(1, "i4", device=device) as a:
        kernel[1, 1](a)
        gd.synchronize(device)  # waits for the kernel, not for the service
        assert a.read()[0] == number
    assert svc.call("scale", 1.0, array, 3) == 3.0


def test_paused_and_resumed(svc):
    with svc.device.quiet():
        future = svc.submit("add", 5, 6)
        time.sleep(0.01)
        assert not future.done()
    assert future.result(timeout=HANG) == 11
    assert svc.call("grid_fails", -1) == 192


def test_what_is_quiet_within_a_quiet_device_leaves_it_so(svc):
    """As freeing memory, or loading code, does in the middle."""
    device = svc.device
    with device.quiet():
        future = svc.submit("add", 5, 6)
        with device.quiet():
            assert svc.info.state == "paused"
        assert svc.info.state == "paused"
        with service() as other:  # new since: it makes way, and comes back
            with device.quiet():
                assert other.info.state == "paused"
            assert other.call("add", 1, 2) == 3
        assert svc.info.state == "paused" and not future.done()
    assert future.result(timeout=HANG) == 11


def test_a_service_that_cannot_be_resumed(monkeypatch):
    with service() as svc:
        monkeypatch.setattr(svc._resident, "launch", lambda: (_ for _ in ()).throw(gd.LaunchError("no room")))
        with pytest.raises(gd.ServiceError, match="could not be resumed: no room"), svc.device.quiet():
            future = svc.submit("add", 1, 1)
        for what in (future.result, lambda: svc.call("add", 1, 1)):
            with pytest.raises(gd.ServiceError, match="could not be resumed"):
                what()
        monkeypatch.undo()
    with svc:
        assert svc.call("add", 1, 1) == 2


def test_two_services_beside_each_other(svc):
    with service() as other:
        assert other.call("add", 1, 2) == 3 and svc.call("add", 3, 4) == 7
        assert {svc, other} <= set(svc.device.residents)
    assert svc.call("add", 3, 4) == 7


def test_what_it_holds_is_told(svc):
    info = svc.info
    assert info.emulated == svc.device.emulated and info.running and info.ordering == "owner"
    assert (info.lanes, info.slots, info.blocks, info.threads) == (2, 16, 6, 64)
    assert info.host_bytes == 2 * 16 * 16 + 64 and info.device_bytes > 2 * 16 * 64
    assert 0 < info.share < 1
    assert svc.device.id in repr(svc) and "running" in repr(svc)
    assert ("(emulated)" in repr(svc)) == svc.device.emulated


# -- C code on a lane --------------------------------------------------------------------------


def test_a_lane_lent_to_c():
    lib, ffi = _native.lib, _native.ffi
    with service(SOURCE, ["add", "hold"], lanes=2, slots=8) as svc:
        svc.call("add", 1, 1, lane=0)
        lane = svc.lend(0)
        with pytest.raises(gd.ArgumentError, match="lane 0 is lent already"):
            svc.lend(0)
        with pytest.raises(gd.ArgumentError, match="lane 0 is lent"):
            svc.call("add", 1, 1, lane=0)
        with pytest.raises(gd.ArgumentError, match="lanes 0 to 1"):
            svc.lend(2)
        with held(svc, lane=1), pytest.raises(gd.ArgumentError, match="lane 1 is not idle: it has 1"):
            svc.lend(1)
        assert svc.call("add", 1, 1) == 2  # through the other
        reply, number = ffi.new("struct p2pmod_reply *"), svc.functions["add"].number
        both = (7).to_bytes(4, "little") + (8).to_bytes(4, "little")
        assert lib.gd_lane_call(lane, number, both, 8, 10**10, reply) == 0
        assert (reply.value, reply.status) == (15, 0)
        assert lib.gd_lane_call(lane, 999, b"", 0, 10**10, reply) == 0
        assert reply.status == lib.P2PMOD_STATUS_NO_FUNCTION
        assert lib.gd_lane_call(lane, number, bytes(57), 57, 10**10, reply) < 0  # no room for so many
        assert lib.gd_lane_call(lane, number, both, 8, 0, reply) in (0, -110)  # looks once
        while lib.gd_lane_take(lane, 10**10, reply) == 0:
            pass
        for _ in range(8):
            assert lib.gd_lane_submit(lane, number, both, 8) == 0
        assert lib.gd_lane_submit(lane, number, both, 8) == -11  # full
        assert [lib.gd_lane_take(lane, 10**10, reply) for _ in range(8)] == [0] * 8
        assert lib.gd_lane_take(lane, 0, reply) == -11
        assert lib.gd_lane_call(lane, lib.P2PMOD_FUNCTION_STOP, b"", 0, 10**10, reply) == 0
        assert reply.status == 0
        assert svc.call("add", 2, 2) == 4  # the other lane lives


@pytest.mark.parametrize("store", ["GD_LANE_LINE", "GD_LANE_WORDS"])
def test_both_ways_to_store_a_packet(store):
    lib, ffi = _native.lib, _native.ffi
    ring = np.zeros(64 * 4 + 64, np.uint8)
    at = -ring.ctypes.data % 64 + ring.ctypes.data
    replies = np.zeros(16 * 4 + 16, np.uint8)
    lane = ffi.new("struct gd_lane *")
    lane.packets, lane.replies, lane.slots = at, -replies.ctypes.data % 16 + replies.ctypes.data, 4
    assert lib.gd_lane_init(lane) == 0
    if store == "GD_LANE_LINE" and lane.store != lib.GD_LANE_LINE:
        assert "movdir64b" not in Path("/proc/cpuinfo").read_text()
        return
    lane.store = getattr(lib, store)
    lane.sent = lane.taken = 0xFFFF
    arguments = bytes(range(56))
    assert lib.gd_lane_send(lane, 0x1234, arguments, 56) == 0
    packet = ring[at - ring.ctypes.data :][:64].tobytes()  # call 0x10000 is in slot 0
    assert packet == (0x10000).to_bytes(4, "little") + arguments + (0x12340000).to_bytes(4, "little")


@pytest.mark.parametrize("size", [8, 100])
def test_a_lane_whose_memory_was_revoked(size):
    lib, ffi = _native.lib, _native.ffi
    reserved = lib.gd_reserve(0, 8192, 4096)  # nothing can be stored there, as after a revocation
    replies = np.zeros(16 * 4 + 16, np.uint8)
    lane = ffi.new("struct gd_lane *")
    lane.packets, lane.arguments, lane.stride = reserved, reserved + 4096, 128
    lane.replies, lane.slots = -replies.ctypes.data % 16 + replies.ctypes.data, 4
    lane.flags = lib.GD_GUARDED
    assert lib.gd_lane_init(lane) == 0
    try:
        for _ in range(2):
            assert lib.gd_lane_send(lane, 0, bytes(size), size) == -14
            assert lane.sent == 0
    finally:
        lib.gd_unmap(reserved, 8192)


def test_a_lane_of_wrong_size_is_refused():
    lib, ffi = _native.lib, _native.ffi
    for slots in (0, 1, 3, 100, 65536):
        lane = ffi.new("struct gd_lane *", {"slots": slots, "packets": 64, "replies": 64})
        assert lib.gd_lane_init(lane) == -22


# -- doorbells ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 64])
def test_doorbell(bits):
    word = {32: "unsigned", 64: "unsigned long long"}[bits]
    source = f"""__global__ void echo(volatile {word} *bell, volatile {word} *answer, int rounds)
    {{
        for ({word} i = 1; i <= rounds; i++) {{
            while (*bell < i) ;
            __threadfence_system();
            *answer = i;
        }}
    }}"""
    kernel = gd.kernel(source, "echo", device=DEVICE)
    stream = gd.stream(DEVICE)
    with gd.Doorbell(bits=bits, device=DEVICE) as bell:
        assert bell.answer == 0
        try:
            kernel[1, 1, stream](bell.ptr, bell.answer_ptr, 20)
            for i in range(1, 21):
                bell.ring(i)
                bell.wait(i, timeout=HANG)
        finally:
            bell.ring(20)  # the kernel ends whatever happens
        assert bell.answer == 20
        stream.synchronize()
        with pytest.raises(gd.CallTimeoutError, match=r"no answer 7 within 0\.01 s; it is 20"):
            bell.wait(7, timeout=0.01)
        with pytest.raises(gd.CallTimeoutError):
            bell.wait(7, timeout=0)
        with pytest.raises(gd.ArgumentError, match="whole number"):
            bell.ring(2**bits)
        with pytest.raises(gd.ArgumentError, match="timeout"):
            bell.wait(1, timeout=-1)
    bell.close()
    for what in (lambda: bell.ring(1), lambda: bell.wait(1), lambda: bell.answer):
        with pytest.raises(gd.ClosedError):
            what()
    with pytest.raises(gd.ArgumentError):
        gd.Doorbell(bits=16, device=DEVICE)
    stream.close()


def test_a_kernel_may_look_at_a_doorbell_that_is_gone():
    """Closed, dropped or left by an exception: its words belong to nobody else while the kernel polls."""
    source = """
    extern "C" __global__ void late(volatile unsigned *bell, unsigned *answer, volatile unsigned *gate)
    {
        while (!*gate) ;
        *answer = 7;
        *(unsigned *)bell = 8;
    }"""
    kernel = gd.kernel(source, "late", device=DEVICE)
    stream, gate = gd.stream(DEVICE), gd.zeros(1, "u4", device=DEVICE)
    bells = [gd.Doorbell(device=DEVICE) for _ in range(2)]
    try:
        for bell in bells:
            kernel[1, 1, stream](bell.ptr, bell.answer_ptr, gate)
        bells[0].close()
        gone = {b.ptr for b in bells}, {b.answer_ptr for b in bells}
        del bell, bells
        after = [gd.Doorbell(device=DEVICE) for _ in range(20)]
        assert not gone[0] & {b.ptr for b in after} and not gone[1] & {b.answer_ptr for b in after}
    finally:
        gate.write(np.ones(1, "u4"), via="map")
    stream.synchronize()  # the kernel has met no hole
    assert [bell.answer for bell in after] == [0] * 20
    for thing in (*after, gate, stream):
        thing.close()


def test_page_locked_memory_stays_while_work_is_queued():
    """Freed by hand, too, and whoever frees it does not wait."""
    kernel = gd.kernel(
        "__global__ void late(volatile int *gate, int *p) { while (!*gate) ; *p = 1; }", "late", device=DEVICE
    )
    stream, gate = gd.stream(DEVICE), gd.zeros(1, "i4", device=DEVICE)
    memory = gate.device.host_allocate(64)
    try:
        kernel[1, 1, stream](gate, memory.ptr)
        memory.free()
        memory.free()
    finally:
        gate.write(np.ones(1, "i4"), via="map")
    stream.synchronize()
    stream.close()
    gate.close()


# -- programs of their own -----------------------------------------------------------------------


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:1]


def _run(program, check=True):
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": path, "GPUDIRECT_DEVICE": DEVICE},
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("timeout", ["a", -1, [], float("nan")])
def test_a_timeout_that_is_none(timeout):
    with service("__device__ int f(int a) { return a + 1; }", ["f"]) as svc:
        with pytest.raises(gd.ArgumentError, match="give seconds, 0 or more"):
            svc.call("f", 1, timeout=timeout)
        assert svc.call("f", 1) == 2
        with pytest.raises(gd.ArgumentError, match="iterable"):
            svc.map("f", 3)
