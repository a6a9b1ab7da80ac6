"""What the suites share: the (device, bridge) pairs of this machine."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REQUIRED = os.environ.get("GPUDIRECT_TEST_PAIRS")  # "cuda:rm emulated:emulated": must be there
PATIENCE = float(os.environ.get("GPUDIRECT_TEST_PATIENCE", "1"))  # times as long: on emulated processors


def usable_pairs() -> list[tuple[str, str]]:
    """Every (device kind, bridge) that works here."""
    import gpudirect as gd
    from gpudirect import bridges

    kinds = {d.kind: d for d in gd.devices.available()}
    forced = os.environ.get("GPUDIRECT_DEVICE", "").partition(":")[0]
    return [
        (kind, name)
        for kind, device in kinds.items()
        if not forced or kind == forced
        for name, standing in bridges.standings(device).items()
        if standing.usable
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "pair" in metafunc.fixturenames:
        pairs = usable_pairs()
        metafunc.parametrize("pair", pairs, ids=["-".join(p) for p in pairs], scope="session")


def pytest_collection_finish() -> None:
    """What lies there already is not gone through by each of the tests' many collections."""
    gc.collect()
    gc.freeze()


def pytest_sessionstart(session: pytest.Session) -> None:
    """A pair that CI counts on must not vanish silently."""
    if REQUIRED:
        there = {":".join(p) for p in usable_pairs()}
        missing = [p for p in REQUIRED.split() if p not in there]
        if missing:
            pytest.exit(f"GPUDIRECT_TEST_PAIRS asks for {missing}, here are {sorted(there)}", 1)


@pytest.fixture
def gd(pair: tuple[str, str]) -> Iterator[object]:
    """gpudirect, with the pair as its default device and bridge."""
    import gpudirect

    gpudirect.use(device=pair[0], bridge=pair[1])
    yield gpudirect
    gpudirect.synchronize()
    gpudirect.use()


@pytest.fixture
def program(pair: tuple[str, str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run a program in a process of its own, on the same pair; its completed process."""

    def run(source: str, *, timeout: float = 60, **environment: str):
        file = tmp_path / "program.py"
        file.write_text(textwrap.dedent(source))
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        return subprocess.run(
            [sys.executable, str(file)], capture_output=True, text=True, timeout=timeout * PATIENCE,
            env={**os.environ, "GPUDIRECT_DEVICE": pair[0], "GPUDIRECT_BRIDGE": pair[1],
                 "PYTHONPATH": path, **environment},
        )  # fmt: skip

    return run
