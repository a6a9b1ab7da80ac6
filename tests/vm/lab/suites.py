"""What the lab runs: each suite prints TAP-like lines and closes with `N passed, N failed`."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TextIO

import gdrcopy
import machines
from guests import (
    ALONE,
    CLIENTS,
    LOAD,
    NO_CLIENTS,
    RESULTS,
    ROOT,
    UNLOAD,
    UNLOADING,
    VERSIONS,
    files_of,
    machine,
    prepare,
    report,
    test_script,
)
from pythonguest import BRIDGES, over_p2pmod, python_suite

import boot
import build
import debugkernel
import packages
from packages import LabError, run


@dataclass
class Cell:
    """One guest of the matrix."""

    kernel: str
    flavour: str
    header: str
    version: str
    release: str = ""
    passed: int = 0
    failed: tuple[str, ...] = ()
    splats: tuple[str, ...] = ()
    finished: bool = False
    seconds: float = 0.0
    gpl_only: tuple[str, ...] = ()
    commit: str = ""
    sources: str = ""  # of module, stand-in and tests, as a hash

    @property
    def name(self) -> str:
        return f"{self.kernel}-{self.flavour}-{self.header}-{self.version}"

    @property
    def good(self) -> bool:
        return (self.finished and self.passed > 0
                and not (self.failed or self.splats or self.gpl_only))  # fmt: skip


def guest(cell: Cell, timeout: float = 1800) -> boot.Result:
    """Build and run one cell."""
    kernel, words = machine(cell.kernel)
    modules = build.modules(kernel, cell.flavour, cell.header)
    symvers = kernel.headers / "Module.symvers"
    cell.gpl_only = tuple(
        s for m in (modules.p2pmod, *modules.clients)
        for s in build.gpl_only_symbols(m, symvers)
    )
    result = boot.boot(kernel, files_of(modules, build.tests(kernel.architecture)), test_script(cell.version),
                       timeout=timeout, append=words)  # fmt: skip
    cell.release, cell.passed, cell.failed = kernel.release, len(result.passed), tuple(result.failed)
    cell.splats, cell.finished = tuple(result.splats), result.finished
    cell.seconds = round(result.seconds, 1)
    log = RESULTS / f"{cell.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(result.text)
    return result


def show(cell: Cell) -> None:
    """One line a guest, and what went wrong in it."""
    mark = "ok" if cell.good else "not ok"
    print(f"{mark} - {cell.kernel} ({cell.release}) {cell.flavour} header {cell.header} page table "
          f"{cell.version}: {cell.passed} passed, {len(cell.failed)} failed, {cell.seconds} s, at "
          f"{cell.commit}", flush=True)  # fmt: skip
    for what, lines in (("failed", cell.failed), ("kernel log", cell.splats),
                        ("GPL-only symbol", cell.gpl_only)):  # fmt: skip
        for line in lines[:20]:
            print(f"#   {what}: {line}")
    if not cell.finished:
        print("#   the guest did not finish")


HEADERS = ("own", "470", "535", "550")


def cells() -> list[Cell]:
    """Every kernel x nv-p2p layer: ours, with page tables 2.0, and the source of each driver, which writes
    its own, 1.2; 470 was never open. And the special machines, with two layers. In an order in which any
    few that follow differ much."""
    found = []
    plain = [name for name, (kernel, words) in packages.MACHINES.items() if name == kernel and "-" not in name]
    # of build.FLAVOURS, for the kernels in turn
    flavours = {"own": (0, 0), "470": (1, 1), "535": (0, 1), "550": (1, 0)}
    for round_, header in enumerate(HEADERS):
        for i in range(len(plain)):
            k = (i + round_) % len(plain)
            flavour = build.FLAVOURS[flavours[header][k % 2]]
            found.append(Cell(plain[k], flavour, header, VERSIONS["2.0" if header == "own" else "1.2"]))
    for round_, header in enumerate(("own", "550")):
        for i, special in enumerate(m for m in packages.MACHINES if m not in plain):
            flavour = build.FLAVOURS[(i + round_) % 2]
            found.append(Cell(special, flavour, header, VERSIONS["2.0" if header == "own" else "1.2"]))
    return found


def commit() -> str:
    """What is checked out, marked where it was changed."""
    return run(["git", "-C", ROOT, "describe", "--always", "--dirty", "--exclude=*"]).strip()


def sources() -> str:
    """A hash of all that a cell's result depends on in this checkout."""
    files = [ROOT / "Kbuild", *(ROOT / "p2pmod").rglob("*"), *(ROOT / "tests/vm/standin").rglob("*"),
             *(ROOT / "tests/vm/selftests").rglob("*")]  # fmt: skip
    text = b"".join(str(f.relative_to(ROOT)).encode() + f.read_bytes() for f in sorted(files)
                    if f.suffix in ("", ".c", ".h") and f.is_file())  # fmt: skip
    return hashlib.sha256(text).hexdigest()[:12]


