"""What only a GPU can show of services: ten million calls, and the bars. Run by ``tests/gpu/run --all``.

GPUDIRECT_SOAK_CALLS and GPUDIRECT_SOAK_NAPS set other numbers of calls. On GPUDIRECT_DEVICE=emulated the
soak runs too, with as many calls as are asked for: slowly.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import gpudirect as gd
from gpudirect import _native, devices

HERE = Path(__file__).parent

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

DEVICE = os.environ.get("GPUDIRECT_DEVICE") or "cuda"
CALLS = int(os.environ.get("GPUDIRECT_SOAK_CALLS", 10_000_000))
NAPS = int(os.environ.get("GPUDIRECT_SOAK_NAPS", 1_000_000))
WORDS = (*range(1, 15), 20, 64)  # of arguments; the last two go by reference
SIZES, LIFETIME = 16, 200.0

SOURCE = """
template <int n> struct words { unsigned v[n]; };
__device__ unsigned tickets;
template <int n> __device__ inline unsigned long long answer(const words<n> &w)
{
    unsigned hash = 2166136261u;
    for (int i = 0; i < n; i++) hash = (hash ^ w.v[i]) * 16777619u;
    return (unsigned long long)(atomicAdd(&tickets, 1u) + 1) << 32 | hash;
}
__device__ unsigned reset() { return atomicExch(&tickets, 0u); }
""" + "\n".join(
    f"__device__ unsigned long long f{n}(words<{n}> w) {{ return answer(w); }}" for n in WORDS
)


class Soak(ctypes.Structure):
    _fields_ = (
        ("api", ctypes.c_void_p), ("lanes", ctypes.c_void_p * 8), ("lane_count", ctypes.c_int),
        ("words", ctypes.c_uint32 * SIZES), ("function", ctypes.c_uint32 * SIZES),
        ("seed", ctypes.c_uint64), ("calls", ctypes.c_uint64), ("halt", ctypes.c_uint64),
        ("sent", ctypes.c_uint64), ("answered", ctypes.c_uint64), ("stopped", ctypes.c_uint64),
        ("unrun", ctypes.c_uint64), ("wrong", ctypes.c_uint64), ("disorder", ctypes.c_uint64),
        ("tickets", ctypes.c_void_p), ("ticket_bits", ctypes.c_uint64), ("doubled", ctypes.c_uint64),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def needs_a_gpu():
    if DEVICE != "emulated" and (reason := devices.cuda_reason()):
        pytest.fail(f"these tests need a GPU: {reason}")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the soak needs a C compiler: install gcc, or set CC"
    out = tmp_path_factory.mktemp("soak") / "soak.so"
    subprocess.run([*compiler.split(), "-O2", "-Wall", "-fPIC", "-shared", f"-I{HERE.parents[1] / 'p2pmod'}",
                    "-o", str(out), str(HERE / "soak.c")], check=True)  # fmt: skip
    library = ctypes.CDLL(str(out))
    library.soak_expected_size.restype = ctypes.c_size_t
    library.soak.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.drain.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    return library


class Round:
    """Two threads on two lanes each, from a start of the service to its stop."""

    def __init__(self, driver, service, tickets, calls, seed):
        self.driver, self.service = driver, service
        self.lent = [service.lend(n) for n in range(4)]
        self.states, self.expected = [], []
        for t in range(2):
            s = Soak()
            s.api = int(_native.ffi.cast("uintptr_t", _native.lib.gd_lane_api()))
            for i in range(2):
                s.lanes[i] = int(_native.ffi.cast("uintptr_t", self.lent[2 * t + i]))
            s.lane_count = 2
            for i, n in enumerate(WORDS):
                s.words[i], s.function[i] = n, service.functions[f"f{n}"].number
            s.seed = 0x9E3779B97F4A7C15 * (seed * 2 + t + 1) & (1 << 64) - 1
            s.calls = calls
            s.tickets, s.ticket_bits = tickets.ctypes.data, tickets.size * 64
            self.states.append(s)
            self.expected.append(ctypes.create_string_buffer(2 * driver.soak_expected_size()))

    def run(self, seconds=None):
        """All calls; or the service is told to stop after so many seconds, whatever is open then."""
        codes = [None, None]

        def work(t):
            codes[t] = self.driver.soak(ctypes.addressof(self.states[t]), self.expected[t])

        threads = [threading.Thread(target=work, args=(t,)) for t in range(2)]
        for t in threads:
            t.start()
        if seconds is not None:
            threads[0].join(seconds)
            self.service._resident.end(1)  # as stop() does; its memory must stay until the replies are seen
            assert self.service._resident.await_end(5.0)
            for s in self.states:
                s.halt = 1
        for t in threads:
            t.join()
        assert codes == [0, 0], f"soak broke off: {codes}"
        for s, e in zip(self.states, self.expected, strict=True):
            assert self.driver.drain(ctypes.addressof(s), e, seconds is not None) == 0

    def total(self, what):
        return sum(getattr(s, what) for s in self.states)

    def check(self, tickets):
        assert self.total("wrong") == 0, "a packet was torn, or a reply is another call's"
        assert self.total("disorder") == 0
        assert self.total("doubled") == 0
        unanswered = self.total("stopped") + self.total("unrun")
        assert self.total("sent") == self.total("answered") + unanswered
        assert int(np.bitwise_count(tickets).sum()) == self.total("answered")


@pytest.fixture(scope="module")
def service():
    functions = ["reset", *(f"f{n}" for n in WORDS)]
    return gd.Service(SOURCE, functions, lanes=5, slots=64, device=DEVICE, lifetime=LIFETIME)


def reset(service, made):
    """The device's count of calls, which must be those that were answered."""
    assert service.call("reset", lane=4) == made


