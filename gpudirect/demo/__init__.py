"""``gpudirect demo``: five small experiments, each a few lines against the public API.

Every experiment checks what it claims and tells a ``Listener`` as it goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Protocol

import numpy as np

import gpudirect as gd

SENTENCES = (
    "In a village of La Mancha, the name of which I have no desire to call to mind, there lived "
    "not long since one of those gentlemen that keep a lance in the lance-rack, an old buckler, a "
    "lean hack, and a greyhound for coursing.",
    "An olla of rather more beef than mutton, a salad on most nights, scraps on Saturdays, lentils "
    "on Fridays, and a pigeon or so extra on Sundays, made away with three-quarters of his income.",
    "The rest of it went in a doublet of fine cloth and velvet breeches and shoes to match for "
    "holidays, while on week-days he made a brave figure in his best homespun.",
    "He had in his house a housekeeper past forty, a niece under twenty, and a lad for the field "
    "and market-place, who used to saddle the hack as well as handle the bill-hook.",
)
"""Cervantes, Don Quixote (1605), in John Ormsby's translation of 1885."""


@dataclass(frozen=True)
class Check:
    """One thing that was claimed."""

    experiment: str
    what: str
    held: bool
    detail: str
    """What was seen; where an experiment was ended by an error, its name and sentence."""


class Listener(Protocol):
    """Who is told of a demo while it runs."""

    def begins(self, on: gd.Device, bridge: str) -> None: ...
    def experiment(self, letter: str, name: str, about: str) -> None: ...
    def check(self, check: Check) -> None: ...
    def remark(self, text: str, emulated: str = "") -> None:
        """A line beside the checks; ``emulated`` says of what in it that it is none of a GPU's."""


class Tell:
    """What an experiment is given: it says what it checks and what it saw."""

    def __init__(self, listener: Listener, name: str) -> None:
        self.name = name
        self.checks: list[Check] = []
        self.remark = listener.remark
        self._listener = listener

    def check(self, what: str, held: bool, detail: str) -> None:
        found = Check(self.name, what, bool(held), detail)
        self.checks.append(found)
        self._listener.check(found)


def source(name: str) -> str:
    """The CUDA C++ source of an experiment, a file beside this one."""
    return files(__package__).joinpath(f"{name}.cu").read_text()


