"""The ports: files under ``examples/``, and what each offers.

A port's module has ``FLOW`` (where its data goes), ``SIZES``, ``KINDS`` (how much work there is for
each byte), ``TOLERANCE`` (largest difference from the sequential result, as NumPy's ``allclose``
takes it, 0 for equality), ``Work`` and the versions ``sequential``, ``copy``, ``double_buffered``
and ``direct``; some have ``courier`` too, which does as ``direct`` while a courier runs. A version takes a
Work, allocates what it needs and returns

    step() -> result             where data flows: one whole step, from production to result
    update(round), run() -> result   where little changes: the change, and the launch after it
    read(round), run() -> result     the same with ``READS``, where little is read: that, and the launch
                                     after it; the result is what was read
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import gpudirect as gd

from .._words import exact_size
from ..errors import ArgumentError
from . import NAMES

FOLDER = Path(__file__).resolve().parents[2] / "examples"

COURIER = "courier"
"""The further version of some ports."""

Step = Callable[[int], tuple[Any, int]]
"""A step by its round: (result, nanoseconds of the update alone or 0)."""


@dataclass(frozen=True)
class Port:
    """One example."""

    name: str
    module: ModuleType

    @property
    def title(self) -> str:
        """The first sentence of its docstring."""
        return (self.module.__doc__ or "").partition("\n\n")[0].replace("\n", " ").strip()

    @property
    def flow(self) -> str:
        """Where the data goes, in words."""
        return str(self.module.FLOW)

    @property
    def update(self) -> bool:
        """Whether little changes, or is read, each step, so that this is timed by itself."""
        return bool(getattr(self.module, "UPDATE", False))

    @property
    def reads(self) -> bool:
        """Whether that little is read, not changed."""
        return bool(getattr(self.module, "READS", False))

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(self.module.SIZES)

    @property
    def small(self) -> int:
        """A size for tests without a GPU."""
        return int(self.module.SMALL)

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self.module.KINDS)

    def work(self, n: int, kind: str) -> Any:
        return self.module.Work(n, kind)

    def same(self, found: Any, expected: Any) -> bool:
        """Whether a result is the sequential one, within the port's tolerance."""
        found, expected = np.asarray(found), np.asarray(expected)
        if found.shape != expected.shape or found.dtype != expected.dtype:
            return False
        tolerance = float(self.module.TOLERANCE)
        if tolerance == 0.0:
            return bool(np.array_equal(found, expected, equal_nan=found.dtype.kind == "f"))
        return bool(np.allclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True))

    def versions(self, chunks: tuple[int, ...]) -> dict[str, Callable[[Any], Any]]:
        """Name of each version -> what makes it from a Work."""
        m = self.module
        made: dict[str, Callable[[Any], Any]] = {
            "sequential": m.sequential,
            "copy, pageable": m.copy,
            "copy, pinned": partial(m.copy, host=gd.pinned),
            "direct": m.direct,
        }
        if hasattr(m, COURIER):
            made[COURIER] = m.courier
        for c in chunks:
            made[chunked(c)] = partial(m.double_buffered, chunk=c)
        return made


def chunked(chunk: int) -> str:
    """The name of the double-buffered version with chunks of so many bytes."""
    return f"double-buffered, {exact_size(chunk)}"


def load(name: str, folder: Path | None = None) -> Port:
    """The port of that name. Raises ArgumentError when there is none."""
    where = folder or FOLDER
    if name not in NAMES or not (where / f"{name}.py").is_file():
        there = ", ".join(n for n in NAMES if (where / f"{n}.py").is_file()) or "none"
        raise ArgumentError(
            f"no port {name!r} in {where}; there are {there}. The examples come with the "
            "repository, not with the installed package: give its folder with --examples."
        )
    if str(where) not in sys.path:
        sys.path.insert(0, str(where))
    return Port(name, importlib.import_module(name))


def available(folder: Path | None = None) -> list[Port]:
    """All ports there are. Raises ArgumentError when there is none."""
    where = folder or FOLDER
    names = [n for n in NAMES if (where / f"{n}.py").is_file()]
    return [load(n, where) for n in names or NAMES[:1]]
