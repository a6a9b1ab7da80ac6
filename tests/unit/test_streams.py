"""Streams and events: what is waited for, what is forgotten, which one is current, what goes back."""

from __future__ import annotations

import _thread
import gc
import threading
import time

import pytest
from waiting import HOLD, until

import gpudirect as gd
from gpudirect import _native
from gpudirect._keeper import keeper
from gpudirect.devices import Device
from gpudirect.devices.cuda import CudaDevice
from gpudirect.devices.cuda.streams import MOST_ADOPTED, Adopted

HANG = 60.0

SPIN = HOLD + """
__global__ void spin(volatile unsigned *go, unsigned *out)
{
    hold(go);
    *out = 1;
}
"""


@pytest.fixture(autouse=True)
def device():
    gd.use(device="emulated")
    yield gd.device()
    gd.synchronize()
    gd.use()


def test_a_launch_made_while_another_thread_waits_is_not_forgotten(device):
    """The wait ends with what was queued when it began; the read after it waits for the rest."""
    gate, entered = threading.Event(), threading.Event()
    queue = device.default_stream.queue
    with gd.zeros(2, "u4") as a:
        kernel = gd.kernel(SPIN, "spin")
        a.fill(0)
        queue.submit(lambda: (entered.set(), gate.wait(HANG)))
        waiter = threading.Thread(target=device.synchronize)
        device.default_stream.record()
        begin_work(queue)
        waiter.start()
        assert entered.wait(HANG)
        while queue._jobs.qsize() < 2:  # the waiter's own marker
            time.sleep(1e-3)
        kernel[1, 1](a, a.ptr + 4)  # behind what the waiter waits for
        gate.set()
        waiter.join(HANG)
        assert not waiter.is_alive()
        assert device.pending, "the launch was forgotten"
        a.host[0] = 1
        a.flush()
        assert a.read().tolist() == [1, 1]
        assert not device.pending


def begin_work(queue):
    """Something on the queue that a synchronisation waits for."""
    _native.lib.gd_work_begin(queue.work)
    _native.lib.gd_work_queued(queue.work)


def test_memory_freed_during_a_wait_is_not_handed_out_under_a_kernel(device):
    with gd.zeros(1, "u4") as word:
        kernel, stream = gd.kernel(SPIN, "spin"), gd.stream()
        a = gd.zeros(1, "u4")
        ptr = a.ptr
        kernel[1, 1, stream](word, a)
        a.close()
        taken = [gd.empty(1, "u4") for _ in range(20)]
        assert ptr not in [t.ptr for t in taken]
        word.host[0] = 1
        word.flush()
        stream.synchronize()
        for t in taken:
            t.close()
        assert ptr in [t.ptr for t in [gd.empty(1, "u4") for _ in range(40)]]


def test_a_closed_stream_takes_no_launch_and_no_wait(device):
    kernel, stream = gd.kernel("__global__ void f() {}", "f"), gd.stream()
    launcher = kernel[1, 1, stream]
    stream.close()
    stream.close()
    assert stream.closed and "closed" in repr(stream)
    for use in (lambda: kernel[1, 1, stream](), launcher, stream.synchronize, stream.record,
                stream.__enter__, lambda: stream.handle, lambda: stream.wait(gd.stream())):
        with pytest.raises(gd.ClosedError, match="stream of emulated:0 was closed"):
            use()


def test_the_default_stream_is_not_closed_by_a_user(device):
    device.default_stream.close()
    assert not device.default_stream.closed


def test_dropped_streams_go_back_with_their_threads(device):
    gc.collect()
    keeper.settle()
    before, threads = set(device.queues), _thread._count()
    kernel = gd.kernel("__global__ void f() {}", "f")
    for _ in range(50):
        kernel[1, 1, gd.stream()]()
    device.synchronize()
    end = time.monotonic() + HANG
    while not device.queues <= before:  # each goes with its last work, on the keeper's thread
        keeper.run(device.sweep)
        assert time.monotonic() < end, (device.queues, before)
    while _thread._count() > threads and time.monotonic() < end:
        time.sleep(1e-3)
    assert _thread._count() <= threads


def test_a_dropped_stream_finishes_its_work_first(device):
    with gd.zeros(2, "u4") as a:
        gd.kernel(SPIN, "spin")[1, 1, gd.stream()](a, a.ptr + 4)
        gc.collect()
        keeper.settle()
        assert device.pending and device.working()
        a.host[0] = 1
        a.flush()
        assert a.read()[1] == 1


