"""Hold the copy engine against bare loops on this machine, all in one run.

    python tests/native/compare.py [--device cuda:0] [--bridge rm] [--json FILE]

For a GPU: on the emulated device it runs, and its ratios mean nothing.

Kinds are interleaved, so that a machine that changes its mind does it to all of them. A ratio is
the engine's median over the best bare loop's; 1.03 is what the project asks for. Writes carry a
store fence each, reads a load fence before. Threads: the engine's choice over its own one-thread
figure, beside the best that bare threads reach.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

import gpudirect as gd
from gpudirect import facts
from gpudirect._native import ffi, lib

BARE = {
    "write": ["store-avx512", "store-movdir64b", "store-memcpy"],
    "read": ["load-16", "load-32", "load-64"],
}
ENGINE = {"write": "store-engine", "read": "load-engine"}
LARGEST = 16 << 20
SLOW_READS = 1 << 20  # bytes: memory that is not cached gives 1 GB/s


def find(name: str) -> int:
    kind = int(lib.gd_bare_find(name.encode()))
    assert kind >= 0, name
    return kind


def sizes(largest: int) -> list[int]:
    """Powers of two, and forty odd ones spread over the same range."""
    dice = random.Random(1)
    powers = [1 << i for i in range(largest.bit_length())]
    odd: set[int] = {3, 7, 31, 63, 65}
    while len(odd) < 40:
        odd.add(int(2 ** dice.uniform(1, largest.bit_length() - 1)) | 1)
    return sorted({*powers, *odd})


def medians(kinds: list[str], at: int, other: int, n: int, rounds: int = 7) -> dict[str, float]:
    """Nanoseconds of one copy by each kind."""
    samples = 5 if n >= 1 << 20 else 20
    batch = max(1, min(200, (64 << 10) // n))
    ns = ffi.new("double[]", samples)
    values: dict[str, list[float]] = {k: [] for k in kinds}
    for _ in range(rounds):
        for k in random.sample(kinds, len(kinds)):
            code = lib.gd_bare_time(find(k), at, ffi.cast("char *", other), n, batch, samples, ns)
            assert code == 0, (k, code)
            values[k] += list(ns)
    return {k: statistics.median(v) for k, v in values.items()}


def threads(direction: str, at: int, other: int, n: int) -> dict[str, float]:
    """What the engine's threads gain, and what bare ones would."""
    one, many = ENGINE[direction], f"{ENGINE[direction]}-threads"
    figures = medians([one, many], at, other, n)
    ns = ffi.new("double[]", 15)
    bare = []
    for k in usable(direction):
        for count in (2, 4, 8):
            lib.gd_bare_time_threads(find(k), at, ffi.cast("char *", other), n, count, ffi.NULL, 0,
                                     15, ns)  # fmt: skip
            bare.append(statistics.median(ns))
    return {"one": figures[one], "engine": figures[many], "bare": min(bare)}


def usable(direction: str) -> list[str]:
    return [k for k in BARE[direction] if lib.gd_bare_usable(find(k))]


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--device")
    ask.add_argument("--bridge")
    ask.add_argument("--json", type=Path)
    asked = ask.parse_args()
    gd.use(device=asked.device, bridge=asked.bridge)
    a = gd.empty(LARGEST + 4096, "u1")
    here = np.ones(LARGEST + 4096, np.uint8)
    other = int(here.ctypes.data) + -int(here.ctypes.data) % 64
    print(f"{a!r}\ninstructions: {ffi.string(lib.gd_isa_selected()).decode()}, "
          f"threads: {lib.gd_threads_count()}")  # fmt: skip
    if "emulated" in repr(a):
        print("emulated: ordinary cached memory, where stores past the cache lose. The ratios say "
              "nothing about a GPU")  # fmt: skip
    rows = []
    for direction in ("write", "read"):
        bare = usable(direction)
        for n in sizes(LARGEST if direction == "write" else min(LARGEST, SLOW_READS)):
            for skew in ((0, 0), (13, 5)):
                got = medians([*bare, ENGINE[direction]], a.host_ptr + skew[0], other + skew[1], n)
                best = min(bare, key=got.__getitem__)
                ratio = got[ENGINE[direction]] / got[best]
                rows.append({"direction": direction, "bytes": n, "skew": skew, "ns": got,
                             "best": best, "ratio": ratio})  # fmt: skip
                mark = " <<" if ratio > 1.03 else ""
                print(f"{direction:5} {n:>9} {skew!s:8} engine {got[ENGINE[direction]]:>11.1f} ns, "
                      f"{best} {got[best]:>11.1f}: {ratio:.3f}{mark}", flush=True)  # fmt: skip
    for direction, n in (("write", 1 << 20), ("write", LARGEST), ("read", 1 << 20)):
        got = threads(direction, a.host_ptr, other, n)
        rows.append({"direction": direction, "bytes": n, "threads": got})
        print(f"{direction:5} {n:>9} threads  {got['one'] / got['engine']:.2f} times one thread, "
              f"{got['bare'] / got['engine']:.2f} of bare threads", flush=True)  # fmt: skip
    if asked.json:
        asked.json.write_text(json.dumps({"facts": facts.machine(), "rows": rows}, indent=1))
    worst = max((r for r in rows if "ratio" in r), key=lambda r: r["ratio"])
    over = sum(r.get("ratio", 0) > 1.03 for r in rows)
    print(f"{over} of {sum('ratio' in r for r in rows)} above 1.03; worst {worst['ratio']:.3f}: "
          f"{worst['direction']} {worst['bytes']} at {worst['skew']}")  # fmt: skip


if __name__ == "__main__":
    main()
