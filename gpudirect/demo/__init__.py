"""``gpudirect demo``: the seed experiments of this field, each a few lines against the public API.

Every experiment checks what it claims. ``run`` returns the number of failed checks, at most 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import numpy as np
from rich.console import Console

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

Check = Callable[[str, bool, str], None]


def source(name: str) -> str:
    """The CUDA C++ source of an experiment, a file beside this one."""
    return files(__package__).joinpath(f"{name}.cu").read_text()


def signature(check: Check, console: Console) -> None:
    """cudaMemcpy puts a pattern into device memory; the CPU finds it through the mapping."""
    size = 64 << 20
    with gd.empty(size, "u1") as a:
        pattern = np.random.default_rng(1605).integers(0, 256, 4096, np.uint8)
        for where, offset in (("low", 0), ("middle", size // 2 + 12345), ("high", size - 4096)):
            a.write(pattern, offset, via="dma")
            seen = a.read(offset=offset, nbytes=4096, via="map")
            check(
                f"4096 bytes at the {where} end, {a.ptr + offset:#x}",
                bool(np.array_equal(seen, pattern)),
                "copied in by DMA, loaded by the CPU: the same",
            )


def don_quixote(check: Check, console: Console) -> None:
    """The CPU writes the novel's first sentences with plain stores; a kernel counts in them."""
    text = " ".join(SENTENCES).encode()
    with gd.empty(len(text), "u1") as a, gd.zeros(2, "u4") as counts:
        a.host[:] = np.frombuffer(text, np.uint8)  # plain stores: nothing copies
        a.flush()
        back = a.read(via="dma").tobytes()
        check("the text", back == text, f"{len(text)} bytes stored by the CPU, read back by DMA")
        count = gd.kernel(source("count"), "count")
        count[-(-len(text) // 128), 128](a, len(text), counts)
        words, letters = counts.read()
        check("words", words == len(text.split()), f"the kernel counts {words}")
        check("letters", letters == sum(map(str.isalpha, text.decode())), f"and {letters}")
    console.print(f"  [italic]{SENTENCES[0][:73]}...[/]")


def by_reference(check: Check, console: Console) -> None:
    """A linked list built by the CPU in device memory, walked by a kernel: no marshalling."""
    nodes = 1000
    node = np.dtype([("next", "u8"), ("value", "i8")])
    with gd.empty(nodes, node) as a, gd.zeros(2, "i8") as result:
        check(
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
        check("nodes visited", length == nodes, f"{length}, in an order the CPU shuffled")
        check("sum of values", total == sum(i * i for i in range(nodes)), f"{total}")


def pages(check: Check, console: Console) -> None:
    """Where the bytes are: device address, bus address, aperture."""
    with gd.empty(4 << 20, "u1") as a:
        part = a[1000:-1000]
        runs = part.pages
        told = sum(r.size for r in runs)
        check("the runs cover the slice", told == part.nbytes, f"{told} bytes in {len(runs)} run(s)")
        for run in runs[:4]:
            bus = "not told by this bridge" if run.bus_address is None else f"{run.bus_address:#x}"
            mark = " [yellow](made up: emulated)[/]" if run.emulated else ""
            console.print(
                f"  device {run.device_address:#x} -> bus {bus}, {run.size} bytes{mark}",
                highlight=False,
            )
        aperture = a.device.aperture()
        if aperture:
            console.print(
                f"  BAR1: {aperture.total >> 20} MiB, {aperture.used >> 20} MiB in use",
                highlight=False,
            )


def latency(check: Check, console: Console) -> None:
    """One line of latency: 64 bytes by a mapped store, beside a copy by the driver."""
    data = bytes(range(64))
    with gd.empty(64, "u1") as a:
        mapped = _median(lambda: a.write(data), 2000)
        copied = _median(lambda: a.write(data, 0, via="dma"), 200)
        check("64 bytes arrived", a.read(via="dma").tobytes() == data, "read back by DMA")
        what = "the emulated device's copy" if a.device.emulated else "cuMemcpyHtoD, waited for,"
        console.print(
            f"  64 bytes from Python: mapped store and fence {mapped * 1e6:.2f} us, {what} "
            f"{copied * 1e6:.2f} us ({copied / mapped:.1f} times)",
            highlight=False,
        )
        if a.device.emulated:
            console.print("  [yellow]emulated: these times say nothing about a GPU[/]")


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


def run(console: Console) -> int:
    """Run every experiment on the default device; 0 if every check held, else 1."""
    device = gd.device()
    probe = gd.empty(1)
    console.print(f"[bold]gpudirect[/] on {device.id}, {device.name}, bridge {probe.bridge}")
    if device.emulated:
        console.print("[bold yellow]This is the emulated device: no GPU is involved.[/]")
    probe.close()
    failed: list[str] = []
    checks = 0
    for letter, (name, experiment) in zip("abcde", EXPERIMENTS, strict=True):
        console.print(f"\n[bold]({letter}) {name}[/]: {experiment.__doc__}")

        def check(what: str, held: bool, detail: str, name: str = name) -> None:
            nonlocal checks
            checks += 1
            mark = "[green]ok[/]" if held else "[bold red]FAILED[/]"
            console.print(f"  {mark}  {what}: {detail}", highlight=False)
            if not held:
                failed.append(f"{name}: {what}")

        try:
            experiment(check, console)
        except gd.Error as e:
            check("no error", False, f"{type(e).__name__}: {e}")
    console.print()
    if failed:
        console.print(f"[bold red]{len(failed)} of {checks} checks failed[/]: {'; '.join(failed)}")
        return 1
    where = "the emulated device" if device.emulated else device.name
    console.print(f"[bold green]All {checks} checks held[/] on {where}.")
    return 0
