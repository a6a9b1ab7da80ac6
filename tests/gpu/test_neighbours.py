"""PyTorch, CuPy and JAX in one process with services: nothing of theirs waits longer than slices."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gpudirect as gd
from gpudirect import facts

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(180)]
HERE = Path(__file__).resolve().parent
SLICE = 1e-3
RUNS: list[dict] = []


def beside(library, services, load):
    """What the program told."""
    if importlib.util.find_spec("torch" if library == "matmul" else library) is None:
        pytest.skip(f"{library} is not installed")
    done = subprocess.run(
        [sys.executable, str(HERE / "neighbour.py"), library, str(services), load, str(SLICE)],
        capture_output=True, text=True, timeout=170,
        env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"\n{library}, {services} service(s), {load}: {json.dumps(found)}")
    RUNS.append({"library": library, "services": services, "load": load, **found})
    return found


@pytest.fixture(scope="module", autouse=True)
def kept():
    """The figures go into the file that $GPUDIRECT_NEIGHBOURS names, if it names one."""
    yield
    if path := os.environ.get("GPUDIRECT_NEIGHBOURS"):
        device = facts.of_device(gd.device())
        told = {"machine": facts.machine(), "device": device, "slice": SLICE, "unit": "s"}
        text = json.dumps({**told, "runs": RUNS}, indent=None)
        Path(path).write_text(text.replace('{"library"', '\n{"library"') + "\n")


def waits_for_slices(found, load):
    """What waits for the whole device waits for a slice in the median, two at most beside a nap."""
    median, worst = found
    if load == "parked":  # nothing is queued that anybody could wait for
        assert median <= 0.1 * SLICE and worst <= 3 * SLICE
    assert median <= (2 if load == "napping" else 1.2) * SLICE and worst <= 3 * SLICE


@pytest.mark.parametrize("load", ["idle", "napping", "parked", "calls"])
@pytest.mark.parametrize("services", [1, 3])
def test_pytorch_beside_services(services, load):
    found = beside("torch", services, load)
    waits_for_slices(found["synchronize"], load)
    # 64 streams: each launch starts at most a slice late; the last of them tells
    assert found["64 streams"][0] <= 2 * SLICE


@pytest.mark.parametrize("load", ["idle", "napping", "parked", "calls"])
@pytest.mark.parametrize("services", [1, 3])
def test_cupy_beside_services(services, load):
    found = beside("cupy", services, load)
    waits_for_slices(found["cudaDeviceSynchronize"], load)
    # two calls that may wait
    assert found["cudaMalloc and cudaFree"][1] <= 6 * SLICE


def test_jax_beside_services():
    beside("jax", 3, "calls")


def test_a_napping_service_takes_nothing_from_a_matmul():
    found = beside("matmul", 1, "idle")
    assert found["4096 matmul beside napping, to alone"] <= 1.02
