"""Waits for CUDA, beside a driver that is made up: signals are seen, short waits stay short, and a
stream on which others go on queueing is waited for no longer than what was queued."""

from __future__ import annotations

import ctypes
import errno
import signal
import subprocess
import threading
import time

import pytest
from waiting import until

import gpudirect as gd
from gpudirect import _native
from gpudirect.devices import Device
from gpudirect.devices.cuda import CudaDevice
from gpudirect.devices.cuda.streams import CudaEvent, CudaQueue

ffi, lib = _native.ffi, _native.lib
CONTEXT, NOT_READY, LOST = 0x77, 600, 719
HANG = 60.0


class Driver:
    """A stream (8) and an event (9) in it that are done at a time, or fail."""

    def __init__(self) -> None:
        self.stream_done = self.event_done = 0.0
        self.code = 0
        self.current = CONTEXT
        self.asked = {"query": 0, "event_query": 0}
        self.captured = False
        p = ctypes.c_void_p
        self._kept = {
            "query": self._c(lambda of: self._ask("query", of, 8, self.stream_done), p),
            "event_query": self._c(lambda of: self._ask("event_query", of, 9, self.event_done), p),
            "current": self._c(self._now, ctypes.POINTER(ctypes.c_uint64)),
            "push": self._c(self._push, ctypes.c_uint64),
            "pop": self._c(self._pop, p),
            "capturing": self._c(self._capturing, p, ctypes.POINTER(ctypes.c_int)),
        }
        self.functions = ffi.new("struct gd_driver *", {"context": CONTEXT})
        for name, function in self._kept.items():
            setattr(self.functions, name, ctypes.cast(function, p).value)

    def _c(self, function, *types):
        return ctypes.CFUNCTYPE(ctypes.c_int, *types)(function)

    def _ask(self, what, of, expected, done):
        assert of == expected and self.current == CONTEXT
        self.asked[what] += 1
        return NOT_READY if time.monotonic() < done else self.code

    def _now(self, out):
        out[0] = self.current
        return 0

    def _push(self, context):
        self.current = context
        return 0

    def _pop(self, out):
        self.current = 0
        return 0

    def _capturing(self, stream, status):
        status[0] = int(self.captured)
        return 0


class Event(CudaEvent):
    def __init__(self, device):
        self.device, self._event, self.timing = device, 9, False


class MadeUp(CudaDevice):
    def error(self, code, doing):
        return gd.DeviceLostError(doing, code) if code == LOST else gd.DeviceError(doing, code)


@pytest.fixture
def driver():
    return Driver()


@pytest.fixture
def queue(driver, monkeypatch):
    device = object.__new__(MadeUp)
    Device.__init__(device)
    device.ordinal, device.name, device._functions = 7, "made up", driver.functions
    monkeypatch.setattr(CudaQueue, "record", lambda self, timing: Event(self.device))
    return CudaQueue(device, 8)


def begin_work(queue):
    lib.gd_work_begin(queue.work)
    lib.gd_work_queued(queue.work)


NEVER = """
int query(void *of) { return 600; }
int current(void **context) { *context = (void *)0x77; return 0; }
"""


@pytest.fixture(scope="module")
def never(tmp_path_factory):
    """Functions of a driver that is never done, in C: no signal is seen in them."""
    folder = tmp_path_factory.mktemp("never")
    (folder / "never.c").write_text(NEVER)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "never.so", "never.c"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "never.so"))


def endless(driver):
    driver.stream_done = driver.event_done = time.monotonic() + HANG


@pytest.fixture
def interrupted():
    """Whatever it is given is interrupted after 0.1 s; how long the interruption took."""

    class Interrupted(BaseException):
        pass

    def handler(*_):
        raise Interrupted

    def play(wait):
        start = time.monotonic()
        with pytest.raises(Interrupted):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            wait()
        return time.monotonic() - start - 0.1

    before = signal.signal(signal.SIGALRM, handler)
    yield play
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_waits_are_interrupted_at_once(driver, queue, interrupted, never):
    begin_work(queue)
    kept = driver.functions.query, driver.functions.event_query, driver.functions.current
    for name, function in (("query", "query"), ("event_query", "query"), ("current", "current")):
        setattr(driver.functions, name, ctypes.cast(never[function], ctypes.c_void_p).value)
    queue.device.queues.add(queue)
    for wait in (queue.synchronize, Event(queue.device).wait, Event(queue.device).sync,
                 queue.device.synchronize):  # fmt: skip
        # within a piece, where the machine lets it run
        until(lambda wait=wait: interrupted(wait) < 0.2, f"{wait.__qualname__} is always interrupted late")
    assert queue.pending, "it was not waited for"
    driver.functions.query, driver.functions.event_query, driver.functions.current = kept
    queue.synchronize()
    assert not queue.pending


