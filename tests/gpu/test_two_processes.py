"""Two processes with a service each on one GPU: contexts take turns. What each state of one costs the other."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(180)]

OTHER = """
import sys, time
import gpudirect as gd
state = sys.argv[1]
options = {"awake": {"nap_after": None}, "napping": {"park_after": None}, "parked": {"park_after": 0.01},
           "called": {}, "context": {}}[state]
with gd.Service("__device__ int add(int a, int b) { return a + b; }", "add", lifetime=120, **options) as svc:
    if state == "context":
        svc.stop()
    else:
        until = time.monotonic() + 20
        while svc.info.state != state and state != "called":
            assert time.monotonic() < until, svc.info
            time.sleep(1e-3)
    print("ready", flush=True)
    import select
    while not select.select([sys.stdin], [], [], 0)[0]:
        if state == "called":
            for n in range(1000):
                assert svc.call("add", n, 1, timeout=60) == n + 1
        else:
            time.sleep(1e-2)
print("calls are right")
"""


def beside(state):
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, state], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "ready\n"
    return other


def measured():
    """(calls in a row, first calls after a nap), in us, of a service of this process."""
    import time

    import numpy as np

    import gpudirect as gd

    rows, firsts = np.empty(100_000), np.empty(300)
    with gd.Service("__device__ int add(int a, int b) { return a + b; }", "add", lifetime=120,
                    nap_after=1e-3, park_after=None) as svc:  # fmt: skip
        for n in range(len(rows)):
            start = time.perf_counter()
            assert svc.call("add", n, 1, timeout=60) == n + 1
            rows[n] = time.perf_counter() - start
        for n in range(len(firsts)):
            until = time.monotonic() + 20
            while svc.info.state != "napping":
                assert time.monotonic() < until
            start = time.perf_counter()
            assert svc.call("add", n, 1, timeout=60) == n + 1
            firsts[n] = time.perf_counter() - start
    return rows * 1e6, firsts * 1e6


@pytest.mark.parametrize("state", ["nobody", "context", "parked", "napping", "awake", "called"])
def test_calls_are_answered_beside_the_service_of_another_process(state, capsys):
    import numpy as np

    other = None if state == "nobody" else beside(state)
    rows, firsts = measured()
    if other is not None:
        told, _ = other.communicate("\n", timeout=60)
        assert other.returncode == 0 and "calls are right" in told
    with capsys.disabled():
        told = "   ".join(
            f"{what} p50 {np.percentile(t, 50):.2f}, p99 {np.percentile(t, 99):.1f}, p99.9 "
            f"{np.percentile(t, 99.9):.1f} us"
            for what, t in (("in a row", rows), ("first after a nap", firsts))
        )  # fmt: skip
        print(f"\nthe other process: {state}. {told}")
    assert np.percentile(rows, 50) < 100 and rows.max() < 1e6
