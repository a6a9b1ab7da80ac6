"""docs/frameworks.md names tests that exist, and its figures are those of the results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import gpudirect as gd

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "frameworks.md").read_text()


def test_every_row_names_a_test_that_runs_on_a_gpu():
    there = "".join((ROOT / "tests" / "gpu" / f"{n}.py").read_text() for n in ("test_frameworks", "test_gpu"))
    named = re.findall(r"`(test_\w+)` \|$", PAGE, re.MULTILINE)
    assert len(named) > 10
    for test in named:
        assert f"def {test}(" in there, test


def test_what_the_page_calls_exists():
    for name in set(re.findall(r"`gd\.((?:\w+\.)?\w+)", PAGE)):
        found = gd
        for part in name.split("."):
            found = getattr(found, part)


def test_the_decoders_figures_are_those_of_the_results():
    ways = json.loads((ROOT / "results" / "nvidia-h200-decode.json").read_text())["ways"]
    rows = re.findall(r"^\| (\w[^|]*) \| [\d.]+ \| (\d+) \|[^|]*\| (\d+) \|", PAGE, re.MULTILINE)
    assert len(rows) == len(ways) == 7
    for name, waiting, ahead in rows:
        way = ways[name.replace("\\", "")]
        assert way["equal"] and way["equal ahead"]
        assert (int(waiting), int(ahead)) == (round(way["waiting"]["step_us"]), round(way["ahead"]["step_us"]))
