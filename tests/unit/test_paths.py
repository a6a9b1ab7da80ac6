"""The choice between the mapping and DMA, made in C, on a copy engine that is feigned."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import pytest

import gpudirect as gd
from gpudirect._native import Mapped, ffi, lib
from gpudirect._transfer import copies, paths
from gpudirect.devices.cuda import CudaDevice
from gpudirect.limits import DIRECTIONS, NEVER, Limits

SIZE, DEVICE, CONTEXT = 1 << 20, 0x7000_0000_0000, 77


DRIVERS: list = []  # kept: C remembers answers by the driver's address


class CopyEngine:
    """Memory of a device, what C may call on it, and what was called."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, SIZE)
        self.bytes = np.frombuffer(self.memory, np.uint8)
        self.address = int(self.bytes.ctypes.data)
        self.calls: list[str] = []
        self.code = 0
        self.current = 0
        self.locked: set[int] = set()
        p, n, i = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        self.functions = {
            "copy_in": self._c(self._in, ctypes.c_uint64, p, n),
            "copy_out": self._c(self._out, p, ctypes.c_uint64, n),
            "settle": self._c(lambda stream: self._note("settle"), p),
            "query": self._c(lambda stream: self._note("query"), p),
            "current": self._c(self._current, ctypes.POINTER(ctypes.c_uint64)),
            "push": self._c(self._push, ctypes.c_uint64),
            "pop": self._c(self._pop, p),
            "attribute": self._c(self._attribute, ctypes.POINTER(ctypes.c_uint), i, ctypes.c_uint64),
            "launch": self._c(self._launch, p, *[ctypes.c_uint] * 7, p, p, ctypes.POINTER(p)),
        }
        self.driver = ffi.new("struct gd_driver *", {"context": CONTEXT})
        DRIVERS.append(self.driver)
        for name, function in self.functions.items():
            setattr(self.driver, name, ctypes.cast(function, p).value)
        self.struct = ffi.new("struct gd_paths *", {"driver": self.driver})
        self.turn(*[()] * 4)

    def _c(self, function, *types):
        return ctypes.CFUNCTYPE(ctypes.c_int, *types)(function)

    def turn(self, *all_turns):
        for name, turns in zip(DIRECTIONS, all_turns, strict=True):
            for i in range(lib.GD_TURNS):
                getattr(self.struct, name).at[i] = turns[i] if i < len(turns) else NEVER

    def _note(self, what):
        self.calls.append(what)
        return self.code

    def _in(self, to, source, n):
        assert self.current == CONTEXT
        if not self.code:
            ctypes.memmove(self.address + to - DEVICE, source, n)
        return self._note("in")

    def _out(self, to, source, n):
        assert self.current == CONTEXT
        if not self.code:
            ctypes.memmove(to, self.address + source - DEVICE, n)
        return self._note("out")

    def _launch(self, function, *rest):
        *dims, shared, stream, parameters, extra = rest
        assert self.current == CONTEXT and parameters is None
        assert (extra[0], extra[2], extra[4]) == (1, 2, None)  # CU_LAUNCH_PARAM_*
        size = ctypes.c_size_t.from_address(extra[3]).value
        block = ctypes.string_at(extra[1], size)
        self.launched = (function, tuple(dims), shared, stream, block)
        return self._note("launch")

    def _current(self, out):
        out[0] = self.current
        return 0

    def _push(self, context):
        self.before, self.current = self.current, context
        return self._note("push") and 0

    def _pop(self, out):
        self.current = self.before
        return self._note("pop") and 0

    def _attribute(self, out, which, address):
        if which != 2 or address not in self.locked:
            return 1
        out[0] = 1
        return 0


class Probe(Mapped):
    __slots__ = ("slow",)

    def _write_slow(self, *args, **kwargs):
        self.slow = True

    _read_slow = _write_slow


@pytest.fixture
def engine():
    return CopyEngine()


def probe(engine: CopyEngine, flags: int = 0, work=0) -> Probe:
    p = Probe()
    p.slow = False
    address = int(ffi.cast("uintptr_t", engine.struct))
    p._attach(engine.address, SIZE, engine, "B", flags, DEVICE, address, work, (SIZE,), np.dtype("u1"),
              1)  # fmt: skip
    return p