def test_a_stream_is_idle_once_its_last_event_is_over(device, monkeypatch):
    """Between the event and the count of what is done the worker may be put aside: it is never seen."""
    settle, seen = _native.lib.gd_work_settle, []
    stream = gd.stream()
    counted = stream.queue._all

    class Slow:
        def __getattr__(self, name):
            return getattr(_native.lib, name)

        def gd_work_settle(self, work, mark):
            if work is counted:
                time.sleep(0.02)
            settle(work, mark)

    monkeypatch.setattr("gpudirect.devices.emulation.streams._native", type("Native", (), {
        "lib": Slow(), "ffi": _native.ffi}))  # fmt: skip
    for wait in (stream.synchronize, lambda: stream.record().sync(), lambda: until(stream.record().done)):
        wait()
        seen.append(stream.idle())
    assert seen == [True] * 3
    event = stream.record()
    until(stream.idle)
    assert event.done()


def test_the_current_stream(device):
    one, two = gd.stream(), gd.stream()
    seen = []
    assert device.current_stream is device.default_stream
    with one:
        assert device.current_stream is one
        with two, one, two:
            assert device.current_stream is two
        assert device.current_stream is one
        thread = threading.Thread(target=lambda: seen.append(device.current_stream))
        thread.start()
        thread.join()
        with pytest.raises(KeyError), two:
            raise KeyError
        assert device.current_stream is one
    assert device.current_stream is device.default_stream and seen == [device.default_stream]


def test_launches_go_to_the_current_stream(device):
    with gd.zeros(2, "u4") as a, gd.zeros(1, "u4") as b:
        kernel, stream = gd.kernel(SPIN, "spin"), gd.stream()
        launch = kernel[1, 1]
        with stream:
            launch(a, a.ptr + 4)
        device.default_stream.synchronize()  # does not wait for it
        assert not stream.idle() and device.default_stream.idle()
        a.host[0] = 1
        a.flush()
        stream.sync()
        kernel.launch(1, 1, a, b)
        assert not device.default_stream.queue.pending or b.read()[0] == 1


def test_events_tell_the_time_between_them(device):
    stream = gd.stream()
    start = stream.record()
    gate = threading.Event()
    stream.queue.submit(lambda: (gate.wait(HANG), time.sleep(0.05)))
    end = stream.record()
    assert not end.is_done and "not reached" in repr(end)
    with pytest.raises(gd.ArgumentError, match=r"sync\(\)"):
        end - start
    gate.set()
    end.sync()
    assert start.is_done and end.is_done
    assert 50 <= end - start < HANG * 1e3 and start - end == -(end - start)
    silent = stream.record(timing=False)
    silent.sync()
    with pytest.raises(gd.ArgumentError, match="timing=True"):
        silent - start
    with pytest.raises(TypeError):
        end - 5


def test_a_stream_waits_for_an_event_of_another(device):
    one, two = gd.stream(), gd.stream()
    order = []
    gate = threading.Event()
    one.queue.submit(lambda: (gate.wait(HANG), order.append("one")))
    two.wait(one.record())
    two.wait(one)
    two.queue.submit(lambda: order.append("two"))
    gate.set()
    two.synchronize()
    assert order == ["one", "two"]
    with pytest.raises(gd.ArgumentError, match="nothing to wait for"):
        two.wait(5)


def test_a_launch_that_is_interrupted_is_never_forgotten(device, monkeypatch):
    """What may have been queued is waited for, whether it was or not."""
    kernel = gd.kernel("__global__ void f() {}", "f")
    queue = device.default_stream.queue

    def interrupted(job):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(queue, "submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kernel[1, 1]()
    assert device.pending
    device.synchronize()
    assert not device.pending


@pytest.fixture
def gpu():
    """A CUDA device without the driver: enough to adopt streams."""
    d = object.__new__(CudaDevice)
    Device.__init__(d)
    d.ordinal, d.name, d._adopted, d.default_stream = 7, "no GPU", Adopted(d), None
    return d


def test_a_foreign_stream_is_one_queue_however_often_it_is_given(gpu):
    class Foreign:
        def __cuda_stream__(self):
            return 0, 4711

    foreign = Foreign()
    made = [gpu.adopt_stream(foreign) for _ in range(500)] + [gpu.adopt_stream(4711) for _ in range(500)]
    assert len(gpu.queues) == 1 and len({id(s.queue) for s in made}) == 1
    made[0].close()
    assert not made[1].closed and len(gpu.queues) == 1


def test_foreign_streams_that_are_done_are_forgotten_and_others_are_not(gpu):
    busy = gpu.adopt_stream(5)
    begin_work(busy.queue)
    held = gpu.adopt_stream(6)
    queues = busy.queue, held.queue
    del busy
    for n in range(1000, 3000):
        gpu.adopt_stream(n)
    assert len(gpu.queues) <= MOST_ADOPTED + 2
    assert set(queues) <= gpu.queues and gpu.adopt_stream(5).queue is queues[0]
    assert gpu.adopt_stream(6).queue is queues[1]


@pytest.mark.parametrize("wrong", ["x", None, object()])
def test_what_is_no_stream_is_refused(gpu, wrong):
    with pytest.raises(gd.ArgumentError, match="is no stream"):
        gpu.adopt_stream(wrong)
