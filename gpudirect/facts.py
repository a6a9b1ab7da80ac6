"""The machine's facts: what a figure needs beside it to mean anything."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

from . import _native, bridges, cpu, devices, memory
from .bridges.rm import driver_version
from .devices import Device
from .errors import Error

DRIVER_FILE = Path("/proc/driver/nvidia/version")


def driver_flavour() -> str | None:
    """"open" or "proprietary" kernel modules of the NVIDIA driver; None without a driver."""
    try:
        text = DRIVER_FILE.read_text()
    except OSError:
        return None
    return "open" if "Open Kernel Module" in text else "proprietary"


def commit() -> str | None:
    """The commit of the checkout this runs from, "-dirty" if changed; None when installed."""
    root = Path(__file__).resolve().parent.parent
    told = os.environ.get("GPUDIRECT_COMMIT")  # for a copy of the tree without its history
    if told:
        return told
    try:
        run = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None


def machine() -> dict[str, Any]:
    """CPU, memory, kernel, driver, versions and commit, as plain data."""
    from importlib.metadata import PackageNotFoundError, version

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": cpu.name(),
        "cpus": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load": os.getloadavg()[0],
        "kernel": platform.release(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": installed("numpy"),
        "cuda_bindings": installed("cuda-bindings"),
        "driver": driver_version(),
        "driver_flavour": driver_flavour(),
        "copy_instructions": _native.ffi.string(_native.lib.gd_isa_selected()).decode(),
        "copy_instructions_present": cpu.copy_instructions(),
    }


def of_device(device: Device) -> dict[str, Any]:
    """A device's facts and every bridge's standing on it."""
    found = dict(device.facts())
    found["bridges"] = {
        name: {"usable": s.usable, "reason": s.reason}
        for name, s in bridges.standings(device).items()
    }
    try:
        found["bridge"] = bridges.choose(device).name
    except Error as e:
        found["bridge"] = None
        found["bridge_reason"] = str(e)
    return found


def everything() -> dict[str, Any]:
    """What ``gpudirect info`` shows."""
    reason = devices.cuda_reason()
    return {
        "machine": machine(),
        "cuda": {"available": reason is None, "reason": reason},
        "devices": [of_device(d) for d in devices.available()],
        "default_device": devices.get().id,
        "heaps": [vars(s) for s in memory.statistics()],
    }
