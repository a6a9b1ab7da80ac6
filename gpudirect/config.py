"""Settings from the environment."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from .errors import ArgumentError

if TYPE_CHECKING:
    from pathlib import Path


class Setting(NamedTuple):
    """An environment variable that gpudirect reads."""

    name: str
    means: str
    default: str
    example: str


SETTINGS = (
    Setting("GPUDIRECT_DEVICE", "The device that is used where a call names none: `cuda`, `cuda:1`, "
            "`emulated`, a UUID or a PCI address.", "the first GPU, else `emulated`", "cuda:1"),
    Setting("GPUDIRECT_BRIDGE", "The bridge that maps memory where a call names none: `p2pmod`, `dmabuf`, "
            "`gdrdrv`, `rm`, `emulated`.", "the first that works", "rm"),
    Setting("GPUDIRECT_APERTURE", "Bytes of BAR1 that this process may map on each device. What does not fit "
            "is reached through windows.", "all there is", "64M"),
    Setting("GPUDIRECT_POOL", "Bytes of freed memory that are kept, mapped, for the next allocation.",
            "64M", "0"),
    Setting("GPUDIRECT_LIMITS", "A file with the sizes at which copies turn from stores to DMA, or `built-in`.",
            "what `gpudirect calibrate` kept, else built in", "built-in"),
    Setting("GPUDIRECT_CACHE", "The folder of compiled kernels and calibrations. Whoever can write there can "
            "have this user run code.", "`$XDG_CACHE_HOME/gpudirect`, else `~/.cache/gpudirect`",
            "$HOME/gpudirect-cache"),
    Setting("GPUDIRECT_EMULATED_DEVICES", "How many emulated devices there are.", "1", "2"),
    Setting("GPUDIRECT_EMULATED_MEMORY", "Memory of each of them, in bytes.", "1G", "4G"),
    Setting("GPUDIRECT_EMULATED_BAR1", "BAR1 of each of them, in bytes: smaller than its memory, so that "
            "exhaustion can be tried.", "256M", "16M"),
    Setting("GPUDIRECT_COMMIT", "The commit that figures are marked with, for a copy of the tree without its "
            "history.", "what git says", "64fb5aea6e23"),
)  # fmt: skip
"""Every variable that is read; docs/settings.md is made of them. Sizes take K, M, G and T."""

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
    from pathlib import Path  # slow to import, and nothing for whoever only attaches

    chosen = os.environ.get("GPUDIRECT_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpudirect"
