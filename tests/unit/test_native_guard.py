"""Revocation in the middle of anything: a mapping whose pages are gone gives -EFAULT, no crash."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gpudirect._native import ffi, lib
from gpudirect.bench._native import lib as bench

ROOT = Path(__file__).resolve().parents[2]
PAGE = 4096
PAGES = 512
KEPT = 200  # pages that stay
GONE = KEPT * PAGE


class Revoked:
    """A mapping of PAGES pages, of which those from KEPT on vanish: truncated, or replaced."""

    def __init__(self, how: str) -> None:
        self.size = PAGES * PAGE
        self.fd = os.memfd_create("revoked")
        os.ftruncate(self.fd, self.size)
        self.at = int(lib.gd_map(0, self.size, 1, 1, self.fd, 0, 0))
        assert self.at > 0
        assert lib.gd_fill(self.at, 1, self.size, 0) == 0
        if how == "truncated":
            os.ftruncate(self.fd, GONE)
        else:
            assert lib.gd_reserve(self.at + GONE, self.size - GONE, 0) == self.at + GONE

    def close(self) -> None:
        lib.gd_unmap(self.at, self.size)
        os.close(self.fd)


@pytest.fixture(params=["truncated", "replaced"])
def revoked(request: pytest.FixtureRequest) -> Iterator[Revoked]:
    mapping = Revoked(request.param)
    yield mapping
    mapping.close()


@pytest.fixture
def threads() -> Iterator[None]:
    assert lib.gd_threads_configure(4, ffi.NULL, 0, ffi.new("struct gd_thresholds *", [4096] * 4)) == 0
    yield
    assert lib.gd_threads_configure(1, ffi.NULL, 0, ffi.new("struct gd_thresholds *", [1 << 20] * 4)) == 0


memory = np.full(PAGES * PAGE + 200, 2, np.uint8)
BUFFER = ffi.cast("char *", memory.ctypes.data)
USABLE = [
    ffi.string(lib.gd_isa_name(i)).decode()
    for i in range(lib.gd_isa_count())
    if lib.gd_isa_usable(i)
]


def check_fault(code: int, revoked: Revoked, from_page: int = KEPT) -> None:
    assert code == -errno.EFAULT
    where = lib.gd_fault_address() - revoked.at
    assert from_page * PAGE <= where < revoked.size, where


@pytest.mark.parametrize("isa", USABLE)
def test_every_copy_in_every_instruction_set(revoked, isa):
    lib.gd_isa_select(isa.encode())
    try:
        for n in (1, 8, 63, 64, 65, 300, 5000, 100_000):
            for at in (GONE - n + 1, GONE, GONE + 17, GONE + 64):
                check_fault(lib.gd_write(revoked.at + at, BUFFER, n, lib.GD_GUARDED), revoked)
                check_fault(lib.gd_read(BUFFER, revoked.at + at, n, lib.GD_GUARDED), revoked)
                check_fault(lib.gd_fill(revoked.at + at, 3, n, lib.GD_GUARDED), revoked)
            # what is still there can be used
            at = revoked.at + GONE - n
            assert lib.gd_write(at, BUFFER, n, lib.GD_GUARDED) == 0
            assert lib.gd_read(BUFFER, at, n, lib.GD_GUARDED) == 0
    finally:
        lib.gd_isa_select(ffi.NULL)
        memory[:] = 2


def test_strided_and_scattered(revoked):
    strides, other = ffi.new("int64_t[]", [PAGE, 4]), ffi.new("int64_t[]", [4, 2048])
    shape = ffi.new("int64_t[]", [PAGES, 1000])
    flags = lib.GD_GUARDED
    check_fault(lib.gd_write_nd(revoked.at, strides, BUFFER, other, shape, 2, 4, flags), revoked)
    check_fault(lib.gd_read_nd(BUFFER, other, revoked.at, strides, shape, 2, 4, flags), revoked)
    pieces = ffi.new("struct gd_piece[]", 2)
    for i, offset in enumerate((0, GONE)):
        pieces[i].offset, pieces[i].length, pieces[i].source = offset, 8, memory.ctypes.data
    check_fault(lib.gd_scatter(revoked.at, revoked.size, pieces, 2, flags), revoked)
    offsets = ffi.new("int64_t[]", [0, GONE])
    code = lib.gd_scatter_items(revoked.at, revoked.size, offsets, 2, BUFFER, 8, flags)
    check_fault(code, revoked)


def test_words_and_waits(revoked):
    gone, flags = revoked.at + GONE, lib.GD_GUARDED
    v32, v64 = ffi.new("uint32_t *"), ffi.new("uint64_t *")
    check_fault(lib.gd_store32(gone, 1, flags), revoked)
    check_fault(lib.gd_store64(gone, 1, flags), revoked)
    check_fault(lib.gd_load32(gone, v32, flags), revoked)
    check_fault(lib.gd_load64(gone, v64, flags), revoked)
    check_fault(lib.gd_wait32(gone, 1, -1), revoked)
    check_fault(lib.gd_wait64(gone, 1, -1), revoked)
    here, ns = revoked.at, ffi.new("double[]", 4)
    check_fault(bench.gd_time_pingpong(gone, here, 1, 4, ns, -1), revoked)
    check_fault(bench.gd_time_pingpong(here, gone, 1, 4, ns, -1), revoked)
    check_fault(bench.gd_time_pingpong(gone, gone, 1, 4, ns, -1), revoked)
    # and the guard is gone with them: a later fault elsewhere is not taken for one of these
    assert lib.gd_store32(here, 7, flags) == 0
    assert lib.gd_load32(here, v32, flags) == 0 and v32[0] == 7


def test_a_wait_ends_when_the_word_vanishes():
    fd = os.memfd_create("word")
    os.ftruncate(fd, PAGE)
    at = int(lib.gd_map(0, PAGE, 1, 1, fd, 0, 0))
    codes: list[int] = []
    waiter = threading.Thread(target=lambda: codes.append(lib.gd_wait32(at, 1, 60_000_000_000)))
    waiter.start()
    os.ftruncate(fd, 0)
    waiter.join(60)
    assert codes == [-errno.EFAULT]
    lib.gd_unmap(at, PAGE)
    os.close(fd)


def test_in_the_copy_threads(revoked, threads):
    for _ in range(50):
        n = revoked.size
        check_fault(lib.gd_write(revoked.at, BUFFER, n, lib.GD_GUARDED), revoked)
        check_fault(lib.gd_read(BUFFER, revoked.at, n, lib.GD_GUARDED), revoked)
        check_fault(lib.gd_fill(revoked.at + GONE, 4, n - GONE, lib.GD_GUARDED), revoked)
        assert lib.gd_write(revoked.at, BUFFER, GONE, lib.GD_GUARDED) == 0


def test_revoked_while_threads_copy(threads):
    size = PAGES * PAGE
    for _ in range(30):
        fd = os.memfd_create("going")
        os.ftruncate(fd, size)
        at = int(lib.gd_map(0, size, 1, 1, fd, 0, 0))
        codes: list[int] = []

        def copier(at: int = at, codes: list[int] = codes) -> None:
            while not codes or codes[-1] == 0:
                codes.append(lib.gd_write(at, BUFFER, size, lib.GD_GUARDED))

        copiers = [threading.Thread(target=copier) for _ in range(2)]
        for t in copiers:
            t.start()
        while not codes:
            pass
        os.ftruncate(fd, 0)
        for t in copiers:
            t.join(60)
        assert codes[-1] == -errno.EFAULT
        lib.gd_unmap(at, size)
        os.close(fd)


def test_no_descriptor_stack_or_mask_is_used_up(revoked):
    """The way out of the handler is a jump: 20,000 of them leave nothing behind."""
    for _ in range(20_000):
        assert lib.gd_write(revoked.at + GONE, BUFFER, 64, lib.GD_GUARDED) == -errno.EFAULT
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


HEAD = """
    import faulthandler, os, signal, sys, time
    import numpy as np
    from gpudirect._native import ffi, lib
    fd = os.memfd_create("gone"); os.ftruncate(fd, 8192)
    at = lib.gd_map(0, 8192, 1, 1, fd, 0, 0)
    os.ftruncate(fd, 4096)
    data = np.ones(64, "u1"); source = ffi.cast("char *", data.ctypes.data)
    def guarded(): return lib.gd_write(at + 4096, source, 64, lib.GD_GUARDED)
    def later(): time.sleep(0.001)  # the guard looks every 20 us or so
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    text = textwrap.dedent(HEAD) + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60,
                          cwd=ROOT)  # fmt: skip