def test_a_write_takes_the_path_that_its_size_and_source_call_for(engine):
    engine.turn((8 << 10, 64 << 10), (100 << 10,), (), ())
    p = probe(engine)
    # alive throughout: an answer about memory is remembered by its address
    locked, kept = np.full(80 << 10, 3, "u1"), []
    for n, dma in ((1, 0), (4096, 0), (8 << 10, 0), ((8 << 10) + 1, 1), (64 << 10, 1), (65537, 0)):
        engine.calls.clear()
        source = np.arange(n, dtype="u1")
        kept.append(source)
        assert p.write(source, 100) is None and not p.slow
        assert ("in" in engine.calls) == bool(dma), n
        assert np.array_equal(engine.bytes[100 : 100 + n], source)
    engine.locked.add(int(locked.ctypes.data))
    for n, dma in ((8 << 10, 0), (60 << 10, 0), (80 << 10, 0)):
        engine.calls.clear()
        p.write(locked[:n])
        assert ("in" in engine.calls) == bool(dma), n


def test_pageable_sources_are_waited_for_and_page_locked_ones_need_not_be(engine):
    p = probe(engine)
    source = np.ones(100, "u1")
    p.write(source, via="dma")
    assert [c for c in engine.calls if c not in ("push", "pop")] == ["in", "settle"]
    assert engine.calls.count("push") == engine.calls.count("pop") == 3
    engine.locked.add(int(source.ctypes.data))
    engine.calls.clear()
    p.write(source, via="dma")
    assert "settle" not in engine.calls and "in" in engine.calls
    assert engine.current == 0  # the caller's context is as it was


def test_copies_of_the_device_itself_are_one_call_and_their_errors_are_told(engine):
    gpu = object.__new__(CudaDevice)
    gpu.forked, gpu._dma = False, engine.struct
    gpu.error = lambda code, doing: gd.DeviceError(f"{doing}: {code}", code)
    source, back = np.arange(100, dtype="u1"), np.zeros(100, "u1")
    gpu.copy_in(DEVICE + 7, int(source.ctypes.data), 100)
    gpu.copy_out(int(back.ctypes.data), DEVICE + 7, 100)
    assert (back == source).all()
    assert [c for c in engine.calls if c not in ("push", "pop")] == ["in", "settle", "out"]
    engine.code = 1
    with pytest.raises(gd.DeviceError, match="copying 100 bytes to .*: 1"):
        gpu.copy_in(DEVICE, int(source.ctypes.data), 100)
    with pytest.raises(gd.DeviceError, match="copying 100 bytes from .*: 1"):
        gpu.copy_out(int(back.ctypes.data), DEVICE, 100)


def test_an_old_answer_about_memory_is_asked_for_again(engine):
    """The driver is asked once for a row of copies from one place, and again after a while."""
    engine.turn((), (100,), (), ())
    p, big = probe(engine), np.ones(8192, "u1")
    p.write(big)
    assert "in" not in engine.calls  # pageable: through the mapping
    engine.locked.add(int(big.ctypes.data))
    for _ in range(70):
        p.write(big)
    assert "in" in engine.calls  # page-locked meanwhile: DMA
    engine.locked.clear()
    engine.calls.clear()
    p.write(big)
    assert "settle" in engine.calls  # still by DMA, and what is pageable is waited for


def test_a_context_that_is_current_is_left_alone(engine):
    engine.current = CONTEXT
    probe(engine).write(np.ones(100, "u1"), via="dma")
    assert engine.calls == ["in", "settle"]


def test_reads_take_the_path_as_well(engine):
    engine.turn((), (), (4096,), (SIZE,))
    p = probe(engine)
    out = first = np.empty(SIZE, "u1")
    engine.bytes[:] = 9
    assert p.read(out) is out and (out == 9).all() and "out" in engine.calls
    engine.calls.clear()
    out = np.empty(SIZE, "u1")
    engine.locked.add(int(out.ctypes.data))
    engine.bytes[:] = 8
    p.read(out)
    assert (out == 8).all() and "out" not in engine.calls
    p.read(out, via="dma")
    assert "out" in engine.calls
    engine.calls.clear()
    p.read(out, via="map")
    assert "out" not in engine.calls and not p.slow and first is not out


@pytest.mark.parametrize("call", [
    lambda p, out: p.read(count=SIZE + 1), lambda p, out: p.read(out[:-1]), lambda p, out: p.read(out, via="x"),
    lambda p, out: p.read(out, start=1), lambda p, out: p.read(out, start=-1), lambda p, out: p.read(out=out),
    lambda p, out: p.read(out, count=None), lambda p, out: p.read(out, synchronize=True),
    lambda p, out: p.read(bytes(SIZE)), lambda p, out: p.read(out.reshape(2, -1).T),
    lambda p, out: p.write(out, via="y"), lambda p, out: p.write(out, via=1),
    lambda p, out: p.write(out, 1), lambda p, out: p.write(out, other=1), lambda p, out: p.read(5),
])  # fmt: skip
def test_what_is_not_plain_goes_the_slow_way(engine, call):
    p = probe(engine)
    call(p, np.empty(SIZE, "u1"))
    assert p.slow and not engine.calls


