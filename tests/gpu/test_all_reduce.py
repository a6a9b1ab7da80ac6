"""NCCL between two GPUs, each with services and a courier: nothing waits longer than slices."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gpudirect import devices

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(200)]
HERE = Path(__file__).resolve().parent
SLICE = 1e-3


@pytest.fixture(autouse=True)
def two_gpus():
    if reason := devices.cuda_reason():
        pytest.fail(f"these tests need a GPU: {reason}")
    if sum(d.kind == "cuda" for d in devices.available()) < 2:
        pytest.skip("this needs two GPUs")
    pytest.importorskip("torch")


@pytest.mark.parametrize("load", ["idle", "napping", "calls"])
@pytest.mark.parametrize("services", [1, 3])
def test_all_reduce_beside_services(services, load, tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, str(HERE / "ranks.py"), "nccl", str(rank), str(tmp_path / "met"), str(services),
             load, str(SLICE)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) for rank in range(2)
    ]  # fmt: skip
    try:
        told = [rank.communicate(timeout=180) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (_, errors) in zip(ranks, told, strict=True):
        assert rank.returncode == 0, errors[-4000:]
    for found in (json.loads(out.splitlines()[-1]) for out, _ in told):
        print(f"\n{services} service(s), {load}: {json.dumps(found)}")
        # the reduction's launch, on each GPU, and the wait: none waits longer than three slices
        for name in ("small", "large"):
            assert found[name][0] <= found[f"{name}, alone"][0] + 3 * SLICE
        if load == "calls":
            assert found["calls"] > 0
