"""Running the short examples, and what each must say: for the tests with and without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
CLAIMS = {
    "batch": r"\d+ words in 400 steps, 2 ahead.*\neach is what the CPU writes; \d+ of 1280 bytes were stored",
    "control": r"500 rounds of 2 ms.*\n.*\n",
    "environment": r"guess: .* 0 of 64 stand at the end\n *balance: @.* 64 of 64 stand",
    "frames": r"120 frames of 320x240, \d+/s.*\n(?:[.*]{64}\n)+",
    "market": r"1000 quotes of 500 symbols.*\n\d+ gaps were worth an order; every answer agrees",
    "ring": r"\d devices: the sum of all is on each, and the piece of each on all",
    "server": r"8 clients, [\d,]+ answers/s.*\nevery answer agrees with Black and Scholes",
    "udp": r"3200 datagrams in \d+ batches of up to \d+, [\d,]+/s.*\nthe sums of all sensors are right",
}
"""What each says that it found."""
FIGURE = (
    r", (\d+) times: median [\d.]+ us, 99 % under [\d.]+ us, worst [\d.]+ us\n"
    r"((?: +[\d.]+ us \|#* *\| \d+\n){12})"
)
HANG = 100  # seconds


def run(name: str, *arguments: str, device: str = "emulated") -> str:
    """What it prints, run from anywhere by its path alone."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments], cwd="/", capture_output=True, text=True,
        timeout=HANG, env={**os.environ, "GPUDIRECT_DEVICE": device},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check(name: str, said: str) -> None:
    assert re.search(CLAIMS[name], said), said
    figure = re.search(FIGURE, said)
    assert figure, said
    counts = [int(line.rpartition("| ")[2]) for line in figure[2].splitlines()]
    assert sum(counts) == int(figure[1]) > 0, said