def signature(tell: Tell) -> None:
    """cudaMemcpy puts a pattern into device memory; the CPU finds it through the mapping."""
    size = 64 << 20
    with gd.empty(size, "u1") as a:
        pattern = np.random.default_rng(1605).integers(0, 256, 4096, np.uint8)
        for where, offset in (("low", 0), ("middle", size // 2 + 12345), ("high", size - 4096)):
            a.write(pattern, offset, via="dma")
            seen = a.read(start=offset, count=4096, via="map")
            tell.check(
                f"4096 bytes at the {where} end, {a.ptr + offset:#x}",
                bool(np.array_equal(seen, pattern)),
                "copied in by DMA, loaded by the CPU: the same",
            )


def don_quixote(tell: Tell) -> None:
    """The CPU writes the novel's first sentences with plain stores; a kernel counts in them."""
    text = " ".join(SENTENCES).encode()
    with gd.empty(len(text), "u1") as a, gd.zeros(2, "u4") as counts:
        a.host[:] = np.frombuffer(text, np.uint8)  # plain stores: nothing copies
        a.flush()
        back = a.read(via="dma").tobytes()
        tell.check("the text", back == text, f"{len(text)} bytes stored by the CPU, read back by DMA")
        count = gd.kernel(source("count"), "count")
        count[-(-len(text) // 128), 128](a, len(text), counts)
        words, letters = counts.read()
        tell.check("words", words == len(text.split()), f"the kernel counts {words}")
        tell.check("letters", letters == sum(map(str.isalpha, text.decode())), f"and {letters}")
    tell.remark(f"{SENTENCES[0][:73]}...")


def by_reference(tell: Tell) -> None:
    """A linked list built by the CPU in device memory, walked by a kernel: no marshalling."""
    nodes = 1000
    node = np.dtype([("next", "u8"), ("value", "i8")])
    with gd.empty(nodes, node) as a, gd.zeros(2, "i8") as result:
        tell.check(
            "one pointer for both sides", a.ptr == a.host_ptr or a.bridge == "gdrdrv",
            f"a.ptr {a.ptr:#x}, a.host_ptr {a.host_ptr:#x}",
        )  # fmt: skip
        order = np.random.default_rng(4).permutation(nodes)
        records = np.zeros(nodes, node)
        records["value"][order] = np.arange(nodes) ** 2
        records["next"][order[:-1]] = a.ptr + order[1:].astype("u8") * node.itemsize
        a.host[:] = records
        walk = gd.kernel(source("walk"), "walk")
        walk[1, 1](a.ptr + int(order[0]) * node.itemsize, result)
        length, total = result.read()
        tell.check("nodes visited", length == nodes, f"{length}, in an order the CPU shuffled")
        tell.check("sum of values", total == sum(i * i for i in range(nodes)), f"{total}")


def pages(tell: Tell) -> None:
    """Where the bytes are: device address, bus address, aperture."""
    with gd.empty(4 << 20, "u1") as a:
        part = a[1000:-1000]
        runs = part.pages
        told = sum(r.size for r in runs)
        tell.check("the runs cover the slice", told == part.nbytes, f"{told} bytes in {len(runs)} run(s)")
        for run in runs[:4]:
            bus = "not told by this bridge" if run.bus_address is None else f"{run.bus_address:#x}"
            tell.remark(f"device {run.device_address:#x} -> bus {bus}, {run.size} bytes",
                        "the bus address is made up" if run.emulated else "")  # fmt: skip
        aperture = a.device.aperture()
        if aperture:
            tell.remark(f"BAR1: {aperture.total >> 20} MiB, {aperture.used >> 20} MiB in use")


def latency(tell: Tell) -> None:
    """One line of latency: 64 bytes by a mapped store, beside a copy by the driver."""
    data = bytes(range(64))
    with gd.empty(64, "u1") as a:
        mapped = _median(lambda: a.write(data), 2000)
        copied = _median(lambda: a.write(data, 0, via="dma"), 200)
        tell.check("64 bytes arrived", a.read(via="dma").tobytes() == data, "read back by DMA")
        what = "the emulated device's copy" if a.device.emulated else "cuMemcpyHtoD, waited for,"
        tell.remark(
            f"64 bytes from Python: mapped store and fence {mapped * 1e6:.2f} us, {what} "
            f"{copied * 1e6:.2f} us ({copied / mapped:.1f} times)",
            "these times say nothing about a GPU" if a.device.emulated else "",
        )


def _median(work: Callable[[], Any], rounds: int) -> float:
    """Seconds of one call, the median of ``rounds``."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


EXPERIMENTS = (
    ("signature", signature),
    ("Don Quixote", don_quixote),
    ("by reference", by_reference),
    ("pages", pages),
    ("latency", latency),
)


def run(listener: Listener) -> list[Check]:
    """Run every experiment on the default device, and return what was checked.

    An error ends its experiment, not the demo: it is a check that did not hold.
    """
    device = gd.device()
    probe = gd.empty(1)
    listener.begins(device, probe.bridge)
    probe.close()
    checks: list[Check] = []
    for letter, (name, experiment) in zip("abcde", EXPERIMENTS, strict=True):
        listener.experiment(letter, name, " ".join((experiment.__doc__ or "").split()))
        tell = Tell(listener, name)
        try:
            experiment(tell)
        except gd.Error as e:
            done = f"after {len(tell.checks)} checks" if tell.checks else "before its first check"
            tell.check(f"ended {done} by {type(e).__name__}", False, str(e))
        checks += tell.checks
    return checks
