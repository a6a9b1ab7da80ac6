#!/usr/bin/env python3
"""Existing tests with the collector or signals let loose on them; what `tests/stress/run gc` and `signals` run.

  tests/stress/suites.py gc|signals [--whole] [--write FILE] [TEST...]

Each file is a process of its own: it starts with what a program starts with, and one that crashes or hangs
is a failure of its own. Without tests named: those below, whole or part; --whole: every Python test, and
each three times under signals. --write: what was run is put into FILE, beside what it tells of the other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from gpudirect import cpu, facts  # noqa: E402

# Tests that run our code in their own process: a program of its own is not under stress, and only slow here.
SUITES = {
    "gc": [
        "tests/unit/test_aperture.py", "tests/unit/test_mapped.py", "tests/unit/test_kernels.py",
        "tests/unit/test_service.py", "tests/unit/test_service_life.py", "tests/unit/test_relay.py",
        "tests/unit/test_streams.py", "tests/unit/test_pinned.py", "tests/unit/test_host_view.py",
        "tests/unit/test_export.py", "tests/unit/test_bridges.py",
        "tests/bridges/test_conformance.py", "tests/bridges/test_windows.py",
    ],
    "signals": [
        "tests/unit/test_aperture.py", "tests/unit/test_mapped.py", "tests/unit/test_kernels.py",
        "tests/unit/test_service.py", "tests/unit/test_service_life.py", "tests/unit/test_relay.py",
        "tests/unit/test_streams.py", "tests/unit/test_pinned.py", "tests/unit/test_host_view.py",
        "tests/unit/test_export.py", "tests/unit/test_bridges.py",
        "tests/bridges/test_conformance.py", "tests/bridges/test_windows.py",
    ],
}  # fmt: skip
WHOLE = ["tests/unit", "tests/bridges", "tests/latency"]
RUNS = {False: 1, True: 3}  # of each test, under signals
LONGEST = 600  # seconds for one test


def files(paths: list[str]) -> list[str]:
    found: list[str] = []
    for path in paths:
        at = ROOT / path
        found += [str(f.relative_to(ROOT)) for f in sorted(at.glob("test_*.py"))] if at.is_dir() else [path]
    return found


def run(what: str, path: str, runs: int) -> dict[str, Any]:
    """What the plugin tells of one file: see ``--stress-told`` there."""
    environment = {**os.environ, "GPUDIRECT_DEVICE": os.environ.get("GPUDIRECT_DEVICE", "emulated")}
    if what == "gc":  # litter lies on a second device where the first one's budgets are counted
        environment["GPUDIRECT_EMULATED_DEVICES"] = "2"
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.json"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "tests.stress.plugin", "--stress", what,
             "--stress-runs", str(runs), "--stress-told", str(told), "--timeout", str(LONGEST), path],
            cwd=ROOT, env=environment, check=False,
        )  # fmt: skip
        found = json.loads(told.read_text()) if told.exists() else {"failures": []}
    if done.returncode and not found["failures"]:
        found["failures"] = [f"{path}: pytest ended with {done.returncode}"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("what", choices=SUITES)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--write", type=Path)
    parser.add_argument("tests", nargs="*")
    given = parser.parse_intermixed_args()
    start, counts, failures = time.monotonic(), Counter[str](), []
    paths = files(given.tests or (WHOLE if given.whole else SUITES[given.what]))
    for path in paths:
        print(f"stress: {given.what}: {path}", flush=True)
        found = run(given.what, path, RUNS[given.whole])
        failures += found.pop("failures")
        counts.update(found)
    result = {
        "commit": facts.commit(), "command": " ".join(["tests/stress/run", *sys.argv[1:]]), "cpu": cpu.name(),
        "cores": len(os.sched_getaffinity(0)), "files": len(paths), "seconds": round(time.monotonic() - start),
        **counts, "failures": failures,
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if given.write:
        kept = json.loads(given.write.read_text()) if given.write.exists() else {}
        given.write.write_text(json.dumps({**kept, given.what: result}, indent=1, sort_keys=True) + "\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
