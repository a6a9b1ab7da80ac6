"""Every wait can be interrupted by a signal whose handler raises, and ends when the device does."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

HEAD = """
import os, signal, sys, threading, time
import gpudirect as gd

ENDLESS = "__global__ void endless(volatile int *p) { while (*p == 0) ; }"
FAULT = "__global__ void fault(volatile int *p) { *(volatile int *)8 = *p; }"
WAITS = '''__device__ int waits(volatile int *p) { while (*p == 0) ; return 1; }'''
gate = gd.zeros(1, "i4")
bell = gd.Doorbell()

def interrupt(*_):
    raise KeyboardInterrupt
"""

WAITS = {
    "a doorbell": ("", "bell.wait(1)"),
    "a stream": (
        "s = gd.stream(); gd.kernel(ENDLESS, 'endless')[1, 1, s](gate)", "s.synchronize()"),
    "the device": ("gd.kernel(ENDLESS, 'endless')[1, 1](gate)", "gd.synchronize()"),
    "a read": ("gd.kernel(ENDLESS, 'endless')[1, 1](gate)", "gate.read()"),
    "a marker": (
        "s = gd.stream(); gd.kernel(ENDLESS, 'endless')[1, 1, s](gate); m = s.marker()", "m.wait()"),
    "a call": ("svc = gd.Service(WAITS, 'waits').start()", "svc.call('waits', gate)"),
    "a future": (
        "svc = gd.Service(WAITS, 'waits').start(); f = svc.submit('waits', gate)", "f.result()"),
    "room in the ring": (
        "svc = gd.Service(WAITS, 'waits', slots=2).start()",
        "[svc.submit('waits', gate) for _ in range(5)]"),
}  # fmt: skip


def run(code: str) -> subprocess.CompletedProcess[str]:
    text = HEAD + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=100,
                          cwd=ROOT, env={**os.environ, "GPUDIRECT_DEVICE": "emulated"})  # fmt: skip


@pytest.mark.parametrize("what", WAITS)
def test_a_signal_interrupts(what):
    before, wait = WAITS[what]
    done = run(f"""
        {before}
        signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            {wait}
        except KeyboardInterrupt:
            print("interrupted")
        gate.write(b"1234")  # through the mapping: the kernel sees it and ends
        gd.synchronize()
        assert gate.read()[0]
        print("goes on", flush=True)
    """)
    assert (done.returncode, done.stdout) == (0, "interrupted\ngoes on\n"), done.stderr


@pytest.mark.parametrize("how", ["fault", "killed"])
@pytest.mark.parametrize("what", ["a doorbell", "a call", "a future"])
def test_the_end_of_the_device_ends_it(what, how):
    before, wait = WAITS[what]
    end = {
        "killed": "os.kill(gate.device.process.pid, signal.SIGKILL)",
        "fault": "gd.kernel(FAULT, 'fault')[1, 1, other](gate)",
    }[how]
    done = run(f"""
        other = gd.stream()
        gd.kernel(FAULT, 'fault')  # loaded
        {before}
        threading.Timer(0.2, lambda: {end}).start()
        try:
            {wait}
        except (gd.DeviceLostError, gd.ServiceError) as e:
            print("lost")
        sys.stdout.flush()
        os._exit(0)
    """)
    assert done.stdout == "lost\n", done.stderr
