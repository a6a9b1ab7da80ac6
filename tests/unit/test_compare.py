"""tools/compare: two builds measured in turns, and the interval of their ratio."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "compare"
loader = importlib.machinery.SourceFileLoader("compare", str(TOOL))
spec = importlib.util.spec_from_loader("compare", loader)
assert spec is not None
compare = importlib.util.module_from_spec(spec)
loader.exec_module(compare)


def rounds(middle, spread, n, seed):
    draw = random.Random(seed)
    return [middle + draw.gauss(0, spread) for _ in range(n)]


def test_the_interval_holds_the_ratio_and_shrinks():
    draw, held = random.Random(2), 0
    for seed in range(6):
        few = compare.ratio(rounds(100, 5, 10, seed), rounds(120, 5, 10, seed + 100), draw)
        many = compare.ratio(rounds(100, 5, 100, seed), rounds(120, 5, 100, seed + 100), draw)
        for middle, low, high in (few, many):
            assert low <= middle <= high
            held += low < 1.2 < high
        assert many[2] - many[1] < few[2] - few[1]
    assert held >= 9  # 11 of 12 are expected


def test_equal_values_have_no_interval():
    assert compare.ratio([2.0] * 10, [3.0] * 10, random.Random(1)) == (1.5, 1.5, 1.5)


def run(*arguments):
    return subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True,
                          timeout=110)  # fmt: skip


def test_two_folders(tmp_path):
    """Every quantity is measured in both; a limit that cannot be held fails."""
    out = tmp_path / "values.json"
    done = run(ROOT, ROOT, "--rounds", 2, "--only", "write", "--only", "pool-small",
               "--limit", 0.01, "--seconds", 0.01, "--json", out)  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "may be slower than 0.01 times: write, pool-small" in done.stdout
    assert "emulated" in done.stdout  # says what it ran on
    told = json.loads(out.read_text())
    for build in ("old", "new"):
        assert {n: len(v) for n, v in told["ns"][build].items()} == {"write": 2, "pool-small": 2}
    assert all(value > 0 for values in told["ns"]["new"].values() for value in values)


@pytest.mark.parametrize("wrong, words", [
    (["no-such-commit"], "neither a folder nor a commit"),
    (["/tmp"], "no checkout of gpudirect"),
    ([str(ROOT), "--rounds", "1"], "at least 2 rounds"),
])  # fmt: skip
def test_what_makes_no_sense_is_told(wrong, words):
    done = run(*wrong)
    assert done.returncode and words in done.stderr
