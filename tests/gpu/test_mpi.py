"""The halo exchange on GPUs: a rank for each, and several on one. GPUDIRECT_MPI=FILE keeps what it says."""

from __future__ import annotations

import os
import re

import pytest
import under_mpi

import gpudirect as gd

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
GPUS = sum(d.kind == "cuda" for d in gd.devices.available())
SAID: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def kept():
    yield
    if path := os.environ.get("GPUDIRECT_MPI"):
        with open(path, "w") as f:
            f.writelines(SAID)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_with_a_gpu_each(ranks, share):
    if ranks > GPUS:
        pytest.skip(f"{GPUS} GPU(s) here, and this test needs {ranks}: ranks that share one show no scaling")
    done = under_mpi.run(ranks, under_mpi.HALO, 384, 24, *(["--share"] if share else []),
                         GPUDIRECT_DEVICE="cuda")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    SAID.append(done.stdout)
    assert len(set(re.findall(r"cuda:\d+", done.stdout))) == ranks and "equal to one GPU" in done.stdout


@pytest.mark.parametrize("share", [False, True])
def test_ranks_that_share_a_gpu_are_right(share):
    """Correctness only."""
    done = under_mpi.run(3, under_mpi.HALO, 64, 16, *(["--share"] if share else []), GPUDIRECT_DEVICE="cuda",
                         CUDA_VISIBLE_DEVICES="0")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal to one GPU bit for bit" in done.stdout
