"""Every public object, made and dropped many times: memory, descriptors and threads go back.

One program does it for all of them, one after the other: it is asked by name, measures what it holds
before and after, and answers. What it may keep is what three rounds of the same have left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEVICE = os.environ.get("GPUDIRECT_TEST_LEAKS_DEVICE", "emulated")

OBJECTS = {
    "array": "a = gd.zeros(1000); a.write(bytes(4000)); a.read()",
    "array closed": "gd.zeros(1000).close()",
    "array of its own block": "gd.zeros(1000, pool=False)",
    "large array": "gd.zeros(3 << 20, 'u1')",
    "unmapped array": "gd.zeros(3 << 20, 'u1', mapped=False).write(b'x')",
    "unmapped array, mapped on demand": "gd.zeros(3 << 20, 'u1', mapped=False).write(b'x', via='map')",
    "slice": "gd.zeros((10, 10))[1:, 2].read()",
    "copies and views": "a = gd.ones((4, 6)); a.copy(); a.T.read(); a.view('u1'); gd.zeros_like(a.reshape(-1))",
    "scatter and gather": "kept.scatter([1, 5], [[2.0], [3.0]]); kept.gather([0, 3])",
    "scatter and gather of arrays": (
        "i = np.arange(600, dtype='i4') % 10; kept.scatter(i, np.ones(600, 'f4')); kept.gather(i); "
        "refused(lambda: kept.gather(i + (1 << 30)))"),
    "host view": "v = gd.zeros(100).host; v[:] = 1",
    "host view's view": "v = np.flip(gd.zeros((5, 5)).host)[1:]; v += 1; repr(v)",
    "buffer": "b = gd.zeros(100).buffer; b[:3] = b'abc'",
    "dlpack": "n = np.from_dlpack(gd.zeros(100)) if emulated else gd.zeros(100).__dlpack__()",
    "dlpack that nobody takes": "c = gd.zeros(100).__dlpack__()",
    "dlpack that is refused": "refused(lambda: gd.zeros(100, [('a', 'f4')]).__dlpack__())",
    "array interface": "getattr(gd.zeros(100), '__cuda_array_interface__', None)",
    "window": "w = gd.zeros(3 << 20, 'u1', mapped=False).window(0, 100); w.write(b'x')",
    "window closed": "gd.zeros(3 << 20, 'u1', mapped=False).window(0, 100).close()",
    "window moved, a view of it left": (
        "w = gd.zeros(3 << 20, 'u1', mapped=False).window(0, 100); v = w.host; w.move(1 << 20); v[:] = 1"),
    "writer": "w = gd.zeros(3 << 20, 'u1', mapped=False).writer(); w.write(b'x'); w.close()",
    "writer dropped": "gd.zeros(3 << 20, 'u1', mapped=False).writer().write(b'x')",
    "registered array": "a = gd.zeros(3 << 20, 'u1'); gd.register(a).write(bytes(3 << 20))",
    "registered address": "gd.register(kept.ptr, 40).read()",
    "pinned": "p = gd.pinned(1000); p[:] = 1; k[1, 1](p); kept.read(p[:10]); gd.synchronize()",
    "pinned, a view of it left": "p = gd.pinned((10, 10))[2:, 1]; p[:] = 1",
    "large pinned": "gd.pinned(3 << 20, 'u1')[:] = 1",
    "page-locked memory": "gd.device(DEVICE).host_allocate(100)",
    "page-locked memory, freed": "gd.device(DEVICE).host_allocate(100).free()",
    "stream": "s = gd.stream(); k[1, 1, s](kept); s.synchronize()",
    "stream closed": "s = gd.stream(); k[1, 1, s](kept); s.close()",
    "stream with work left": "k[1, 1, gd.stream()](kept)",
    "stream entered": "with gd.stream(): k[1, 1](kept)",
    "event": "s = gd.stream(); b = s.record(); k[1, 1, s](kept); e = s.record(); e.sync(); e - b",
    "event whose stream is gone": "e = gd.stream().record(); e.sync()",
    "event nobody waits for": "s = gd.stream(); k[1, 1, s](kept); s.record(timing=False)",
    "stream that waits for another": (
        "a, b = gd.stream(), gd.stream(); k[1, 1, a](kept); b.wait(a); b.wait(a.record()); b.synchronize()"),
    "kernel": "gd.kernel(KERNEL, 'one')[1, 1](kept); gd.synchronize()",
    "launcher": "l = gd.kernel(KERNEL, 'one')[1, 1]; l(gd.zeros(3)); gd.synchronize()",
    "doorbell": "gd.Doorbell().ring(1)",
    "doorbell closed": "gd.Doorbell().close()",
    "doorbell that a kernel answers": (
        "b = gd.Doorbell(); echo[1, 1](b.ptr, b.answer_ptr); b.ring(7); b.wait(7, timeout=60)"),
    "future": "[svc.submit('add', 1, 2) for _ in range(3)]; svc.call('add', 1, 2)",
    "future with callback": "f = svc.submit('add', 1, 2); f.add_done_callback(print_nothing); f.result()",
    "future whose callback fails": "f = svc.submit('add', 1, 2); f.add_done_callback(fails); f.result()",
    "future of asyncio": "asyncio.run(awaited())",
    "call that came too late": "refused(lambda: svc.call('add', 1, 2, timeout=0)); svc.call('add', 1, 2)",
    "call that fails": "refused(lambda: svc.call('wrong', 1))",
    "call with an array": "svc.call('first', gd.zeros(100)); svc.submit('first', gd.pinned(10)).result(60)",
    "map": "list(svc.map('add', range(5), range(5)))",
    "function as an attribute": "svc.add(1, 2); svc['add'](1, 2)",
    "service": "gd.Service(ADD, 'add').start().stop()",
    "service dropped": "gd.Service(ADD, 'add').start().call('add', 1, 2)",
    "service that was never started": "gd.Service(ADD, 'add')",
    "service started again": "again.start(); again.call('add', 1, 2); again.stop()",
    "service for one launch": "s = gd.Service(ADD, 'add', slice=None).start(); s.call('add', 1, 2); s.stop()",
    "service that naps": (
        "s = gd.Service(ADD, 'add', slice=1e-3, nap_after=1e-3).start(); naps(s); s.add(1, 2); s.stop()"),
    "service of teams": (
        "s = gd.Service(ADD, 'add', lanes=2, threads=64).start(); s.call('add', 1, 2); s.stop()"),
    "service for a grid": (
        "s = gd.Service(ADD, {'add': 'grid'}, blocks=2).start(); s.call('add', 1, 2); s.stop()"),
    "service that makes way": "with gd.device(DEVICE).quiet(): pass",
    "thread": "t = threading.Thread(target=lambda: k[1, 1, gd.stream()](gd.zeros(10))); t.start(); t.join()",
    "child of fork()": "forked()",
    "errors": "refused(lambda: gd.zeros(-1), lambda: kept.write(bytes(400)), lambda: svc.call('no'))",
    "errors of the compiler": "refused(lambda: gd.kernel('__global__ void one() { nonsense; }', 'one'))",
}  # fmt: skip

KEPT = {  # by the program, in a list
    "keep.append(gd.zeros(1000))": "in use",
    "keep.append(gd.zeros(10, pool=False))": "device memory",
    "keep.append(gd.zeros(3 << 20, mapped=False).window(0, 5))": "aperture",
    "keep.append(gd.stream().record())": "objects",
    "keep.append(gd.stream()); k[1, 1, keep[-1]](kept)": "threads" if DEVICE == "emulated" else "streams",
    "keep.append(os.dup(0))": "descriptors",
}
PROGRAM = """
    import asyncio, gc, json, os, sys, threading, time
    import numpy as np
    import gpudirect as gd
    from gpudirect._keeper import patient

    OBJECTS, DEVICE = json.loads(sys.argv[1]), sys.argv[2]
    KERNEL = '__global__ void one(float *p) { p[0] += 1; }'
    ECHO = '''__global__ void echo(volatile unsigned *bell, unsigned *answer)
              { while (!*bell) ; *answer = *bell; }'''
    ADD = '''__device__ int add(int a, int b) { return a + b; }
             __device__ float first(float *a) { return a[0]; }
             __device__ void wrong(int a) { gd_assert(a == 0); }'''
    gd.use(device=DEVICE)
    emulated = gd.device().emulated
    kept, keep = gd.zeros(10), []
    k, echo = gd.kernel(KERNEL, 'one'), gd.kernel(ECHO, 'echo')
    svc = gd.Service(ADD, ['add', 'first', 'wrong']).start()
    again = gd.Service(ADD, 'add')
    sys.unraisablehook = lambda told: None  # of the callback that fails

    def print_nothing(_): pass
    def fails(_): raise ValueError
    async def awaited(): return await svc.submit('add', 1, 2)
    def refused(*calls):
        for call in calls:
            try:
                call()
            except (gd.Error, BufferError):
                pass
            else:
                raise AssertionError("it was not refused")
    def naps(service):
        end = time.monotonic() + 60
        while service.info.state != "napping" and time.monotonic() < end:
            time.sleep(1e-3)
    def forked():
        child = os.fork()
        if not child:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

    def held():
        gc.collect()
        gd.synchronize()
        gd.trim()
        patient.settle()
        device = gd.device()
        free, total = device.memory()
        found = {
            "device memory": total - free,
            "reserved": sum(s.reserved for s in gd.statistics()),
            "in use": sum(s.in_use for s in gd.statistics()),
            "aperture": sum(u.total for u in gd.aperture.use()),
            "streams": len(device.queues),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "mappings": sum("emulated" in line for line in open("/proc/self/maps")),
            "objects": sum(str(type(o).__dict__.get("__module__")).startswith("gpudirect")
                           for o in gc.get_objects()),
        }
        if emulated:
            gpu = f"/proc/{device.process.pid}"
            found["the GPU's threads"] = len(os.listdir(gpu + "/task"))
            found["the GPU's descriptors"] = len(os.listdir(gpu + "/fd"))
            found["the GPU's mappings"] = sum("emulated" in line for line in open(gpu + "/maps"))
        return found

    def lost(what):
        exec("def once():\\n    " + OBJECTS.get(what, what), globals())
        for _ in range(3):
            once()
        before = held()
        for _ in range(100):  # what the first ones left goes back in its own time
            was, before = before, held()
            if was == before:
                break
            time.sleep(0.02)
        for _ in range(5 if "service" in what or "fork" in what else 40):
            once()
        end = time.monotonic() + (50 if what in OBJECTS else 0)
        while True:
            after = held()
            more = {key: (before[key], after[key]) for key in before if after[key] > before[key]}
            if not more or time.monotonic() > end:
                return more
            time.sleep(0.02)  # what a finalizer queued is done by somebody else

    for line in sys.stdin:
        print(json.dumps(lost(line.strip())), flush=True)
    svc.stop()
"""


@pytest.fixture(scope="module")
def lost() -> Iterator[Callable[[str], dict[str, list[int]]]]:
    """What the program holds more after it made and dropped an object."""
    running: list[subprocess.Popen[str]] = []

    def ask(what: str) -> dict[str, list[int]]:
        if not running:
            words = [sys.executable, "-c", textwrap.dedent(PROGRAM), json.dumps(OBJECTS), DEVICE]
            running.append(subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT))  # fmt: skip
        try:
            print(what, file=running[0].stdin, flush=True)
            answer = running[0].stdout.readline()
            assert answer, "the program ended"
            return json.loads(answer)
        except BaseException:
            running.pop().kill()
            raise

    yield ask
    for program in running:
        program.stdin.close()
        assert program.wait(60) == 0


@pytest.mark.parametrize("what", OBJECTS)
def test_it_gives_everything_back(lost, what):
    assert not lost(what), "held before, and now"


@pytest.mark.parametrize(("what", "told"), KEPT.items())
def test_what_is_kept_is_told(lost, what, told):
    """The loop can fail."""
    assert told in lost(what)
