"""``gpudirect bench check``: each kind of bar holds, falls short, and says when it cannot tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gpudirect.bench import bars as targets
from gpudirect.bench import check
from gpudirect.bench.check import HOLDS, MISSING, SHORT
from gpudirect.cli import app
from gpudirect.errors import ArgumentError

MIB = 1 << 20


def fig(bench: str, case: str, size: int, p50: float, /, **more: object) -> dict:
    p99 = more.pop("p99", p50 * 1.1)
    return {"bench": bench, "case": case, "size": size, "samples": 3, "batch": 1, "p0": p50 * 0.9,
            "p50": p50, "p99": p99, "p999": p99, "mean": p50, "values": [p50], "group": "", **more}  # fmt: skip


def file(*figures: dict, checks: dict | None = None, emulated: bool = False) -> dict:
    return {"format": 1, "unit": "ns", "machine": {"cpu": "a CPU"},
            "device": {"name": "a GPU", "bridge": "rm", "emulated": emulated},
            "checks": checks or {}, "figures": list(figures)}  # fmt: skip


def saved(tmp_path: Path, found: object) -> Path:
    path = tmp_path / "figures.json"
    path.write_text(found if isinstance(found, str) else json.dumps(found))
    return path


def outcome(found: dict, identity: str) -> check.Outcome:
    (bar,) = (b for b in targets.load() if b.id == identity)
    (judged,) = check.judge(found, [bar])
    return judged


# powers of two and forty others, as the bars ask for
SIZES = sorted({1 << i for i in range(25)} | {k * 2**i + 1 for k in (3, 5) for i in range(1, 21)})


def sweep(bench: str, case: str, ns: float = 100, sizes: list[int] = SIZES, **slow: float) -> list[dict]:
    """A case at every size, in time ``ns`` + size; at the sizes named s64=2 times as long."""
    return [fig(bench, case, s, (ns + s) * slow.get(f"s{s}", 1)) for s in sizes]


def engine(**slow: float) -> list[dict]:
    return sweep("engine", "write: gpudirect", 102, **slow) + sweep("engine", "write: libc memcpy", 130)


# -- ratios at every size -----------------------------------------------------------------------


def test_a_ratio_at_every_size_holds_beside_the_best_of_the_others():
    found = outcome(file(*engine(), *sweep("engine", "write: bare avx512", 100)), "engine-write")
    assert found.state == HOLDS
    assert found.figure == pytest.approx(103 / 101) and found.size == 1
    assert found.left_out == ("write: bare movdir64b (not in the file)",) and found.judged == len(SIZES)


def test_one_slow_size_of_sixty_five_falls_short_and_is_named():
    found = outcome(file(*engine(s4096=1.2), *sweep("engine", "write: bare avx512", 100)), "engine-write")
    assert found.state == SHORT and found.size == 4096 and found.short == (4096,)
    assert found.figure == pytest.approx(4198 * 1.2 / 4196)
    assert "worst of 65 sizes, 4 KiB (median 1 x)" in found.where_text and "bare avx512" in found.where_text


def test_sizes_above_the_range_do_not_count():
    big = 64 * MIB
    beyond = [fig("engine", "write: gpudirect", big, 9e9), fig("engine", "write: libc memcpy", big, 1)]
    assert outcome(file(*engine(), *beyond), "engine-write").state == HOLDS


@pytest.mark.parametrize(
    ("sizes", "words"),
    [([s for s in SIZES if s != 512], "engine/write: gpudirect: without 1 of the sizes asked for (512 B)"),
     ([1 << i for i in range(25)], "0 sizes that are no power of two, 40 are asked for"),
     ([], "engine/write: gpudirect is not in the file")],
)  # fmt: skip
def test_missing_sizes_are_not_measured(sizes, words):
    ours = sweep("engine", "write: gpudirect", sizes=sizes)
    found = outcome(file(*ours, *sweep("engine", "write: libc memcpy", 900)), "engine-write")
    assert found.state == MISSING and words in found.reason


def test_a_case_that_lacks_one_size_is_not_left_out_there():
    """Else the hard size could be dropped from the fast bare loop."""
    bare = sweep("engine", "write: bare avx512", 10, sizes=[s for s in SIZES if s != 64])
    found = outcome(file(*engine(), *bare), "engine-write")
    assert found.state == MISSING and "write: bare avx512 was not measured at 64 B" in found.reason


def test_at_least_one_bare_loop_is_needed():
    found = outcome(file(*sweep("engine", "write: gpudirect")), "engine-write")
    assert found.state == MISSING and "libc memcpy" in found.reason


def test_both_paths_are_needed_for_the_chosen_one():
    ours, by_map = sweep("copybw", "write: chosen"), sweep("copybw", "write: map")
    assert outcome(file(*ours, *by_map), "chosen-path-write").state == MISSING
    slow_dma, fast_dma = sweep("copybw", "write: dma", 900), sweep("copybw", "write: dma", 1)
    assert outcome(file(*ours, *by_map, *slow_dma), "chosen-path-write").state == HOLDS
    assert outcome(file(*ours, *by_map, *fast_dma), "chosen-path-write").state == SHORT


def given_up(last: int, times: float) -> check.Outcome:
    """Reads through the mapping measured up to ``last``, there ``times`` as long as DMA."""
    sizes = [s for s in SIZES if s <= last]
    by_map = [fig("copybw", "read: map", s, (100 + s) * (times if s == last else 1)) for s in sizes]
    rest = [*sweep("copybw", "read: chosen"), *sweep("copybw", "read: dma")]
    return outcome(file(*by_map, *rest), "chosen-path-read")


def test_a_hopeless_path_may_end_early_and_that_is_told():
    found = given_up(65536, 4.5)
    assert found.state == HOLDS and found.judged == len(SIZES)
    assert found.left_out == ("read: map above 64 KiB, where it took 4.5 x as long",)


def test_a_path_that_was_still_good_must_not_end_early():
    found = given_up(65536, 3.5)
    assert found.state == MISSING and "copybw/read: map was not measured at" in found.reason


def test_a_path_given_up_counts_at_the_sizes_it_has():
    ours = [fig("copybw", "read: chosen", s, 150 + s) for s in SIZES]
    by_map = [fig("copybw", "read: map", s, 100 + s * (1 if s < 4096 else 9)) for s in SIZES if s <= 4096]
    found = outcome(file(*ours, *by_map, *sweep("copybw", "read: dma", 3000)), "chosen-path-read")
    assert found.state == SHORT and found.size == 1 and "read: map at 101 ns" in found.details


# -- one of two comparisons ---------------------------------------------------------------------

LARGE = [MIB << i for i in range(5)]


def threads(times: float, bare: float | None) -> check.Outcome:
    """Threads ``times`` as fast as one thread, and ``bare`` times the bare threads' speed."""
    figures = []
    for s in LARGE:
        figures.append(fig("engine", "write: gpudirect", s, s))
        figures.append(fig("engine", "write threads: gpudirect", s, s / times))
        if bare is not None:
            figures.append(fig("engine", "write threads: bare best", s, s / times * bare))
    return outcome(file(*figures), "engine-write-threads")


