"""At which sizes the faster path changes, and where that is kept.

One file for each kind of GPU, bridge and CPU, in the cache folder; ``gpudirect calibrate`` writes
it. $GPUDIRECT_LIMITS names a file to use instead, or is "built-in" to use none.
"""

from __future__ import annotations

import json
import operator
import os
import re
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import _native, cpu
from .config import cache_folder
from .devices import Device
from .errors import ArgumentError

FORMAT = 1
ENVIRONMENT, BUILT_IN = "GPUDIRECT_LIMITS", "built-in"
PATHS = ("map", "dma", "courier")
NEVER = (1 << 64) - 1  # SIZE_MAX: a turn that does not come
DIRECTIONS = ("write_pageable", "write_pinned", "read_pageable", "read_pinned")

THRESHOLDS = ("write_threads", "write_threads_alone", "read_threads", "read_threads_alone")

GATHERING = ("gather_words", "gather_span")

COURIER = ("courier_pageable", "courier_pinned")
ERRANDS = ("courier_gather", "courier_scatter")

MOST_THREADS = 64  # of one copy

Turns = tuple[int, ...]


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes at which the faster path changes.

    Each of the first four lists rising sizes: up to the first one the mapping is faster, then DMA
    up to the second, then the mapping again, and so on; none at all: the mapping always.
    The defaults are what one H200 behind PCIe 5 showed; they are sane elsewhere, not best.
    ``gpudirect calibrate`` measures this machine's own.
    """

    write_pageable: Turns = ()
    """From pageable memory. Mapped stores need no staging copy, which DMA does."""
    write_pinned: Turns = (264 << 10,)
    """From page-locked memory."""
    read_pageable: Turns = (6 << 10,)
    """To pageable memory."""
    read_pinned: Turns = (6 << 10,)
    """To page-locked memory."""
    threads: int = 0
    """Threads of one large copy; 0: half of the CPUs, 8 at most."""
    write_threads: int = 256 << 10
    """From here on several threads write, where copies follow each other within 50 us."""
    write_threads_alone: int = 2 << 20
    """The same for a copy that comes alone: the threads must be woken first."""
    read_threads: int = 32 << 10
    """From here on several threads read, where copies follow each other within 50 us."""
    read_threads_alone: int = 256 << 10
    """The same for a copy that comes alone."""
    gather_words: int = 240
    """Single elements that loads bring in the time that a DMA takes to begin."""
    gather_span: int = 800
    """Bytes that DMA brings in the time of one further load; at least 1. Up to ``gather_words`` and one
    for each ``gather_span`` bytes between the first and the last, elements are loaded one by one."""
    courier_pageable: tuple[int, int] = (4 << 10, 4 << 20)
    """Bytes of a read to pageable memory from which, and up to which, a courier that runs is faster."""
    courier_pinned: tuple[int, int] = (4 << 10, 96 << 10)
    """The same to page-locked memory of ``gpudirect.pinned``."""
    courier_gather: int = 512
    """Elements, or rows of a strided read, from which a courier is faster than loads and DMA."""
    courier_scatter: int = 512
    """Elements, or rows of a strided write, from which it is faster than stores."""
    source: str = "built in"
    """Where these came from."""

    def __post_init__(self) -> None:
        for name in DIRECTIONS:
            given = getattr(self, name)
            turns = tuple(map(_size, given)) if isinstance(given, (tuple, list)) else (-1,)
            if len(turns) > _native.lib.GD_TURNS or -1 in turns or list(turns) != sorted(set(turns)):
                raise ArgumentError(
                    f"{name}={given!r}: give at most {_native.lib.GD_TURNS} sizes in bytes, rising"
                )
            object.__setattr__(self, name, turns)  # a list, where it came from a file
        for name in COURIER:
            given = getattr(self, name)
            both = tuple(map(_size, given)) if isinstance(given, (tuple, list)) else ()
            if len(both) != 2 or -1 in both:
                raise ArgumentError(f"{name}={given!r}: give two sizes in bytes, from and up to which")
            object.__setattr__(self, name, both)
        for name in ("threads", *THRESHOLDS, *GATHERING, *ERRANDS):
            given = getattr(self, name)
            size = _size(given)
            most = MOST_THREADS if name == "threads" else NEVER
            if not (name == "gather_span") <= size <= most:
                raise ArgumentError(f"{name}={given!r}: give bytes, or up to {MOST_THREADS} threads")
            object.__setattr__(self, name, size)
        if not isinstance(self.source, str):
            raise ArgumentError(f"source={self.source!r}: give words that say where they are from")

    def path(self, direction: str, nbytes: int) -> str:
        """"map" or "dma" for so many bytes; direction: the name of one of the first four."""
        return PATHS[sum(nbytes > turn for turn in getattr(self, direction)) % 2]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _size(value: Any) -> int:
    """The whole number; -1 for what is none, or no size."""
    try:
        size = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        size = -1
    return size if 0 <= size <= NEVER else -1


def file_of(device: Device, bridge: str) -> Path:
    """Where the limits of a device through a bridge are kept."""
    words = f"{device.name} {bridge} {cpu.name()} {os.cpu_count()}"
    return cache_folder() / "limits" / (re.sub(r"\W+", "-", words).strip("-").lower() + ".json")


def store(limits: Limits, path: Path) -> None:
    """Keep limits in a file, whole or not at all. Raises ArgumentError when that cannot be."""
    text = json.dumps({"format": FORMAT, **limits.as_dict()}, indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as f:
            f.write(text)
        os.replace(f.name, path)
    except OSError as e:
        raise ArgumentError(
            f"the limits cannot be kept in {path}: {e.strerror}. They hold for this process; set "
            "GPUDIRECT_CACHE to a folder that can be written, to keep them."
        ) from e


def ensure_writable(path: Path) -> None:
    """Raises ArgumentError where ``store`` could not keep anything: before minutes are spent."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
    except OSError as e:
        raise ArgumentError(
            f"limits cannot be kept in {path}: {e.strerror}. Set GPUDIRECT_CACHE to a folder that can "
            "be written."
        ) from e


def load(path: Path) -> Limits:
    """Limits from a file. Raises ArgumentError when it holds none."""
    try:
        found = json.loads(path.read_text())
        if found.pop("format") != FORMAT:
            raise ValueError("it is of another format")
        return Limits(**{**found, "source": str(path)})
    except OSError as e:
        raise ArgumentError(f"limits cannot be read from {path}: {e.strerror}") from e
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise ArgumentError(
            f"{path} holds no limits ({e}): remove it, or run `gpudirect calibrate` again"
        ) from e


def stored(device: Device, bridge: str) -> Limits | None:
    """What was kept for a device; None when nothing was. A damaged file warns and is not used."""
    chosen = os.environ.get(ENVIRONMENT)
    if chosen == BUILT_IN:
        return None
    if chosen:
        return load(Path(chosen))
    path = file_of(device, bridge)
    if not path.exists():
        return None
    try:
        return load(path)
    except ArgumentError as e:
        warnings.warn(f"{e}. The built-in limits are used.", stacklevel=2)
        return None