def test_ten_million_calls(driver, service, capsys):
    tickets = np.zeros(CALLS // 64 + 64, np.uint64)
    with service:
        service.call("reset", lane=4)
        r = Round(driver, service, tickets, CALLS // 2, 1)
        start = time.monotonic()
        r.run()
        seconds = time.monotonic() - start
        r.check(tickets)
        assert r.total("answered") == CALLS // 2 * 2
        reset(service, r.total("answered"))
    with capsys.disabled():
        print(f"\n{CALLS} calls by two threads on four lanes, {seconds:.1f} s: all answered once, "
              "in order, none torn")  # fmt: skip


def test_ten_million_calls_over_ten_thousand_slices(driver, capsys):
    """Slices a tenth as long as usual: one ends about every 250 calls, with calls open."""
    calls = CALLS * 3 // 2  # an H200 runs 7618 slices in ten million
    tickets = np.zeros(calls // 64 + 64, np.uint64)
    functions = ["reset", *(f"f{n}" for n in WORDS)]
    with gd.Service(SOURCE, functions, lanes=5, slots=64, device=DEVICE, lifetime=LIFETIME,
                    slice=1e-4) as service:  # fmt: skip
        service.call("reset", lane=4)
        r = Round(driver, service, tickets, calls // 2, 11)
        before, start = service.info.slices, time.monotonic()
        r.run()
        seconds, slices = time.monotonic() - start, service.info.slices - before
        r.check(tickets)
        made = r.total("answered")
        assert made == calls // 2 * 2
        reset(service, made)
        late = service.info.late
    with capsys.disabled():
        print(f"\n{made} calls over {slices} slices of 0.1 ms, {seconds:.1f} s, {late} launches late: all "
              "answered once, in order, none torn")  # fmt: skip
    assert slices >= CALLS // 1000, "fewer slices than asked for: set GPUDIRECT_SOAK_CALLS higher"


def test_naps_begun_and_ended_at_random(capsys):
    """GPUDIRECT_SOAK_NAPS calls, each after a pause of about the time after which the kernel leaves."""
    after, slice, draw = 3e-5, 1e-3, np.random.default_rng(8)
    source = "__device__ unsigned counted; __device__ unsigned next(unsigned n) { return ++counted; }"
    took, before = np.empty(NAPS), 0
    clock = time.perf_counter
    with gd.Service(source, "next", device=DEVICE, lifetime=3600, slice=slice, nap_after=after,
                    park_after=None) as service:  # fmt: skip
        call, start = service.call, clock()
        for first in range(0, NAPS, 1000):
            pauses = draw.uniform(0, 3 * after, 1000)
            for i, pause in enumerate(pauses[: NAPS - first]):
                until = clock() + pause
                while clock() < until:
                    pass
                sent = clock()
                before += 1
                assert call("next", i, timeout=60) == before, "a call was lost, or run twice"
                took[first + i] = clock() - sent
        seconds, napped, info = clock() - start, service.info.napped, service.info
    late = int((took > slice).sum())
    with capsys.disabled():
        p = np.percentile(took, [50, 99, 99.9]) * 1e6
        print(f"\n{NAPS} calls after random pauses of up to {3 * after * 1e6:.0f} us, {seconds:.0f} s, of "
              f"which {napped:.0f} s napping; {info.slices} launches. p50 {p[0]:.1f} us, p99 {p[1]:.1f}, "
              f"p99.9 {p[2]:.1f}, worst {took.max() * 1e3:.2f} ms, {late} later than a slice")  # fmt: skip
    if DEVICE != "emulated":
        assert took.max() <= 2 * slice, "a call was late by more than a slice"


def test_ten_million_calls_with_a_stop_each_second(driver, service, capsys):
    made = stopped = unrun = rounds = 0
    start = time.monotonic()
    while made < CALLS:
        tickets = np.zeros(CALLS // 64 + 64, np.uint64)
        with service:
            service.call("reset", lane=4)
            r = Round(driver, service, tickets, (CALLS - made + 1) // 2, rounds + 2)
            r.run(min(1.0, CALLS / 1e6))
            r.check(tickets)
        with service:
            reset(service, r.total("answered"))
        made += r.total("answered")
        stopped += r.total("stopped")
        unrun += r.total("unrun")
        rounds += 1
    assert rounds > 1 and stopped + unrun, "no call was open at any stop: the test shows nothing"
    with capsys.disabled():
        print(f"\n{made} calls in {rounds} lives of the service, {time.monotonic() - start:.1f} s; "
              f"{stopped} were told that it had stopped, {unrun} came too late for that")  # fmt: skip


def test_the_soak_can_fail(driver, service):
    """A reply that belongs to other arguments is seen."""
    tickets = np.zeros(CALLS // 64 + 64, np.uint64)
    with service:
        service.call("reset", lane=4)
        r = Round(driver, service, tickets, 2000, 3)
        service.call("f1", b"1234", lane=4)  # a ticket too many
        r.states[0].words[3] = 3  # 12 bytes for a function of 16
        r.run()
        assert r.total("wrong") > 0
        with pytest.raises(AssertionError):
            reset(service, r.total("answered"))


# -- beside other work -------------------------------------------------------------------------


def test_what_goes_on_beside_a_service(service, capsys):
    """Nothing of gpudirect's own waits for the resident kernel to end."""
    device = gd.device(DEVICE)
    loaded = gd.kernel("__global__ void before(int *p) { *p = 7; }", "before", device=device)
    host = np.ones(16 << 20, np.uint8)
    with gd.zeros(4, "i4", device=device) as a, service:
        made: list = []
        works = {
            "first launch of a loaded kernel": lambda: loaded[1, 1](a),
            "launch and synchronise": lambda: (loaded[1, 1](a), gd.synchronize(device)),
            "read, mapped": lambda: a.read(via="map"),
            "read, DMA": lambda: a.read(via="dma"),
            "get 16 MiB": lambda: made.append(gd.empty(16 << 20, "u1", device=device, pool=False)),
            "write 16 MiB, DMA": lambda: made[0].write(host, via="dma"),
            "give 16 MiB back": lambda: made[0].close(),
            "zeros": lambda: gd.zeros(1000, device=device).close(),
            "trim": gd.trim,
            "page-locked memory": lambda: made.append(device.host_allocate(1 << 20)),
            "page-locked memory, back": lambda: made[1].free(),
            "stream": lambda: device.stream().close(),
            "compile, load and launch": lambda: gd.kernel(
                f"__global__ void k(int *p) {{ *p = {time.time_ns() % 10**6}; }}", "k", device=device
            )[1, 1](a),
            "another service": lambda: gd.Service(
                "__device__ int f() { return 1; }", "f", device=device, lifetime=LIFETIME
            ).start().stop(),
        }  # fmt: skip
        lines = []
        for name, work in works.items():
            start = time.monotonic()
            work()
            seconds = time.monotonic() - start
            service.call("reset", timeout=1.0)
            lines.append(f"  {name}: {seconds * 1e3:.2f} ms")
            assert seconds < 10, f"{name} took {seconds:.1f} s"
    with capsys.disabled():
        print("\nbeside a service:", *lines, sep="\n")


def test_power(capsys):
    """Lanes that wait take little, whether they sleep between polls or not."""
    if DEVICE == "emulated":
        pytest.skip("the emulated device draws no power of its own")
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByPciBusId(gd.device(DEVICE).pci_address.encode())

    def watts():
        time.sleep(0.7)  # NVML tells an average over part of a second
        return sum(pynvml.nvmlDeviceGetPowerUsage(handle) for _ in range(20)) / 20e3

    def serving(lanes, after, sleep):
        with gd.Service("__device__ int f() { return 1; }", "f", device=DEVICE, lifetime=LIFETIME,
                        lanes=lanes, idle_after=after, idle_sleep=sleep) as svc:  # fmt: skip
            found, took = watts(), []
            for _ in range(20):
                time.sleep(0.005)
                start = time.perf_counter()
                svc.call("f")
                took.append(time.perf_counter() - start)
            return found, float(np.median(took))

    none, drawn = watts(), {}
    lines = [f"  context open, no kernel: {none:.1f} W"]
    for lanes in (1, 8, 64):
        for after, sleep in ((1000.0, 0.0), (0.0, 2e-6), (0.0, 20e-6), (0.0, 1e-3)):
            found, took = serving(lanes, after, sleep)
            how = f"sleeps {sleep * 1e6:g} us" if after == 0 else "polls on"
            lines.append(f"  {lanes} lanes, {how}: {found:.1f} W, a call after 5 ms {took * 1e6:.1f} us")
            drawn[lanes, how] = found
    with capsys.disabled():
        print("", *lines, sep="\n")
    # 64 lanes that poll draw 3.5 W more than none; asleep they draw next to nothing
    assert drawn[64, "sleeps 20 us"] < drawn[64, "polls on"]
    assert drawn[64, "sleeps 20 us"] - none < 2


def test_the_unit_suite_on_this_device(capsys):
    suite = Path(__file__).resolve().parents[1] / "unit" / "test_service.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(suite)],
        env={**os.environ, "GPUDIRECT_TEST_SERVICE_DEVICE": DEVICE}, capture_output=True, text=True,
        timeout=240,
    )  # fmt: skip
    with capsys.disabled():
        print("\n" + done.stdout.strip().rpartition("\n")[2])
    assert done.returncode == 0, done.stdout + done.stderr
