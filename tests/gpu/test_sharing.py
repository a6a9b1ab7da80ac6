"""What a process without CUDA costs, and what its calls take, beside one with a CUDA context.

GPUDIRECT_SHARING=FILE keeps the figures there.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gpudirect as gd
from gpudirect import facts

ROUNDS = 10
RESIDENT = """
def resident():
    return 1024 * int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0])
"""
ATTACHED = RESIDENT + """
import sys, time
before, begin = resident(), time.perf_counter()
from gpudirect.sharing import attach
a = attach(sys.argv[1])
a.write(bytes(4096))
print(time.perf_counter() - begin, resident() - before)
"""
WITH_CUDA = RESIDENT + """
import time
before, begin = resident(), time.perf_counter()
from cuda.bindings import driver as d
def ok(result):
    assert not int(result[0]), result
    return result[1] if len(result) > 1 else None
ok(d.cuInit(0))
ok(d.cuCtxSetCurrent(ok(d.cuDevicePrimaryCtxRetain(ok(d.cuDeviceGet(0))))))
ok(d.cuMemcpyHtoD(ok(d.cuMemAlloc(4096)), bytes(4096), 4096))
print(time.perf_counter() - begin, resident() - before)
"""
CALLER = """
import statistics, sys, time, gpudirect
svc = gpudirect.attach(sys.argv[1])
call, now = svc.call, time.perf_counter_ns
for line in sys.stdin:
    took = []
    for i in range(int(line)):
        start = now()
        call("first", i, 2, 3, 4, 5, 6, 7)
        took.append(now() - start)
    print(statistics.median(took), flush=True)
"""
SOURCE = """
__device__ long long first(long long a, long long b, long long c, long long d, long long e,
                           long long f, long long g) { return a; }
"""
FIGURES: dict[str, object] = {}


@pytest.fixture(scope="module", autouse=True)
def kept():
    yield
    if path := os.environ.get("GPUDIRECT_SHARING"):
        device = gd.device()
        told = {"machine": facts.machine(), "device": facts.of_device(device), "figures": FIGURES}
        with open(path, "w") as f:
            json.dump(told, f, indent=1, default=str)


def _run(code: str, *arguments: str) -> tuple[float, float]:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    seconds, nbytes = done.stdout.split()
    return float(seconds), float(nbytes)


def test_attaching_takes_a_fraction_of_a_context():
    """From the running interpreter to the first store of 4096 bytes, in turns."""
    seconds: dict[str, list[float]] = {"attached": [], "with CUDA": []}
    nbytes: dict[str, list[float]] = {"attached": [], "with CUDA": []}
    with gd.zeros(4096, "u1", shareable=True) as a:
        for _ in range(ROUNDS):
            for name, found in (("attached", _run(ATTACHED, str(a.share("rw")))),
                                ("with CUDA", _run(WITH_CUDA))):  # fmt: skip
                seconds[name].append(found[0])
                nbytes[name].append(found[1])
    faster = statistics.median(seconds["with CUDA"]) / statistics.median(seconds["attached"])
    smaller = statistics.median(nbytes["with CUDA"]) / statistics.median(nbytes["attached"])
    FIGURES["first store"] = {"seconds": seconds, "bytes": nbytes, "faster": faster, "smaller": smaller}
    print(f"\nto the first store: {faster:.1f} times faster, {smaller:.1f} times less memory")
    # asked: 20 times both; the time is mostly that of Python's imports
    assert faster > 2 and smaller > 20


@pytest.fixture(scope="module")
def first_store(tmp_path_factory):
    """first_store.c as a program."""
    program = tmp_path_factory.mktemp("c") / "first_store"
    told = subprocess.run([sys.executable, "-m", "gpudirect", "config", "--cflags", "--libs"],
                          capture_output=True, text=True, check=True).stdout  # fmt: skip
    subprocess.run([*shlex.split(os.environ.get("CC", "cc")), "-O2", "-Wall", "-Werror",
                    Path(__file__).with_name("first_store.c"), *shlex.split(told), "-ldl", "-o", program],
                   check=True)  # fmt: skip
    return program


def test_a_program_of_c_takes_a_fraction_of_one_with_a_context(first_store):
    """From main() to the first store of 4096 bytes, in turns. Asked: 20 times, in memory and time."""
    seconds: dict[str, list[float]] = {"attached": [], "with CUDA": []}
    nbytes: dict[str, list[float]] = {"attached": [], "with CUDA": []}
    with gd.zeros(4096, "u1", shareable=True) as a:
        for _ in range(ROUNDS):
            for name, words in (("attached", ["attached", str(a.share("rw"))]), ("with CUDA", ["cuda"])):
                done = subprocess.run([first_store, *words], capture_output=True, text=True, timeout=60)
                assert done.returncode == 0, done.stderr
                took, held = done.stdout.split()
                seconds[name].append(float(took))
                nbytes[name].append(float(held))
            assert (a.read() == 7).all()
            a.fill(0)
    faster = statistics.median(seconds["with CUDA"]) / statistics.median(seconds["attached"])
    smaller = statistics.median(nbytes["with CUDA"]) / statistics.median(nbytes["attached"])
    FIGURES["first store in C"] = {"seconds": seconds, "bytes": nbytes, "faster": faster, "smaller": smaller}
    print(f"\nto the first store in C: {faster:.1f} times faster, {smaller:.1f} times less memory")
    assert faster >= 20 and smaller >= 20


def test_a_call_from_c_takes_what_the_owners_takes(first_store):
    """Medians of 5,000 calls of C, beside those of the owner in Python; the asked ratio is 1.3."""
    with gd.Service(SOURCE, "first", lanes=2) as svc:
        ratios = []
        for _ in range(ROUNDS):
            done = subprocess.run([first_store, "call", str(svc.share_lane(1))], capture_output=True, text=True,
                                  timeout=60)  # fmt: skip
            assert done.returncode == 0, done.stderr
            own = []
            for i in range(5000):
                start = time.perf_counter_ns()
                svc.call("first", i, 2, 3, 4, 5, 6, 7, lane=0)
                own.append(time.perf_counter_ns() - start)
            ratios.append(float(done.stdout) / statistics.median(own))
    FIGURES["call from C"] = {"ratios": ratios}
    print(f"\na call of 56 bytes from a process of C: {statistics.median(ratios):.3f} of the owner's in Python")
    assert statistics.median(ratios) < 1.3


def test_a_call_without_cuda_takes_what_the_owners_takes():
    """Medians of 5,000 calls, in turns; the asked ratio is 1.3."""
    took: dict[str, list[float]] = {"attached": [], "own": []}
    with gd.Service(SOURCE, "first", lanes=2) as svc:
        caller = subprocess.Popen([sys.executable, "-c", CALLER, str(svc.share_lane(1))], text=True,
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        try:
            for turn in range(-1, ROUNDS):
                caller.stdin.write("5000\n")
                caller.stdin.flush()
                attached = float(caller.stdout.readline())
                own = []
                for i in range(5000):
                    start = time.perf_counter_ns()
                    svc.call("first", i, 2, 3, 4, 5, 6, 7, lane=0)
                    own.append(time.perf_counter_ns() - start)
                if turn >= 0:
                    took["attached"].append(attached)
                    took["own"].append(statistics.median(own))
        finally:
            caller.kill()
            caller.communicate()
    ratio = statistics.median(took["attached"]) / statistics.median(took["own"])
    FIGURES["call"] = {"ns": took, "ratio": ratio}
    print(f"\na call of 56 bytes from a process without CUDA: {ratio:.3f} of the owner's")
    assert ratio < 1.3