def test_sizes_that_are_needed_must_be_there_and_others_may():
    def at(sizes: list[int]) -> str:
        cases = ("write: gpudirect", "write threads: gpudirect", "write threads: bare best")
        return outcome(file(*(f for c in cases for f in sweep("engine", c, sizes=sizes))),
                       "engine-write-threads").state  # fmt: skip

    assert [at([MIB, 4 * MIB, 16 * MIB]), at([*LARGE, 3 * MIB + 1])] == [HOLDS, HOLDS]
    assert at([MIB, 16 * MIB]) == MISSING


@pytest.mark.parametrize(
    ("times", "bare", "state"),
    [(1.9, 0.5, HOLDS), (1.2, 0.97, HOLDS), (1.2, 0.9, SHORT), (1.9, None, HOLDS), (1.2, None, MISSING)],
)
def test_one_of_two_comparisons_is_enough(times, bare, state):
    assert threads(times, bare).state == state


def test_the_comparison_may_be_another_at_each_size():
    figures = []
    for s in LARGE:
        first = s == MIB
        figures += [fig("engine", "write: gpudirect", s, s),
                    fig("engine", "write threads: gpudirect", s, s / (2 if first else 1.1)),
                    fig("engine", "write threads: bare best", s, s / (9 if first else 1.1))]  # fmt: skip
    assert outcome(file(*figures), "engine-write-threads").state == HOLDS


