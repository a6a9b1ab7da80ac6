"""Services under what looks into a program: each works, or says in a sentence why not."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400)]

PROGRAM = """
import faulthandler, sys, time
faulthandler.dump_traceback_later(240, exit=True)  # only a hang takes so long
import gpudirect as gd
SOURCE = '''
__device__ int add(int a, int b) { return a + b; }
__device__ unsigned all(unsigned *a) { atomicAdd(a, 1); gd_sync(); return *(volatile unsigned *)a; }
'''
def serve():
    out = gd.zeros(1, "u4")
    with gd.Service(SOURCE, {"add": "thread", "all": "grid"}, blocks=4, lifetime=300) as svc:
        for n in range(200):
            assert svc.call("add", n, 1, timeout=60) == n + 1
            time.sleep(n % 3 * 4e-3)  # into naps
        assert svc.call("all", out, timeout=60) == 4 * svc.threads
        print("served", svc.info.slices, "slices,", svc.info.late, "late")
try:
    serve()
except gd.ServiceError as e:
    print("refused:", e)
"""
PROFILED = PROGRAM.replace("    serve()\nexcept", """    import torch
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())):
        a = torch.randn(512, 512, device="cuda")
        (a @ a).sum().item()
        serve()
        torch.cuda.synchronize()
except""")


def outcome(command, program, **environment):
    done = subprocess.run(
        [*command, sys.executable, "-c", program], capture_output=True, text=True, timeout=300,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    told = next((line for line in done.stdout.splitlines() if line.startswith(("served", "refused:"))), None)
    assert told, done.stdout[-4000:] + done.stderr[-4000:]
    print(f"\n{told}")
    return told


def tool(name):
    found = shutil.which(name) or shutil.which(f"/usr/local/cuda/bin/{name}")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def test_without_any():
    assert outcome([], PROGRAM).startswith("served")


def test_where_launches_block():
    assert "CUDA_LAUNCH_BLOCKING is set" in outcome([], PROGRAM, CUDA_LAUNCH_BLOCKING="1")


def test_under_pytorchs_profiler():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    outcome([], PROFILED)


def test_under_compute_sanitizer():
    assert outcome([tool("compute-sanitizer"), "--error-exitcode", "9"], PROGRAM).startswith("served")


def test_under_nsight_compute():
    assert "Nsight Compute" in outcome([tool("ncu"), "--target-processes", "all"], PROGRAM)


def test_under_nsight_systems(tmp_path):
    outcome([tool("nsys"), "profile", "-o", str(tmp_path / "report")], PROGRAM)
