"""Children of fork(): what was the parent's is refused, what is their own works as in a fresh process.

Every case is a program of its own, which says what it saw.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = int(os.environ.get("GPUDIRECT_FORK_ROUNDS", "15"))  # children, while other threads are at work

HEAD = f"ROUNDS = {ROUNDS}" + """
import gc, os, sys, warnings
import numpy as np
import gpudirect as gd
warnings.simplefilter("ignore")
SOURCE = '__device__ int add(int a, int b) { return a + b; }'
KERNEL = '__global__ void one(int *p) { atomicAdd(p, 1); }'

def in_child(work):
    "Run work() in a child; ends this program when the child fails."
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        sys.exit(f"the child ended with {status}")

def only_the_quick_way(array):
    "write() must not leave C: what it would call there fails."
    slow = type(array)._write_slow
    type(array)._write_slow = lambda *a, **k: 1 / 0
    try:
        array.write(np.arange(array.size, dtype=array.dtype))
    finally:
        type(array)._write_slow = slow

def everything(device="emulated"):
    "What a fresh process can do."
    a = gd.zeros(16, "i4", device=device)
    only_the_quick_way(a)
    assert a.read().tolist() == list(range(16))
    kernel = gd.kernel(KERNEL, "one", device=device)
    kernel[1, 64](a)
    gd.synchronize(device)
    assert int(a.read()[0]) == 64
    with gd.Service(SOURCE, "add", device=device, lifetime=300) as svc:
        assert svc.call("add", 2, 3) == 5
        assert svc.submit("add", 2, 3).result(timeout=60) == 5
    with gd.Doorbell(device=device) as bell:
        bell.ring(1)
        assert bell.answer == 0
        bell.wait(0)
    large = gd.zeros(5 << 20, "u1", device=device, mapped=False)
    large.write(b"x" * 100)
    assert large.read()[:3].tolist() == [120] * 3
    with large.window(0, 100) as w:
        w.write(b"yz")
    gd.trim()

def refused(use):
    try:
        use()
    except gd.ForkError as e:
        assert "spawn" in str(e), e
        return
    raise AssertionError("not refused")
