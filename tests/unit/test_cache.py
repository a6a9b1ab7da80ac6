"""What is kept on disk heals: a file cut short, a foreign one, a cache that takes nothing, two at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gpudirect as gd
from gpudirect import _cache

SOURCE = "__global__ void k(int *a) { *a = 41; }"


@pytest.fixture(autouse=True)
def emulated():
    gd.use(device="emulated")
    yield
    gd.use()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUDIRECT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def answer() -> int:
    with gd.zeros(1, "i4") as a:
        gd.kernel(SOURCE, "k")[1, 1](a)
        return int(a.read()[0])


def files(cache) -> list:
    return sorted(f for f in cache.rglob("*") if f.is_file())


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A cache that a process has filled, to be copied."""
    folder = tmp_path_factory.mktemp("made") / "cache"
    with pytest.MonkeyPatch.context() as here:
        here.setenv("GPUDIRECT_CACHE", str(folder))
        gd.use(device="emulated")
        assert answer() == 41
        gd.use()
    assert {f.parent.name for f in files(folder)} == {"cuda", "emulated"} and len(files(folder)) == 3
    return folder


@pytest.fixture
def filled(cache, made) -> Path:
    """The same for one test."""
    return Path(shutil.copytree(made, cache))


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[:100], lambda data: data[:-1],
     lambda data: data[:200] + b"\xff" + data[201:], lambda data: b"somebody else's",
     lambda data: data + b"!"],
    ids=["empty", "cut to 100 bytes", "its last byte gone", "one byte changed", "foreign", "one more"],
)  # fmt: skip
def test_a_damaged_file_is_made_again(filled, damage):
    whole = files(filled)
    for file in whole:
        content = file.read_bytes()
        file.unlink()  # the old one is mapped by the emulated GPU
        file.write_bytes(damage(content))
        assert answer() == 41
        assert _cache.load(file) is not None, file.name
    assert files(filled) == whole


def test_a_folder_where_a_file_should_be_is_gone_around(filled):
    assert answer() == 41
    for file in files(filled):
        file.unlink()
        file.mkdir()
        assert answer() == 41


def test_only_files_with_their_seal_count(tmp_path):
    path = tmp_path / "deep" / "file"
    assert _cache.load(path) is None
    assert _cache.keep(path, b"content") and _cache.load(path) == b"content"
    for content in (b"", b"x" * 10_000_000):
        assert _cache.keep(path, content) and _cache.load(path) == content
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("where", ["/dev/null/nowhere", "/proc/nowhere", "file"])
def test_a_cache_that_cannot_be_written_is_done_without(where, tmp_path, monkeypatch):
    if where == "file":
        (tmp_path / "file").write_text("no folder")
        where = str(tmp_path / "file")
    monkeypatch.setenv("GPUDIRECT_CACHE", where)
    assert answer() == 41 and answer() == 41


def test_what_replaces_the_cache_goes_with_the_process(tmp_path):
    program = """
import gpudirect as gd
from gpudirect import _cache
gd.kernel("__global__ void k(int *a) { *a = 1; }", "k")
print(_cache.spare_folder("emulated").parent)
"""
    env = {**os.environ, "GPUDIRECT_DEVICE": "emulated", "GPUDIRECT_CACHE": "/dev/null/nowhere"}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert run.stdout.strip() and not os.path.exists(run.stdout.strip()), run.stderr


def test_two_processes_at_once(cache):
    program = f"""
import gpudirect as gd
for i in range(2):
    with gd.zeros(1, "i4") as a:
        gd.kernel({SOURCE!r} + f"// {{i}}", "k")[1, 1](a)
        assert a.read()[0] == 41
"""
    env = {**os.environ, "GPUDIRECT_DEVICE": "emulated", "GPUDIRECT_CACHE": str(cache)}
    both = [subprocess.Popen([sys.executable, "-c", program], env=env) for _ in range(2)]
    assert [p.wait(timeout=110) for p in both] == [0, 0]
    assert len(files(cache)) == 2 * 2 + 1 and all(_cache.load(f) is not None for f in files(cache))


# -- what is kept is code: only this user may put it there ----------------------------------------


def kept(folder, content: bytes = b"content"):
    path = folder / "file"
    assert _cache.keep(path, content)
    return path


def test_a_folder_that_is_made_is_closed_to_others(cache):
    assert kept(cache / "kind").parent.stat().st_mode & 0o077 == 0


def test_a_folder_of_ours_that_is_open_is_closed_and_used(cache):
    (cache / "kind").mkdir(parents=True)
    (cache / "kind").chmod(0o777)
    path = kept(cache / "kind")
    assert path.parent.stat().st_mode & 0o777 == 0o700 and _cache.load(path) == b"content"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("whose", ["kind", "."])
def test_a_folder_of_somebody_else_is_not_used(cache, whose):
    path = kept(cache / "kind")
    os.chown(cache / whose, 12345, 12345)
    assert _cache.load(path) is None and not _cache.keep(path, b"more")
    assert answer() == 41, "it is done without"


def test_below_a_folder_that_everybody_can_write_nothing_is_used(cache):
    path = kept(cache / "kind")
    cache.chmod(0o777)
    assert _cache.load(path) is None and not _cache.keep(path, b"more")
    cache.chmod(0o1777)  # like /tmp: nobody else can take our folder away
    assert _cache.load(path) == b"content"


def test_a_link_in_place_of_the_folder_is_not_followed(cache, tmp_path):
    kept(tmp_path / "elsewhere")
    cache.mkdir()
    (cache / "kind").symlink_to(tmp_path / "elsewhere")
    assert _cache.load(cache / "kind" / "file") is None


def test_a_file_under_another_name_is_not_that_file(cache):
    path = kept(cache / "kind")
    path.rename(path.with_name("other"))
    assert _cache.load(path.with_name("other")) is None


def test_a_doctor_that_looks_changes_nothing(cache):
    (cache / "kind").mkdir(parents=True)
    (cache / "kind").chmod(0o775)
    assert _cache.ours(cache / "kind", close=False) and (cache / "kind").stat().st_mode & 0o777 == 0o775
