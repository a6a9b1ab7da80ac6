"""``copylat``: the latency of small copies and of their fences, in C and from Python."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..devices import Device
from . import _native as _bench
from . import others
from .measure import Figure, figure, shared_out
from .progress import Tell, silent

NAME = "copylat"
NOTE = ("C: nanoseconds of one call, the mean of 100 in a row. Python: the same, timed from Python. A "
        "store's clock stops when it has left the CPU, a load's when the value is there.")  # fmt: skip
SIZES = (4, 8, 16, 64, 256, 1024, 4096)
BATCH = 100


def _in_c(kind: str, at: int, other: int, n: int, samples: int) -> list[float]:
    lib, ffi = _bench.lib, _bench.ffi
    ns = ffi.new("double[]", samples)
    number = lib.gd_bare_find(kind.encode())
    for _ in range(2):  # the first warms up
        code = lib.gd_bare_time(number, at, ffi.cast("char *", other), n, BATCH, samples, ns)
        if code:
            raise AssertionError(f"{kind}: errno {-code}")
    return list(ns)


def run(device: Device, quick: bool = False, tell: Tell = silent) -> list[Figure]:
    """Measure on the default bridge of ``device``."""
    samples, seconds = (30, 0.02) if quick else (300, 0.3)
    found: list[Figure] = []
    with others.Memory(device, 1 << 16) as memory, others.current(device) as driver:
        a, at = memory.array, memory.array.host_ptr
        source = memory.pageable
        other = int(source.ctypes.data)
        line, whole = bytes(range(64)), a[:64]
        out = np.empty(64, np.uint8)
        tell("64 bytes in C and from Python", 0, 1)
        for case, kind, n in (
            ("write 64: C", "store-engine", 64), ("flush: C", "fence", 0),
            ("load 4: C", "word-load", 4), ("store 4: C", "word-store", 4),
            ("store 4 + fence: C", "word-store-fence", 4), ("read 64: C", "load-engine", 64),
        ):  # fmt: skip
            found.append(figure(NAME, case, n, _in_c(kind, at, other, n, samples), BATCH, "C and Python"))
        cases = {
            "write 64: Python": lambda: a.write(line),
            "flush: Python": lambda: a.flush(),
            "read 64: Python": lambda: whole.read(out),
        }
        # 64 bytes are named for the bar; fences have no size
        for f in shared_out(NAME, cases, 64, group="C and Python", seconds=seconds, most=samples):
            found.append(figure(NAME, f.case, 0 if "flush" in f.case else 64, f.values, f.batch,
                                f.group))  # fmt: skip
        for i, n in enumerate(SIZES):
            for write in (True, False):
                name = "write" if write else "read"
                tell(f"{name} of {n} bytes", i, len(SIZES))
                keep: list[Any] = []
                part, ordinary = a[:n], source[:n]
                call = part.write if write else part.read
                cases = {f"{name}: gpudirect": lambda: call(ordinary)}  # noqa: B023
                for host, kind in ((source, name), (memory.pinned, f"{name} pinned")):
                    cases |= others.copies(driver, memory, n, host, write, kind)
                cases |= others.idioms(memory, n, write, keep)
                found += shared_out(NAME, cases, n, group=f"{name}, small", seconds=seconds)
                others.release(keep)
    return found