def test_threads_reading_count_at_one_size():
    def at(ns: float) -> str:
        one = fig("engine", "read: gpudirect", MIB, 1000)
        several = fig("engine", "read threads: gpudirect", MIB, ns)
        return outcome(file(one, several), "engine-read-threads").state

    assert (at(240), at(260)) == (HOLDS, SHORT)


# -- single figures -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identity", "good", "bad"),
    [
        # a difference
        ("python-write", [("write 64: C", 64, 100), ("write 64: Python", 64, 590)],
         [("write 64: C", 64, 100), ("write 64: Python", 64, 610)]),
        ("python-flush", [("flush: C", 0, 10), ("flush: Python", 0, 205)],
         [("flush: C", 0, 10), ("flush: Python", 0, 215)]),
        ("pingpong-python", [("round: C", 64, 1500), ("round: Python", 0, 1790)],
         [("round: C", 64, 1500), ("round: Python", 0, 1810)]),
        # a ratio of times, of whatever sizes
        ("pingpong", [("load 4: C", 4, 1000), ("round: C", 64, 1590)],
         [("load 4: C", 4, 1000), ("round: C", 64, 1610)]),
        ("doorbell-call", [("load 4: C", 4, 1000), ("call 56: C", 56, 1890)],
         [("load 4: C", 4, 1000), ("call 56: C", 56, 1910)]),
        # at least
        ("doorbell-beside-launch", [("launch + sync: C", 0, 8000), ("call 56: C", 56, 1990)],
         [("launch + sync: C", 0, 8000), ("call 56: C", 56, 2010)]),
        ("doorbell-beside-copies", [("copy + launch + copy: C", 0, 14000), ("call 56: C", 56, 1990)],
         [("copy + launch + copy: C", 0, 14000), ("call 56: C", 56, 2010)]),
        ("doorbell-python", [("call 56: C", 56, 1600), ("call 56: Python", 56, 2090)],
         [("call 56: C", 56, 1600), ("call 56: Python", 56, 2110)]),
        # a bandwidth
        ("windows", [("1 GiB: fully mapped", 1 << 30, 5e7), ("1 GiB: 64 MiB budget", 1 << 30, 6e7)],
         [("1 GiB: fully mapped", 1 << 30, 5e7), ("1 GiB: 64 MiB budget", 1 << 30, 6.5e7)]),
        # a rate that stands alone
        ("doorbell-pipelined", [("pipelined 56: C", 56, 330)], [("pipelined 56: C", 56, 340)]),
    ],
)  # fmt: skip
def test_single_figures(identity, good, bad):
    bench = next(b.bench for b in targets.load() if b.id == identity)
    assert outcome(file(*(fig(bench, *f) for f in good)), identity).state == HOLDS
    assert outcome(file(*(fig(bench, *f) for f in bad)), identity).state == SHORT
    assert outcome(file(*(fig(bench, *f) for f in good[1:])), identity).state == MISSING
    assert outcome(file(*(fig("other", *f) for f in good)), identity).state == MISSING


def test_the_statistics_of_one_case_can_be_compared():
    def spread(p99: float) -> check.Outcome:
        return outcome(file(fig("doorbell", "call 56: C", 56, 1600, p99=p99)), "doorbell-spread")

    assert (spread(1990).state, spread(2010).state) == (HOLDS, SHORT)
    assert spread(2010).where_text == "p99 at 2.01 us, p50 at 1.6 us"


def test_a_single_figure_of_several_sizes_is_not_guessed():
    figures = [fig("pingpong", "load 4: C", 4, 1000), *sweep("pingpong", "round: C", sizes=[4, 8])]
    found = outcome(file(*figures), "pingpong")
    assert found.state == MISSING and "2 sizes" in found.reason


def test_bandwidth_of_nothing_is_not_measured():
    figures = [fig("windows", "1 GiB: fully mapped", 0, 5e7), fig("windows", "1 GiB: 64 MiB budget", 0, 5e7)]
    assert "moves 0 bytes" in outcome(file(*figures), "windows").reason


