"""The short examples on a GPU: their results are right there, too."""

from __future__ import annotations

import re

import pytest
import short_examples as short

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", sorted(short.CLAIMS))
def test_it_runs_on_a_gpu(name):
    said = short.run(name, device="cuda")
    short.check(name, said)
    assert re.search(r"on cuda:\d", said) and "no GPU" not in said


def test_the_control_loop_meets_its_deadline():
    said = short.run("control", device="cuda")
    missed = re.search(r"(\d+) of 500 missed the deadline of 1 ms", said)
    assert missed and int(missed[1]) <= 5, said
