"""PyTorch, CuPy and JAX in one process with services: nothing of theirs waits longer than slices."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(180)]
HERE = Path(__file__).resolve().parent
SLICE = 1e-3


def beside(library, services, load):
    """What the program told."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    done = subprocess.run(
        [sys.executable, str(HERE / "neighbour.py"), library, str(services), load, str(SLICE)],
        capture_output=True, text=True, timeout=170,
        env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"\n{library}, {services} service(s), {load}: {json.dumps(found)}")
    return found


@pytest.mark.parametrize("load", ["idle", "napping", "calls"])
@pytest.mark.parametrize("services", [1, 3])
def test_pytorch_beside_services(services, load):
    found = beside("torch", services, load)
    median, worst = found["synchronize"]
    assert median <= (2 if load == "napping" else 1.2) * SLICE and worst <= 3 * SLICE
    # 64 streams: each launch starts at most a slice late; the last of them tells
    assert found["64 streams"][0] <= 2 * SLICE


@pytest.mark.parametrize("load", ["idle", "napping", "calls"])
@pytest.mark.parametrize("services", [1, 3])
def test_cupy_beside_services(services, load):
    found = beside("cupy", services, load)
    median, worst = found["cudaDeviceSynchronize"]
    assert median <= (2 if load == "napping" else 1.2) * SLICE and worst <= 3 * SLICE
    # two calls that may wait
    assert found["cudaMalloc and cudaFree"][1] <= 6 * SLICE


def test_jax_beside_services():
    beside("jax", 3, "calls")
