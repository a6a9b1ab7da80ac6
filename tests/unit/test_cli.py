"""The command line, as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


def gpudirect(*words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "gpudirect", *words], capture_output=True, text=True, timeout=120,
        env={**os.environ, "GPUDIRECT_DEVICE": "emulated", "COLUMNS": "120", **environment},
    )  # fmt: skip


def test_demo_passes_and_says_that_it_is_emulated():
    run = gpudirect("demo")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "no GPU is involved" in run.stdout and "All 11 checks held" in run.stdout


def test_demo_fails_when_a_check_does(tmp_path):
    """A device whose copies lose a byte must not pass."""
    program = (
        "import sys, gpudirect as gd\n"
        "from gpudirect import demo\n"
        "from gpudirect.devices.emulated import EmulatedDevice\n"
        "copy = EmulatedDevice.copy_in\n"
        "EmulatedDevice.copy_in = lambda s, d, h, n, stream=None: copy(s, d, h, n - 1, stream)\n"
        "from rich.console import Console\n"
        "sys.exit(demo.run(Console()))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                         env={**os.environ, "GPUDIRECT_DEVICE": "emulated"})  # fmt: skip
    assert run.returncode == 1 and "FAILED" in run.stdout, run.stdout + run.stderr


def test_info_as_json_is_complete():
    found = json.loads(gpudirect("info", "--json").stdout)
    (device,) = (d for d in found["devices"] if d["device"] == "emulated:0")
    assert device["emulated"] is True and device["bridge"] in ("emulated", "p2pmod")
    assert set(device["bridges"]) == {"p2pmod", "dmabuf", "gdrdrv", "rm", "emulated"}
    assert found["machine"]["cpu"] and found["machine"]["copy_instructions"]
    assert found["default_device"] == "emulated:0"


def test_info_for_people():
    run = gpudirect("info")
    assert run.returncode == 0 and "emulated" in run.stdout and "p2pmod" in run.stdout


@pytest.mark.parametrize(
    ("words", "environment", "expected"),
    [(("demo", "--device", "emulated:9"), {}, "there is no emulated:9"),
     (("demo", "--bridge", "teleport"), {}, "there is no bridge"),
     (("demo", "--bridge", "rm"), {}, "rm was asked for"),
     (("demo",), {"GPUDIRECT_DEVICE": "GPU-nonsense"}, "there is no device"),
     (("demo",), {"GPUDIRECT_EMULATED_BAR1": "many"}, "GPUDIRECT_EMULATED_BAR1"),
     (("bench", "run", "nonsense"), {}, "no benchmark"),
     (("bench", "run", "alloc", "--quick", "--out", "/proc/nothing"), {}, "cannot be written")],
)  # fmt: skip
def test_errors_are_a_sentence_and_not_a_traceback(words, environment, expected):
    run = gpudirect(*words, **environment)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert expected in " ".join(run.stderr.split()), run.stderr


def test_bench_writes_a_figures_file(tmp_path):
    run = gpudirect("bench", "run", "alloc", "--quick", "--out", str(tmp_path))
    assert run.returncode == 0, run.stderr
    (file,) = tmp_path.iterdir()
    found = json.loads(file.read_text())
    assert found["device"]["emulated"] is True and found["machine"]["cpu"]
    assert {f["case"] for f in found["figures"]} >= {"write, 64 bytes"}
    for figure in found["figures"]:
        assert 0 < figure["p0"] <= figure["p50"] <= figure["p99"] <= figure["p999"]