# -- what later bars need ------------------------------------------------------------------------


def bars_of(tmp_path: Path, *entries: dict) -> list[targets.Bar]:
    path = tmp_path / "bars.json"
    path.write_text(json.dumps({"format": 1, "bars": list(entries)}))
    return targets.load(path)


BAR = {"id": "x", "bench": "experiment", "words": "w", "asked": "a", "case": "spmv: direct",
       "one_of": [{"compare": "ratio", "against": ["spmv: double-buffered"], "at_most": 1}]}  # fmt: skip


def test_a_median_over_sizes_forgives_one_size_and_not_most(tmp_path):
    bars = bars_of(tmp_path, {**BAR, "over": "median", "sizes": {}})

    def state(*ratios: float) -> check.Outcome:
        figures = [fig("experiment", "spmv: direct", 1 << i, 1000 * r) for i, r in enumerate(ratios)]
        figures += [fig("experiment", "spmv: double-buffered", 1 << i, 1000) for i in range(len(ratios))]
        return check.judge(file(*figures), bars)[0]

    assert state(0.9, 0.95, 1.5).state == HOLDS
    found = state(0.9, 1.05, 1.5)
    assert found.state == SHORT and found.figure == pytest.approx(1.05)


def test_checks_that_are_no_times_are_numbers_or_true(tmp_path):
    term = {"compare": "ratio", "against": ["lines: {each}: double-buffered"], "at_most": 0.667}
    lines = {**BAR, "id": "lines-{each}", "each": ["spmv updates", "sad"], "quantity": "check",
             "case": "lines: {each}: direct", "one_of": [term]}  # fmt: skip
    exact = {**BAR, "id": "exact", "quantity": "check", "case": "exact",
             "one_of": [{"compare": "value", "at_least": 1}]}  # fmt: skip
    bars = bars_of(tmp_path, lines, exact)
    assert [b.id for b in bars] == ["lines-spmv-updates", "lines-sad", "exact"]
    checks = {"lines: spmv updates: direct": 20, "lines: spmv updates: double-buffered": 30,
              "lines: sad: direct": 21, "lines: sad: double-buffered": 30, "exact": True}  # fmt: skip
    assert [o.state for o in check.judge(file(checks=checks), bars)] == [HOLDS, SHORT, HOLDS]
    assert check.judge(file(checks={**checks, "exact": False}), bars)[2].state == SHORT
    assert [o.state for o in check.judge(file(), bars)] == [MISSING] * 3


def test_another_bench_can_be_beside(tmp_path):
    term = {"compare": "ratio", "against": ["load 4: C"], "bench": "pingpong", "at_most": 2}
    bars = bars_of(tmp_path, {**BAR, "one_of": [term]})
    both = [fig("experiment", "spmv: direct", 4, 1900), fig("pingpong", "load 4: C", 4, 1000)]
    assert check.judge(file(*both), bars)[0].state == HOLDS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": "red"}, "unknown colour"),
        ({"case": ""}, "case is missing"),
        ({"statistic": "p95"}, "'p95' is none of p0"),
        ({"quantity": "weight"}, "'weight' is none of"),
        ({"over": "median"}, "a median over sizes needs sizes"),
        ({"one_of": []}, "one_of is empty"),
        ({"each": ["a"]}, "the id needs {each}"),
        ({"sizes": {"above": 3}}, "unknown above"),
        ({"sizes": {"from": "1 KiB"}}, "sizes are numbers of bytes"),
        ({"sizes": {"needed": ["4096"]}}, "sizes are numbers of bytes"),
        ({"each": "ab", "id": "x: {each}"}, "each is no list of words"),
        ({"one_of": [{"compare": "ratio", "against": "spmv", "at_most": 1}]}, "against is no list of words"),
        ({"one_of": [{"compare": "ratio", "at_most": 1}]}, "a value stands alone, all else has against"),
        ({"one_of": [{"compare": "value", "at_most": 1, "at_least": 1}]}, "either at_most or at_least"),
        ({"one_of": [{"compare": "value", "at_most": 0}]}, "limit 0: a number, not 0"),
        ({"one_of": [{"compare": "value", "at_most": True}]}, "limit True"),
        ({"one_of": [{"compare": "value", "at_most": 1, "given_up": 1}]}, "given_up 1: a factor of 2"),
    ],
)
def test_a_wrong_bar_is_refused_with_its_reason(tmp_path, change, words):
    with pytest.raises(ArgumentError) as e:
        bars_of(tmp_path, {**BAR, **change})
    assert "x: " in str(e.value) and words in str(e.value)


