"""No descriptor left (EMFILE): an error of ours that says the limit, and everything works afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

HEAD = """
import _thread, os, resource, sys, time
import numpy as np
import gpudirect as gd
from gpudirect._keeper import keeper, patient

KERNEL = "__global__ void f(float *a) { *a = %d; }"

class NoneLeft:
    \"\"\"While it is entered, the system gives this process so many descriptors more and no other.\"\"\"
    def __init__(self, left): self.left = left
    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_NOFILE)
        low = os.open("/dev/null", os.O_RDONLY)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(low + 1, 64), self.before[1]))
        self.held = [low]
        while True:
            try: self.held.append(os.open("/dev/null", os.O_RDONLY))
            except OSError: break
        for _ in range(self.left): os.close(self.held.pop())
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    def __exit__(self, *exc):
        resource.setrlimit(resource.RLIMIT_NOFILE, self.before)
        for fd in self.held: os.close(fd)

def tried(do, warm, most=40):
    if warm:
        for thread in keeper, patient: thread.settle()  # which stay
        threads = _thread._count()
        do(); gd.trim()
        # a stream's own thread closes its descriptors; what is kept may have one
        while _thread._count() > threads + len(keep): time.sleep(0.001)
    gd.zeros, gd.Error  # what is imported late has its own errors
    failures = 0
    for left in range(most):
        with NoneLeft(left) as limit:
            try:
                do()
                failed = None
            except gd.Error as e:
                failed = e
        if failed is None:
            break
        failures += 1
        said = str(failed)
        assert "ulimit -n" in said and str(limit) in said, (left, type(failed), said)
    else:
        raise SystemExit("it never worked")
    do()
    assert gd.zeros(10).read().sum() == 0
    print("fine", failures)
"""

THINGS = {
    "a block": "keep.append(gd.empty(3 << 20, 'u1', pool=False))",
    "unmapped memory": "keep.append(gd.empty(3 << 20, 'u1', mapped=False)); keep[-1].write(b'1', via='map')",
    "registered memory": "keep.append(gd.register(base.ptr, 100))",
    "a stream that launches": "n[0] += 1; k[1, 1, gd.stream()](base); gd.synchronize()",
    "page-locked memory": "keep.append(gd.pinned(3 << 20, 'u1'))",
    "a kernel": "n[0] += 1; gd.kernel(KERNEL % n[0], 'f')",
    "shared memory": "a = gd.zeros(100, shareable=True); t = a.share(); keep.append(a)",
    "a device": "gd.zeros(3).read()",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Where no kernel is that a test wants to see compiled, whatever ran on this machine before."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("what", THINGS)
def test_no_descriptor_left(what, cache):
    warm = what != "a device"
    before = "base = gd.zeros(1000); k = gd.kernel(KERNEL % 0, 'f'); k[1, 1](base); gd.synchronize()" \
        if warm else "base = k = None"  # fmt: skip
    program = HEAD + textwrap.dedent(f"""
        keep, n = [], [0]
        {before}
        def do():
            global base
            {THINGS[what]}
        tried(do, {warm})
    """)
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=110, cwd=ROOT,
        env={**os.environ, "GPUDIRECT_DEVICE": "emulated", "GPUDIRECT_BRIDGE": "emulated",
             "GPUDIRECT_CACHE": str(cache)},
    )  # fmt: skip
    assert run.returncode == 0 and "fine" in run.stdout, run.stdout + run.stderr
    assert "fine 0" not in run.stdout, "it takes no descriptor"
