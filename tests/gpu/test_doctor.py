"""gpudirect doctor on a real GPU: what it sees is true there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import gpudirect as gd
from gpudirect import doctor
from gpudirect.doctor.host import SLOW_STORES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(gd.devices.cuda_reason() is not None, reason="no GPU"),
]


@pytest.fixture(scope="module")
def machine() -> doctor.Machine:
    return doctor.look()


def test_nothing_stops_a_machine_on_which_everything_works(machine):
    assert [f for f in doctor.examine(machine) if f.level == doctor.STOPS] == []


def test_the_driver_and_its_libraries_are_seen(machine):
    assert machine.driver and machine.libcuda and machine.cuda_reason is None
    assert machine.library and machine.library.split(".")[0].isdecimal()
    assert machine.cuda >= 12000
    assert machine.pci_gpus is None or machine.pci_gpus >= len(machine.gpus)


def test_each_gpu_tells_its_memory_aperture_link_and_stores(machine):
    assert len(machine.gpus) == gd.devices.cuda.count()
    for gpu in machine.gpus:
        assert gpu.reason is None and gpu.bridge in gpu.bridges
        assert gpu.memory and gpu.bar1 and gpu.bar1_used is not None
        assert gpu.link and gpu.link_most and gpu.link <= gpu.link_most
        assert gpu.ordering in ("none", "owner", "all devices")
        assert gpu.stores > SLOW_STORES, "the mapping is write-combined"
        assert gpu.mig is not None and gpu.virtualization and gpu.compute_mode


def test_device_files_that_are_used_are_there(machine):
    assert machine.nodes["/dev/nvidiactl"] == "ok"
    assert not [n for n, state in machine.nodes.items() if n.startswith("/dev/nvidia") and state != "ok"]


def test_the_command_and_its_report(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "gpudirect", "doctor", "--report", "--out", str(tmp_path / "r.json"), "--json"],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["demo"]["held"] is True
    for name, part in found.items():
        assert not isinstance(part, dict) or not {"failed", "ended"} & set(part), (name, part)
    assert gd.device("cuda:0").uuid not in (tmp_path / "r.json").read_text()