def test_a_read_waits_for_what_is_queued(engine):
    work = ffi.new("struct gd_work *")
    p = probe(engine, work=int(ffi.cast("uintptr_t", work)))
    out = np.empty(SIZE, "u1")
    lib.gd_work_begin(work), lib.gd_work_queued(work)
    p.read(out)
    assert p.slow
    p.slow = False
    lib.gd_work_settle(work, lib.gd_work_mark(work))
    p.read(out)
    assert not p.slow


def test_a_wait_settles_what_was_queued_when_it_began_and_nothing_else():
    total = ffi.new("struct gd_work *")
    one, other = (ffi.new("struct gd_work *", {"device": total}) for _ in "ab")

    def queue(work):
        lib.gd_work_begin(work), lib.gd_work_queued(work)

    queue(one), queue(other)
    mark = lib.gd_work_mark(one)
    queue(one)  # while somebody waits
    lib.gd_work_settle(one, mark)
    assert lib.gd_work_open(one) and lib.gd_work_open(other) and lib.gd_work_open(total)
    lib.gd_work_begin(one)  # about to be queued: a wait that begins now cannot answer for it
    assert lib.gd_work_mark(one) == 0
    lib.gd_work_queued(one)
    for work in (one, other):
        lib.gd_work_settle(work, lib.gd_work_mark(work))
        lib.gd_work_settle(work, lib.gd_work_mark(work))
    assert not any(map(lib.gd_work_open, (one, other, total)))


def test_dma_on_memory_that_can_be_revoked_goes_the_slow_way(engine):
    p = probe(engine, flags=lib.GD_GUARDED)
    p.write(np.ones(10, "u1"), via="dma")
    assert p.slow and not engine.calls


def test_an_error_of_the_device_goes_the_slow_way_which_tells_it(engine):
    engine.code = 700
    p = probe(engine)
    p.write(np.ones(10, "u1"), via="dma")
    assert p.slow and engine.current == 0


def test_without_functions_dma_goes_the_slow_way(engine):
    engine.struct.driver = ffi.NULL
    p = probe(engine)
    p.write(np.ones(10, "u1"), via="dma")
    assert p.slow


def test_a_launch_hands_the_argument_block_over(engine):
    work = ffi.new("struct gd_work *")
    code = lib.gd_driver_launch(engine.driver, 99, [((1, 2, 3), (4, 5, 6), 7)], 8, b"arguments", 9, work)
    assert code == 0 and engine.current == 0
    assert engine.launched == (99, (1, 2, 3, 4, 5, 6), 7, 8, b"arguments")
    engine.code = 701
    assert lib.gd_driver_launch(engine.driver, 99, [((1,), (1,), 0)], 8, b"", 0, work) == 701
    assert lib.gd_work_open(work)
    assert lib.gd_driver_synchronize(engine.driver, 8, work) == 701
    assert not lib.gd_work_open(work)


# -- limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [
    {"write_pinned": (5, 4)}, {"read_pinned": (-1,)}, {"read_pageable": tuple(range(7))},
    {"write_pinned": 5}, {"write_pinned": ("a",)}, {"read_pinned": None}, {"read_pinned": (1.5,)},
    {"threads": 1.5}, {"threads": None}, {"threads": True}, {"read_threads": "4"}, {"source": 3},
    {"threads": 65}, {"threads": -1}, {"write_threads": -1}, {"write_pageable": (4, 4)},
])  # fmt: skip
def test_limits_that_make_no_sense_are_refused(wrong):
    with pytest.raises(gd.ArgumentError, match=next(iter(wrong))):
        Limits(**wrong)


def test_limits_say_the_path():
    limits = Limits(read_pageable=(10, 20, 30))
    found = [limits.path("read_pageable", n) for n in (0, 10, 11, 20, 21, 30, 31)]
    assert found == ["map", "map", "dma", "dma", "map", "map", "dma"]


def test_limits_hold_at_once_for_arrays_that_exist():
    with gd.empty(4096, "u1") as a:
        choice = paths.of(a.device, a._open().bridge)
        before = choice.limits
        try:
            choice.limits = Limits(read_pinned=(1, 2))
            assert list(choice.struct.read_pinned.at)[:3] == [1, 2, NEVER]
        finally:
            choice.limits = before


def test_overlap_says_so():
    with gd.empty(4096, "u1") as a:
        with pytest.raises(gd.ArgumentError, match="overlap"):
            copies.done(-22, a._extent(), "writing to")
