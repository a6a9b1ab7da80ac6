"""Measurements, their statistics, and reports."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

NAMES = ("alloc", "apiperf", "copybw", "copylat", "courier", "doorbell", "engine", "grids", "launch",
         "pingpong", "slices", "windows")
"""Every benchmark: a module of this package with NAME, NOTE and run(device, quick, tell)."""


def load(name: str) -> ModuleType:
    """The module of a benchmark."""
    return import_module(f"{__name__}.{name}")


__all__ = ["NAMES", "load"]
