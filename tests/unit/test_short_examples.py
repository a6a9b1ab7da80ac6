"""The short examples: each runs as it stands, checks its own results, and shows its figure."""

from __future__ import annotations

import re

import pytest
from short_examples import CLAIMS, EXAMPLES, check, run

from gpudirect.experiment import ports

ELSEWHERE = {"decode_inputs": "gpu/test_frameworks.py"}
"""Examples that are neither short nor ports, and where they are tested."""


def test_every_example_is_tested_and_told_of():
    names = {p.stem for p in EXAMPLES.glob("[!_]*.py")}
    assert names == {*CLAIMS, *ports.NAMES, *ELSEWHERE}
    for name, file in ELSEWHERE.items():
        assert name in (EXAMPLES.parent / "tests" / file).read_text()
    told = (EXAMPLES / "README.md").read_text()
    assert all(f"`{name}`" in told for name in names)


@pytest.mark.parametrize("name", sorted(CLAIMS))
def test_it_runs_as_it_stands_and_shows_its_figure(name):
    said = run(name)
    check(name, said)
    assert "on emulated:0, Emulated GPU (no GPU is involved: no times of one)" in said


def test_the_figure_is_drawn_where_a_file_is_named(tmp_path):
    pytest.importorskip("matplotlib")
    said = run("control", str(tmp_path / "control.png"))
    assert re.search(r"\d+ of 500 missed the deadline of 100 ms", said)
    assert (tmp_path / "control.png").read_bytes().startswith(b"\x89PNG")
