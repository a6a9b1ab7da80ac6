"""The README keeps its word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_its_figures_are_those_of_the_results_folder():
    run = subprocess.run([sys.executable, ROOT / "tools/readme-figures", "--check"],
                         capture_output=True, text=True)  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_every_command_it_names_exists():
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    targets = {line.split()[1] for line in text.splitlines() if line.startswith("make ")}
    assert {"demo", "test", "info", "test-gpu"} <= targets
    for target in targets:
        assert f"\n{target}:" in makefile, target


def test_every_page_it_links_to_exists():
    import re

    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([\w./-]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
