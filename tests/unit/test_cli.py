"""The command line, as a user meets it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import gpudirect as gd
from gpudirect.bench import bars as targets
from gpudirect.bench import check
from gpudirect.cli import app, main
from gpudirect.cli._screen import QUIET, Screen, _Lines
from gpudirect.cli._table import Table, pairs

ROOT = Path(__file__).resolve().parents[2]
FIGURES = str(ROOT / "results" / "nvidia-h200.json")
EXPERIMENT = str(ROOT / "results" / "nvidia-h200-experiment.json")


def gpudirect(*words: str, **environment: str) -> subprocess.CompletedProcess:
    """The command in a process of its own, its output in pipes."""
    return subprocess.run(
        [sys.executable, "-m", "gpudirect", *words], capture_output=True, text=True, timeout=120,
        env={**os.environ, "GPUDIRECT_DEVICE": "emulated", "COLUMNS": "120", **environment},
    )  # fmt: skip


@pytest.fixture
def invoke(monkeypatch, capsys):
    """The same in this process: quicker, where only words and status count."""

    def run(*words: str, **environment: str) -> SimpleNamespace:
        with monkeypatch.context() as here:
            for name, value in environment.items():
                here.setenv(name, value)
            here.setattr(sys, "argv", ["gpudirect", *words])
            capsys.readouterr()
            try:
                main()
                status = 0
            except SystemExit as e:
                status = int(e.code or 0)
            finally:
                gd.use(device=os.environ.get("GPUDIRECT_DEVICE"))
        told = capsys.readouterr()
        return SimpleNamespace(exit_code=status, stdout=told.out, stderr=told.err)

    return run


# -- demo ------------------------------------------------------------------------------------


def test_demo_passes_and_says_that_it_is_emulated():
    run = gpudirect("demo")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "no GPU is involved" in run.stdout and "All 11 checks held" in run.stdout


def test_demo_fails_when_a_check_does():
    """A device whose copies lose a byte must not pass."""
    program = (
        "import sys\n"
        "from gpudirect.cli import main\n"
        "from gpudirect.devices.emulated import EmulatedDevice\n"
        "copy = EmulatedDevice.copy_in\n"
        "EmulatedDevice.copy_in = lambda s, d, h, n, stream=None: copy(s, d, h, n - 1, stream)\n"
        "sys.argv = ['gpudirect', 'demo']\n"
        "main()\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                         env={**os.environ, "GPUDIRECT_DEVICE": "emulated"})  # fmt: skip
    assert run.returncode == 1 and "FAILED" in run.stdout, run.stdout + run.stderr
    assert "gpudirect doctor" in run.stdout


def test_a_failed_check_says_what_failed(tmp_path):
    run = gpudirect("demo", CXX="/nonexistent/c++", GPUDIRECT_CACHE=str(tmp_path))
    assert run.returncode == 1
    failed = [line for line in run.stdout.splitlines() if "FAILED" in line]
    assert len(failed) == 2 and "no error" not in run.stdout, run.stdout
    assert "ended after 1 checks by CompileError: " in failed[0]
    end = run.stdout[run.stdout.index("2 of ") :]
    assert "Don Quixote: ended after 1 checks by CompileError: " in end and "/nonexistent/c++" in end


def test_demo_as_json_says_each_check():
    run = gpudirect("demo", "--json")
    found = json.loads(run.stdout)
    assert run.returncode == 0 and found["held"] is True and found["emulated"] is True
    assert len(found["checks"]) == 11 and all(c["held"] for c in found["checks"])


# -- info ------------------------------------------------------------------------------------


def test_info_as_json_is_complete():
    found = json.loads(gpudirect("info", "--json").stdout)
    (device,) = (d for d in found["devices"] if d["device"] == "emulated:0")
    assert device["emulated"] is True and device["bridge"] in ("emulated", "p2pmod")
    assert set(device["bridges"]) == {"p2pmod", "dmabuf", "gdrdrv", "rm", "emulated"}
    assert found["machine"]["cpu"] and found["machine"]["copy_instructions"]
    assert found["default_device"] == "emulated:0" and found["not_told"] == {}
    assert found["versions"]["gpudirect"]


def test_info_for_people():
    run = gpudirect("info")
    assert run.returncode == 0 and "emulated" in run.stdout and "p2pmod" in run.stdout


@pytest.mark.parametrize(
    ("words", "environment", "expected"),
    [(("--device", "cuda"), {}, "No default device: no CUDA device"),
     ((), {"GPUDIRECT_DEVICE": "GPU-nonsense"}, "No default device: there is no device 'GPU-nonsense'"),
     ((), {"GPUDIRECT_EMULATED_BAR1": "many"}, "it cannot be opened: GPUDIRECT_EMULATED_BAR1"),
     ((), {"GPUDIRECT_EMULATED_DEVICES": "many"}, "GPUDIRECT_EMULATED_DEVICES"),
     ((), {"GPUDIRECT_APERTURE": "nonsense"}, "aperture: not told: GPUDIRECT_APERTURE"),
     ((), {"GPUDIRECT_BRIDGE": "rm"}, "No bridge: GPUDIRECT_BRIDGE=rm was asked for")],
)  # fmt: skip
def test_info_never_fails(words, environment, expected):
    if "cuda" in words and gd.devices.cuda_reason() is None:
        pytest.skip("there is a GPU")
    run = gpudirect("info", *words, **environment)
    assert run.returncode == 0, run.stderr
    assert "copy instructions" in run.stdout and "Python" in run.stdout
    assert expected in " ".join(run.stdout.split()), run.stdout
    found = json.loads(gpudirect("info", "--json", *words, **environment).stdout)
    assert found["machine"]["cpu"]


# -- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "environment", "expected"),
    [(("demo", "--device", "emulated:9"), {}, "there is no emulated:9"),
     (("info", "--device", "emulated:9"), {}, "there is no emulated:9"),
     (("demo", "--device", "nonsense"), {}, "there is no device 'nonsense'"),
     (("demo", "--bridge", "teleport"), {}, "there is no bridge"),
     (("demo",), {"GPUDIRECT_DEVICE": "GPU-nonsense"}, "there is no device"),
     (("demo",), {"GPUDIRECT_EMULATED_BAR1": "many"}, "GPUDIRECT_EMULATED_BAR1"),
     (("bench", "run", "nonsense"), {}, "there is no benchmark 'nonsense'"),
     (("bench", "run", "alloc", "--quick", "--out", "/proc/nothing"), {}, "cannot be written"),
     (("bench", "check", "/nonexistent"), {}, "No such file"),
     (("experiment", "nonsense"), {}, "no port 'nonsense'"),
     (("litmus", "nonsense"), {}, "there is no litmus test 'nonsense'"),
     (("litmus", "--rounds", "0"), {}, "give 1 or more"),
     (("nonsense",), {}, "No such command 'nonsense'"),
     (("info", "--nonsense"), {}, "No such option")],
)  # fmt: skip
def test_what_makes_no_sense_is_a_sentence_and_status_2(words, environment, expected):
    run = gpudirect(*words, **environment)
    assert run.returncode == 2 and "Traceback" not in run.stderr, run.stderr
    assert expected in " ".join(run.stderr.split()), run.stderr
    assert not run.stdout


def test_what_cannot_work_here_is_a_sentence_and_status_1():
    run = gpudirect("demo", "--bridge", "rm")
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "--bridge rm was asked for" in run.stderr and "gpudirect doctor" in run.stderr


def test_a_reader_that_leaves_is_no_error():
    run = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m gpudirect bench check {FIGURES} | head -1"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.stdout.count("\n") == 1 and not run.stderr, run.stderr


# -- width, pipes, colours, JSON -------------------------------------------------------------

COMMANDS = [
    ("info",), ("demo",), ("bench", "run", "alloc", "--quick"), ("bench", "check", FIGURES),
    ("experiment", "--again", EXPERIMENT), ("litmus", "--list"),
    ("litmus", "partial-lines", "reply", "--rounds", "20"),
]  # fmt: skip
HELP = [(), ("info",), ("demo",), ("calibrate",), ("bench",), ("bench", "run"), ("bench", "check"),
        ("bench", "report"), ("experiment",), ("litmus",), ("doctor",), ("config",)]  # fmt: skip


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_what_is_printed_fits(invoke, words, width):
    run = invoke(*words, COLUMNS=str(width))
    assert run.exit_code in (0, 1), run.stdout + run.stderr
    for line in run.stdout.splitlines():
        # a path has no place to break at
        assert len(line) <= width or max(map(len, line.split())) > width - 16, line
    assert "…" not in run.stdout


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("words", HELP, ids=" ".join)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_fits_and_leaves_nothing_out(invoke, words, width, flag):
    run = invoke(*words, flag, COLUMNS=str(width))
    assert run.exit_code == 0 and "Usage:" in run.stdout
    assert all(len(line) <= width for line in run.stdout.splitlines()), run.stdout
    assert "…" not in run.stdout and "..." not in run.stdout.replace("]...", "").replace("names...", "")
    assert "\\[" not in run.stdout
    assert not re.search(r"[<{]\w", run.stdout), "Python's types and typer's marks are nobody's words"


def test_defaults_are_visible(invoke):
    text = " ".join(invoke("demo", "-h").stdout.split())
    assert "(default: GPUDIRECT_DEVICE, else the first GPU, else emulated)" in text
    assert "(default: GPUDIRECT_BRIDGE, else the first that works)" in text
    assert "(default: all)" in " ".join(invoke("bench", "run", "-h").stdout.split())
    from gpudirect.cli._experiment import SECONDS

    assert f"(default: {SECONDS})" in " ".join(invoke("experiment", "-h").stdout.split())


def test_in_a_pipe_a_row_is_a_line():
    run = gpudirect("bench", "check", FIGURES, COLUMNS="")
    rows = [r for r in run.stdout.splitlines() if r.startswith((check.HOLDS, check.SHORT, check.MISSING))]
    assert len(rows) == len(targets.load()) and all("at most" in r or "at least" in r for r in rows)
    told = gpudirect("info", COLUMNS="").stdout
    rows = [line for line in told.splitlines() if line.startswith("p2pmod ")]  # one of each device
    assert rows and "memfd" in rows[-1]


@pytest.mark.parametrize("words", [("info",), ("demo",), ("litmus", "reply", "--rounds", "5")])
def test_colours_only_where_they_are_wanted(words):
    assert "\x1b" not in gpudirect(*words).stdout
    coloured = gpudirect(*words, FORCE_COLOR="1", TERM="xterm").stdout
    assert "\x1b[" in coloured
    plain = gpudirect(*words, FORCE_COLOR="1", NO_COLOR="1", TERM="xterm").stdout
    assert not re.search(r"\x1b\[(?:\d+;)*(?:3[1-7]|9[1-7])m", plain), "a colour in spite of NO_COLOR"


@pytest.mark.parametrize("words", [*COMMANDS, ("bench", "check", FIGURES, "--only", "alloc*")], ids=" ".join)
def test_json_is_all_there_is_on_standard_output(invoke, words):
    if words[-1] == "alloc*":
        words = ("bench", "check", FIGURES, "--only", "engine*")
    run = invoke(*words, "--json")
    assert run.exit_code in (0, 1), run.stdout + run.stderr
    assert json.loads(run.stdout)


def test_every_command_offers_json(invoke):
    from gpudirect.cli import _bench

    named = [*app.registered_commands, *_bench.app.registered_commands]
    for command in named:
        name = command.callback.__name__
        group = [] if command in app.registered_commands else ["bench"]
        assert "--json" in invoke(*group, name, "-h").stdout, name


def test_words_of_the_house_stay_inside(invoke):
    told = "".join(invoke(*words, "-h").stdout for words in HELP)
    for word in ("seed experiment", " bars", " ports ", "heap"):
        assert word not in told, word


def test_bench_writes_a_figures_file(tmp_path):
    run = gpudirect("bench", "run", "alloc", "--quick", "--out", str(tmp_path))
    assert run.returncode == 0, run.stderr
    (file,) = tmp_path.iterdir()
    found = json.loads(file.read_text())
    assert found["device"]["emulated"] is True and found["machine"]["cpu"]
    assert {f["case"] for f in found["figures"]} >= {"write, 64 bytes"}
    for figure in found["figures"]:
        assert 0 < figure["p0"] <= figure["p50"] <= figure["p99"] <= figure["p999"]


@pytest.mark.parametrize("words", [
    ("experiment", "--again", "{here}/x.json"), ("bench", "check", "{here}/f.json"),
    ("bench", "run", "alloc", "--quick"), ("info",), ("litmus", "--list"),
], ids=" ".join)  # fmt: skip
def test_nothing_is_written_where_nothing_was_asked(words, tmp_path):
    shutil.copy(EXPERIMENT, tmp_path / "x.json")
    shutil.copy(FIGURES, tmp_path / "f.json")
    here = [word.format(here=tmp_path) for word in words]
    run = subprocess.run([sys.executable, "-m", "gpudirect", *here], cwd=tmp_path, capture_output=True,
                         env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path),
                              "GPUDIRECT_DEVICE": "emulated", "GPUDIRECT_CACHE": str(tmp_path / "cache"),
                              "PYTHONDONTWRITEBYTECODE": "1"})  # fmt: skip
    assert run.returncode in (0, 1), run.stderr
    assert {f.name for f in tmp_path.iterdir()} - {".nv"} == {"x.json", "f.json"}  # .nv is CUDA's own


@pytest.mark.parametrize("line, names", [
    ("gpudirect bench run copy", ["copybw", "copylat"]),
    ("gpudirect demo --device em", ["emulated", "emulated:0"]),
    ("gpudirect info --bridge p", ["p2pmod"]),
    ("gpudirect litmus stores-after-d", ["stores-after-dma"]),
])  # fmt: skip
def test_completion_knows_the_names(line, names):
    program = "import sys; sys.argv = ['gpudirect']; from gpudirect.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True,
        env={**os.environ, "_GPUDIRECT_COMPLETE": "complete_bash", "COMP_WORDS": line,
             "COMP_CWORD": str(len(line.split(" ")) - 1)},
    )  # fmt: skip
    assert run.stdout.split() == names, run.stderr


@pytest.mark.parametrize("words", [
    ("--help",), ("--version",), ("demo", "-h"), ("bench", "run", "-h"), ("experiment", "-h"), ("nonsense",),
    ("config", "--cflags"), ("bench", "check", FIGURES),
])  # fmt: skip
def test_what_needs_no_device_loads_none(words):
    """Nor NumPy and CUDA's bindings with it: a third of a second, and 40 MiB."""
    program = (
        "import sys\n"
        "from gpudirect.cli import main\n"
        f"sys.argv = ['gpudirect', *{words!r}]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'cuda', 'cffi', 'jinja2', 'matplotlib', 'gpudirect.devices'}\n"
        "print('loaded:', *sorted(heavy & {*sys.modules}))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "loaded:", run.stdout + run.stderr


# -- tables, progress ------------------------------------------------------------------------


def table(*rows: tuple[str, ...]) -> Table:
    made = Table(("name", "bytes", "why"), words=(2,))
    for row in rows:
        made.add(*row)
    return made


ROWS = ("a name of several words", "1048576", "because it is so, and it has always been so"), ("b", "1", "")


@pytest.mark.parametrize("width", [*range(8, 90), None])
def test_a_table_loses_nothing_at_any_width(width):
    lines = [line for row in table(*ROWS).lines(width) for line in row]
    whole = "".join("".join(lines).split())
    for row in ROWS:
        for cell in row:
            for word in cell.split():
                assert word in whole, (width, word)
    if width is not None and width >= 24:
        assert all(len(line) <= width for line in lines), lines


def test_a_table_wraps_words_and_keeps_numbers_whole():
    header, first, _ = table(*ROWS).lines(50)
    assert header[0].split() == ["name", "bytes", "why"]
    assert "1048576" in first[0] and len(first) > 1


def test_a_table_that_does_not_fit_is_told_row_by_row():
    header, first, second = table(*ROWS).lines(36)
    assert header == []
    assert first[0] == "a name of several words" and first[1] == "  bytes  1048576"
    assert second == ["b", "  bytes  1"]


def test_a_value_that_cannot_be_broken_stands_below_its_name():
    uuid = "GPU-6c2b5f1e-9d1f-4a3e-8b1d-0123456789ab"
    lines = list(pairs([("writes through BAR1", "seen in order by owner"), ("UUID", uuid)], 60, "  "))
    assert lines[-2:] == ["  UUID", f"      {uuid}"] and all(len(line) <= 60 for line in lines)
    assert list(pairs([("UUID", uuid)], 80, "  ")) == [f"  UUID  {uuid}"]


def test_progress_without_a_terminal_is_a_line_now_and_then(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr("gpudirect.cli._screen.time.monotonic", lambda: now[0])
    tell = _Lines(Screen().err, "measuring")
    tell("first", 0, 4)
    assert capsys.readouterr().err == "", "told before two seconds"
    for seconds, step in ((QUIET + 0.1, "second"), (1.0, "third"), (10.0, "fourth")):
        now[0] += seconds
        tell(step, 2, 4)
    assert capsys.readouterr().err == "measuring: second (2 of 4), 2 s\nmeasuring: fourth (2 of 4), 13 s\n"
