"""The relay in C, which only a GPU's driver uses, against a driver of threads: tests/native/relay_test.c."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "gpudirect" / "_native"
CALLS = int(os.environ.get("GPUDIRECT_RELAY_CALLS", 1000))


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("no C compiler: install gcc, or set CC")
    out = tmp_path_factory.mktemp("relay") / "relay_test"
    python = re.compile(r'<Python\.h>|"objects\.h"')
    sources = [str(f) for f in NATIVE.glob("*.c") if not python.search(f.read_text())]
    subprocess.run(
        [*compiler.split(), "-g", "-O2", "-std=gnu11", "-fno-strict-aliasing", f"-I{NATIVE}",
         f"-I{ROOT / 'p2pmod'}", "-pthread",
         str(ROOT / "tests" / "native" / "relay_test.c"), *sources, "-o", str(out)], check=True,
    )  # fmt: skip
    return out


def test_no_call_is_lost_while_residents_nap_are_parked_and_come_back(program):
    done = subprocess.run([program, str(CALLS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


def test_a_call_behind_a_nap_waits_for_no_slice(program):
    """The launch that the wake lets begin is queued when the one before may end, however long a slice is."""
    done = subprocess.run([program, "200", str(60 * 10**9)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
