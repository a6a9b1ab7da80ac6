"""The commit beside a figure is the package's own, or none is told."""

from __future__ import annotations

import subprocess

import pytest

from gpudirect import facts


def git(folder, *words):
    subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *words], cwd=folder, check=True,
                   capture_output=True)  # fmt: skip


@pytest.fixture
def somebodys(tmp_path, monkeypatch):
    """Somebody's repository, with a commit and a tag."""
    monkeypatch.delenv("GPUDIRECT_COMMIT", raising=False)
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("theirs")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "theirs")
    return tmp_path


@pytest.mark.parametrize("where", ["venv/lib/site-packages", "vendored", "."])
def test_the_repository_around_the_package_is_not_its_own(somebodys, where, monkeypatch):
    root = somebodys / where
    (root / "gpudirect").mkdir(parents=True)
    git(somebodys, "add", ".")
    monkeypatch.setattr(facts, "ROOT", root.resolve())
    assert facts.commit() is None


def test_its_own_is_told_and_whether_it_was_changed(somebodys, monkeypatch):
    monkeypatch.setattr(facts, "ROOT", somebodys.resolve())
    (somebodys / "pyproject.toml").write_text('[project]\nname = "gpudirect"\n')
    git(somebodys, "add", ".")
    git(somebodys, "commit", "-qm", "ours")
    git(somebodys, "tag", "-a", "v9", "-m", "a release")
    found = facts.commit()
    assert found and len(found) == 12 and set(found) <= set("0123456789abcdef")
    (somebodys / "file").write_text("changed")
    assert facts.commit() == f"{found}-dirty"


def test_the_repository_of_a_hook_is_not_asked(somebodys, monkeypatch, tmp_path_factory):
    """Inside a git hook GIT_DIR names the repository of whoever runs it."""
    monkeypatch.setenv("GIT_DIR", str(somebodys / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(somebodys))
    plain = tmp_path_factory.mktemp("plain")
    (plain / "pyproject.toml").write_text('name = "gpudirect"\n')
    monkeypatch.setattr(facts, "ROOT", plain.resolve())
    assert facts.commit() is None


def test_what_one_is_told_counts(monkeypatch):
    monkeypatch.setenv("GPUDIRECT_COMMIT", "abc")
    assert facts.commit() == "abc"
