"""CONTRIBUTING, the release checklist and the issue templates name what there is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def release(*words: str, root: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, root / "tools/release", *words], capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path) -> Path:
    """What the quick steps of the checklist look at, to be spoilt."""
    for name in ("pyproject.toml", "gpudirect/__init__.py", "dkms.conf", "p2pmod/main.c", "CHANGELOG.md",
                 "tools/release"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_versions_agree():
    run = release("version")
    assert run.returncode == 0, run.stdout


def test_a_version_that_differs_is_no_release(copy):
    text = (copy / "dkms.conf").read_text()
    (copy / "dkms.conf").write_text(re.sub(r'(PACKAGE_VERSION=")[^"]+', r"\g<1>9.9.9", text))
    run = release("version", root=copy)
    assert run.returncode == 1 and "dkms.conf says 9.9.9" in run.stdout


def test_a_changelog_without_the_version_or_its_date_is_no_release(copy):
    changes = copy / "CHANGELOG.md"
    version = re.search(r'^__version__ = "(.+)"', (ROOT / "gpudirect/__init__.py").read_text(), re.MULTILINE)[1]
    changes.write_text(f"# Changes\n\n## {version}, soon\n")
    run = release("changelog", root=copy)
    assert run.returncode == 1 and "give the date" in run.stdout
    changes.write_text("# Changes\n")
    assert f"no section '## {version}, DATE'" in release("changelog", root=copy).stdout
    changes.write_text(f"# Changes\n\n## {version}, 2030-01-31\n")
    assert release("changelog", root=copy).returncode == 0


def test_steps_are_named():
    listed = release("--list").stdout
    assert {"version", "changelog", "clean", "lint", "suite", "kernels", "figures", "packages"} <= {
        line.split()[0] for line in listed.splitlines()
    }
    assert release("nonsense").returncode == 2


def test_every_command_of_contributing_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make ([\w-]+)", text, re.MULTILINE)
    assert len(targets) == 5
    for target in targets:
        assert f"\n{target}:" in makefile, target
    for path in re.findall(r"`((?:tools|docs|tests|results|gpudirect)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (ROOT / link).exists(), link


def test_issue_templates_ask_for_doctors_report():
    from gpudirect.cli._doctor import REPORT

    for name in ("problem.yml", "machine.yml"):
        text = (ROOT / ".github" / "ISSUE_TEMPLATE" / name).read_text()
        assert "gpudirect doctor --report" in text and REPORT in text, name


def test_lint_refuses_what_it_does_not_know():
    run = subprocess.run([ROOT / "tools/lint", "nonsense"], capture_output=True, text=True)
    assert run.returncode == 2 and "python, pages and format" in run.stderr


def test_every_hook_runs_something_that_is_there():
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    for command in re.findall(r"entry: (tools/\w+)", text):
        assert (ROOT / command).exists(), command
    assert text.count("- id:") == 5


@pytest.mark.parametrize("without, told", [("version_info", "too old"), ("Python.h", "python3-dev")])
def test_setup_says_what_is_missing_before_it_makes_anything(tmp_path, without, told):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *{without}*) exit 1 ;; esac\n')
    python.chmod(0o755)
    run = subprocess.run([ROOT / "tools/setup", python, tmp_path / "venv"], capture_output=True, text=True)
    assert run.returncode == 1 and told in run.stderr and not (tmp_path / "venv").exists()
