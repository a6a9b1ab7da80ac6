"""The guides' programs run as they stand, and the pages name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDES = (ROOT / "docs" / "guides.md").read_text()
BLOCKS = [
    (section.partition("\n")[0], code)
    for section in GUIDES.split("\n## ")[1:]
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
]


@pytest.mark.parametrize("title, code", BLOCKS, ids=[title for title, _ in BLOCKS])
def test_the_program_runs_as_it_stands(title, code):
    found: dict = {}
    exec(compile(code, f"guides.md, {title}", "exec"), found)
    if title == "I have a sequential program":
        assert found["result"][7] == 2 + 7
    if title == "I control something":
        assert found["output"] == pytest.approx(0.75, abs=1e-6)
    if title == "I have more than BAR1 shows":
        assert list(found["a"].read(start=3 << 18, count=4)) == [(3 << 18) + i for i in range(4)]


def test_there_is_a_program_for_each_task_that_is_python():
    assert len(BLOCKS) == 6


@pytest.mark.parametrize("page", ["sharing.md", "several-gpus.md"])
def test_a_page_runs_as_it_stands(page):
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL):
        exec(compile(code, page, "exec"), {})


@pytest.mark.parametrize("page", ["guides.md", "faq.md", "sharing.md", "c.md"])
def test_what_it_links_to_and_names_exists(page):
    text = (ROOT / "docs" / page).read_text()
    for link in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (ROOT / "docs" / link).exists(), link
    for path in re.findall(r"`((?:p2pmod|gpudirect|tools|tests)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
