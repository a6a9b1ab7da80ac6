"""The memory model on hardware: every litmus test, a million rounds. Run by ``tests/gpu/run --all``.

GPUDIRECT_LITMUS_ROUNDS sets another number of rounds.
"""

from __future__ import annotations

import os

import pytest

import gpudirect as gd
from gpudirect import devices, litmus

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

ROUNDS = int(os.environ.get("GPUDIRECT_LITMUS_ROUNDS", 1_000_000))


@pytest.fixture(autouse=True)
def needs_a_gpu():
    if reason := devices.cuda_reason():
        pytest.fail(f"these tests need a GPU: {reason}")


@pytest.mark.parametrize("name", litmus.ALL)
def test_litmus(name, record_property, capsys):
    test = litmus.ALL[name]
    if not test.offered(gd.device("cuda:0")):
        pytest.skip(f"{gd.device('cuda:0').ordering}: this device does not promise it")
    outcome = test.run(ROUNDS, "cuda:0")
    record_property("violations", outcome.violations)
    with capsys.disabled():
        print(f"\n{name}: {outcome.standing}, {outcome.violations} of {outcome.rounds} out of order, "
              f"{outcome.seconds:.1f} s")  # fmt: skip
    assert outcome.fine, f"{test.says}: {outcome}"


def test_loads_that_do_not_wait_are_seen_to_be_old():
    assert litmus.ALL["load-without-synchronising"].run(1000, "cuda:0").violations > 0
