"""Every public object, made and dropped many times: memory, descriptors and threads go back.

A program of its own for each: what other tests keep would hide what is lost here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

OBJECTS = {
    "array": "a = gd.zeros(1000); a.write(bytes(4000)); a.read()",
    "array closed": "gd.zeros(1000).close()",
    "array of its own block": "gd.zeros(1000, pool=False)",
    "large array": "gd.zeros(3 << 20, 'u1')",
    "unmapped array": "gd.zeros(3 << 20, 'u1', mapped=False).write(b'x')",
    "slice": "gd.zeros((10, 10))[1:, 2].read()",
    "host view": "v = gd.zeros(100).host; v[:] = 1",
    "buffer": "b = gd.zeros(100).buffer; b[:3] = b'abc'",
    "dlpack": "n = np.from_dlpack(gd.zeros(100))",
    "window": "w = gd.zeros(3 << 20, 'u1', mapped=False).window(0, 100); w.write(b'x')",
    "window closed": "gd.zeros(3 << 20, 'u1', mapped=False).window(0, 100).close()",
    "writer": "w = gd.zeros(3 << 20, 'u1', mapped=False).writer(); w.write(b'x'); w.close()",
    "registered array": "a = gd.zeros(3 << 20, 'u1'); gd.register(a).write(bytes(3 << 20))",
    "stream": "s = gd.stream(); k[1, 1, s](kept); s.synchronize()",
    "stream closed": "s = gd.stream(); k[1, 1, s](kept); s.close()",
    "kernel": "gd.kernel(KERNEL, 'one')[1, 1](kept); gd.synchronize()",
    "doorbell": "gd.Doorbell().ring(1)",
    "doorbell closed": "gd.Doorbell().close()",
    "future": "[svc.submit('add', 1, 2) for _ in range(3)]; svc.call('add', 1, 2)",
    "future with callback": "f = svc.submit('add', 1, 2); f.add_done_callback(print_nothing); f.result()",
    "service": "gd.Service(ADD, 'add').start().stop()",
    "service dropped": "gd.Service(ADD, 'add').start().call('add', 1, 2)",
    "an error": "refused()",
}


@pytest.mark.parametrize("what", OBJECTS)
def test_it_gives_everything_back(what):
    rounds = 5 if what.startswith("service") else 40
    program = f"""
        import gc, os, time
        import numpy as np
        import gpudirect as gd
        KERNEL = '__global__ void one(float *p) {{ p[0] += 1; }}'
        ADD = '__device__ int add(int a, int b) {{ return a + b; }}'
        kept = gd.zeros(10)
        k = gd.kernel(KERNEL, 'one')
        svc = gd.Service(ADD, 'add').start()
        def print_nothing(_): pass
        def refused():
            for wrong in (lambda: gd.zeros(-1), lambda: kept.write(bytes(400)), lambda: svc.call('no')):
                try:
                    wrong()
                except gd.Error:
                    pass
        def once():
            {OBJECTS[what]}
        def held():
            gc.collect()
            gd.synchronize()
            gd.trim()
            free, total = gd.device().memory()
            return {{
                "device memory": total - free,
                "reserved": sum(s.reserved for s in gd.statistics()),
                "in use": sum(s.in_use for s in gd.statistics()),
                "descriptors": len(os.listdir("/proc/self/fd")),
                "threads": len(os.listdir("/proc/self/task")),
                "mappings": sum("emulated" in line for line in open("/proc/self/maps")),
            }}
        for _ in range(3):
            once()
        before = held()
        for _ in range(100):  # what the first ones left goes back in its own time
            time.sleep(0.05)
            was, before = before, held()
            if was == before:
                break
        for _ in range({rounds}):
            once()
        end = time.monotonic() + 50
        def more(after):
            return any(after[key] > before[key] for key in before)
        while more(after := held()) and time.monotonic() < end:
            time.sleep(0.05)  # what a finalizer queued is done by somebody else
        svc.stop()
        assert not more(after), (before, after)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=110,
        cwd=ROOT, env={**os.environ, "GPUDIRECT_DEVICE": "emulated"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
