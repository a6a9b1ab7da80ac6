"""The machine's facts: what a figure needs beside it to mean anything."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from . import _native, aperture, bridges, cpu, devices, memory
from .bridges.rm_client import driver_version
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


ROOT = Path(__file__).resolve().parent.parent
"""The checkout, where the package runs from one."""


def commit() -> str | None:
    """The commit of the checkout this runs from, "-dirty" if changed; None when installed.

    A repository that the package merely lies in (somebody's own, with a virtual environment in it, or
    with a copy of the package) is not asked.
    """
    told = os.environ.get("GPUDIRECT_COMMIT")  # for a copy of the tree without its history
    if told:
        return told
    top = _git("rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != ROOT or not _is_ours(ROOT / "pyproject.toml"):
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _git(*words: str) -> str | None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}  # another repository's
    try:
        run = subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10, env=clean
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None if run.returncode == 0 else None


def _is_ours(project: Path) -> bool:
    try:
        return bool(re.search(r'^name = "gpudirect"$', project.read_text(), re.MULTILINE))
    except OSError:
        return False


def installed(name: str) -> str | None:
    """The version of an installed package; None without it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


PACKAGES = ("gpudirect", "numpy", "cuda-bindings", "cuda-core", "nvidia-ml-py", "cffi", "typer", "click",
            "rich")  # fmt: skip


def versions() -> dict[str, str]:
    """The packages that gpudirect stands on, and their versions."""
    from . import __version__

    return {name: found for name in PACKAGES if (found := installed(name))} | {"gpudirect": __version__}


def machine() -> dict[str, Any]:
    """CPU, memory, kernel, driver, versions and commit, as plain data."""
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


def _reason(e: BaseException) -> str:
    """What an exception says, with its kind where that is not one of ours."""
    return str(e) if isinstance(e, Error) else f"{type(e).__name__}: {e}"


def of_device(device: Device) -> dict[str, Any]:
    """A device's facts and every bridge's standing on it."""
    standings: dict[str, dict[str, Any]] = {}
    for name in bridges.NAMES:
        try:
            standing = bridges.get(name).standing(device)
            standings[name] = {"usable": standing.usable, "reason": standing.reason}
        except Exception as e:  # one that cannot even be asked hides no other
            standings[name] = {"usable": False, "reason": f"it cannot be asked: {_reason(e)}"}
    found = {**device.facts(), "bridges": standings}
    try:
        found["bridge"], found["bridge_reason"] = bridges.choose(device).name, None
    except Exception as e:
        found["bridge"], found["bridge_reason"] = None, _reason(e)
    return found


def _each_device(cuda: bool) -> list[dict[str, Any]]:
    """Every device's facts; of one that cannot be opened, why."""
    found = []
    names = [f"cuda:{n}" for n in range(devices.cuda.count())] if cuda else []
    names += [f"emulated:{n}" for n in range(devices.emulated.count())]
    for name in names:
        try:
            found.append(of_device(devices.get(name)))
        except Exception as e:
            found.append({"device": name, "emulated": name.startswith("emulated"), "bridge": None,
                          "bridges": {}, "reason": f"it cannot be opened: {_reason(e)}"})  # fmt: skip
    return found


def everything() -> dict[str, Any]:
    """What ``gpudirect info`` shows. Never raises: what cannot be told is in ``not_told``, by part."""
    not_told: dict[str, str] = {}

    def ask(part: str, question: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return question()
        except Exception as e:
            not_told[part] = _reason(e)
            return otherwise

    reason = ask("CUDA", devices.cuda_reason, "it cannot be asked")
    default = ask("default device", lambda: devices.get().id, None)
    return {
        "machine": machine(),
        "versions": versions(),
        "cuda": {"available": reason is None, "reason": reason},
        "devices": ask("devices", lambda: _each_device(reason is None), []),
        "default_device": default,
        "default_device_reason": not_told.pop("default device", None),
        "heaps": ask("memory held", lambda: [vars(s) for s in memory.statistics()], []),
        "aperture": ask("aperture", aperture.told, []),
        "not_told": not_told,
    }