def test_a_thread_that_waits_leaves_the_interpreter_to_others(driver, queue):
    endless(driver)
    thread = threading.Thread(target=queue.synchronize)
    thread.start()
    turns, end = 0, time.monotonic() + 0.1
    while time.monotonic() < end or turns <= 1000:
        turns += 1
        assert time.monotonic() < end + HANG / 2, turns
    driver.event_done = 0
    thread.join(HANG)
    assert not thread.is_alive()


def test_a_stream_that_is_never_idle_is_waited_for_until_its_event(driver, queue):
    """Another thread goes on launching on it."""
    begin_work(queue)
    driver.stream_done, driver.event_done = time.monotonic() + HANG, time.monotonic() + 0.05
    start = time.monotonic()
    queue.synchronize()
    assert time.monotonic() - start < HANG / 2 and not queue.pending


def test_a_short_wait_asks_the_stream_and_records_nothing(driver, queue, monkeypatch):
    monkeypatch.delattr(CudaQueue, "record")
    begin_work(queue)
    queue.synchronize()
    assert driver.asked == {"query": 1, "event_query": 0} and not queue.pending


def test_a_long_wait_sleeps(driver):
    driver.event_done = time.monotonic() + 0.5
    before, waited = time.process_time(), 0
    while lib.gd_driver_wait_event(driver.functions, 9, waited) == -errno.EAGAIN:
        waited += lib.GD_WAIT_PIECE
    assert 0 < driver.asked["event_query"]
    assert time.process_time() - before < 0.25, "it spun"


def test_the_end_is_noticed_soon(driver):
    """A pause is a sixty-fourth of what was waited for already; of the best quarter, machines are busy."""

    def best_quarter():
        late = []
        for seconds in (0.001, 0.002, 0.004) * 7:
            driver.event_done = time.monotonic() + seconds
            assert lib.gd_driver_wait_event(driver.functions, 9, 0) == 0
            late.append((time.monotonic() - driver.event_done) / seconds)
        return sorted(late)[len(late) // 4]

    late = []
    while not late or (late[-1] >= 0.1 and len(late) < 20):
        late.append(best_quarter())
    assert late[-1] < 0.1, late


@pytest.mark.parametrize("when", ["at once", "later"])
def test_what_went_wrong_is_told_once_and_counts_as_waited_for(driver, queue, when):
    begin_work(queue)
    driver.code = LOST
    if when == "later":
        driver.stream_done, driver.event_done = time.monotonic() + HANG, time.monotonic() + 0.02
    with pytest.raises(gd.DeviceLostError, match="waiting for"):
        queue.synchronize()
    assert not queue.pending


def test_the_context_is_entered_and_left(driver, queue):
    driver.current = 0
    driver.event_done = time.monotonic() + 0.03
    Event(queue.device).wait()
    queue.synchronize()
    assert driver.current == 0


def test_a_stream_that_is_captured_is_not_asked_further(driver):
    assert lib.gd_driver_ready(driver.functions, 8) == 0
    driver.stream_done = time.monotonic() + HANG
    assert lib.gd_driver_ready(driver.functions, 8) == -errno.EAGAIN
    driver.captured, asked = True, driver.asked["query"]
    assert lib.gd_driver_ready(driver.functions, 8) == -errno.EBUSY
    assert driver.asked["query"] == asked


@pytest.mark.parametrize("code", [201, 400, 709])
def test_for_a_stream_that_its_owner_destroyed_the_device_is_waited_for(driver, queue, monkeypatch, code):
    waited = []
    monkeypatch.setattr(CudaQueue, "_wait_for_all", lambda self: waited.append(self))
    begin_work(queue)
    driver.code = code
    queue.synchronize()
    assert waited == [queue] and not lib.gd_work_open(queue.work)


def test_a_context_that_is_lost_is_told_also_where_a_stream_of_others_tells_it(driver, queue, monkeypatch):
    def lost(_):
        raise gd.DeviceLostError("the context is gone", 709)

    monkeypatch.setattr(CudaQueue, "_wait_for_all", lost)
    begin_work(queue)
    driver.code = 709
    with pytest.raises(gd.DeviceLostError, match="the context is gone"):
        queue.synchronize()
    driver.code = LOST  # a kernel's fault is no destroyed stream
    with pytest.raises(gd.DeviceLostError, match="waiting for a stream"):
        queue.synchronize()
