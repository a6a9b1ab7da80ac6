"""Settings from the environment."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import ArgumentError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Defaults:
    """What is used where a call names no device or bridge."""

    def __init__(self) -> None:
        self.device: str | None = os.environ.get("GPUDIRECT_DEVICE") or None
        self.bridge: str | None = os.environ.get("GPUDIRECT_BRIDGE") or None


defaults = Defaults()
"""Read from the environment when gpudirect is imported; ``gpudirect.use`` changes it."""


def parse_size(text: str, what: str = "a size") -> int:
    """"64M", "1 GiB", "4096" in bytes. Raises ArgumentError naming ``what``."""
    found = re.fullmatch(r"\s*(\d+)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if not found:
        raise ArgumentError(
            f"{what} is {text!r}: give a number of bytes, with K, M, G or T if you like (64M)"
        )
    return int(found[1]) * _UNITS[found[2].upper()]


def env_size(name: str, default: int) -> int:
    """The size in the environment variable ``name``, or ``default``."""
    text = os.environ.get(name)
    return default if text is None or not text.strip() else parse_size(text, name)


def cache_folder() -> Path:
    """Where compiled kernels and calibrations are kept: $GPUDIRECT_CACHE or ~/.cache/gpudirect."""
    chosen = os.environ.get("GPUDIRECT_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpudirect"