@pytest.mark.parametrize("offset", [4096, 1 << 40], ids=["beyond the guard", "nowhere near"])
def test_a_fault_of_somebody_else_still_ends_the_process(offset):
    """Outside the guarded range, or with no guard: the signal does what it always did."""
    done = run(f"""
        assert guarded() == -14
        lib.gd_write(at + {offset}, source, 64, 0)
        print("survived")
    """)
    want = -signal.SIGBUS if offset == 4096 else -signal.SIGSEGV
    assert (done.returncode, done.stdout) == (want, "")


def test_a_bad_source_is_not_taken_for_a_revoked_mapping():
    done = run("""
        assert guarded() == -14
        bad = ffi.cast("char *", lib.gd_reserve(0, 4096, 0))
        lib.gd_write(at, bad, 64, lib.GD_GUARDED)
        print("survived")
    """)
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, "")


def test_an_earlier_handler_gets_what_is_not_ours():
    done = run("""
        faulthandler.enable()
        assert guarded() == -14
        lib.gd_store32(at + 4096, 1, 0)
    """)
    assert done.returncode == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in done.stderr


def test_signals_sent_by_a_process_are_not_faults():
    done = run("""
        assert guarded() == -14
        os.kill(os.getpid(), signal.SIGBUS)
        print("survived")
    """)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "")
    done = run("""
        signal.signal(signal.SIGBUS, signal.SIG_IGN)
        seen = []
        signal.signal(signal.SIGSEGV, lambda *a: seen.append(a))
        assert guarded() == -14
        os.kill(os.getpid(), signal.SIGBUS)
        os.kill(os.getpid(), signal.SIGSEGV)
        assert guarded() == -14
        print("survived", len(seen))
    """)
    assert (done.returncode, done.stdout) == (0, "survived 1\n"), done.stderr