def test_two_bars_of_one_name_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="x stands there twice"):
        bars_of(tmp_path, BAR, BAR)


def test_no_bars_in_the_file(tmp_path):
    for text in ("nonsense", "[]", '{"format": 2}'):
        (tmp_path / "bars.json").write_text(text)
        with pytest.raises(ArgumentError):
            targets.load(tmp_path / "bars.json")


# -- the file and the command --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no json", "is no figures file"),
        ("[]", "is no figures file of format 1"),
        ('{"format": 2, "figures": []}', "is no figures file of format 1"),
        (file(), "holds no figures"),
        ({**file(), "figures": 3}, "its 'figures' is broken"),
        (file(fig("b", "c", 1, 1), 7), "figure 2: it is no object"),
        (file(fig("b", "", 1, 1)), "figure 1: case is ''"),
        (file(fig("b", "c", -1, 1)), "figure 1: size is -1"),
        (file(fig("b", "c", 1, float("nan"))), "figure 1: p0 is nan"),
        (file(fig("b", "c", 1, 1, p50="3")), "p50 is '3'"),
        (file(fig("b", "c", 1, 1, values=None)), "values is None"),
        (file(fig("b", "c", 1, 1, values=["x"])), "values is 'x'"),
        (file(fig("b", "c", 1, 1, group=3)), "group is 3"),
    ],
)
def test_what_is_no_figures_file_is_refused(tmp_path, text, words):
    with pytest.raises(ArgumentError) as e:
        check.read(saved(tmp_path, text))
    assert words in str(e.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ArgumentError, match="No such file"):
        check.read(tmp_path / "none.json")


def test_a_figure_measured_twice_is_refused():
    with pytest.raises(ArgumentError, match="measured twice"):
        check.judge(file(fig("b", "c", 1, 1), fig("b", "c", 1, 2)), targets.load())


def command(tmp_path: Path, found: dict, *only: str) -> tuple[int, str]:
    words = ["bench", "check", str(saved(tmp_path, found)), *(w for o in only for w in ("--only", o))]
    run = CliRunner().invoke(app, words, env={"COLUMNS": None})  # as in a pipe: a row is a line
    return run.exit_code, run.output


TIMES = {"load 4: C": 1000, "round: C": 1500, "round: Python": 1700}
ROUND = [fig("pingpong", case, 4, ns) for case, ns in TIMES.items()]


def test_the_command_passes_where_all_that_was_asked_for_holds(tmp_path):
    code, text = command(tmp_path, file(*ROUND), "pingpong")
    assert code == 0, text
    assert "pingpong-python  +200 ns, at most +300 ns" in text and "2 hold" in text
    assert "python-write" not in text


def test_the_command_fails_where_a_bar_is_not_measured(tmp_path):
    code, text = command(tmp_path, file(*ROUND))
    assert code == 1 and "copylat/write 64: Python is not in the file" in " ".join(text.split())


def test_the_command_fails_where_a_bar_falls_short_and_says_what_was_asked(tmp_path):
    slow = [*ROUND[:2], fig("pingpong", "round: Python", 0, 1900)]
    code, text = command(tmp_path, file(*slow), "pingpong*")
    assert code == 1 and "falls short" in text and "asked: Ping-pong from C" in text
    assert command(tmp_path, file(*slow), "pingpong-python")[0] == 1


def test_the_emulated_device_meets_no_bar(tmp_path):
    code, text = command(tmp_path, file(*ROUND, emulated=True), "pingpong")
    assert code == 1 and "EMULATED" in text


def test_an_unknown_bar_is_refused(tmp_path):
    path = saved(tmp_path, file(*ROUND))
    run = CliRunner().invoke(app, ["bench", "check", str(path), "--only", "nonsense"])
    assert isinstance(run.exception, ArgumentError)
    assert "no bar 'nonsense'; there are engine-write" in str(run.exception)
