"""MPI: what ranks receive lands in device memory, and slabs of a grid on several ranks are the whole grid."""

from __future__ import annotations

import re

import pytest
import under_mpi

pytestmark = pytest.mark.timeout(300)  # ranks wait actively, on processors that others use as well

RECEIVING = """
import numpy as np
from mpi4py import MPI
import gpudirect as gd

comm = MPI.COMM_WORLD
other = 1 - comm.rank
for count in (1, 64, 5000, 3_000_000):                  # eager, and larger than any MPI sends at once
    data = np.random.default_rng(comm.rank).random(count, "f4")
    theirs = np.random.default_rng(other).random(count, "f4")
    with gd.zeros(count + 2) as a:
        got = comm.Irecv([a.host[1:-1], MPI.FLOAT], other)
        comm.Send([data, MPI.FLOAT], other)
        got.Wait()
        assert np.array_equal(a.read(), [0, *theirs, 0] if count < 100 else np.pad(theirs, 1)), count
        if comm.rank:
            comm.Send([a.read(), MPI.FLOAT], other)     # sent out of ordinary memory
        else:
            comm.Recv([a.host, MPI.FLOAT], other)
            a.flush()
            sum = gd.kernel("__global__ void f(const float *a, float *s, int n) { for (int i = 0; i < n; i++) "
                            "*s += a[i] == 0; }", "f")
            with gd.zeros(1) as zeros:
                sum[1, 1](a, zeros, min(count, 5000) + 1)
                assert zeros.read()[0] >= 1             # a kernel sees what came
            assert np.array_equal(a.read()[1:-1], data)
print("right", flush=True)
"""


def test_messages_are_received_into_device_memory(tmp_path):
    program = tmp_path / "receiving.py"
    program.write_text(RECEIVING)
    done = under_mpi.run(2, program)
    assert done.returncode == 0 and done.stdout.count("right") == 2, done.stdout + done.stderr


@pytest.mark.parametrize(("ranks", "devices", "share"), [
    (1, 1, False), (2, 2, False), (3, 1, False), (2, 2, True), (3, 2, True),
])  # fmt: skip
def test_slabs_on_several_ranks_are_the_whole_grid(ranks, devices, share):
    done = under_mpi.run(ranks, under_mpi.HALO, 11, 5, *(["--share"] if share else []),
                         GPUDIRECT_EMULATED_DEVICES=str(devices))  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal to one GPU bit for bit" in done.stdout and "NOT" not in done.stdout
    assert len(re.findall(r"emulated:\d", done.stdout)) == min(ranks, devices)


@pytest.mark.parametrize(("arguments", "words"), [
    (("2", "3"), "2 planes and 3 steps for 3 ranks"), (("12", "0"), "and 0 steps"),
])  # fmt: skip
def test_too_few_planes_end_all_ranks(arguments, words):
    done = under_mpi.run(3, under_mpi.HALO, *arguments)
    assert done.returncode != 0 and words in done.stderr


DIFFERENT = """
import runpy, sys
from mpi4py import MPI
sys.argv = [{halo!r}, str(12 + MPI.COMM_WORLD.rank), "3"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_ranks_that_were_started_differently(tmp_path):
    program = tmp_path / "different.py"
    program.write_text(DIFFERENT.format(halo=str(under_mpi.HALO)))
    done = under_mpi.run(2, program)
    assert done.returncode != 0 and "given different arguments" in done.stderr
