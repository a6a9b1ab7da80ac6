"""The benchmarks run on the emulated device, and measure what the bars ask for."""

from __future__ import annotations

import json

import numpy as np
import pytest

import gpudirect as gd
from gpudirect import bench
from gpudirect.bench import bars as targets
from gpudirect.bench import measure

CASES = {
    "copylat": {"write 64: C", "write 64: Python", "flush: C", "flush: Python", "load 4: C"},
    "pingpong": {"load 4: C", "round: C", "round: Python"},
    "engine": {"write: gpudirect", "write: libc memcpy", "write unaligned: gpudirect",
               "read: gpudirect", "read: bare 16"},
    "apiperf": {"a.write(64 bytes)", "map and unmap 64 KiB: emulated"},
    "launch": {"gpudirect, synchronised", "gpudirect, queued"},
    "courier": {*(f"{kind}: {way}" for kind in ("read", "read pinned")
                  for way in ("courier", "loads", "DMA", "chosen")),
                "gather: courier", "gather: loads", "gather: a load each", "gather: whole array by DMA",
                "scatter: courier", "scatter: stores"},
    "windows": {"128 MiB: fully mapped", "128 MiB: 64 MiB budget"},
}


@pytest.mark.parametrize("name", CASES)
def test_a_benchmark_measures_its_cases(name):
    told = []
    module = bench.load(name)
    found = module.run(gd.device("emulated"), True, lambda *what: told.append(what))
    assert module.NAME == name and module.NOTE and told
    assert CASES[name] <= {f.case for f in found}
    for f in found:
        assert f.bench == name and f.samples >= 3, f
        assert 0 < f.p0 <= f.p50 <= f.p99 <= f.p999, f
    assert all(0 <= done <= total for _, done, total in told)


def test_copybw_measures_every_path(monkeypatch):
    module = bench.load("copybw")
    monkeypatch.setattr(module, "sizes", lambda *a: [1, 64, 4095, 65536])
    found = module.run(gd.device("emulated"), True)
    for name in ("write", "write pinned", "read", "read pinned"):
        for way in ("chosen", "map", "dma"):
            assert {f.size for f in found if f.case == f"{name}: {way}"} >= {1, 64, 4095}


def test_every_bar_of_these_benchmarks_names_a_case_of_theirs():
    """A bar whose case is misspelt would be "not measured" for ever."""
    known = {
        **CASES,
        "copybw": {f"{n}: {w}" for n in ("write", "write pinned", "read", "read pinned")
                   for w in ("chosen", "map", "dma", "cuMemcpy")},
    }  # fmt: skip
    known["windows"] |= {"1 GiB: fully mapped", "1 GiB: 64 MiB budget"}
    known["engine"] |= {
        *(f"{g}: {w}" for g in ("write", "write unaligned")
          for w in ("gpudirect", "bare avx512", "bare movdir64b", "libc memcpy")),
        *(f"{g}: {w}" for g in ("read", "read unaligned")
          for w in ("gpudirect", "bare 16", "bare 32", "bare 64")),
        *(f"{d} threads: {w}" for d in ("write", "read") for w in ("gpudirect", "bare best")),
    }  # fmt: skip
    text = json.loads(targets.BARS.read_text())
    for bar in text["bars"]:
        for key, value in walk(bar):
            if key == "cases" and bar_bench(bar) in known:
                assert set(value) <= known[bar_bench(bar)], bar


def bar_bench(bar):
    return next((v for k, v in walk(bar) if k == "bench"), None)


def walk(node):
    if isinstance(node, dict):
        for key, value in node.items():
            yield key, value
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


def test_cases_are_timed_in_turn_each_with_its_own_batch():
    calls = {"quick": 0, "slow": 0}

    def quick():
        calls["quick"] += 1

    def slow():
        calls["slow"] += 1
        np.ones(1 << 16).sum()

    found = {f.case: f for f in measure.shared_out("b", {"quick": quick, "slow": slow}, seconds=0.02)}
    assert found["quick"].samples == found["slow"].samples >= 15
    assert found["quick"].batch > found["slow"].batch
    assert found["quick"].p50 < found["slow"].p50


def test_sizes_are_powers_of_two_and_forty_odd_ones():
    found = measure.sizes()
    assert {1 << i for i in range(25)} <= set(found)
    odd = [n for n in found if n & (n - 1)]
    assert len(odd) == 40 and all(n % 2 for n in odd) and found == sorted(set(found))
    assert found == measure.sizes()
