"""The lab's judgement of a kernel's log: what must be found, and what must not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vm" / "lab"))

import userland

import boot
import build
import packages
import suites

PLANTED = [
    "[    5.1] BUG: KASAN: use-after-free in free_callback+0x12/0x80 [p2pmod]",
    "[    5.1] BUG: sleeping function called from invalid context at kernel/locking/mutex.c:580",
    "[    5.1] WARNING: possible circular locking dependency detected",
    "[    5.1] WARNING: CPU: 1 PID: 77 at mm/util.c:644 kvmalloc_node+0x1/0x2",
    "[    5.1] kernel BUG at mm/memory.c:2229!",
    "[    5.1] general protection fault, probably for non-canonical address 0x5a5a5a5a5a5a5a5a",
    "[    5.1] BUG: unable to handle page fault for address: ffffc90000a4f000",
    "[    5.1] kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
    "unreferenced object 0xffff888012345678 (size 128):",
    "[    5.1] refcount_t: underflow; use-after-free.",
    "[    5.1] list_del corruption. prev->next should be ffff8880",
    "[    5.1] INFO: task p2pmod:77 blocked for more than 120 seconds.",
    "[    5.1] watchdog: BUG: soft lockup - CPU#1 stuck for 26s!",
    "[    5.1] x86/PAT: p2pmod:77 freeing invalid memtype [mem 0xe0000000-0xe000ffff]",
    "[    5.1] x86/PAT: p2pmod:77 conflicting memory types e0000000-e0010000",
    "[    5.1] p2pmod: Unknown symbol pgprot_writecombine (err -2)",
    "[    5.1] Call Trace:",
    "[    5.1] Kernel panic - not syncing: Fatal exception",
    "[    5.1] rcu: INFO: rcu_preempt self-detected stall on CPU",
    "[    5.1] BUG: Bad page map in process p2pmod  pte:80000000e0000227",
    "[    5.1] ODEBUG: free active (active state 0) object type: timer_list",
]

HARMLESS = [
    "[    2.1] nvidia: loading out-of-tree module taints kernel.",
    "[    2.1] nvidia: module verification failed: signature and/or required key missing",
    "[    2.4] p2pmod[123]: segfault at 7f77f723f000 ip 0000000000403a40 sp 00007ffdf36df2b0 error 6",
    "ok 22 a_child_inherits_no_mapping",
    "[    6.1] reboot: Power down",
    "[    0.0] kmemleak: Kernel memory leak detector initialized (mem pool available: 15679)",
]


@pytest.mark.parametrize("line", PLANTED)
def test_every_kind_of_complaint_is_found(line):
    assert boot.splats(f"boot\n{line}\npower off") == [line.strip()]


@pytest.mark.parametrize("line", HARMLESS)
def test_what_is_harmless_is_not(line):
    assert boot.splats(line) == []


def test_a_guest_that_stopped_early_is_not_good():
    good = boot.Result("", 1.0, finished=True, passed=["a"])
    assert good.good
    assert not boot.Result("", 1.0, finished=False, passed=["a"]).good
    assert not boot.Result("", 1.0, finished=True).good, "nothing ran"
    assert not boot.Result("", 1.0, finished=True, passed=["a"], failed=["b"]).good
    assert not boot.Result("", 1.0, finished=True, passed=["a"], splats=["BUG:"]).good


def test_a_full_run_goes_on_where_it_was():
    good = f"static (2026-01-01, sources {suites.sources()}, 2 cores)\n\nok\n4 passed, 0 failed"
    told = suites.sections(f"== {good}\n\n== debug (2026-01-01)\n\nnot ok\n1 passed, 2 failed\n\n")
    assert suites.good_section(told["static"])
    assert not suites.good_section(told["debug"])
    assert not suites.good_section(told["static"].replace("4 passed, 0 failed", "4 passed, 10 failed"))
    assert not suites.good_section(told["static"].replace(suites.sources(), "0" * 12)), "of other sources"


def test_cells_of_the_same_sources_are_kept(monkeypatch, tmp_path):
    one, other = suites.cells()[:2]
    monkeypatch.setattr(suites, "MATRIX", tmp_path / "matrix.json")
    monkeypatch.setattr(suites, "RESULTS", tmp_path)
    for name in ("prepare", "machine"):
        monkeypatch.setattr(suites, name, lambda *a: None)
    monkeypatch.setattr(suites.build, "tests", lambda: None)
    monkeypatch.setattr(suites.packages, "driver_source", lambda *a: None)
    ran = []

    def guest(cell):
        ran.append(cell.name)
        cell.finished, cell.passed = True, 3

    monkeypatch.setattr(suites, "guest", guest)
    suites.run_cells([one], suites.kept_cells())
    done = suites.run_cells(suites.cells()[:2], suites.kept_cells())
    assert [c.name for c in done] == [one.name, other.name] and ran == [one.name, other.name]
    assert all(c.good and c.commit for c in suites.kept_cells().values())
    monkeypatch.setattr(suites, "sources", lambda: "others")
    suites.run_cells([suites.cells()[0]], suites.kept_cells())
    assert ran[2:] == [one.name]


def test_the_matrix_meets_every_machine_flavour_header_and_page_table():
    cells = suites.cells()
    assert {c.kernel for c in cells} == set(packages.MACHINES)
    for machine in packages.MACHINES:
        mine = [c for c in cells if c.kernel == machine]
        assert {c.flavour for c in mine} == set(build.FLAVOURS), machine
        assert {c.version for c in mine} == set(suites.VERSIONS.values()), machine
    for kernel in ("5.10", "6.1", "6.12", "7.2", "7.3"):
        assert {c.header for c in cells if c.kernel == kernel} == set(suites.HEADERS), kernel


def test_the_parts_of_continuous_integration_make_up_the_matrix():
    cells, count = suites.cells(), len(suites.larger())
    parts = [suites.share(i, count) for i in range(count)]
    assert sum(map(len, parts)) == len(cells)
    for part in parts:
        assert len(part) <= 6, "two guests at a time, a minute and a half each, beside a larger suite"
        assert {c.flavour for c in part} == set(build.FLAVOURS)
        assert {c.version for c in part} == set(suites.VERSIONS.values())
        assert len({c.kernel for c in part}) >= 3


def test_a_machine_that_there_is_not_is_named():
    with pytest.raises(packages.LabError, match=r"no machine '4\.19'.*6\.12-rt"):
        suites.machine("4.19")


def test_a_user_land_is_unpacked_once_and_anew_when_its_packages_change(tmp_path, monkeypatch):
    for module in (userland, packages):
        monkeypatch.setattr(module, "CACHE", tmp_path)
    asked = []

    class Apt:
        def __init__(self, architecture):
            assert architecture == "arm64"

        def closure(self, suite, names, debs, into):
            asked.append(list(names))
            debs.mkdir()
            (into / userland.LIBRARIES).mkdir(parents=True)

    monkeypatch.setattr(userland, "Apt", Apt)
    root = userland._unpacked()
    assert userland._unpacked() == root and asked == [userland.PACKAGES]
    assert (root / "checkout").is_dir(), "a guest cannot make it: the folder is read-only there"
    monkeypatch.setattr(userland, "PACKAGES", ["python3"])
    userland._unpacked()
    assert asked[1:] == [["python3"]]


def test_what_was_built_for_one_python_alone_goes_into_no_guest(tmp_path, monkeypatch):
    (tmp_path / "usr/include/python3.13").mkdir(parents=True)
    made = []

    def build_extensions(command, **how):
        assert how["env"]["CC"] == "aarch64-linux-gnu-gcc"
        folder = Path(command[command.index("--build-lib") + 1], "gpudirect", "_native")
        folder.mkdir(parents=True)
        (folder / made[-1]).touch()

    monkeypatch.setattr(userland, "run", build_extensions)
    monkeypatch.setattr(build, "work_folder", lambda name: tmp_path / f"work{len(made)}")
    made.append("_cffi.abi3.so")
    assert (userland._cross_built(tmp_path) / "gpudirect/_native/_cffi.abi3.so").exists()
    made.append("_cffi.cpython-310-x86_64-linux-gnu.so")
    with pytest.raises(packages.LabError, match=r"cpython-310.*Python 3\.11 or later"):
        userland._cross_built(tmp_path)
