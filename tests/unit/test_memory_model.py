"""The litmus tests of the memory model, on the emulated device: its promises, and their own teeth."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import until

import gpudirect as gd
from gpudirect import litmus

ROOT = Path(__file__).resolve().parent.parent.parent
ROUNDS = 300
KEPT = [name for name, test in litmus.ALL.items() if test.standing != litmus.NOT_PROMISED]


@pytest.fixture(autouse=True)
def emulated():
    gd.use(device="emulated", bridge="emulated")
    yield
    gd.synchronize()
    gd.use()


@pytest.mark.parametrize("name", litmus.ALL)
def test_litmus(name):
    outcome = litmus.ALL[name].run(ROUNDS)
    assert outcome.emulated and outcome.rounds == ROUNDS
    if litmus.ALL[name].holds_emulated:
        assert outcome.fine, outcome


@pytest.mark.parametrize(
    "name", ["load-without-synchronising", "load-after-queued-dma"]
)
def test_what_is_not_promised_is_seen_to_fail(name):
    assert litmus.ALL[name].run(20).violations > 0


SABOTAGED = ["message-passing", "packet-of-16", "packet-of-64", "reply", "partial-lines"]


@pytest.mark.parametrize("name", SABOTAGED)
def test_a_broken_promise_is_noticed(name, monkeypatch):
    """On a busy machine the two sides may take turns for hundreds of rounds, and see nothing of each other."""
    monkeypatch.setattr(litmus, "SABOTAGE", ["-DSABOTAGE"])
    outcomes = []

    def noticed():
        outcomes.append(litmus.ALL[name].run(ROUNDS))
        return outcomes[-1].violations > 0

    until(noticed)
    assert not outcomes[-1].fine


LOSES_WRITES = ["dma-after-stores", "load-after-dma", "stores-after-dma", "message-passing-flushed",
                "write-in-a-stream", "stores-after-courier"]


@pytest.mark.parametrize("name", LOSES_WRITES)
def test_a_lost_write_is_noticed(name, monkeypatch):
    write, count = gd.Array.write, iter(range(1 << 30))
    monkeypatch.setattr(
        gd.Array, "write",
        lambda *a, **k: None if next(count) % 7 == 6 else write(*a, **k), raising=False,
    )  # fmt: skip
    assert litmus.ALL[name].run(ROUNDS).violations > 0


@pytest.mark.parametrize("name", ["launch-after-stores", "courier-after-stores"])
def test_a_lost_store_is_noticed(name, monkeypatch):
    class Forgetful:
        def __init__(self, view):
            self.view = view

        def __setitem__(self, index, value):
            if value % 7 or not value:  # zeroed memory stays so
                self.view[index] = value

    host = gd.Array.host
    monkeypatch.setattr(gd.Array, "host", property(lambda a: Forgetful(host.__get__(a))))
    assert litmus.ALL[name].run(ROUNDS).violations > 0


@pytest.mark.parametrize("name", ["read-after-launch", "read-in-a-stream", "courier-after-launch"])
def test_a_read_that_does_not_wait_is_noticed(name, monkeypatch):
    for call in ("read", "gather"):
        wait = getattr(gd.Array, call)
        monkeypatch.setattr(
            gd.Array, call,
            lambda a, *more, wait=wait, stream=None, **k: wait(a, *more, **{**k, "synchronize": False}),
            raising=False,
        )  # fmt: skip
    assert litmus.ALL[name].run(ROUNDS).violations > 0


def test_a_write_that_is_in_no_stream_is_noticed(monkeypatch):
    write = gd.Array.write
    monkeypatch.setattr(gd.Array, "write", lambda a, data, stream=None: write(a, data), raising=False)
    assert litmus.ALL["write-in-a-stream"].run(ROUNDS).violations > 0


def test_a_lost_scatter_of_a_courier_is_noticed(monkeypatch):
    scatter, count = gd.Array.scatter, iter(range(1 << 30))
    monkeypatch.setattr(
        gd.Array, "scatter", lambda *a, **k: None if next(count) % 7 == 6 else scatter(*a, **k)
    )
    assert litmus.ALL["courier-before-launch"].run(ROUNDS).violations > 0


def test_every_promise_is_seen_to_fail_somewhere():
    here = {*SABOTAGED, *LOSES_WRITES, "launch-after-stores", "read-after-launch",
            "read-in-a-stream", "courier-after-stores", "courier-before-launch", "courier-after-launch"}
    assert here == set(KEPT)


def test_the_documentation_names_every_litmus_test():
    text = (ROOT / "docs" / "memory-model.md").read_text()
    named = set(re.findall(r"`([a-z0-9-]+)`", text))
    assert set(litmus.ALL) <= named, set(litmus.ALL) - named


def test_the_command():
    run = subprocess.run(
        [sys.executable, "-m", "gpudirect", "litmus", "--device", "emulated", "--rounds", "50",
         "partial-lines", "reply"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(re.findall(r"promised +0 +50 .* ok$", run.stdout, re.MULTILINE)) == 2, run.stdout
    assert "(emulated" in run.stdout
    run = subprocess.run(
        [sys.executable, "-m", "gpudirect", "litmus", "teleport"], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 2 and "no litmus test 'teleport'" in run.stderr
