"""Waits for a real GPU: Ctrl-C ends them at once, and they cost no more than CUDA's own."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import textwrap
import time

import pytest

import gpudirect as gd
from gpudirect import _native, devices

pytestmark = pytest.mark.gpu

HEAD = """
import os, signal, threading, time
import gpudirect as gd

SLOW = '''__global__ void slow(unsigned *out, unsigned long long ns)
{
    unsigned long long now, end;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    end = now + ns;
    while (now < end)
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    *out = 7;
}'''
slow = gd.kernel(SLOW, "slow", device="cuda")
a, s = gd.zeros(1, "u4", device="cuda"), gd.stream("cuda")
slow[1, 1, s](a, 1000)
gd.synchronize("cuda")
signal.signal(signal.SIGINT, signal.default_int_handler)
"""

WAITS = {
    "a stream": "s.synchronize()",
    "an event": "s.record().sync()",
    "the device": "gd.synchronize('cuda')",
    "a read": "a.read()",
    "a read of one stream": "a.read(stream=s)",
    "the default stream": "slow[1, 1](a, 2_000_000_000); a.device.default_stream.synchronize()",
}


@pytest.fixture(autouse=True)
def needs_a_gpu():
    if reason := devices.cuda_reason():
        pytest.fail(f"these tests need a GPU: {reason}")


@pytest.mark.parametrize("what", WAITS)
def test_ctrl_c_ends_a_wait(what):
    program = HEAD + textwrap.dedent(f"""
        slow[1, 1, s](a, 2_000_000_000)
        start = time.monotonic()
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            {WAITS[what]}
        except KeyboardInterrupt:
            took = time.monotonic() - start
            assert took < 0.4, f"0.1 s after the start the signal came; told after {{took:.3f}} s"
            gd.synchronize("cuda")
            assert time.monotonic() - start > 1.9 and a.read()[0] == 7
            print("fine")
    """)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200,
                         env=dict(os.environ))  # fmt: skip
    assert run.stdout == "fine\n", run.stdout + run.stderr


def test_a_short_wait_costs_no_more_than_cuda_s_own(record_property):
    """A launch and a wait for it, by turns, both from C; medians of the rounds."""
    stream = gd.stream("cuda")
    kernel = gd.kernel("__global__ void nothing() {}", "nothing", device="cuda")[1, 1, stream]
    lib, functions, handle = _native.lib, stream.device.driver_functions(), stream.handle

    def ours():
        assert lib.gd_driver_synchronize(functions, handle, stream.work) == 0

    def theirs():
        assert lib.gd_driver_settle(functions, handle) == 0

    def median(wait):
        took = []
        for _ in range(2000):
            start = time.perf_counter_ns()
            kernel()
            wait()
            took.append(time.perf_counter_ns() - start)
        return statistics.median(took)

    median(ours), median(theirs)
    ratios = []
    for _ in range(10):
        cuda = median(theirs)
        ratios.append(median(ours) / cuda)
        stream.synchronize()
    ratio = statistics.median(ratios)
    record_property("ratio", ratio)
    print(f"launch and wait: {ratio:.3f} of cuStreamSynchronize", ratios)
    assert ratio < 1.05, ratios
