"""The copy threads: right data, no signals of the program, fork, churn, a calm end."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gpudirect._native import ffi, lib

ROOT = Path(__file__).resolve().parents[2]
SMALL = 4096  # threshold: threads for nearly everything
SIZE = 3 << 20


def configure(
    count: int, cpus: list[int] | None = None, write: int = SMALL, read: int = SMALL
) -> int:
    c = ffi.new("int[]", cpus) if cpus else ffi.NULL
    sizes = ffi.new("struct gd_thresholds *", [read, read, write, write])
    return int(lib.gd_threads_configure(count, c, len(cpus or ()), sizes))


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Thresholds out of reach again: other tests copy alone."""
    yield
    while configure(1, write=512 << 10, read=32 << 10) == -errno.EBUSY:
        time.sleep(0.001)


def helpers() -> int:
    """Copy threads of this process."""
    found = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just left
            found += (task / "comm").read_text().strip() == "gpudirect-copy"
    return found


def eventually(condition, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def address(a: np.ndarray) -> int:
    return int(a.__array_interface__["data"][0])


def char(at: int):
    return ffi.cast("char *", at)


def write(to: np.ndarray, data: np.ndarray, flags: int = 0) -> int:
    return int(lib.gd_write(address(to), char(address(data)), data.nbytes, flags))


@pytest.mark.parametrize("count", [2, 3, 5, 16])
def test_threads_copy_everything_once_at_any_alignment(count):
    assert configure(count) == 0
    assert lib.gd_threads_count() == count
    source = np.random.default_rng(count).integers(0, 256, SIZE, np.uint8)
    target, back = np.zeros(SIZE + 200, np.uint8), np.zeros(SIZE + 200, np.uint8)
    for n in (SMALL, SMALL + 1, 50_001, 65_536, 1 << 20, SIZE - 100):
        for at in (0, 1, 33, 63, 64):
            for o in (0, 7):
                target[:] = back[:] = 0xA5
                assert write(target[64 + at :], source[o : o + n]) == 0
                assert np.array_equal(target[64 + at : 64 + at + n], source[o : o + n])
                assert (target[: 64 + at] == 0xA5).all() and (target[64 + at + n :] == 0xA5).all()
                to, from_ = char(address(back) + 64 + o), address(target) + 64 + at
                assert lib.gd_read(to, from_, n, 0) == 0
                assert np.array_equal(back[64 + o : 64 + o + n], source[o : o + n])
                assert (back[: 64 + o] == 0xA5).all() and (back[64 + o + n :] == 0xA5).all()
    target[:] = 0xA5
    assert lib.gd_fill(address(target) + 3, 0x5A, SIZE, 0) == 0
    assert (target[3 : 3 + SIZE] == 0x5A).all()
    assert (target[:3] == 0xA5).all() and (target[3 + SIZE :] == 0xA5).all()
    assert helpers() == count - 1


def test_threads_start_on_first_need_and_stay():
    assert configure(4) == 0
    assert eventually(lambda: helpers() == 0)
    data, target = np.ones(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    write(target[: SMALL - 1], data[: SMALL - 1])
    write(target, data, lib.GD_ONE_THREAD)
    assert helpers() == 0
    for _ in range(3):
        assert write(target, data) == 0
        assert helpers() == 3
    time.sleep(0.01)  # asleep by now
    target[:] = 0
    assert write(target, data) == 0
    assert target.all()


def test_reconfiguration_takes_effect_and_leaves_no_thread_behind():
    data, target = np.ones(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    for count in (6, 2, 9, 1, 3, 3, 1) * 5:
        assert configure(count) == 0
        target[:] = 0
        assert write(target, data) == 0
        assert target.all()
        assert eventually(lambda wanted=count - 1: helpers() == wanted), (helpers(), count)


def test_threads_run_where_they_are_told():
    cpu = max(os.sched_getaffinity(0))
    assert configure(3, [cpu]) == 0
    data, target = np.ones(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    assert write(target, data) == 0
    found = [
        os.sched_getaffinity(int(task.name))
        for task in Path("/proc/self/task").iterdir()
        if (task / "comm").read_text().strip() == "gpudirect-copy"
    ]
    assert found == [{cpu}] * 2


def test_nonsense_is_refused():
    assert configure(0) == -errno.EINVAL
    assert configure(65) == -errno.EINVAL
    assert configure(2, [-1]) == -errno.EINVAL
    assert configure(2, [1 << 20]) == -errno.EINVAL
    sizes = ffi.new("struct gd_thresholds *", [SMALL] * 4)
    assert lib.gd_threads_configure(2, ffi.NULL, 3, sizes) == -errno.EINVAL
    assert lib.gd_threads_configure(2, ffi.NULL, 0, ffi.NULL) == -errno.EINVAL


def test_many_callers_at_once():
    """One has the threads; the others copy alone, and all is right."""
    assert configure(4) == 0
    failures = []

    def caller(seed: int) -> None:
        rng = np.random.default_rng(seed)
        source = rng.integers(0, 256, SIZE, np.uint8)
        target = np.zeros(SIZE, np.uint8)
        for _ in range(40):
            n, at = int(rng.integers(1, SIZE // 2)), int(rng.integers(0, SIZE // 2))
            target[at : at + n] = 0
            write(target[at:], source[at : at + n], int(rng.choice([0, lib.GD_GUARDED])))
            if not np.array_equal(target[at : at + n], source[at : at + n]):
                failures.append((seed, at, n))

    callers = [threading.Thread(target=caller, args=(i,)) for i in range(6)]
    for t in callers:
        t.start()
    while any(t.is_alive() for t in callers):  # churn while they copy: -EBUSY or done
        assert configure(2 + time.monotonic_ns() % 4) in (0, -errno.EBUSY)
        time.sleep(0.002)
    for t in callers:
        t.join()
    assert failures == []


def script(code: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    head = """
        import os, signal, sys, threading, time
        import numpy as np
        from pathlib import Path
        from gpudirect._native import ffi, lib
        def names():
            return [p.read_text().strip() for p in Path("/proc/self/task").glob("*/comm")]
        data, target = np.ones(3 << 20, "u1"), np.zeros(3 << 20, "u1")
        def copy():
            target[:] = 0
            code = lib.gd_write(target.ctypes.data, ffi.cast("char *", data.ctypes.data),
                                data.nbytes, 0)
            assert code == 0 and target.all(), code
        assert lib.gd_threads_configure(
            4, ffi.NULL, 0, ffi.new("struct gd_thresholds *", [4096] * 4)
        ) == 0
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code)],
        capture_output=True, text=True, timeout=timeout, cwd=ROOT,
    )  # fmt: skip


def test_a_child_of_fork_starts_its_own():
    run = script("""
        copy()
        going = True
        def busy():
            while going: copy_other()
        other = np.zeros(3 << 20, "u1")
        def copy_other():
            lib.gd_write(other.ctypes.data, ffi.cast("char *", data.ctypes.data), data.nbytes, 0)
        t = threading.Thread(target=busy); t.start()
        for i in range(30):     # some of them while another thread's copy has the pool
            pid = os.fork()
            if pid == 0:
                signal.alarm(60)
                assert names().count("gpudirect-copy") == 0
                for _ in range(3): copy()
                assert names().count("gpudirect-copy") == 3, names()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0, i
        going = False
        t.join()
        print("fine")
    """)
    assert (run.returncode, run.stdout) == (0, "fine\n"), run.stderr


@pytest.mark.parametrize("end", ["pass", "os._exit(0)", "sys.exit(0)", "time.sleep(0.01)"])
def test_the_process_ends_while_threads_spin_or_sleep(end):
    run = script(f"copy()\n{end}\n")
    assert (run.returncode, run.stderr) == (0, "")


def test_the_process_ends_in_the_middle_of_a_copy():
    run = script("""
        big, to = np.ones(64 << 20, "u1"), np.zeros(64 << 20, "u1")
        def busy():
            while True:
                lib.gd_write(to.ctypes.data, ffi.cast("char *", big.ctypes.data), big.nbytes, 0)
        threading.Thread(target=busy, daemon=True).start()
        time.sleep(0.05)
    """)
    assert (run.returncode, run.stderr) == (0, "")


def test_signals_of_the_program_do_not_land_on_copy_threads():
    run = script("""
        copy()
        def wrong():
            found = []
            for task in Path("/proc/self/task").iterdir():
                if (task / "comm").read_text().strip() != "gpudirect-copy": continue
                status = (task / "status").read_text().splitlines()
                mask = int([l for l in status if "SigBlk" in l][0].split()[1], 16)
                for s in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1):
                    if not mask >> (s - 1) & 1: found.append((s, "comes"))
                for s in (signal.SIGBUS, signal.SIGSEGV):
                    if mask >> (s - 1) & 1: found.append((s, "is blocked"))
            return found
        for _ in range(1000):     # while it starts, a thread has everything blocked
            if not wrong(): break
            time.sleep(0.05)
        assert not wrong(), wrong()
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())   # ours is as it was
        print("fine")
    """)
    assert (run.returncode, run.stdout) == (0, "fine\n"), run.stderr


def test_copies_in_a_row_use_threads_from_smaller_sizes_on():
    """One that comes alone would have to wake them; the next, right behind it, finds them awake."""
    target, source = np.zeros(SMALL, np.uint8), np.ones(SMALL, np.uint8)
    sizes = ffi.new("struct gd_thresholds *", [SIZE, SIZE, SMALL, SIZE])
    assert lib.gd_threads_configure(2, ffi.NULL, 0, sizes) == 0
    assert eventually(lambda: helpers() == 0)

    def write() -> None:
        pointer = ffi.cast("char *", address(source))
        assert lib.gd_write(address(target), pointer, SMALL, 0) == 0

    for _ in range(20):
        time.sleep(0.001)
        write()
    assert helpers() == 0, "a copy that came alone started threads"
    for _ in range(1000):
        write()
    assert helpers() == 1, "copies in a row used one thread"
