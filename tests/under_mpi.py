"""Programs under mpiexec, for tests: whichever MPI is here."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HALO = Path(__file__).resolve().parents[1] / "examples" / "mpi" / "halo.py"
# Open MPI wants to be told that this is meant; others do not mind
ALLOWED = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
           "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
           "OMPI_MCA_rmaps_base_oversubscribe": "1"}  # fmt: skip


def mpiexec() -> str:
    """The program that starts ranks. Skips the test where there is none, unless GPUDIRECT_REQUIRE_MPI is
    set, as in CI: it fails then."""
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec") or shutil.which("mpirun")
    if found and importlib.util.find_spec("mpi4py"):
        return found
    why = "no MPI here: pip install 'gpudirect[mpi]'"
    if os.environ.get("GPUDIRECT_REQUIRE_MPI"):
        pytest.fail(why)
    pytest.skip(why)


def run(ranks, program, *arguments, limit=240, **environment):
    """A Python file on so many ranks; what came of it. A rank that fails must end the others."""
    return subprocess.run([mpiexec(), "-n", str(ranks), sys.executable, str(program), *map(str, arguments)],
                          capture_output=True, text=True, timeout=limit,
                          env={**os.environ, **ALLOWED, **environment})  # fmt: skip