"""


def run(code: str, **environment: str) -> str:
    text = HEAD + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=100 + 5 * ROUNDS, cwd=ROOT,
        env={**os.environ, "GPUDIRECT_DEVICE": "emulated", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_a_parent_that_only_imported_it():
    run("in_child(everything); everything(); in_child(everything)")


def test_a_child_of_a_child():
    run("""
        everything()
        kept = gd.zeros(4)

        def child():
            everything()
            mine = gd.zeros(4)

            def grandchild():
                refused(lambda: kept.write(np.zeros(4, "f4")))
                refused(lambda: mine.write(np.zeros(4, "f4")))
                everything()
            in_child(grandchild)
            mine.write(np.ones(4, "f4"))
            assert mine.read().sum() == 4
        in_child(child)
        kept.write(np.ones(4, "f4"))
        assert kept.read().sum() == 4
    """)


def test_everything_of_the_parent_is_refused():
    run("""
        a = gd.zeros((4, 4), "i4")
        part = a[:, 1]
        large = gd.zeros(5 << 20, "u1", mapped=False)
        large.write(b"x")
        window, file = large.window(0, 100), large.writer()
        kernel = gd.kernel(KERNEL, "one")
        svc = gd.Service(SOURCE, "add").start()
        future = svc.submit("add", 1, 2)
        bell = gd.Doorbell()
        stream = gd.stream()

        def child():
            for use in (
                'a.write(np.zeros((4, 4), "i4"))',
                'a.write(b"x" * 64)',
                'a.read()',
                'a.read(np.empty((4, 4), "i4"))',
                'a.fill(1)',
                'a.flush()',
                'a.buffer',
                'a.host',
                'a.__setitem__(0, 1)',
                'a.scatter([(0, b"1234")])',
                'np.asarray(a)',
                'np.from_dlpack(a)',
                'part.write(np.zeros(4, "i4"))',
                'part.read()',
                'large.write(b"x")',
                'large.read()',
                'window.write(b"x")',
                'window.move(1)',
                'file.write(b"x")',
                'kernel[1, 1](a)',
                'kernel[1, 1](gd.zeros(4, "i4"))',
                'svc.call("add", 1, 2)',
                'svc.submit("add", 1, 2)',
                'future.result()',
                'svc.start()',
                'bell.ring(1)',
                'bell.wait(1, timeout=1)',
                'bell.answer',
                'stream.synchronize()',
                'kernel[1, 1, stream](gd.zeros(4, "i4"))',
                'a.device.synchronize()',
            ):
                try:
                    eval(use, globals())
                except gd.ForkError as e:
                    assert "spawn" in str(e), (use, e)
                else:
                    raise AssertionError(use)
            # closing what is not his does nothing
            for thing in (a, window, file, svc, bell, stream):
                thing.close() if hasattr(thing, "close") else thing.stop()
            everything()
        in_child(child)
        assert future.result() == 3 and svc.call("add", 1, 1) == 2
        a.write(np.ones((4, 4), "i4"))
        kernel[1, 32, stream](a)
        stream.synchronize()
        assert int(a.read()[0, 0]) == 33
        bell.ring(7)
        svc.stop()
        everything()
    """)


def test_what_a_child_drops_takes_nothing_of_its_own_away():
    """The parent's addresses may be the child's own by then."""
    run("""
        def several():
            made = [gd.zeros(n, "u1") for n in (10, 5000, 3 << 20, 5 << 20)]
            made += [gd.zeros(3 << 20, "u1", mapped=False) for _ in range(3)]
            for a in made:
                a.write(b"1" * 10)
                a.read(via="dma")  # the emulated device maps a view of its own for that
            made.append(made[-1].window(0, 4096))
            made.append(gd.Doorbell())
            made.append(gd.device().host_allocate(100))
            made.append(made[0].host)
            made.append(gd.register(made[3]))
            made.append(gd.Service(SOURCE, "add").start())
            return made
        parents = several()

        def child():
            import mmap
            mine = several()
            plain = [mmap.mmap(-1, 1 << 20) for _ in range(40)]
            for m in plain:
                m[:] = b"m" * len(m)
            before = open("/proc/self/maps").read().count("\\n")
            for thing in parents:
                for way in ("close", "stop", "free"):
                    if hasattr(thing, way):
                        getattr(thing, way)()
            parents.clear()
            gc.collect()
            for m in plain:
                assert m[:] == b"m" * len(m)
            for a in mine[:7]:
                assert a.read()[:10].tobytes() == b"1" * 10
                a.write(b"2" * 10)
            assert mine[-1].call("add", 1, 2) == 3
            mine[8].ring(1)
        in_child(child)
        for a in parents[:7]:
            assert a.read()[:10].tobytes() == b"1" * 10
        assert parents[-1].call("add", 1, 2) == 3
    """)


def test_forks_while_other_threads_are_at_work():
    """Locks that another thread held are not held in the child."""
    run("""
        import threading
        kernel = gd.kernel(KERNEL, "one")
        gd.Service(SOURCE, "add").start().stop()  # compiled
        end = threading.Event()
        failed = []

        def work():
            try:
                while not end.is_set():
                    a = gd.zeros(64, "i4")
                    b = gd.zeros(3 << 20, "u1", mapped=False)
                    b.write(b"x")
                    kernel[1, 8](a)
                    assert a.read()[0] == 8
            except BaseException as e:
                failed.append(e)
        workers = [threading.Thread(target=work) for _ in range(3)]
        for t in workers:
            t.start()

        def child():
            a = gd.zeros(64, "i4")
            gd.kernel(KERNEL, "one")[1, 8](a)
            assert a.read()[0] == 8
            gc.collect()
            gd.trim()
        for _ in range(ROUNDS):
            in_child(child)
        end.set()
        for t in workers:
            t.join()
        assert not failed, failed
    """)


def test_a_pool_of_processes():
    run("""
        import multiprocessing
        before = gd.zeros(4, "i4")

        def work(n):
            a = gd.full(100, n, "i4")
            return int(a.read().sum())
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(work, range(6)) == [100 * n for n in range(6)]
        before.write(np.ones(4, "i4"))
    """)


FEIGNED = """
import types
from cuda import bindings

class Code(int):
    name = "CUDA_ERROR_NOT_INITIALIZED"

first = os.getpid()
feigned = types.SimpleNamespace(
    cuInit=lambda flags: (Code(0 if os.getpid() == first or not initialised else 3),),
    cuDeviceGetCount=lambda: (Code(0), 1),
)
sys.modules["cuda.bindings.driver"] = bindings.driver = feigned
initialised = False
"""


def test_a_parent_that_initialised_cuda():
    """The child's first use says so; what is not CUDA's works, and quickly."""
    run(FEIGNED + """
from gpudirect.devices import cuda

def child():
    refused(lambda: gd.zeros(4))
    refused(lambda: gd.zeros(4, device="cuda"))
    refused(lambda: gd.device(0))
    refused(gd.synchronize)
    refused(gd.stream)
    everything("emulated")

assert cuda.count() == 1
initialised = True
in_child(child)
in_child(lambda: in_child(child))
""", GPUDIRECT_DEVICE="")


def test_a_parent_where_another_library_initialised_cuda():
    run(FEIGNED + """
initialised = True  # not through gpudirect

def child():
    refused(lambda: gd.zeros(4))
    everything("emulated")
in_child(child)
""", GPUDIRECT_DEVICE="")


def test_a_parent_that_did_not_initialise_cuda():
    """The child asks CUDA as a fresh process does."""
    run(FEIGNED + """
from gpudirect.devices import cuda

def child():
    assert cuda.count() == 1
in_child(child)
""", GPUDIRECT_DEVICE="")
