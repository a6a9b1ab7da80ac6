"""The README and the pages keep their word."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("tool", ["figures", "readme-port", "reference"])
def test_what_is_made_is_up_to_date(tool):
    run = subprocess.run([sys.executable, ROOT / "tools" / tool, "--check"],
                         capture_output=True, text=True)  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_every_block_of_figures_is_one_that_the_tool_makes():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(r"<!-- figures: (\w+)", page.read_text()):
            assert f'"{name}":' in (ROOT / "tools" / "figures").read_text(), (page.name, name)


def test_every_command_it_names_exists():
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    targets = {line.split()[1] for line in text.splitlines() if line.startswith("make ")}
    assert {"demo", "test", "info", "test-gpu"} <= targets
    for target in targets:
        assert f"\n{target}:" in makefile, target


def test_every_page_it_links_to_exists():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([\w./-]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_its_first_example_runs_as_it_stands():
    text = (ROOT / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    found: dict = {}
    exec(compile(code, "README.md", "exec"), found)
    assert (found["out"][17] == 2 * np.arange(1024)).all() and not found["out"][16].any()


def test_every_python_block_of_the_readme_runs_as_it_stands():
    """All of them, one after the other, as a reader pastes them; then the port is called."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from vector_add import Work
    finally:
        sys.path.pop(0)
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 3
    found: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), found)
    work = Work(10_007)
    expected = found["sequential"](work)().copy()
    assert (found["direct"](work)() == expected).all()


def test_the_doorbells_example_runs_as_it_stands():
    text = (ROOT / "docs" / "doorbells.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    exec(compile(code, "doorbells.md", "exec"), {})
