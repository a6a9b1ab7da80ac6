"""The emulated GPU: built-ins, faults, resident kernels, and that it goes when its owner does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import gpudirect as gd


@pytest.fixture(autouse=True)
def emulated():
    gd.use(device="emulated")
    yield
    gd.synchronize()
    gd.use()


def outcome(body: str, n: int = 32, dtype: str = "i4", block: int = 32, grid: int = 1, **how):
    """What ``body`` leaves in out[0..n) when ``grid`` blocks of ``block`` threads run it."""
    kind = {"i4": "int", "u4": "unsigned", "f4": "float", "i8": "long long", "f8": "double"}[dtype]
    source = f"""__global__ void k({kind} *out, const int *in)
    {{ int t = blockIdx.x * blockDim.x + threadIdx.x; (void)t; {body} }}"""
    with gd.zeros(n, dtype) as out, gd.asarray(np.arange(1024, dtype="i4")) as data:
        gd.kernel(source, "k").launch(grid, block, out, data, **how)
        return out.read().tolist()


@pytest.mark.parametrize(
    ("body", "want"),
    [("out[t] = __shfl_sync(~0u, t * 2, 5);", [10] * 32),
     ("out[t] = __shfl_down_sync(~0u, t, 1);", [*range(1, 32), 31]),
     ("out[t] = __shfl_xor_sync(~0u, t, 3);", [t ^ 3 for t in range(32)]),
     ("out[t] = __ballot_sync(~0u, t & 1);", [-0x55555556] * 32),
     ("out[t] = __any_sync(~0u, t == 7) + 2 * __all_sync(~0u, t < 31);", [1] * 32),
     ("out[t] = __popc(t) + 100 * __clz(t) + __ffs(t);",
      [bin(t).count("1") + 100 * (32 - t.bit_length()) + ((t & -t).bit_length()) for t in range(32)]),
     ("__shared__ int s[32]; s[t] = t; __syncthreads(); out[t] = s[31 - t];",
      list(range(31, -1, -1))),
     ("out[t] = __syncthreads_count(t < 5);", [5] * 32),
     ("atomicAdd(&out[0], t); atomicMax(&out[1], t); atomicExch(&out[2], 9); "
      "atomicCAS(&out[3], 0, 4); atomicOr(&out[4], 1 << (t & 3));", [496, 31, 9, 4, 15]),
     ("out[t] = __float_as_int(1.0f) + (int)__expf(0.0f) + min(t, 3) + max(t, 30);",
      [0x3F800000 + 1 + min(t, 3) + max(t, 30) for t in range(32)]),
     ("int4 v = make_int4(1, 2, 3, t); out[t] = v.x + v.y + v.z + v.w + __ldg(in + t);",
      [6 + 2 * t for t in range(32)]),
     ("out[t] = warpSize + gridDim.x + blockDim.x;", [32 + 1 + 32] * 32)],
)  # fmt: skip
def test_built_ins(body, want):
    assert outcome(body)[: len(want)] == want


def test_blocks_and_threads_in_three_dimensions():
    source = """__global__ void k(int *out) {
        int b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
        int t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
        out[b * 24 + t] = b * 1000 + t; }"""
    with gd.zeros(24 * 24, "i4") as out:
        gd.kernel(source, "k")[(2, 3, 4), (4, 3, 2)](out)
        want = [b * 1000 + t for b in range(24) for t in range(24)]
        assert out.read().tolist() == want


@pytest.mark.parametrize("late", [False, True])  # asked while it runs, and when it is over
@pytest.mark.parametrize(
    ("body", "words"),
    [("__trap();", "trap"), ("assert(t != 3);", "t != 3"), ("out[1LL << 40] = 1;", "illegal address"),
     ("out[0] = 7 / (in[0] * 2);", "division|SIGFPE|arithmetic|divi")],
)  # fmt: skip
def test_faults_are_told(body, words, late):
    program = f"""
    import re, time, gpudirect as gd
    k = gd.kernel('''#include <cassert>
    __global__ void k(int *out, const int *in) {{ int t = threadIdx.x; (void)t; {body} }}''', "k")
    a = gd.zeros(4, "i4")
    k[1, 8](a, a)
    if {late}:
        while gd.device().lost is None:
            time.sleep(1e-3)
    try:
        gd.synchronize()
    except gd.LaunchError as e:
        print(bool(re.search({words!r}, str(e))), e)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "GPUDIRECT_DEVICE": "emulated"},
    )  # fmt: skip
    assert run.stdout.startswith("True"), run.stdout + run.stderr


def test_a_resident_kernel_answers_stores_of_the_cpu():
    source = """
    __global__ void serve(volatile unsigned *bell, volatile unsigned *answer) {
        for (unsigned seen = 0; seen != 0xffffffffu;) {
            unsigned now = *bell;
            if (now != seen) { *answer = now * 2; seen = now; }
        }
    }"""
    s = gd.stream()
    with gd.zeros(16, "u4") as bell, gd.zeros(16, "u4") as answer:
        gd.kernel(source, "serve")[1, 1, s](bell, answer)
        for i in range(1, 200):
            bell.host[0] = i
            bell.flush()
            deadline = time.monotonic() + 60
            while int(answer.host[0]) != i * 2:
                assert time.monotonic() < deadline, i
        bell.host[0] = 0xFFFFFFFF
        bell.flush()
        s.synchronize()


def test_blocks_that_wait_for_each_other_make_progress():
    source = """
    __global__ void chain(volatile int *a) {
        int b = gridDim.x - 1 - blockIdx.x;
        while (a[0] != b) {}
        a[0] = b + 1;
    }"""
    with gd.zeros(1, "i4") as a:
        gd.kernel(source, "chain").launch(8, 1, a, cooperative=True)
        assert a.read()[0] == 8


def test_the_gpu_process_ends_with_its_owner():
    program = (
        "import gpudirect as gd, os, signal\n"
        "gd.zeros(4)\n"
        "print(gd.device().process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                         env={**os.environ, "GPUDIRECT_DEVICE": "emulated"})  # fmt: skip
    assert run.returncode == -signal.SIGKILL
    pid = int(run.stdout)
    deadline = time.monotonic() + 60
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