def run_cells(wanted: list[Cell], kept: dict[str, Cell] | None = None) -> list[Cell]:
    """Cells, two guests at a time (GPUDIRECT_LAB_GUESTS); what they need is fetched before. In ``kept`` is
    what other runs found: good results of the same sources are taken from there, new ones kept."""
    prepare()
    done = [kept[c.name] for c in wanted if kept and c.name in kept and kept[c.name].good
            and kept[c.name].sources == sources()]  # fmt: skip
    for cell in done:
        show(cell)
    wanted = [c for c in wanted if c.name not in {d.name for d in done}]
    for name in {c.kernel for c in wanted}:
        machine(name)
    for header in {c.header for c in wanted} - {"own"}:
        for flavour in packages.DRIVERS[header]:
            packages.driver_source(header, flavour)
    build.tests()

    def work(cell: Cell) -> Cell:
        cell.commit, cell.sources = commit(), sources()
        try:
            guest(cell)
        except LabError as e:
            cell.failed = (str(e)[-1500:],)
        show(cell)
        if kept is not None:
            with keeping:
                kept[cell.name] = cell
                RESULTS.mkdir(parents=True, exist_ok=True)
                MATRIX.write_text(json.dumps([vars(c) for c in kept.values()], indent=1))
        return cell

    keeping = threading.Lock()
    with ThreadPoolExecutor(int(os.environ.get("GPUDIRECT_LAB_GUESTS", "2"))) as pool:
        return done + list(pool.map(work, wanted))


MATRIX = RESULTS / "matrix.json"


def kept_cells() -> dict[str, Cell]:
    """What earlier runs of the matrix found."""
    told = json.loads(MATRIX.read_text()) if MATRIX.exists() else []
    names = {f.name for f in fields(Cell)}
    found = (Cell(**{k: v for k, v in one.items() if k in names}) for one in told)
    return {c.name: c for c in found}


def matrix(most: str = "1000") -> int:
    """All cells. One that is interrupted goes on where it was, as long as the sources are the same; or give
    the number of cells to run this time."""
    kept, wanted = kept_cells(), cells()
    missing = [c for c in wanted if not (c.name in kept and kept[c.name].good
                                         and kept[c.name].sources == sources())]  # fmt: skip
    later = {c.name for c in missing[int(most) :]}
    done = run_cells([c for c in wanted if c.name not in later], kept)
    bad = sum(not c.good for c in done)
    if later:
        print(f"not ok - {len(later)} of {len(wanted)} cells are still to be run")
    return report(len(done) - bad, bad + len(later))


FULL = ROOT / "results" / "p2pmod-full.txt"


