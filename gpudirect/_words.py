"""Sizes, times and rates as people read them."""

from __future__ import annotations

import math

_BINARY = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def significant(value: float, digits: int = 3) -> str:
    """So many digits that count, without an exponent."""
    if value == 0:
        return "0"
    digits = max(0, digits - 1 - math.floor(math.log10(abs(value)) + 1e-9))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def size_text(count: float | None, digits: int = 4) -> str:
    """A size in bytes: "256 MiB", "1.5 KiB", "12 B"; None is one that was not told."""
    if count is None:
        return "not told"
    for unit, name in _BINARY:
        if abs(count) >= unit:
            return f"{significant(count / unit, digits)} {name}"
    return f"{significant(count, digits)} B"


def exact_size(count: int) -> str:
    """A size in bytes to the byte, in the largest unit that divides it: "64 KiB", "65537 B"."""
    for unit, name in _BINARY:
        if count and count % unit == 0:
            return f"{count // unit} {name}"
    return f"{count} B"


def time_text(ns: float, digits: int = 3) -> str:
    """Nanoseconds: "340 ns", "1.97 us", "12 ms"."""
    for unit, name in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if abs(ns) >= unit * 0.9995:
            return f"{significant(ns / unit, digits)} {name}"
    return f"{significant(ns, digits)} ns"


def bandwidth_text(rate: float, digits: int = 3) -> str:
    """Bytes a second, in powers of ten as links are sold: "16.9 GB/s"."""
    for unit, name in ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s")):
        if abs(rate) >= unit * 0.9995:
            return f"{significant(rate / unit, digits)} {name}"
    return f"{significant(rate, digits)} B/s"
