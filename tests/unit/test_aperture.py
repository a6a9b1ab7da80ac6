"""The aperture's account and windows mapped on demand, where it takes a device that can be bent."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from waiting import HOLD, until

import gpudirect as gd
from gpudirect import _native, aperture
from gpudirect._keeper import TRIES, keeper
from gpudirect._transfer import ondemand
from gpudirect.bridges.emulated import EmulatedBridge, EmulatedMapping
from gpudirect.devices import _shared
from gpudirect.devices.emulation.memory import StandIn

ROOT = Path(__file__).resolve().parent.parent.parent
MIB = 1 << 20


@pytest.fixture(autouse=True)
def emulated():
    gd.use(device="emulated", bridge="emulated")
    gc.collect()
    gd.trim()
    yield aperture.account(gd.device())
    gc.collect()
    gd.trim()
    aperture.set_budget(None, gd.device())
    gd.use()


def program(source: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True, timeout=60,
        cwd=ROOT, env={**os.environ, "GPUDIRECT_DEVICE": "emulated", "GPUDIRECT_BRIDGE": "emulated",
                       **environment},
    )  # fmt: skip


def test_the_budget_comes_from_the_environment():
    run = program(
        """
        import gpudirect as gd
        from gpudirect import aperture
        small, large = gd.zeros(MIB := 1 << 20, "u1"), gd.zeros(20 * MIB, "u1")
        print(small), print(large)
        use, = aperture.use()
        assert use.budget == 16 * MIB and use.arrays == 2 * MIB == use.total, use
        large.write(bytes(20 * MIB))
        use, = aperture.use()
        assert 0 < use.automatic and use.total <= use.peak <= 16 * MIB, use
        assert "16777216 (GPUDIRECT_APERTURE)" in str(use) and "mapped on demand" in str(use)
        """,
        GPUDIRECT_APERTURE="16M",
    )
    assert run.returncode == 0, run.stderr
    assert ["not mapped" in line for line in run.stdout.splitlines()] == [False, True]


@pytest.mark.parametrize("bad", ["many", "-1", "100", "1.5G"])
def test_a_budget_that_is_none(bad):
    run = program("import gpudirect as gd; gd.empty(10)", GPUDIRECT_APERTURE=bad)
    assert "ArgumentError: GPUDIRECT_APERTURE is" in run.stderr, run.stderr


def test_an_array_larger_than_bar1_is_left_to_windows():
    run = program(
        """
        import gpudirect as gd, numpy as np
        a = gd.empty(20 << 20, "u1")
        assert "not mapped" in repr(a)
        want = np.random.default_rng(1).integers(0, 256, 20 << 20, np.uint8)
        a.write(want, via="map")
        assert np.array_equal(a.read(), want)
        print(gd.device().aperture())
        """,
        GPUDIRECT_EMULATED_BAR1="8M",
    )
    assert run.returncode == 0, run.stderr


def test_info_shows_the_account():
    command = [sys.executable, "-m", "gpudirect", "info"]
    environment = {**os.environ, "GPUDIRECT_DEVICE": "emulated", "GPUDIRECT_APERTURE": "48M"}
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert "50331648 bytes (GPUDIRECT_APERTURE)" in shown.stdout, shown.stdout + shown.stderr
    run = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert json.loads(run.stdout)["aperture"][0]["budget"] == 48 << 20


def test_every_kind_of_mapping_is_on_the_account(emulated):
    before = emulated.use()
    a = gd.empty(4 * MIB, "u1", pool=False)
    b = gd.register(a.ptr + 100, 5000)
    c = gd.empty(64 * MIB, "u1", mapped=False)
    w = c.window(1, 4096)
    c.write(bytes(MIB), 32 * MIB)
    use = emulated.use()
    assert use.arrays - before.arrays == 4 * MIB
    assert use.registered == 8192 and use.windows == 8192 and use.automatic > 0
    assert use.total == gd.device().aperture().used
    for thing in (a, b, c, w):
        thing.close()
    del thing
    gd.trim()
    until(lambda: emulated.use().automatic == 0)
    assert emulated.use().total == before.total == gd.device().aperture().used


def test_the_next_window_is_mapped_while_one_is_written(emulated, monkeypatch):
    aperture.set_budget(16 * MIB, gd.device())
    ahead, made = [], []
    prepare, original = ondemand.OnDemand.prepare, EmulatedBridge.map

    def noted(self, *arguments):
        before = len(made)
        prepare(self, *arguments)
        ahead.extend(made[before:])

    monkeypatch.setattr(ondemand.OnDemand, "prepare", noted)
    monkeypatch.setattr(EmulatedBridge, "map",
                        lambda *a, **o: (made.append(a[2]), original(*a, **o))[1])  # fmt: skip
    with gd.empty(64 * MIB, "u1") as a:
        a.write(np.ones(64 * MIB, np.uint8), via="map")
        assert len(made) == 16 and made[0] not in ahead
        assert len(ahead) > 4, "nobody works ahead"


@pytest.fixture
def data():
    """Data that is large enough to be written from both ends."""
    return np.random.default_rng(7).integers(0, 256, ondemand.BOTH_ENDS + 12345, np.uint8)


def test_a_large_write_goes_from_both_ends(emulated, data, monkeypatch):
    aperture.set_budget(16 * MIB, gd.device())
    with gd.zeros(data.nbytes + 1000, "u1", mapped=False) as a:
        by_dma = []
        copy_in = a.device.copy_in
        monkeypatch.setattr(a.device, "copy_in", lambda d, s, n: (by_dma.append(n), copy_in(d, s, n)))
        a.write(data, 77)
        assert 0 < sum(by_dma) < data.nbytes, "one of the two did all of it"
        assert np.array_equal(a.read(start=77, count=data.nbytes), data)
        assert not a.read(start=0, count=77).any()
        assert not a.read(start=77 + data.nbytes, count=923).any()
        assert emulated.use().total <= 16 * MIB


def test_a_large_write_where_no_thread_can_be_started(emulated, data, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    aperture.set_budget(16 * MIB, gd.device())
    with gd.zeros(data.nbytes, "u1", mapped=False) as a:
        with monkeypatch.context() as m:
            m.setattr(ondemand.threading.Thread, "start", refuse)
            a.write(data)
            with a.writer() as w:
                w.write(bytes(4 * MIB))
        read = a.read()
        assert not read[: 4 * MIB].any() and np.array_equal(read[4 * MIB :], data[4 * MIB :])


def test_an_error_of_the_dma_end_reaches_who_writes(emulated, data, monkeypatch):
    aperture.set_budget(16 * MIB, gd.device())
    with gd.zeros(data.nbytes, "u1", mapped=False) as a:

        def broken(*arguments):
            raise gd.DeviceError("the copy engine is broken", 1)

        with monkeypatch.context() as m:
            m.setattr(a.device, "copy_in", broken)
            with pytest.raises(gd.DeviceError, match="broken"):
                a.write(data)
        a.write(data)
        assert np.array_equal(a.read(), data)


def test_nothing_goes_by_dma_while_a_kernel_may_be_waiting_for_it(emulated, data, monkeypatch):
    aperture.set_budget(16 * MIB, gd.device())
    with gd.zeros(data.nbytes, "u1", mapped=False) as a:
        stream, host = a.device.stream(), a.device.host_allocate(4096)
        word = np.frombuffer((ctypes.c_uint32 * 1).from_address(host.ptr), "u4")
        word[0] = 0
        wait = HOLD + "__global__ void wait(volatile unsigned *word) { hold(word); }"
        gd.kernel(wait, "wait")[1, 1, stream](host.ptr)
        try:
            with monkeypatch.context() as m:
                m.setattr(a.device, "copy_in", lambda *args: pytest.fail("DMA"))
                a.write(data)
        finally:
            word[0] = 1
        stream.synchronize()
        assert not a.device.working()
        stream.close()
        host.free()
        assert np.array_equal(a.read(), data)


def test_what_is_done_holds_up_no_dma(emulated, data, monkeypatch):
    """A stream that nobody synchronised since is no reason to map everything."""
    aperture.set_budget(16 * MIB, gd.device())
    with gd.zeros(data.nbytes, "u1", mapped=False) as a, gd.zeros(16, "u4") as b:
        gd.kernel("__global__ void f(unsigned *p) { p[0] = 7; }", "f")[1, 1](b)
        until(lambda: not a.device.working())
        assert a.device.pending
        by_dma = []
        copy_in = a.device.copy_in
        monkeypatch.setattr(a.device, "copy_in", lambda d, s, n: (by_dma.append(n), copy_in(d, s, n)))
        a.write(data)
        assert by_dma
        assert np.array_equal(a.read(), data)


def test_a_window_that_is_used_is_never_taken_back(emulated):
    aperture.set_budget(4 * MIB, gd.device())
    with gd.zeros(32 * MIB, "u1") as a, a.writer() as file:
        file.seek(5)
        file.write(b"start")
        for at in range(0, 32 * MIB, MIB):
            a.write(b"x" * 100, at + 100, via="map")
        file.write(b" and go on")
        file.flush()
        assert a.read(start=5, count=15).tobytes() == b"start and go on"
        assert emulated.use().peak >= emulated.use().total <= 4 * MIB


def test_the_windows_used_most_recently_are_kept(emulated, monkeypatch):
    aperture.set_budget(16 * MIB, gd.device())  # four windows of 4 MiB
    made = []
    original = EmulatedBridge.map
    with gd.zeros(64 * MIB, "u1") as a:
        for k in (0, 4, 8, 2):
            a.write(b"x", k * 4 * MIB, via="map")
        monkeypatch.setattr(
            EmulatedBridge, "map",
            lambda self, source, offset, *rest, **options: (
                made.append(offset // (4 * MIB)), original(self, source, offset, *rest, **options)
            )[1],
        )  # fmt: skip
        for k in (0, 12, 0, 8, 4):  # 12 pushes 4 out, 4 then pushes 2 out
            a.write(b"y", k * 4 * MIB + 9, via="map")
        assert made == [12, 4]
        a.write(b"z", 2 * 4 * MIB, via="map")
        assert made == [12, 4, 2]


def test_a_small_first_write_spares_the_mapping(emulated):
    aperture.set_budget(16 * MIB, gd.device())
    with gd.zeros(64 * MIB, "u1") as a:
        a.write(b"first", 5)
        assert emulated.use().automatic == 0
        a.write(b"again", 50)
        assert emulated.use().automatic == 4 * MIB
        assert a.read(start=5, count=50).tobytes() == b"first" + bytes(40) + b"again"


@pytest.mark.parametrize("nth", range(6))
def test_a_mapping_that_fails_leaves_everything_as_it_was(emulated, monkeypatch, nth):
    aperture.set_budget(8 * MIB, gd.device())
    original = EmulatedBridge.map
    left = [nth]

    def failing(self, *arguments, **options):
        left[0] -= 1
        if left[0] == -1:
            raise gd.BridgeError("the mapping that fails")
        return original(self, *arguments, **options)

    a = gd.zeros(32 * MIB, "u1")
    monkeypatch.setattr(EmulatedBridge, "map", failing)

    def work():
        with a.window(0, 3 * MIB) as w:
            w.write(b"one")
            w.move(16 * MIB + 3)
            w.write(b"two")
        a.write(b"three" * MIB, 4 * MIB, via="map")
        a.scatter([(100, b"four"), (30 * MIB, b"five")])

    try:
        work()
    except gd.BridgeError as e:
        assert "the mapping that fails" in str(e)
    work()
    monkeypatch.undo()
    assert a.read(start=0, count=3).tobytes() == b"one"
    assert a.read(start=16 * MIB + 3, count=3).tobytes() == b"two"
    assert a.read(start=4 * MIB, count=5 * MIB).tobytes() == b"three" * MIB
    assert a.read(start=30 * MIB, count=4).tobytes() == b"five"
    assert emulated.use().total <= 8 * MIB == emulated.budget
    assert emulated.use().total == gd.device().aperture().used
    a.close()
    gd.trim()
    until(lambda: emulated.use().total == 0)
    assert gd.device().aperture().used == 0


def test_an_aperture_that_others_fill_takes_windows_back(emulated):
    """No budget: BAR1 itself is what runs out, and windows mapped on demand make room."""
    a = gd.zeros(256 * MIB, "u1", mapped=False)
    a.write(np.ones(256 * MIB, np.uint8), via="map")
    assert emulated.use().automatic == 64 * MIB
    b = gd.empty(224 * MIB, "u1")
    assert emulated.use().automatic <= 32 * MIB and "not mapped" not in repr(b)
    assert gd.device().aperture().used == emulated.use().total
    with pytest.raises(gd.ApertureError, match="this process"):
        gd.empty(64 * MIB, "u1")  # without a budget nobody asked for windows
    assert np.all(a.read() == 1)
    a.close(), b.close()


def test_a_collection_in_the_middle_of_mapping(emulated, monkeypatch):
    """Windows whose last reference goes while this very thread holds the account."""
    original = EmulatedBridge.map
    doomed: list[object] = []

    def collecting(self, *arguments, **options):
        doomed.clear()
        return original(self, *arguments, **options)

    a = gd.zeros(16 * MIB, "u1", mapped=False)
    for _ in range(20):
        whole, lost = gd.empty(3 * MIB, "u1"), gd.empty(8 * MIB, "u1", mapped=False)
        lost.write(bytes(8 * MIB), via="map")
        doomed += [whole, lost, a.window(0, 100), gd.register(a.ptr, 4096), lost.window(5, 5)]
        del whole, lost
        monkeypatch.setattr(EmulatedBridge, "map", collecting)
        with a.window(MIB, 4096):
            pass
        monkeypatch.undo()
    a.close()
    gd.trim()
    until(lambda: (gd.trim(), emulated.use().total)[1] == 0)
    assert gd.device().aperture().used == 0


@pytest.mark.parametrize("times", [1, TRIES - 1, TRIES])
def test_unmapping_that_fails_is_done_again_and_told_at_last(emulated, monkeypatch, recwarn, times):
    """Whoever closes something, or comes along meanwhile, is not hit by it."""
    a = gd.zeros(MIB, "u1", mapped=False)
    w = a.window(0, 4096)
    original, refused = EmulatedMapping.close, []

    def failing(self):
        if len(refused) < times:
            refused.append(self)
            raise gd.BridgeError("no unmapping today")
        original(self)

    monkeypatch.setattr(EmulatedMapping, "close", failing)
    w.close()
    for _ in range(TRIES):
        keeper.settle()
    monkeypatch.undo()
    told = [str(each.message) for each in recwarn if each.category is ResourceWarning]
    if times < TRIES:
        assert emulated.use().windows == 0 and not told
    else:  # it is there still, and counted as such
        assert emulated.use().windows == 4096
        assert len(told) == 1 and "no unmapping today" in told[0]
        refused[0].close()
        emulated._held[aperture.WINDOWS] -= 4096


def test_a_smaller_budget_makes_smaller_windows(emulated):
    with gd.zeros(32 * MIB, "u1", mapped=False) as a:
        a.write(np.ones(32 * MIB, np.uint8))
        for budget in (4 * MIB, 64 << 10, 4096):
            aperture.set_budget(budget, gd.device())
            assert emulated.use().total <= budget
            a.write(np.full(MIB, 7, np.uint8), 5 * MIB + 9, via="map")
            assert np.all(a.read(start=5 * MIB + 9, count=MIB, via="map") == 7)
            assert emulated.use().total <= budget
    with pytest.raises(gd.ArgumentError, match="page"):
        aperture.set_budget(4095, gd.device())


def test_a_child_has_an_account_of_its_own():
    run = program(
        """
        import os, warnings
        import gpudirect as gd
        from gpudirect import aperture
        warnings.simplefilter("ignore")
        a = gd.zeros(16 << 20, "u1", mapped=False)
        a.write(bytes(16 << 20))
        w, file = a.window(0, 100), a.writer()
        file.write(b"abc")
        child = os.fork()
        if child == 0:
            assert aperture.use() == []
            for use in (lambda: w.write(b"x"), lambda: file.write(b"x"), lambda: a.write(b"x"),
                        lambda: a.window(0, 10), lambda: a.scatter([(0, b"x")]), lambda: w.move(5)):
                try:
                    use()
                except gd.ForkError:
                    continue
                os._exit(3)
            del w, file, a
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, status
        w.write(b"the parent goes on"), file.write(b"def"), file.flush()
        assert a.read(start=0, count=18).tobytes() == b"thedefrent goes on"
        a.write(bytes(16 << 20))
        print("fine")
        """
    )
    assert run.stdout == "fine\n", run.stderr


def test_exit_with_windows_open_is_quiet():
    run = program(
        """
        import gpudirect as gd
        a = gd.zeros(64 << 20, "u1", mapped=False)
        w, view = a.window(0, 100), a.window(5, 5).host
        file = a.writer()
        file.write(bytes(20 << 20))
        cycle = [a, w, file]; cycle.append(cycle)
        print("end")
        """
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "end\n", "")


def test_wide_enough_and_no_wider(emulated):
    for budget, width in ((64 * MIB, 16 * MIB), (1 << 40, ondemand.WIDEST), (5000, 4096)):
        aperture.set_budget(budget, gd.device())
        with gd.empty(2 * MIB, "u1", mapped=False) as a:
            assert ondemand.OnDemand.of(a._piece).width == width


class Revoker:
    """Takes the pages of an array back, from 1 MiB on or all of them."""

    def __init__(self, monkeypatch):
        self.whole = os.path.exists(StandIn.NODE)
        if self.whole:  # a driver is there: it revokes, and p2pmod empties the mappings
            gd.use(device="emulated", bridge="p2pmod")
        else:  # cutting the file behind the memory makes an access SIGBUS too
            monkeypatch.setattr(EmulatedMapping, "revocable", True)
            monkeypatch.setattr(_shared, "_SEALS", (fcntl.F_ADD_SEALS, 0))  # its size is to change

    def revoke(self, a):
        fd = a._piece.block.memory._fd
        if not self.whole:
            os.ftruncate(fd, MIB)
            return
        control = _native.ffi.new("struct standin_control *")
        control.size = _native.ffi.sizeof("struct standin_control")
        control.op = _native.lib.STANDIN_REVOKE
        fcntl.ioctl(fd, _native.lib.STANDIN_CONTROL, _native.ffi.buffer(control))

    def restore(self, a):
        if not self.whole:
            os.ftruncate(a._piece.block.memory._fd, a.nbytes)


@pytest.mark.parametrize("mapped", [True, False])
def test_revocation_in_the_middle_of_scattered_stores(mapped, monkeypatch):
    revoker = Revoker(monkeypatch)
    a = gd.zeros(2 * MIB, "u1", mapped=mapped, pool=False)
    a.write(b"mapped", via="map")
    file = a.writer()
    file.write(b"mapped too")
    revoker.revoke(a)
    first, last = (5, b"before"), (2 * MIB - 10, b"after")
    for use in (
        lambda: a.scatter([first, last]),
        lambda: a.scatter([5, 2 * MIB - 10], np.frombuffer(b"onetwo", "u1").reshape(2, 3)),
        lambda: a.write(b"x" * 100_000, 2 * MIB - 100_000, via="map"),
        lambda: (file.seek(2 * MIB - 1), file.write(b"x")),
    ):
        with pytest.raises(gd.RevokedError, match="revoked"):
            use()
    if not revoker.whole:
        a.scatter([first])
        assert a.read(start=5, count=6, via="map").tobytes() == b"before"
    revoker.restore(a)


def test_a_scatter_goes_by_dma_where_the_aperture_is_full(emulated):
    """As a write does: another holds the whole budget."""
    aperture.set_budget(4 * MIB, gd.device())
    with gd.zeros(8 * MIB, "u1") as a, gd.zeros(8 * MIB, "u1", mapped=False) as b, b.window(0, 4 * MIB):
        assert "not mapped" in repr(a)
        a.scatter([(3, b"abc"), (6 * MIB, b"def"), (4, b"X")])
        a.scatter([100, 200], np.array([1, 2], "u1"))
        want = np.zeros(8 * MIB, "u1")
        want[3:6], want[6 * MIB : 6 * MIB + 3] = (97, 88, 99), (100, 101, 102)
        want[100], want[200] = 1, 2
        assert np.array_equal(a.read(), want)


@pytest.mark.parametrize("mapped", [True, False])
def test_a_writer_closed_while_it_writes(emulated, mapped):
    """close() waits for the write: it must not unmap what is being stored into."""
    aperture.set_budget(16 * MIB, gd.device())
    source = bytes(range(256)) * (6 * MIB // 256)
    for delay in (0, 0.0002, 0.001, 0.003):
        with gd.zeros(12 * MIB, "u1", mapped=mapped) as a:
            file = a.writer()
            failed = []

            def write(file=file, failed=failed):
                try:
                    while True:
                        file.seek(0)
                        file.write(source)
                except (gd.ClosedError, ValueError) as e:
                    failed.append(e)

            thread = threading.Thread(target=write)
            try:
                thread.start()
                time.sleep(delay)
            finally:
                file.close()
            aperture.set_budget(MIB, gd.device())  # takes back what nobody holds
            aperture.set_budget(16 * MIB, gd.device())
            thread.join(60)
            assert failed and not thread.is_alive() and file.closed


def test_a_writer_closed_by_a_signal_in_the_middle_of_a_write(emulated):
    with gd.zeros(64 * MIB, "u1", mapped=False) as a:
        file = a.writer()
        before = signal.signal(signal.SIGALRM, lambda *_: file.close())
        try:
            for _ in range(3):
                signal.setitimer(signal.ITIMER_REAL, 0.002)
                with contextlib.suppress(gd.ClosedError, ValueError):
                    while True:
                        file.seek(0)
                        file.write(bytes(64 * MIB))
                assert file.closed
                file = a.writer()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
