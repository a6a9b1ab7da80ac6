"""pytest under stress: existing tests, with the collector or a signal let loose on them.

    pytest -p tests.stress.plugin --stress gc ...        the collector runs at every allocation
                                                         (GPUDIRECT_EMULATED_DEVICES=2)
    pytest -p tests.stress.plugin --stress signals ...   a signal's handler raises, inside gpudirect's code

gc: finalizers run wherever something is allocated, so also inside the code that they call. Every
test must pass.

signals: a test is run some times with signals whose handler raises now and then, as Ctrl-C does, while
gpudirect's code is on the stack. Such a run may fail as it likes, but must not hang or crash, and
then the process must be as good as new: the heaps give disjoint memory that holds what is written,
and the same test passes without signals. An interrupted run that leaves anything behind shows there.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import itertools
import json
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from _pytest.runner import runtestprotocol

OURS = str(Path(__file__).resolve().parents[2] / "gpudirect")
LITTER = 300  # arrays for the collector to find in each test
COUNTING = {"test_allocators", "test_aperture", "test_relay", "test_pinned", "test_interruption",
            "test_windows", "test_conformance"}  # fmt: skip
"""Where what the device holds is counted to the byte: the litter lies on another device there."""
COUNTED_ELSEWHERE = "emulated:1"
OFTEN = 0.001  # seconds between two signals
NOW_AND_THEN = 0.1  # of the signals that find our code on the stack raise
HANGS = 100  # seconds after which a check of the process is taken for a hang


class Interruption(KeyboardInterrupt):
    """What the handler raises: asyncio, too, lets Ctrl-C through and nothing else."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stress", choices=["gc", "signals"], help="see tests/stress/plugin.py")
    parser.addoption("--stress-seed", type=int, default=1)
    parser.addoption("--stress-runs", type=int, default=1, help="with signals, before the one without")
    parser.addoption("--stress-told", type=Path, help="a file for what was run, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    which = config.getoption("--stress")
    if which is None:
        return
    stress = Collector() if which == "gc" else Signals(config)
    config.pluginmanager.register(stress, f"stress-{which}")
    config.pluginmanager.register(Told(config, stress), "stress-told")


class Told:
    """Counts tests, and writes down what was run."""

    def __init__(self, config: pytest.Config, stress: Collector | Signals) -> None:
        self.file: Path | None = config.getoption("--stress-told")
        self.stress = stress
        self.counts = dict.fromkeys(("passed", "skipped"), 0)
        self.failures: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failures.append(f"{report.nodeid} ({report.when})")
        elif report.skipped:
            self.counts["skipped"] += 1
        elif report.when == "call":
            self.counts["passed"] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failures.append(f"{report.nodeid} (collection)")

    def pytest_sessionfinish(self) -> None:
        if self.file:
            self.file.write_text(json.dumps({**self.counts, **self.stress.told(), "failures": self.failures}))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        told = ", ".join(f"{count} {what}" for what, count in self.stress.told().items())
        terminalreporter.write_line(f"stress: {told}")


class Litter:
    """Garbage in a cycle that holds an array: only the collector finds it."""

    def __init__(self, array: object) -> None:
        self.array = array
        self.itself = self


class Collector:
    """The cyclic collector at every allocation of a container, and always something for it to find."""

    def __init__(self) -> None:
        self.litter: list[Litter] = []
        self.collections = self.found = 0

    def told(self) -> dict[str, int]:
        return {"collections": self.collections, "arrays finalized in them": self.found}

    def drop(self, phase: str, _: object) -> None:
        """Called before each collection, wherever that is: one more array to be finalized there."""
        if phase != "start":
            return
        self.collections += 1
        if self.litter:
            self.litter.pop()
            self.found += 1

    def strew(self, counted: bool) -> None:
        import gpudirect as gd

        device = COUNTED_ELSEWHERE if counted else None
        with contextlib.suppress(gd.Error):  # a device that a test has killed
            for n in range(LITTER):
                self.litter.append(Litter(gd.empty(1 << (n % 12), "u1", device=device)))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        gc.collect()
        gc.freeze()  # what lies there already is not gone through again and again
        before = gc.get_threshold()
        self.strew(item.path.stem in COUNTING)
        gc.callbacks.append(self.drop)
        gc.set_threshold(1)
        try:
            return (yield)
        finally:
            gc.set_threshold(*before)
            gc.callbacks.remove(self.drop)
            self.litter.clear()
            gc.unfreeze()


class Signals:
    """A timer whose handler raises inside our code."""

    def __init__(self, config: pytest.Config) -> None:
        self.draw = random.Random(config.getoption("--stress-seed"))
        self.attempts: int = config.getoption("--stress-runs")
        signal.signal(signal.SIGUSR2, self.handle)  # for good: the last signal may come late
        self.go = threading.Event()
        threading.Thread(target=self.send, name="stress", daemon=True).start()
        self.armed = False
        self.raised = 0
        self.everywhere = 0
        self.runs = 0

    def told(self) -> dict[str, int]:
        return {"interruptions inside gpudirect": self.everywhere, "interrupted runs of tests": self.runs}

    # -- the signals -------------------------------------------------------------------------------

    def send(self) -> None:
        """A thread of its own: the timer and SIGALRM are pytest-timeout's."""
        main = threading.main_thread().ident
        assert main is not None
        while True:
            self.go.wait()
            signal.pthread_kill(main, signal.SIGUSR2)
            time.sleep(OFTEN)

    def handle(self, number: int, frame: FrameType | None) -> None:
        if not self.armed or self.draw.random() > NOW_AND_THEN:
            return
        at = frame
        while at is not None:
            if at.f_code.co_filename.startswith("<frozen importlib"):
                return  # a module that was imported by half is Python's, and stays that way
            if at.f_code.co_filename.startswith(OURS) and at.f_code.co_name != "<module>":
                self.armed = False
                self.raised += 1
                raise Interruption
            at = at.f_back

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Iterator[None]:
        if not self.calm:
            self.armed = True
            self.go.set()
        try:
            return (yield)
        except Interruption:  # which would end the whole run
            raise RuntimeError("the test was interrupted") from None
        finally:
            self.armed = False
            self.go.clear()

    calm = True

    # -- the runs of a test ------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        try:
            reports: list[pytest.TestReport] = []
            for _ in range(self.attempts):
                self.calm, self.raised, reports = False, 0, []
                with contextlib.suppress(Interruption):
                    reports = runtestprotocol(item, nextitem=nextitem, log=False)
                if not self.raised:
                    break  # it is short, or runs a program of its own
                self.everywhere += self.raised
                self.runs += 1
                reports = []
                for name in ("last_type", "last_value", "last_traceback", "last_exc"):
                    sys.__dict__.pop(name, None)  # pytest leaves them, and they the frames of the test
                as_good_as_new(item.nodeid)
                item._initrequest()  # type: ignore[attr-defined]
            self.calm = True
            if self.raised or not reports or any(r.failed for r in reports):
                item._initrequest()  # type: ignore[attr-defined]
                reports = runtestprotocol(item, nextitem=nextitem, log=False)
        finally:
            self.calm = True
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True


def as_good_as_new(after: str) -> None:
    """The heaps give disjoint pieces that hold what is written; nobody has kept a lock."""
    import gpudirect as gd

    faulthandler.dump_traceback_later(HANGS, exit=True)
    try:
        gc.collect()
        device = gd.device()
        try:
            device.ensure_alive()
        except gd.DeviceLostError:
            return  # some tests are about that
        arrays = [gd.empty(size, "u1") for size in (64, 256, 5000) * 16]
        spans = sorted((a.ptr, a.ptr + a.nbytes) for a in arrays)
        for (_, end), (start, _) in itertools.pairwise(spans):
            assert end <= start, f"{after}: two arrays share memory after an interruption"
        for i, a in enumerate(arrays):
            a.write(bytes([i]) * a.nbytes)
        for i, a in enumerate(arrays):
            assert bytes(a.read()) == bytes([i]) * a.nbytes, f"{after}: an array lost what it held"
        gd.synchronize()
    except BaseException:
        sys.stderr.write(f"stress: the process is broken after {after}\n")
        raise
    finally:
        faulthandler.cancel_dump_traceback_later()


__all__ = ["Interruption"]
