"""The experiment: how lines are counted, what its figures are taken to say, and its page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import gpudirect as gd
from gpudirect.cli import app
from gpudirect.experiment import analysis, lines, measure, ports, report

ROOT = Path(__file__).resolve().parents[2]
MODULE = '''
"""A docstring
of two lines."""
import numpy as np

SHARED = """
one
two
"""
ONLY = """
kernel

more
"""


def helper():
    return ONLY


def sequential(work):
    """Counts for nothing."""
    # nor does this
    return 1


def copy(work):
    return SHARED


def double_buffered(work, chunk):
    x = helper()  # the helper's two lines, and the source's four with text on them

    return (
        x,
        SHARED,
    )


def direct(work): return SHARED
'''


def test_lines_count_code_and_what_only_one_version_needs():
    found = lines.count(MODULE)
    assert found == {"sequential": 2, "copy": 2, "double_buffered": 6 + 2 + 4, "direct": 1}


def test_direct_needs_no_more_lines_than_copy_and_two_thirds_of_double_buffered():
    for port in ports.available():
        found = lines.count_file(Path(str(port.module.__file__)))
        assert list(found) == list(lines.VERSIONS) and min(found.values()) > 3
        assert found["direct"] <= found["copy"], port.name
        assert 3 * found["direct"] <= 2 * found["double_buffered"], port.name


def test_chunks_are_powers_of_two_with_one_that_takes_all():
    assert measure.chunks(100_000) == (16384, 32768, 65536, 131072)
    assert measure.chunks(1) == (16384,)
    assert measure.chunks(1 << 30) == tuple(1 << k for k in range(21, 25))
    names = [ports.chunked(c) for c in measure.chunks(64 << 20)]
    assert [report._chunk(n) for n in names] == list(measure.chunks(64 << 20))


def figures(direct: float, double: float, pinned: float = 200.0) -> dict:
    """An experiment of one flow and one update port with these microseconds."""
    times = {"sequential": 500.0, "copy, pageable": 300.0, "copy, pinned": pinned,
             "double-buffered": double, "direct": direct}  # fmt: skip
    found = []
    for port in ("flow", "little"):
        for case, t in times.items():
            found.append((port, f"{case}: step", t))
            if port == "little":
                found.append((port, f"{case}: update", t / 10))
        found += [(port, f"double-buffered, {c} KiB (sweep): step", t)
                  for c, t in ((16, 3 * double), (32, double), (64, 1.05 * double))]  # fmt: skip
    found += [("flow", "production, pinned: step", 50.0), ("flow", "production, mapped: step", 100.0)]
    rate = "stores of one core through the mapping: step"
    facts = {"best_chunk": 32768, "nbytes": 1_000_000, "kind": "k", "n": 7,
             "host_traffic": dict.fromkeys(analysis.VERSIONS, 0)}  # fmt: skip
    return {
        "machine": {"cpu": "C", "commit": "c", "time": "t"},
        "device": {"name": "D", "emulated": True},
        "checks": {
            "configurations": [{"port": p, **facts} for p in ("flow", "little")],
            "ports": {p: {"title": p, "flow": p, "update": p == "little"} for p in ("flow", "little")},
            "lines": {"flow": {"sequential": 5, "copy": 10, "double_buffered": 15, "direct": 10},
                      "little": {"sequential": 5, "copy": 10, "double_buffered": 14, "direct": 10}},
        },
        "figures": [{"bench": b, "case": c, "group": "k, 7", "size": 1_000_000, "p50": t * 1e3}
                    for b, c, t in found]
        + [{"bench": "link", "case": rate, "group": "link", "size": 20_000, "p50": 1000.0}],
    }  # fmt: skip


def held(found: dict) -> dict[str, bool]:
    return {v.claim: v.held for v in analysis.verdicts(analysis.Experiment(found))}


def test_a_claim_holds_only_where_the_figures_do():
    good = held(figures(direct=99, double=100))
    bad = held(figures(direct=101, double=100))
    claim = "flow: direct takes at most 1.00 of double-buffered in the median, 1.10 at worst"
    assert good[claim] and not bad[claim]
    claim = "flow: direct takes at most 0.90 of copy from pinned memory"
    assert held(figures(180, 200))[claim] and not held(figures(181, 200))[claim]
    claim = "little: the update is 3 times faster than copy, pinned"
    assert held(figures(66, 100))[claim] and not held(figures(67, 100))[claim]
    claim = "{}: direct needs no more lines than copy, at most two thirds of double-buffered"
    assert good[claim.format("flow")] and not good[claim.format("little")]


def test_a_courier_beats_all_that_copies_or_does_not():
    def found(courier):
        e = figures(direct=70, double=100)
        for what, t in (("step", courier), ("update", courier / 10)):
            e["figures"].append({"bench": "little", "case": f"courier: {what}", "group": "k, 7",
                                 "size": 1_000_000, "p50": t * 1e3})  # fmt: skip
        return e

    def reading(courier):
        e = found(courier)
        e["checks"]["ports"]["little"]["reads"] = True
        return e

    claim = "little: with a courier the read-back beats packing and copying at every size"
    assert held(reading(99))[claim] and not held(reading(101))[claim]
    titles = [t.title for t in analysis.tables(analysis.Experiment(reading(50)))]
    assert "The read-back alone, launch excluded" in titles
    assert "The update alone, launch excluded" not in titles
    claim = "little: with a courier the update beats packing and copying at every size"
    assert claim not in held(figures(70, 100))
    assert held(found(99))[claim] and not held(found(101))[claim]
    (table,) = [t for t in analysis.tables(analysis.Experiment(found(50))) if "courier" in t.title]
    assert table.rows[0][-2:] == ("1.4", "2.0")
    assert not analysis.couriers(analysis.Experiment(figures(70, 100))).rows


def test_the_reason_is_taken_from_what_was_measured():
    def why(**times: float) -> str:
        e = analysis.Experiment(figures(**times))
        return analysis.why(e, e.rows[0])

    assert why(direct=120, double=100).startswith("loses: making the data in the mapping takes 2.00")
    assert why(direct=55, double=100).startswith("wins: at the limit of one core's stores, 18.2 of 20.0")
    assert why(direct=110, double=150).startswith("wins: the producer is 91% of the step")
    assert why(direct=500, double=500).startswith("as fast: the producer is 20% of the step; launches")


def test_sensitivity_counts_the_chunk_sizes_that_would_do():
    e = analysis.Experiment(figures(50, 100))
    assert analysis.sensitivity(e.rows[0]) == (pytest.approx(3.0), 2, 3)


def test_figures_of_something_else_are_refused():
    with pytest.raises(gd.ArgumentError, match="not of an experiment"):
        analysis.Experiment({"checks": {}, "machine": {}, "device": {}, "figures": []})


def test_the_command_measures_checks_and_writes_one_page_that_stands_alone(tmp_path):
    arguments = ["experiment", "vector_add", "linked", "--quick", "--device", "emulated"]
    try:
        result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)], terminal_width=200)
    finally:
        gd.use()
    assert result.exit_code == 0, result.output
    assert "these times say nothing about a GPU" in result.output
    found = json.loads((tmp_path / "emulated-gpu-experiment.json").read_text())
    assert {c["port"] for c in found["checks"]["configurations"]} == {"vector_add", "linked"}
    assert found["device"]["emulated"] and "commit" in found["machine"]
    cases = {f["case"] for f in found["figures"] if f["bench"] == "vector_add"}
    assert {"direct: step", "copy, pageable: step", "copy, pinned: step", "double-buffered: step",
            "sequential: step", "production, mapped: step"} <= cases  # fmt: skip
    again = CliRunner().invoke(app, ["experiment", "--again", str(tmp_path / "emulated-gpu-experiment.json"),
                                     "--out", str(tmp_path / "again")])  # fmt: skip
    assert again.exit_code == 0, again.output
    names = {"", "-relative", "-chunks", "-updates", "-lines"}
    assert {f.name for f in (tmp_path / "again").iterdir()} == {
        f"emulated-gpu-experiment{n}.{'png' if n else 'html'}" for n in names
    }
    page = (tmp_path / "emulated-gpu-experiment.html").read_text()
    assert "EMULATED: no GPU was involved" in page and page.count("data:image/png") == 4
    assert not re.search(r'(src|href)="(?!data:|#)', page), "the page needs something beside it"


@pytest.mark.parametrize("more, words", [
    (["nothing"], "no port 'nothing'"),
    (["--examples", "/nonexistent", "vector_add"], "come with the repository"),
    (["--seconds", "-1", "vector_add"], "give 0 to 3600"),
    (["--again", "/nonexistent.json"], "No such file"),
    (["--out", "/proc/nowhere", "vector_add"], "cannot be written"),
    (["--again", str(ROOT / "results/nvidia-h200.json")], "not of an experiment"),
])  # fmt: skip
def test_bad_arguments_are_refused_in_words(more, words):
    try:
        result = CliRunner().invoke(app, ["experiment", *more, "--device", "emulated"])
    finally:
        gd.use()
    assert isinstance(result.exception, gd.ArgumentError) and words in str(result.exception)


def test_a_difference_says_how_many_elements_and_which():
    words = measure._difference(np.array([1, 2, 3]), np.array([1, 5, 3]))
    assert "1 of 3 elements, first at 1" in words and "2" in words and "5" in words
    assert "instead of" in measure._difference(np.zeros(2, "f4"), np.zeros(3, "f4"))


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, ROOT / "tools" / name, *arguments],
                          capture_output=True, text=True)  # fmt: skip


def test_the_page_is_what_the_committed_results_and_its_template_give():
    run = tool("experiment-doc", "--check")
    assert run.returncode == 0, run.stderr


def test_the_page_tells_of_read_backs_and_couriers_once_they_were_run(tmp_path):
    """As the port of the updates would be, were they read."""
    found = json.loads((ROOT / "results/nvidia-h200-experiment.json").read_text())
    checks, figures = found["checks"], found["figures"]
    checks["ports"]["histogram"] = {"title": "t", "flow": "f", "update": True, "reads": True}
    checks["lines"]["histogram"] = checks["lines"]["spmv_updates"]
    checks["configurations"] += [{**c, "port": "histogram"} for c in checks["configurations"]
                                 if c["port"] == "spmv_updates"]  # fmt: skip
    figures += [{**f, "bench": "histogram", "p50": f["p50"] / (100 if f["case"].startswith("direct") else 1)}
                for f in figures if f["bench"] == "spmv_updates"]  # fmt: skip
    figures += [{**f, "case": f["case"].replace("direct", "courier")} for f in figures
                if f["bench"] in ("histogram", "spmv_updates") and f["case"].startswith("direct")]  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps(found))
    run = tool("experiment-doc", "--print", str(tmp_path / "x.json"))
    # the copied updates of thousands of entries are no faster with such a courier, and nobody has said why
    assert "nobody has said why this is not held: spmv_updates: with a courier" in run.stderr
    for f in figures:
        if f["case"].startswith("courier"):
            f["p50"] = 1.0
    (tmp_path / "x.json").write_text(json.dumps(found))
    run = tool("experiment-doc", "--print", str(tmp_path / "x.json"))
    assert run.returncode == 0, run.stderr
    assert "Where little is read." in run.stdout and "| `histogram` |" in run.stdout
    words = " ".join(run.stdout.split())
    assert "the read-back of `histogram` took 0.00 to 0.00 of the best copy" in words
    assert "whichever is faster: `histogram` took" in words
    assert "No port reads" not in run.stdout and max(map(len, run.stdout.splitlines())) < 500


def test_the_page_has_no_figure_typed_by_hand():
    template = (ROOT / "tools/does-avoiding-dma-pay.md.in").read_text()
    numbers = set(re.findall(r"(?<![\w$.])\d[\d.]*", template))
    assert not numbers, numbers


def test_the_port_in_the_readme_is_cut_from_the_example():
    run = tool("readme-port", "--print")
    assert run.returncode == 0, run.stderr
    example = (ROOT / "examples/vector_add.py").read_text()
    blocks = re.findall(r"```python\n(.*?)\n```", run.stdout, re.S)
    parts = [part for block in blocks for part in block.split("\n\n\n")]
    assert len(blocks) == 2 and len(parts) == 3 and all(part in example for part in parts)
    if "<!-- port:" in (ROOT / "README.md").read_text():
        run = tool("readme-port", "--check")
        assert run.returncode == 0, run.stderr
