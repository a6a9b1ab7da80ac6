"""Sizes and times for people."""

from __future__ import annotations


def size(count: int | None) -> str:
    """Bytes: "256 MiB"."""
    if count is None:
        return "not told"
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"


def short(ns: float) -> str:
    """A time: "1.97 us"."""
    return f"{ns:.0f} ns" if ns < 1000 else f"{ns / 1000:.2f} us" if ns < 1e6 else f"{ns / 1e6:.2f} ms"
