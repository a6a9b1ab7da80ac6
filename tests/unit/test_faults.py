"""Every call that the runtime makes of the system and of the driver fails once, at each place: nothing is
left over, the error is one of ours and of the right kind, and the same thing works the next time.

The calls are found, not listed: tests/faults/feigned.c counts them, and is the driver where there is none.
GPUDIRECT_FAULTS=all takes everything through every bridge; without it most calls are met once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gpudirect as gd

ROOT = Path(__file__).resolve().parents[2]
FAULTS = ROOT / "tests" / "faults"
ALL = os.environ.get("GPUDIRECT_FAULTS") == "all"
BRIDGES_OWN = ("bridge", "registered")
REFUSED, NO_ROOM = 0, 1
"""How a call fails: as the index of what came of it."""

DEVICE = {"cuMemCreate", "cuMemAddressReserve", "cuMemMap", "cuMemSetAccess", "cuMemUnmap", "cuMemRelease",
          "cuMemAddressFree", "cuCtxGetCurrent", "cuMemsetD8Async", "cuStreamQuery"}  # fmt: skip
THROUGH = {
    "rm": ("cuda:0", ("device", "bridge", "dma", "registered", "pinned", "streams", "kernel"),
           DEVICE | {"open", "mmap", "rm: ioctl", "rm: unmap", "rm: free", "cuMemcpyHtoD", "cuStreamCreate",
                     "cuMemExportToShareableHandle", "cuEventRecord", "cuLaunchKernel", "cuModuleLoadData",
                     "cuMemHostAlloc", "cuInit", "cuDevicePrimaryCtxRetain", "cuGetProcAddress"}),
    "p2pmod": ("cuda:0", BRIDGES_OWN, DEVICE | {"open", "mmap", "p2pmod: ioctl", "p2pmod: unpin"}),
    "dmabuf": ("cuda:0", BRIDGES_OWN, DEVICE | {"mmap", "cuMemGetHandleForAddressRange"}),
    "gdrdrv": ("cuda:0", BRIDGES_OWN, DEVICE | {"gdr_open", "gdr_pin_buffer", "gdr_map", "gdr_unmap",
                                                "gdr_unpin_buffer"}),
    "emulated": ("emulated:0", ("array", "pinned", "kernel"),
                 {"mmap", "memfd_create", "ftruncate", "fcntl", "open"}),
}  # fmt: skip
GIVEN_BACK = {"cuMemUnmap", "cuMemRelease", "cuMemAddressFree", "cuStreamDestroy", "rm: unmap", "rm: free",
              "p2pmod: unpin", "gdr_unmap", "gdr_unpin_buffer"}  # fmt: skip
"""Refused, these are done again: nobody is told, and nothing stays."""
KINDS = {
    "cuMemCreate": ("DeviceError", "OutOfMemoryError"), "cuMemHostAlloc": ("DeviceError", "OutOfMemoryError"),
    "cuInit": ("DeviceNotFoundError", "DeviceNotFoundError"), "cuLaunchKernel": ("LaunchError", "LaunchError"),
    "cuMemExportToShareableHandle": ("NotMappableError", "NotMappableError"),
    "rm: ioctl": ("BridgeError", "ApertureError"), "p2pmod: ioctl": ("BridgeError", "ApertureError"),
    "gdr_map": ("NotMappableError", "ApertureError"), "gdr_pin_buffer": ("NotMappableError", "ApertureError"),
    "cuMemGetHandleForAddressRange": ("DeviceError", "OutOfMemoryError"),
}  # fmt: skip
"""What is told of a call that was refused, and of one for which there was no room, at most places."""


@pytest.fixture(scope="session")
def feigned(tmp_path_factory) -> Path:
    """A folder with the feigned driver under each of its names."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("feigned") / "feigned"
    folder.mkdir()
    subprocess.run(["cc", "-O1", "-g", "-Wall", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1",
                    "-o", folder / "libcuda.so.1", FAULTS / "feigned.c", "-ldl", "-lpthread"],
                   check=True)  # fmt: skip
    (folder / "p2pmod").touch()
    (folder / "libgdrapi.so.2").symlink_to("libcuda.so.1")
    return folder


@pytest.fixture(scope="session")
def swept(feigned):
    """What came of every call, by what was done; once for each bridge."""
    found: dict[str, dict] = {}

    def sweep(bridge: str) -> dict:
        if bridge not in found:
            device, things, _ = THROUGH[bridge]
            run = subprocess.run(
                [sys.executable, "-X", "faulthandler", FAULTS / "program.py", device, bridge, feigned,
                 *(() if ALL else things)], capture_output=True, text=True, timeout=500,
                env={**os.environ, "LD_PRELOAD": str(feigned / "libcuda.so.1"), "LD_LIBRARY_PATH": str(feigned),
                     "GPUDIRECT_DEVICE": device, "GPUDIRECT_BRIDGE": bridge},
            )  # fmt: skip
            assert run.returncode == 0, run.stderr[-4000:]
            found[bridge] = json.loads(run.stdout)
        return found[bridge]

    return sweep


def outcomes(swept: dict):
    """(what was done, how, what came of the call)"""
    for what, by_kind in swept.items():
        for kind, came in enumerate(by_kind):
            for each in came:
                yield what, kind, each


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bridge", THROUGH)
def test_a_call_that_fails_once_leaves_nothing(bridge, swept):
    found, wrong = swept(bridge), []
    for what, kind, came in outcomes(found):
        left = dict(came["left"])
        if came["call"] == "cuCtxPopCurrent":
            left.pop("entered", None)  # it is all that could have been done about it
        if left or came["raised"] or came["again"] or came["error"].startswith("RAW"):
            wrong.append((what, ("refused", "no room")[kind], came))
    assert not wrong, "\n".join(map(str, wrong[:10]))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bridge", THROUGH)
def test_all_kinds_of_calls_were_made_to_fail(bridge, swept):
    calls = {came["call"] for _, _, came in outcomes(swept(bridge))}
    assert THROUGH[bridge][2] <= calls, THROUGH[bridge][2] - calls
    assert sum(1 for _ in outcomes(swept(bridge))) > 50


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bridge", THROUGH)
def test_the_error_is_of_the_right_kind(bridge, swept):
    names = {name for name in dir(gd) if isinstance(getattr(gd, name), type)}
    told: dict[tuple[str, int], list[str]] = {}
    for _, kind, came in outcomes(swept(bridge)):
        told.setdefault((came["call"], kind), []).append(came["error"].partition(":")[0])
    for (call, kind), errors in told.items():
        assert {e for e in errors if e} <= names, call
        if call in GIVEN_BACK:
            assert not any(errors), (call, errors)
        elif call in KINDS:
            assert errors.count(KINDS[call][kind]) > len(errors) / 2, (call, kind, errors)
