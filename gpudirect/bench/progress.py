"""How a benchmark tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Tell = Callable[[str, int, int], None]
"""Called with what is being measured, how many steps are done, and of how many."""


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""