def full(*names: str) -> int:
    """Everything, into results/p2pmod-full.txt: what is there of the same sources, and was good, is kept, so
    one that is interrupted goes on where it was. Suites that are named are run in any case."""
    suites: dict[str, Callable[[], int]] = {
        "static": static, "matrix": matrix, "debug": debug, "clang": clang, "arm64": machines.arm64,
        "compilers": machines.compilers, "dkms": machines.dkms, "quick": quick,
    }  # fmt: skip
    told = sections(FULL.read_text()) if FULL.exists() else {}
    for name in names or [n for n in suites if not good_section(told.get(n, ""))]:
        start, said = time.time(), io.StringIO()
        with contextlib.redirect_stdout(_Both(sys.stdout, said)):
            try:
                suites[name]()
            except LabError as e:
                print(f"not ok - {e}")
                report(0, 1)
        minutes = (time.time() - start) / 60
        day = time.strftime("%Y-%m-%d", time.gmtime(start))
        told[name] = (f"{name} ({day}, commit {commit()}, sources {sources()}, {os.cpu_count()} cores, "
                      f"{minutes:.0f} minutes)\n\n{said.getvalue().rstrip()}")  # fmt: skip
        FULL.write_text("".join(f"== {told[n]}\n\n" for n in suites if n in told))
    asked = names or tuple(suites)
    good = sum(good_section(told.get(n, "")) for n in asked)
    return report(good, len(asked) - good)


def sections(text: str) -> dict[str, str]:
    """The parts of what ``full`` wrote, by suite."""
    return {s.split()[0]: s.rstrip() for s in re.split(r"^== ", text, flags=re.MULTILINE)[1:]}


def good_section(text: str) -> bool:
    """Did a suite pass, with the sources that are here?"""
    return f"sources {sources()}," in text.partition("\n")[0] and text.endswith(", 0 failed")


class _Both(io.TextIOBase):
    """Text into two streams."""

    def __init__(self, *streams: TextIO) -> None:
        self.streams = streams

    def write(self, text: str) -> int:
        for stream in self.streams:
            stream.write(text)
            stream.flush()
        return len(text)


FUZZ_SECONDS = 2400  # at most
FUZZERS = 2
"""Guests with a part of the fuzzer's calls each, at the same time."""


def larger() -> list[tuple[str, Callable[[], int]]]:
    """What continuous integration runs one of, each time with another part of the matrix."""
    return [
        ("the C tests on the debug kernel", lambda: debug("gcc", "tests")),
        ("arm64", machines.arm64),
        ("dkms", machines.dkms),
        ("failing allocations and the fuzzer on the debug kernel", lambda: debug("gcc", "failing", "fuzz")),
        ("compilers", machines.compilers),
        ("the debug kernel by clang", clang),
    ]