# -- somebody takes the signals after us ---------------------------------------------------------


def test_faulthandler_enabled_later_takes_nothing_away():
    done = run("""
        assert guarded() == -14
        for _ in range(3):
            faulthandler.enable()
            later()
            assert guarded() == -14
            assert lib.gd_load32(at + 4096, ffi.new("uint32_t *"), lib.GD_GUARDED) == -14
            faulthandler.disable()
            later()
            assert guarded() == -14
        print("survived")
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "survived\n", "")


def test_faulthandler_in_front_when_the_fault_comes():
    """Before the next look: it reports, wrongly, and the access comes back all the same."""
    done = run("""
        assert guarded() == -14
        faulthandler.enable()
        assert guarded() == -14
        print("survived")
    """)
    assert (done.returncode, done.stdout) == (0, "survived\n")


def test_faulthandler_enabled_later_still_reports_what_is_not_ours():
    for repeat in range(3):
        done = run(f"""
            assert guarded() == -14
            for _ in range({repeat} + 1):
                faulthandler.enable()
                later()
                assert guarded() == -14
            lib.gd_store32(at + 4096, 1, 0)
        """)
        assert done.returncode == -signal.SIGBUS
        assert done.stderr.count("Fatal Python error: Bus error") == 1, done.stderr


def test_a_handler_of_python_set_later_takes_nothing_away():
    done = run("""
        assert guarded() == -14
        seen = []
        signal.signal(signal.SIGBUS, lambda *a: seen.append(a))
        signal.signal(signal.SIGSEGV, lambda *a: seen.append(a))
        later()
        assert guarded() == -14
        os.kill(os.getpid(), signal.SIGBUS)
        os.kill(os.getpid(), signal.SIGSEGV)
        later()
        assert guarded() == -14
        assert len(seen) == 2, seen
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        later()
        assert guarded() == -14
        print("survived", flush=True)
        os.kill(os.getpid(), signal.SIGBUS)
    """)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "survived\n"), done.stderr


def test_many_handlers_that_pass_on_to_what_they_found():
    """A chain of them: each is told once, the last found first, and then the process ends.

    They put what they found back with signal(), which takes from us what tells of a fault.
    """
    done = run("""
        import ctypes
        libc = ctypes.CDLL(None)
        libc.signal.restype = ctypes.c_void_p
        libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        libc.raise_ = libc["raise"]
        assert guarded() == -14
        kept = []
        def put(name):
            def handler(number):
                os.write(1, b"%d," % name)
                libc.signal(number, found)
                libc.raise_(number)
            kept.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(handler))
            found = libc.signal(signal.SIGBUS, ctypes.cast(kept[-1], ctypes.c_void_p))
        for name in range(3):
            put(name)
            later()
            assert guarded() == -14
        os.kill(os.getpid(), signal.SIGBUS)
        print("survived")
    """)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "2,1,0,"), done.stderr


def test_a_wait_that_goes_on_while_the_handler_is_taken():
    done = run("""
        import threading, time
        os.ftruncate(fd, 8192)
        codes = []
        waiter = threading.Thread(target=lambda: codes.append(lib.gd_wait32(at + 4096, 1, 60_000_000_000)))
        waiter.start()
        time.sleep(0.05)
        faulthandler.enable()
        time.sleep(0.05)
        os.ftruncate(fd, 4096)
        waiter.join()
        print(codes)
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[-14]\n", "")


def test_a_child_of_fork_guards_what_it_maps_itself():
    done = run("""
        assert guarded() == -14
        child = os.fork()
        if not child:
            faulthandler.enable()
            mine = lib.gd_map(0, 8192, 1, 1, fd, 0, 0)
            os._exit(0 if lib.gd_write(mine + 4096, source, 64, lib.GD_GUARDED) == -14 else 1)
        assert os.waitpid(child, 0)[1] == 0
        print("survived")
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "survived\n", "")
