"""An exception from nowhere (Ctrl-C, a signal handler that raises) at every place where Python can
raise one, a collection at every place where it can begin, and what is dropped: nothing is lost,
nothing is in two hands, nothing stays locked.

Python raises asynchronous exceptions after calls, at the start of functions and on the way back in
loops. Here one is raised at the n-th bytecode, whatever it is, for every n until the work ends
undisturbed.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from interrupting import OURS, Interrupted
from waiting import signalled, until

import gpudirect as gd
from gpudirect import aperture, memory
from gpudirect._keeper import keeper, patient

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
HANG = 60.0


class FromNowhere(BaseException):
    """What the signal handler raises."""


def at_bytecode(n: int, work, only_where_python_may: bool = False, files: tuple[str, ...] = (OURS,)) -> bool:
    """Do the work with an exception raised at the n-th bytecode of ours; False if it ended before.

    files: whose bytecodes count.
    """
    interrupted = Interrupted(n, FromNowhere, files, anywhere=not only_where_python_may)
    hook = sys.unraisablehook  # one in a finalizer is told, and keeps what it was raised in
    sys.unraisablehook = lambda told: None
    try:
        with interrupted:
            work()
    except FromNowhere:
        pass
    finally:
        sys.unraisablehook = hook
    return interrupted.came


def healthy(heap, in_use: int, held: int = 0) -> None:
    """Everything is back, nothing is handed out twice, nobody holds what others need."""
    keeper.settle()
    patient.settle()
    found = heap.statistics()
    assert found.in_use == in_use, found
    for size in (16, 300, 70_000, 3 * MIB):
        taken = [heap.take(size) for _ in range(12)]
        places = sorted((p.ptr, p.ptr + p.nbytes) for p in taken)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(places)), "shared"
        del taken
    assert heap.statistics().in_use == in_use


@pytest.fixture
def heap():
    gd.use(device="emulated", bridge="emulated")
    gc.collect()
    gd.trim()
    found = memory.heap(gd.device())
    yield found
    gc.collect()
    gd.trim()
    gd.use()


EVERY = int(os.environ.get("GPUDIRECT_STRESS_EVERY", "0"))
"""1: an exception at every single bytecode, which takes minutes."""


def sweep(work, check, step: int = 1, most: int = 100_000) -> int:
    """``work`` with an exception at every ``step``-th bytecode; how many there were."""
    n = 1
    step = EVERY or step
    while n < most:
        due = at_bytecode(n, work)
        check(n)
        if not due:
            return n
        n += step
    raise AssertionError("it never ended")


def test_take_and_give_from_the_pool(heap):
    held = [heap.take(n) for n in (100, 5000)]
    in_use = heap.statistics().in_use

    def work():
        a, b = heap.take(100), heap.take(5000)
        del a
        c = heap.take(200)
        del b, c
        heap._collect()

    def check(n):
        assert heap.statistics().in_use == in_use, n

    work()
    assert sweep(work, check) > 100
    healthy(heap, in_use)
    del held


def test_take_a_new_block_and_give_it_back(heap):
    in_use = heap.statistics().in_use

    def work():
        a = heap.take(3 * MIB, pool=False)
        b = heap.take(40, mapped=False)
        c = heap.take(5 * MIB, mapped=False)
        del a, b, c
        heap.trim()

    def check(n):
        keeper.settle()
        assert heap.statistics().in_use == in_use, n
        heap.trim()
        assert heap.statistics().reserved == heap.statistics().in_use == in_use, n
        assert gd.device().memory()[0] == free and gd.device().aperture().used == mapped

    gd.trim()
    free, mapped = gd.device().memory()[0], gd.device().aperture().used
    sweep(work, check, step=11)
    healthy(heap, in_use)


def test_collecting_while_kernels_run(heap):
    device = gd.device()
    gate = threading.Event()
    stream = gd.stream()
    in_use = heap.statistics().in_use

    def work():
        a, b = heap.take(100), heap.take(3 * MIB)
        del a, b
        heap._collect()

    from gpudirect import _native

    _native.lib.gd_work_begin(stream.queue.work)
    stream.queue.submit(lambda: gate.wait(HANG))
    _native.lib.gd_work_queued(stream.queue.work)
    try:
        assert device.pending
        sweep(work, lambda n: None, step=5)
    finally:
        gate.set()
    device.synchronize()
    heap.trim()
    healthy(heap, in_use)


def test_windows_and_their_account(heap):
    aperture.set_budget(8 * MIB, gd.device())
    account = aperture.account(gd.device())
    try:
        with gd.zeros(32 * MIB, "u1", mapped=False) as a:
            a.write(b"warm", via="map")
            piece = a._piece

            def work():
                with a.window(100, 5000) as w:
                    w.write(b"x" * 100)
                a.write(b"y" * 1000, via="map")
                with a.writer() as file:
                    file.write(b"z" * 100)

            def check(n):
                gc.collect()
                keeper.settle()  # what it makes for a waiter that is gone, it drops after the answer
                use = account.use()
                assert use.windows == 0 and use.total <= 8 * MIB, n
                assert gd.device().aperture().used == use.total, n

            sweep(work, check, step=23)
            del piece
            # no window is thought to be in use by somebody who is gone
            for at in range(0, 32 * MIB, MIB):
                a.write(b"w", at, via="map")
            aperture.set_budget(64 << 10, gd.device())
            assert account.use().total <= 64 << 10
    finally:
        aperture.set_budget(None, gd.device())


def test_register_and_let_go(heap):
    account = aperture.account(gd.device())
    with gd.zeros(MIB, "u1") as a:
        before = account.use()

        def work():
            b = gd.register(a.ptr, 5000)
            b.close()

        def check(n):
            gc.collect()
            keeper.settle()
            assert account.use().registered == before.registered, n

        sweep(work, check, step=11)


def test_a_waiter_that_is_interrupted_leaves_the_keeper_at_work():
    gate, begun, done = threading.Event(), threading.Event(), []

    def job():
        begun.set()
        gate.wait(HANG)
        done.append(True)

    def handler(*_):
        raise FromNowhere

    with pytest.raises(FromNowhere), signalled(handler, begun.is_set):
        keeper.run(job)
    assert not done
    gate.set()
    keeper.settle()
    assert done


STRESS = """
    import faulthandler, gc, os, signal, sys, threading, time
    import numpy as np
    import gpudirect as gd

    faulthandler.dump_traceback_later(100, exit=True)  # where it hangs

    class FromNowhere(Exception): pass
    def handler(*_): raise FromNowhere

    kernel = gd.kernel("__global__ void f(unsigned *p, unsigned v) { *p = v; }", "f")
    a = gd.zeros(64, "u4"); kernel[1, 1](a, 0); gd.synchronize()

    class Cycle:
        def __init__(self, thing): self.me, self.thing = self, thing

    def work(n):
        b = gd.empty(n % 3000 + 1, "u1")
        c = gd.empty(3 << 20, "u1", pool=bool(n % 2))
        d = gd.empty(100, "u4", mapped=False)
        kernel[1, 1, gd.stream()](d, n)
        Cycle(b), Cycle(gd.register(c.ptr + 5, 4000)), Cycle(d.window(0, 10)), Cycle(gd.stream())
        Cycle(gd.device().host_allocate(100)), Cycle(gd.stream().record()), Cycle(d)
        assert int(d.read()[0]) == n
        return b, c

    def distinct():
        held = [gd.empty(n, "u1") for n in (16, 16, 300, 5000, 3 << 20) for _ in range(8)]
        spans = sorted((h.ptr, h.ptr + h.nbytes) for h in held)
        assert all(x[1] <= y[0] for x, y in zip(spans, spans[1:])), "an address is shared"

    def settled():
        gc.set_threshold(700)
        for _ in range(3):
            gc.collect(); gd.synchronize(); gd.trim()
        distinct(); gc.collect(); gd.trim()
        used, = [s for s in gd.statistics() if s.device == "emulated:0"]
        assert used.in_use == 256, used
        assert used.blocks == 1, used