def share(here: int, parts: int) -> list[Cell]:
    """A part's cells. Each round of dealing begins a part later: what alternates in them is in every part."""
    return [cell for i, cell in enumerate(cells()) if (i + i // parts) % parts == here]


def part(number: str = "") -> int:
    """One part of the matrix and one larger suite: as many commits later, the next."""
    if not number:
        number = os.environ.get("GPUDIRECT_LAB_PART") or run(["git", "-C", ROOT, "rev-list", "--count", "HEAD"])
    suites = larger()
    parts = len(suites)
    here = int(number) % parts
    name, suite = suites[here]
    print(f"# part {here} of {parts} (GPUDIRECT_LAB_PART={here} repeats it): cells of the matrix, then {name}",
          flush=True)  # fmt: skip
    done = run_cells(share(here, parts))
    bad = sum(not c.good for c in done)
    status = suite()
    return report(len(done) - bad + (status == 0), bad + (status != 0))


BEGIN, END = "<!-- matrix: made by tests/vm/run table -->", "<!-- matrix end -->"
BEGIN_BESIDE, END_BESIDE = "<!-- gdrdrv: made by tests/vm/run table -->", "<!-- gdrdrv end -->"
BEGIN_COSTS, END_COSTS = "<!-- costs: made by tests/vm/run table -->", "<!-- costs end -->"


def table() -> int:
    """The last matrix as a table in docs/kernel-module.md."""
    kept = kept_cells()
    done = [kept[c.name] for c in cells() if c.name in kept and kept[c.name].sources]
    if not done and not gdrcopy.RESULT.exists():
        raise LabError("there is nothing yet: tests/vm/run matrix, or beside")
    lines = ["| machine | kernel | driver | nv-p2p layer | page table | tests passed | failed | kernel log "
             "| commit |", "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    costs = ["| machine | driver | costs | lookup |", "| --- | --- | --- | --- |"]
    for c in done:
        version = next(k for k, v in VERSIONS.items() if v == c.version)
        log = "clean" if not c.splats else f"{len(c.splats)} lines"
        layer = "ours" if c.header == "own" else f"{c.header}'s own source"
        lines.append(f"| {c.kernel} | {c.release} | {c.flavour} | {layer} | {version} | {c.passed} "
                     f"| {len(c.failed)} | {log if c.finished else 'did not finish'} "
                     f"| {c.commit} |")  # fmt: skip
        if c.header != "own":
            continue
        said = (RESULTS / f"{c.name}.log").read_text().splitlines()
        told = {k: next((x.partition(k)[2].strip() for x in said if k in x), "")
                for k in ("# cost ns:", "# lookup:")}  # fmt: skip
        costs.append(f"| {c.kernel} | {c.flavour} | {told['# cost ns:']} | {told['# lookup:']} |")
    page = ROOT / "docs" / "kernel-module.md"
    text = page.read_text()
    parts = [(BEGIN, END, lines), (BEGIN_COSTS, END_COSTS, costs)] if done else []
    if gdrcopy.RESULT.exists():
        parts.append((BEGIN_BESIDE, END_BESIDE, gdrcopy.tables(json.loads(gdrcopy.RESULT.read_text()))))
    for begin, end, rows in parts:
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = before + begin + "\n" + "\n".join(rows) + "\n" + end + after
    page.write_text(text)
    return 0


def one(kernel: str = "6.1", flavour: str = "open", header: str = "own", test: str = "") -> int:
    """One guest, its console shown."""
    prepare()
    there, words = machine(kernel)
    if test.startswith("tests/"):  # Python's
        result = python_suite(there, test)
        print(result.text)
        good = "suite-exit-0" in result.text and result.finished and not result.splats
        return report(int(good), int(not good))
    modules = build.modules(there, flavour, header)
    script = test_script(VERSIONS["1.2"])
    if test:
        alone = test.split()[0] in UNLOADING
        script = f"export ROUNDS={os.environ['ROUNDS']}\n" if "ROUNDS" in os.environ else ""
        script += LOAD.format(version=VERSIONS["1.2"])
        script += f"{ALONE}/lab/{test}\n" if alone else f"{CLIENTS}/lab/{test}\n{NO_CLIENTS}"
        script += UNLOAD
    result = boot.boot(there, files_of(modules, build.tests(there.architecture)), script, timeout=900,
                       append=words)  # fmt: skip
    print(result.text)
    for line in result.splats:
        print(f"# kernel log: {line}")
    return report(len(result.passed), len(result.failed) + len(result.splats) + (not result.finished))


def beside(option: str = "", folder: str = "", kernel: str = "6.1") -> int:
    """p2pmod beside the gdrdrv of a checkout of GDRCopy, on the same stand-in."""
    if option != "--gdrcopy" or not folder:
        raise LabError("say where GDRCopy's sources are: tests/vm/run beside --gdrcopy FOLDER [KERNEL]")
    prepare()
    there = packages.kernel(kernel)
    result = gdrcopy.measure(there, Path(folder))
    good = "ok 1 beside" in result.passed or "beside" in result.passed
    if not good:
        print(result.text[-6000:])
    else:
        print("\n".join(gdrcopy.tables(gdrcopy.keep(there, result))))
    return report(int(good), int(not good))


# -- the Python suite inside a guest ---------------------------------------------------------

# in CI, beside what every bridge must do: windows, calls from the kernel, and what uses arrays as a
# program does
PROGRAMS = " ".join(
    ["tests/bridges/test_windows.py", "tests/vm/guest"]
    + [f"tests/unit/test_{name}.py"
       for name in ("aperture", "bad_input", "bridges", "calibration", "examples", "kernels")]
)  # fmt: skip


def quick() -> int:
    """The distribution's own kernel: C tests, then what every bridge must do, over /dev/p2pmod."""
    prepare()
    cell = Cell("6.1", "open", "own", VERSIONS["1.2"])
    guest(cell)
    show(cell)
    passed, failed = cell.passed, len(cell.failed) + len(cell.splats) + (not cell.finished)
    good = over_p2pmod(BRIDGES)
    return report(passed + good, failed + (not good))


def programs() -> int:
    """More of the Python suite over /dev/p2pmod: a quarter of an hour that a newcomer has not."""
    prepare()
    good = over_p2pmod(PROGRAMS)
    return report(int(good), int(not good))


# -- the debug kernel ------------------------------------------------------------------------


def debug(compiler: str = "gcc", *only: str) -> int:
    """C tests, failing allocations, and the fuzzer, on a kernel that looks for mistakes; or some of these:
    tests, failing, fuzz."""
    prepare()
    start = time.monotonic()
    kernel = debugkernel.kernel(compiler)
    took = time.monotonic() - start
    print(f"# debug kernel {kernel.release}, built with {compiler}, ready after {took:.0f} s", flush=True)
    modules = build.modules(kernel, "open", "own", ("KCFLAGS=-g",))
    files = files_of(modules, build.tests(kernel.architecture))
    calls = int(os.environ.get("GPUDIRECT_FUZZ_CALLS", "100000"))
    seed = int(os.environ.get("GPUDIRECT_FUZZ_SEED", "1605"))
    load = LOAD.format(version=VERSIONS["1.2"]) + CLIENTS
    parts = [("tests", "C tests", test_script(VERSIONS["1.2"])),
             ("failing", "failing allocations", f"{load}/lab/failnth\n{NO_CLIENTS}{UNLOAD}")]  # fmt: skip
    for i in range(FUZZERS if calls else 0):
        words = f"{seed + i} {calls // FUZZERS} {FUZZ_SECONDS} 4"
        parts.append(("fuzz", f"fuzz {words}", f"{load}/lab/fuzz {words}\n{NO_CLIENTS}{UNLOAD}"))
    leaks = ("echo scan > /sys/kernel/debug/kmemleak; sleep 6; echo scan > /sys/kernel/debug/kmemleak; "
             "cat /sys/kernel/debug/kmemleak\n")  # fmt: skip

    def work(part: tuple[str, str, str]) -> bool:
        kind, name, script = part
        result = boot.boot(kernel, files, script + leaks, timeout=3600, memory=2048)
        bad = [*result.failed, *result.splats] + ([] if result.finished else ["the guest did not finish"])
        good = not bad and bool(result.passed)
        lines = [f"{'ok' if good else 'not ok'} - {name}: {len(result.passed)} passed, {len(result.failed)} "
                 f"failed, {result.seconds:.0f} s"]  # fmt: skip
        lines += [f"#   {line}" for line in bad[:40]]
        lines += [x for x in result.text.splitlines() if x.startswith("# ") and kind != "tests"]
        print("\n".join(lines), flush=True)
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{kernel.series}-{name.replace(' ', '-')}.log").write_text(result.text)
        return good

    with ThreadPoolExecutor(int(os.environ.get("GPUDIRECT_LAB_GUESTS", "2"))) as pool:
        good = list(pool.map(work, [p for p in parts if not only or p[0] in only]))
    return report(sum(good), len(good) - sum(good))


def clang() -> int:
    """The C tests on the debug kernel, it and the module built with clang."""
    return debug("clang", "tests")


def static() -> int:
    """sparse, checkpatch and the licence of every symbol."""
    prepare()
    kernel = packages.kernel("6.1")
    checks: list[tuple[str, Callable[[], list[str]]]] = [
        ("sparse", lambda: build.sparse(kernel)),
        ("checkpatch", build.checkpatch),
        ("the symbol check, on a module that needs pgprot_writecombine",
         lambda: build.planted_symbol(kernel)),
        ("MOVDIR64B, written in bytes", lambda: build.store64(kernel)),
    ]
    failed = 0
    for name, check in checks:
        lines = check()
        print(f"{'not ok' if lines else 'ok'} - {name}: {len(lines)} complaints", flush=True)
        for line in lines[:40]:
            print(f"#   {line}")
        failed += bool(lines)
    return report(len(checks) - failed, failed)

