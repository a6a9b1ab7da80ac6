"""Four minutes of threads at random on a real GPU, checked against a model (tests/stress/mixed.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[1] / "stress" / "mixed.py"


@pytest.mark.timeout(600)
def test_threads_at_random(pair):
    if pair[0] != "cuda":
        pytest.skip("the emulated device has its own run")
    done = subprocess.run(
        [sys.executable, PROGRAM, "--seconds", "240", "--threads", "8", "--device", "cuda"],
        capture_output=True, text=True, timeout=540,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