"""


def program(source: str, seconds: float = 110) -> None:
    text = textwrap.dedent(STRESS) + textwrap.dedent(source)
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", text], capture_output=True, text=True,
        timeout=seconds, cwd=ROOT,
        env={**os.environ, "GPUDIRECT_DEVICE": "emulated", "GPUDIRECT_BRIDGE": "emulated"},
    )  # fmt: skip
    assert run.returncode == 0 and "fine" in run.stdout, run.stdout + run.stderr


ROUNDS = int(os.environ.get("GPUDIRECT_STRESS_ROUNDS", "40"))


def test_collection_at_every_allocation():
    """Finalizers in the middle of everything: they queue, so nothing waits for itself."""
    program(f"""
        gc.set_threshold(1)
        for n in range({ROUNDS}):
            work(n)
        settled()
        print("fine")
    """)


def test_a_signal_handler_that_raises_all_the_time():
    program(f"""
        signal.signal(signal.SIGALRM, handler)
        hit = 0
        for n in range({ROUNDS * 5}):
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-5 + (n * 7919 % 997) * 1e-5)
                    work(n)
                except FromNowhere:
                    hit += 1
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except FromNowhere:  # of this round's only signal, in one of the last two clauses
                hit += 1
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        assert hit > 5, hit
        sys.unraisablehook = lambda *a: None
        settled()
        print("fine", hit)
    """)


def test_threads_that_take_and_give_while_collections_run():
    program(f"""
        gc.set_threshold(5)
        failed = []
        def run(seed):
            try:
                for n in range({ROUNDS} // 2):
                    work(seed * 100 + n)
            except BaseException as e:
                failed.append(e); raise
        threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
        [t.start() for t in threads]; [t.join(100) for t in threads]
        assert not failed and not any(t.is_alive() for t in threads)
        settled()
        print("fine")
    """)


def test_a_finalizer_of_the_users_may_use_everything(heap):
    """In the middle of an allocation, on the keeper's own thread as well."""
    program("""
        class Steering:
            def __init__(self): self.word, self.stream = gd.zeros(4, "u4"), gd.stream(); self.me = self
            def __del__(self):
                self.word.write(np.ones(4, "u4"))
                kernel[1, 1, self.stream](self.word, 7)
                self.stream.synchronize()
                gd.empty(100, mapped=False).write(np.zeros(100, "f4"))
                gd.empty(3 << 20, "u1", pool=False)
        gc.set_threshold(3)
        for n in range(15):
            Steering(); work(n)
        settled()
        print("fine")
    """)


def test_a_streams_thread_may_collect_before_it_runs():
    """What it collects there may be a program's own finalizer, that needs another stream's thread."""
    program("""
        word, streams = gd.zeros(4, "u4"), [gd.stream() for _ in range(2)]
        inner = threading.Thread._bootstrap_inner
        def collecting(thread):
            kernel[1, 1, streams[1]](word, 7)
            inner(thread)
        threading.Thread._bootstrap_inner = collecting
        kernel[1, 1, streams[0]](word, 1)
        gd.synchronize()
        print("fine")
    """)


def test_launches_while_somebody_looks_at_all_objects():
    """gc.get_objects() (profilers call it) refers to tuples that another thread has not finished."""
    program("""
        over = threading.Event()
        looking = threading.Thread(target=lambda: [gc.get_objects() for _ in iter(over.is_set, True)])
        looking.start()
        b, streams = gd.zeros(4, "u4"), [gd.stream() for _ in range(3)]
        for n in range(100):
            kernel[1, 1, streams[n % 3]](b, n)
        gd.synchronize()
        over.set()
        looking.join()
        print("fine")
    """)


def test_dropped_things_are_freed(heap):
    device = gd.device()

    def held():
        """When nothing is on its way home any more: device memory, descriptors, queues."""
        end = time.monotonic() + HANG
        while True:
            gc.collect()
            gd.synchronize()
            gd.trim()
            keeper.settle()
            patient.settle()
            if not any(q.retired for q in device.queues):
                return device.memory()[0], len(os.listdir("/proc/self/fd")), len(device.queues)
            assert time.monotonic() < end, device.queues
            time.sleep(0.01)

    gd.stream().record().sync()  # everything has been started
    gd.zeros(10).close()
    device.host_allocate(100).free()
    before = held()
    for _ in range(20):
        device.host_allocate(100)
        gd.Doorbell()
        gd.stream()
        gd.stream().record()
        gd.empty(100, pool=False)
        gd.register(gd.empty(5000, "u1").ptr, 100)
    end = time.monotonic() + HANG
    while (now := held()) != before:
        assert time.monotonic() < end, (before, now)
        time.sleep(0.01)


def test_a_stream_whose_work_ends_while_it_is_dropped_goes_back(heap):
    """The queue was waited for before it was known that nobody refers to its stream."""
    device = gd.device()
    gate = threading.Event()
    stream = gd.stream()
    queue = stream.queue
    queue.submit(lambda: gate.wait(HANG))  # a worker that is not done with the work that was waited for
    del stream
    keeper.settle()
    assert queue.retired and queue in device.queues and not device.pending
    gd.synchronize()
    gate.set()
    end = time.monotonic() + HANG
    while queue in device.queues:
        assert time.monotonic() < end
        gd.synchronize()
        keeper.settle()


def test_small_pieces_without_a_mapping_share_a_block(heap):
    before = heap.statistics().reserved
    made = [gd.empty(16, "u1", mapped=False) for _ in range(100)]
    assert heap.statistics().reserved - before == 2 * MIB
    for i, a in enumerate(made):
        a.write(bytes([i]) * 16, via="map" if i % 2 else None)
    assert [a.read().tobytes() for a in made] == [bytes([i]) * 16 for i in range(100)]


def test_without_the_pool_nothing_is_kept(heap):
    gd.trim()
    before = heap.statistics()
    for size in (100, 3 * MIB):
        a = gd.empty(size, "u1", pool=False)
        assert heap.statistics().blocks == before.blocks + 1
        a.close()
        assert heap.statistics() == before


def test_what_is_kept_stays_within_its_limit(heap):
    gd.trim()
    limit = heap._keep_limit
    made = [gd.empty(8 * MIB, "u1") for _ in range(limit // (8 * MIB) + 3)]
    del made
    keeper.settle()
    keeper.settle()
    assert heap.statistics().reserved <= limit + 8 * MIB


def test_no_room_for_a_thread_is_an_error_and_not_a_hang(monkeypatch):
    import _thread

    def refuse(*_):
        raise RuntimeError("can't start new thread")

    fresh = type(keeper)()
    with monkeypatch.context() as m:
        m.setattr(_thread, "start_new_thread", refuse)
        with pytest.raises(gd.Error, match="thread"):
            fresh.run(lambda: 1)
    assert fresh.run(lambda: 1) == 1
    with contextlib.suppress(gd.Error):
        stream = gd.stream(device="emulated")
        with monkeypatch.context() as m:
            m.setattr(_thread, "start_new_thread", refuse)
            with pytest.raises(gd.DeviceError, match="thread"):
                stream.record()
        stream.record().sync()  # and nothing hangs
        stream.synchronize()


def test_work_that_is_interrupted_where_it_is_queued_does_not_keep_the_device_busy(heap):
    device, a = heap.device, gd.zeros(8, "i4")
    kernel, stream = gd.kernel("__global__ void f() {}", "f"), gd.stream()
    data = np.arange(8, dtype="i4")
    for work in (lambda: kernel[1, 1, stream](), lambda: a.fill(1), lambda: a.fill(2, stream=stream),
                 lambda: a.write(data, stream=stream), lambda: a.copy(stream=stream)):  # fmt: skip
        n = 1
        while at_bytecode(n, work, only_where_python_may=True):
            device.synchronize()
            assert not device.pending, n
            n += EVERY or 1
        device.synchronize()
        assert n > 5 and not device.pending


def test_a_wait_that_is_interrupted_leaves_the_stream_at_work(heap):
    """Inside Python's own library, too: a lock that stayed held there, the worker waited for it for ever."""
    stream = gd.stream()
    n, due = 1, True
    while due:
        gate = threading.Event()
        stream.queue.submit(lambda gate=gate: gate.wait(HANG))
        event = stream.record()
        opening = threading.Timer(0.01, gate.set)  # for a wait that nothing interrupts
        opening.start()
        due = at_bytecode(n, event.sync, only_where_python_may=True, files=(OURS, threading.__file__))
        opening.join()
        after = stream.record()
        until(after.done, n)
        stream.synchronize()
        n += 1
    assert n > 3


@pytest.mark.parametrize("slice", [1e-3, None])
def test_a_service_whose_start_or_stop_was_interrupted_starts_again(heap, slice):
    """Whoever is told to end it finds it in any state, given back by half too."""
    svc = gd.Service("__device__ int add(int a, int b) { return a + b; }", "add", lifetime=300, slice=slice)
    relay = (OURS + "/devices/emulation/relayed.py", threading.__file__)  # which waits there
    for change, files, step in ((svc.stop, (OURS,), 5), (svc.start, (OURS,), 5), (svc.start, relay, 1)):
        n, due = 1, True
        while due:
            if change == svc.stop and not svc.running:
                svc.start().submit("add", 1, 2).add_done_callback(print)  # a thread looks
            due = at_bytecode(n, change, only_where_python_may=True, files=files)
            patient.settle()
            with svc:
                assert svc.call("add", 1, 2, timeout=HANG) == 3, (change, n)
            n += EVERY or step
        assert n > 50 or files is relay
