"""Finding the sizes at which the faster path changes, and keeping them."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

import gpudirect as gd
from gpudirect import calibration, limits
from gpudirect._transfer import paths
from gpudirect.limits import NEVER, Limits


def measured(mapped, dma):
    return [(n, mapped(n), dma(n)) for n in calibration.sizes()]


def test_one_crossing_is_found_where_it_is():
    found = calibration.turns(measured(lambda n: n / 10, lambda n: 6000 + n / 50))
    assert len(found) == 1
    assert found[0] == pytest.approx(6000 / (1 / 10 - 1 / 50), rel=0.1)


def test_no_crossing_is_no_turn():
    assert calibration.turns(measured(lambda n: n, lambda n: n + 5000)) == ()


def test_dma_that_is_always_faster_turns_at_once():
    assert calibration.turns(measured(lambda n: 2 * n, lambda n: n)) == (0,)


def test_a_path_that_comes_back_is_found():
    """Loads are slower than DMA from 4 KiB on, until several threads share them from 64 KiB on."""
    found = calibration.turns(
        measured(lambda n: n if n < 64 << 10 else n / 12, lambda n: 4096 + n / 5)
    )
    assert len(found) == 2
    assert 4 << 10 <= found[0] <= 6 << 10 and 40 << 10 <= found[1] <= 64 << 10


def test_noise_makes_no_turns():
    dice = np.random.default_rng(5)

    def noisy(slope):
        return lambda n: (5000 + slope * n) * dice.normal(1, 0.005)

    rows = measured(noisy(1.0), noisy(1.0))
    assert len(calibration.turns(rows)) <= 1


def test_threads_start_where_they_help_at_every_larger_size():
    rows = [(1, 1.0, 9.0), (2, 2.0, 1.0), (4, 4.0, 5.0), (8, 8.0, 3.0), (16, 16.0, 4.0)]
    assert calibration.threshold(rows) == 8
    assert calibration.threshold([(1, 1.0, 2.0)]) == NEVER
    assert calibration.threshold([(1, 2.0, 1.0)]) == 1


def test_the_range_of_sizes_where_a_way_gains_is_found_through_noise():
    rows = [(1, 1.0, 2.0), (2, 1.0, 0.9), (4, 2.0, 1.0), (8, 2.0, 2.1), (16, 3.0, 1.0), (32, 1.0, 1.5)]
    assert calibration.best_range(rows) == (2, 16)
    assert calibration.best_range([(1, 1.0, 2.0), (2, 1.0, 1.0)]) == (NEVER, 0)
    assert calibration.best_range([(1, 2.0, 1.0), (2, 2.0, 1.0)]) == (1, 2)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUDIRECT_CACHE", str(tmp_path))
    monkeypatch.delenv(limits.ENVIRONMENT, raising=False)
    monkeypatch.setattr(calibration, "sizes", lambda *a: [256, 4096, 65536])
    return tmp_path


@pytest.fixture
def choice():
    """What is in force for arrays of the default device, as before afterwards."""
    with gd.empty(64, "u1") as a:
        found = paths.of(a.device, a._open().bridge)
    before = found.limits
    yield found
    found.limits = before


def test_calibrating_puts_the_limits_into_force_and_keeps_them(cache, choice):
    found = gd.calibrate()
    assert found.source == "calibrated" and gd.get_limits() == found == choice.limits
    assert all(getattr(found, name) != getattr(Limits(), name) for name in limits.ERRANDS)  # measured
    path = limits.file_of(gd.device(), choice_bridge())
    assert path.is_relative_to(cache)
    again = limits.stored(gd.device(), choice_bridge())
    assert again.source == str(path)
    assert {**again.as_dict(), "source": ""} == {**found.as_dict(), "source": ""}


def choice_bridge() -> str:
    with gd.empty(64, "u1") as a:
        return a.bridge


def test_an_interruption_changes_nothing(cache, choice, monkeypatch):
    before = choice.limits
    count = iter(range(100))

    def interrupted(calls, budget, pause=0):
        if next(count) == 8:
            raise KeyboardInterrupt
        return [1.0, 2.0]

    monkeypatch.setattr(calibration, "_medians", interrupted)
    in_use = sum(s.in_use for s in gd.statistics())
    with pytest.raises(KeyboardInterrupt):
        gd.calibrate()
    assert choice.limits == before
    assert not list(cache.rglob("*.json"))
    assert sum(s.in_use for s in gd.statistics()) == in_use


def test_limits_that_cannot_be_kept_hold_all_the_same(cache, choice, monkeypatch):
    monkeypatch.setenv("GPUDIRECT_CACHE", "/dev/null/nowhere")
    with pytest.raises(gd.ArgumentError, match="cannot be kept in /dev/null/nowhere"):
        gd.calibrate()
    assert choice.limits.source == "calibrated"


def test_a_damaged_file_warns_and_is_not_used(cache):
    path = limits.file_of(gd.device(), choice_bridge())
    path.parent.mkdir(parents=True)
    for text in ("", "[]", "{}", json.dumps({"format": 1, "write_pinned": [3, 2]}),
                 json.dumps({"format": 2}), json.dumps({"format": 1, "surprise": 1})):  # fmt: skip
        path.write_text(text)
        with pytest.warns(UserWarning, match="gpudirect calibrate"):
            assert limits.stored(gd.device(), choice_bridge()) is None


def test_the_environment_names_a_file_or_none(cache, monkeypatch):
    path = cache / "mine.json"
    limits.store(Limits(write_pinned=(1234,)), path)
    monkeypatch.setenv(limits.ENVIRONMENT, str(path))
    assert limits.stored(gd.device(), "rm").write_pinned == (1234,)
    monkeypatch.setenv(limits.ENVIRONMENT, str(cache / "absent.json"))
    with pytest.raises(gd.ArgumentError, match="absent.json"):
        limits.stored(gd.device(), "rm")
    monkeypatch.setenv(limits.ENVIRONMENT, limits.BUILT_IN)
    assert limits.stored(gd.device(), "rm") is None


def test_limits_of_ones_own(choice):
    gd.set_limits(Limits(read_pinned=(5,), source="mine"))
    assert gd.get_limits().read_pinned == (5,)


def test_near_cpus_are_read_from_the_system(tmp_path):
    from gpudirect.devices.cuda import near_cpus

    (tmp_path / "0000:01:00.0").mkdir()
    for text, expected in (("0-3,8\n", [0, 1, 2, 3, 8]), ("5\n", [5]), ("\n", [])):
        (tmp_path / "0000:01:00.0" / "local_cpulist").write_text(text)
        assert near_cpus("0000:01:00.0", tmp_path) == expected
    assert near_cpus("absent", tmp_path) == []


def test_copy_threads_run_near_the_device(monkeypatch):
    """Where the system names some of our CPUs, and only then."""
    told = []
    monkeypatch.setattr(paths._native, "lib", FakeLib(told))
    allowed = sorted(os.sched_getaffinity(0))
    paths.start_threads(Limits(), allowed[:1])
    paths.start_threads(Limits(), [*allowed, 4000])
    paths.start_threads(Limits(threads=3), [4000])
    assert told[0][1] == (allowed[:1] if len(allowed) > 1 else [])
    assert told[1][1] == [] and told[2] == (3, [])


class FakeLib:
    GD_TURNS = 6

    def __init__(self, told):
        self.told = told

    def gd_threads_configure_team(self, team, count, cpus, n, *sizes):
        self.told.append((count, list(cpus)[:n]))
        return 0
