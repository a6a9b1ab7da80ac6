"""The commands in a terminal that is to get text only: NO_COLOR is set, or TERM is dumb."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from gpudirect.cli import app

ROOT = Path(__file__).resolve().parents[2]
HANG = 120.0
FIGURES = str(ROOT / "results" / "nvidia-h200.json")
EXPERIMENT = str(ROOT / "results" / "nvidia-h200-experiment.json")
NO_TEXT = re.compile(rb"[^\n]*[\x00-\x08\x0b\x0c\x0e-\x1f\x7f][^\n]*")

COMMANDS = [
    "--help", "--version", "bench", "info --wrong", "info --device nonsense", "info", "doctor", "demo",
    "calibrate", "litmus reply --rounds 5", "litmus --list", "config",
    "bench run alloc --quick --out quick.json", "bench report quick.json --out page",
    f"bench check {FIGURES}", f"experiment --again {EXPERIMENT}",
]  # fmt: skip

# all in one process, which imports things once; calibrating by three sizes
PROGRAM = """
    import sys
    from gpudirect import calibration
    from gpudirect.cli import main
    calibration.sizes = lambda *a: [256, 4096, 65536]
    for words in sys.argv[1:]:
        print("$", words, flush=True)
        sys.argv = ["gpudirect", *words.split()]
        try:
            main()
        except SystemExit:
            pass
        sys.stdout.flush()
    print("$ done", flush=True)
"""


def in_a_terminal(folder: Path, *commands: str, **environment: str) -> dict[str, bytes]:
    """What each command writes to a terminal, by both of its outputs."""
    ours, theirs = pty.openpty()
    unset = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    around = {n: v for n, v in os.environ.items() if n not in unset}
    around |= {"GPUDIRECT_DEVICE": "emulated", "GPUDIRECT_CACHE": str(folder), "PYTHONPATH": str(ROOT)}
    written, end = b"", time.monotonic() + HANG
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), *commands], stdin=theirs, stdout=theirs,
        stderr=theirs, cwd=folder, env={**around, "TERM": "xterm-256color", **environment},
    ) as process:  # fmt: skip
        os.close(theirs)
        while time.monotonic() < end:
            if select.select([ours], [], [], 1.0)[0]:
                try:
                    written += os.read(ours, 1 << 16)
                except OSError:  # nobody has the other end any more
                    break
        process.kill()
    os.close(ours)
    parts = written.replace(b"\r\n", b"\n").split(b"$ ")
    told = {words.decode(): text for words, _, text in (p.partition(b"\n") for p in parts[1:])}
    assert "done" in told, written.decode(errors="replace")
    return told


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "dumb"])
def test_every_command_writes_text_only(tmp_path, environment):
    told = in_a_terminal(tmp_path, *COMMANDS, **environment)
    for words in COMMANDS:
        assert told[words].strip(), f"{words} was to say something"
        assert not NO_TEXT.findall(told[words]), words


def test_no_command_is_left_out():
    named = {g.name for g in app.registered_groups} | {c.callback.__name__ for c in app.registered_commands}
    assert named == {c.split()[0] for c in COMMANDS if not c.startswith("-")}


def test_other_terminals_get_colours_and_progress(tmp_path):
    """So what is looked for above would be seen; an empty NO_COLOR is none."""
    told = in_a_terminal(tmp_path, "info", NO_COLOR="")
    assert b"\x1b[32m" in told["info"] and b"\x1b[2K" in told["info"]
