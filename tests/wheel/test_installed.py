"""What an installed package does where there is no compiler. tools/wheels runs it in a fresh environment."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gpudirect as gd

HERE = Path(gd.__file__).parent


def command(*words):
    return subprocess.run([sys.executable, "-m", "gpudirect", *words], capture_output=True,
                          text=True, timeout=300)


def test_it_is_the_installed_one():
    assert "site-packages" in HERE.parts
    assert importlib.metadata.version("gpudirect") == gd.__version__


def test_nothing_of_the_lab_is_installed():
    files = [str(f) for f in importlib.metadata.files("gpudirect")]
    tops = {f.split("/")[0] for f in files if not re.fullmatch(r"(\.\./)+bin/gpudirect", f)}
    assert tops <= {"gpudirect", f"gpudirect-{gd.__version__}.dist-info", "gpudirect.libs"}
    assert not [f for f in files if "_native/" in f and f.endswith((".c", ".h"))]


def test_arrays_work_without_a_compiler():
    a = gd.zeros((8, 128), "f4")
    a.host[3, :] = np.arange(128)
    assert a.read()[3].tolist() == list(range(128))
    a.write(np.full(16, 7, "f4"), 128)
    assert (a.read()[1, :16] == 7).all() and a.buffer.format == "B"


def test_views_leases_and_services_types_are_there():
    from gpudirect._native import Lease, Yard
    from gpudirect.service._native import Caller

    yard = Yard()
    for _ in range(1000):
        Lease(yard)
    assert len(yard) == 1000
    for lease in yard.take():
        lease.end()
    assert len(yard) == 0 and issubclass(gd.Service, Caller)
    for _ in range(2000):
        gd.empty(64)
    gd.trim()


@pytest.mark.skipif(bool(shutil.which("cc") or shutil.which("c++")), reason="there is a compiler here")
def test_a_kernel_says_what_is_missing():
    with pytest.raises(gd.Error, match=r"compiler|c\+\+"):
        gd.kernel("__global__ void k() {}", "k")


@pytest.mark.parametrize("words", (["info"], ["doctor"], ["--version"], ["bench", "-h"]))
def test_the_command_works(words):
    done = command(*words)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr


def test_the_headers_and_the_library_are_there():
    found = json.loads(command("config", "--cflags", "--libs", "--json").stdout)
    for header in ("gpudirect.h", "gpudirect/attach.h", "gpudirect/copy.h", "gpudirect/lane.h", "p2pmod.h",
                   "p2pmod-lane.h"):
        assert Path(found["include"][0], header).exists()
    assert len(found["include"]) == 1 and Path(found["library"][0], "libgpudirect.so.0").exists()
