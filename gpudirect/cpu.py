"""This machine's processor."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil

from . import _native


def name() -> str:
    """The processor's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def allowed() -> set[int]:
    """The logical CPUs that this process may run on."""
    return set(psutil.Process().cpu_affinity())


def copy_instructions() -> dict[str, bool]:
    """The copy engine's instruction sets, in order of preference, and whether this CPU has them."""
    lib, ffi = _native.lib, _native.ffi
    return {
        ffi.string(lib.gd_isa_name(i)).decode(): bool(lib.gd_isa_usable(i))
        for i in range(lib.gd_isa_count())
    }
