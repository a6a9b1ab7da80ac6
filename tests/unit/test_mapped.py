"""``Mapped``, the C base of Array: the quick way in C, and when it must not be taken."""

from __future__ import annotations

import array
import errno
import gc
import mmap
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from waiting import LONG

import gpudirect as gd
from gpudirect._native import Mapped, ffi, lib

SIZE = 8192


class Owner:
    """Keeps memory alive, and shows whether somebody keeps it."""

    def __init__(self, size: int = SIZE) -> None:
        self.memory = mmap.mmap(-1, size)
        self.bytes = np.frombuffer(self.memory, np.uint8)
        self.address = int(self.bytes.ctypes.data)


class Probe(Mapped):
    """A subclass that notes what went the slow way."""

    __slots__ = ("__dict__", "slow")

    def __new__(cls, *args: object) -> Probe:
        self = super().__new__(cls)
        self.slow = []
        return self

    def _write_slow(self, *args, **kwargs):
        self.slow.append((args, kwargs))
        return "slow"

    def _read_slow(self, *args, **kwargs):
        self.slow.append((args, kwargs))
        return "slow"

    def _flush_slow(self):
        self.slow.append("flush")
        return "slow"

    def _buffer_slow(self):
        self.slow.append("buffer")
        raise BufferError("closed, says the subclass")


DEVICE = 0x7000_0000_0000


def attach(p: Mapped, address, size, owner, format="f", flags=0, paths=0, work=0) -> None:
    kind = np.dtype(format if format and len(format) == 1 else "V4")
    p._attach(address, size, owner, format, flags, DEVICE, paths, work,
              (size // kind.itemsize,), kind, kind.itemsize)  # fmt: skip


def probe(owner: Owner, format: str | None = "f", flags: int = 0, **more) -> Probe:
    p = Probe()
    attach(p, owner.address, SIZE, owner, format, flags, **more)
    return p


@pytest.fixture
def owner() -> Iterator[Owner]:
    yield Owner()


QUICK = {
    "bytes": b"12345678",
    "bytearray": bytearray(b"12345678"),
    "memoryview": memoryview(b"12345678"),
    "characters": memoryview(b"12345678").cast("c"),
    "own dtype": np.arange(5, dtype="f4"),
    "own dtype, explicit order": np.arange(5, dtype="<f4"),
    "own dtype, array.array": array.array("f", [1.0, 2.0]),
    "zero dimensions": np.array(7, "f4"),
    "two dimensions": np.arange(6, dtype="f4").reshape(2, 3),
    "nothing": b"",
    "an empty array": np.empty((0, 3), "f4"),
    "read-only": np.frombuffer(b"abcdefgh", "f4"),
}

SLOW = {
    "another dtype": np.arange(5, dtype="f8"),
    "bytes with a dtype": np.arange(8, dtype="u1"),
    "an array of bytes": array.array("B", [1, 2, 3, 4]),
    "signed bytes": array.array("b", [1, 2, -3, 4]),
    "part of an element": b"123456789",
    "part of an element, bytearray": bytearray(b"123"),
    "unsigned shorts": array.array("H", [1]),
    "a structure": np.zeros(2, "i4,f4"),
    "swapped": np.arange(5, dtype=">f4"),
    "not contiguous": np.arange(10, dtype="f4")[::2],
    "fortran": np.asfortranarray(np.ones((2, 3), "f4")),
    "no buffer": 3.5,
    "text": "12345678",
    "a list": [1, 2, 3],
    "None": None,
    "too long for here": bytes(SIZE + 1),
}


@pytest.mark.parametrize("data", QUICK.values(), ids=QUICK)
@pytest.mark.parametrize("at", [(), (0,), (1,), (100,), (2000,)], ids=str)
def test_plain_data_goes_the_quick_way(owner, data, at):
    p = probe(owner)
    owner.bytes[:] = 0xA5
    expected = owner.bytes.copy()
    raw = bytes(memoryview(data).cast("B")) if memoryview(data).nbytes else b""
    offset = 4 * at[0] if at else 0
    expected[offset : offset + len(raw)] = np.frombuffer(raw, np.uint8)
    assert p.write(data, *at) is None
    assert p.slow == []
    assert np.array_equal(owner.bytes, expected)


@pytest.mark.parametrize("data", SLOW.values(), ids=SLOW)
def test_anything_else_goes_the_slow_way_untouched(owner, data):
    p = probe(owner)
    assert p.write(data) == "slow"
    assert p.write(data, 8) == "slow"
    assert p.write(data, via="map") == "slow"
    assert all(given[0] is data for given, _ in p.slow)
    assert [given[1:] for given, _ in p.slow] == [(), (8,), ()]
    assert [k for _, k in p.slow] == [{}, {}, {"via": "map"}]
    assert not owner.bytes.any()


@pytest.mark.parametrize(
    "start", [-1, SIZE // 4 - 1, SIZE // 4 + 1, 1 << 62, 1 << 63, -(1 << 63), 1 << 200, 1.0, None, "0", True,
               np.int64(3)], ids=repr,
)  # fmt: skip
def test_odd_starts_go_the_slow_way(owner, start):
    p = probe(owner)
    assert p.write(b"12345678", start) == "slow"
    assert p.slow[0][0] == (b"12345678", start)
    assert not owner.bytes.any()


def test_the_very_end_is_inside(owner):
    p = probe(owner)
    assert p.write(b"12345678", SIZE // 4 - 2) is None
    assert p.write(b"", SIZE // 4) is None
    assert p.write(b"", SIZE // 4 + 1) == "slow"
    assert owner.bytes[-8:].tobytes() == b"12345678"


def test_wrong_arguments_go_the_slow_way(owner):
    p = probe(owner)
    assert p.write() == p.write(b"", 0, 0) == p.write(data=b"") == p.write(b"", 0, x=1) == "slow"


def test_without_a_format_only_bytes_fit(owner):
    for format in (None, "", "T{i:x:}"):
        p = probe(owner, format)
        assert p.write(b"1234") is None and p.write(memoryview(b"1234")) is None
        assert p.write(b"12345") == "slow"
        assert p.write(np.ones(1, "f4")) == "slow"


def test_a_source_inside_the_array_goes_the_slow_way(owner):
    p = probe(owner)
    assert p.write(p.buffer[100:200]) == "slow"
    assert p.write(owner.bytes[SIZE - 1 :]) == "slow"


@pytest.fixture
def ticks() -> Iterator[list[int]]:
    """Counted by a thread that gets the interpreter only where somebody gives it up."""
    count, going = [0], [True]

    def tick() -> None:
        while going:
            count[0] += 1
            time.sleep(0.0002)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=tick)
    thread.start()
    sys.setswitchinterval(1000)
    yield count
    sys.setswitchinterval(interval)
    going.clear()
    thread.join()


def test_long_copies_let_other_threads_run_and_short_ones_do_not(ticks):
    size = 64 << 20
    owner, p = Owner(size), Probe()
    attach(p, owner.address, size, owner)
    data = bytes([7]) * size
    time.sleep(0.01)
    before = ticks[0]
    end = time.monotonic() + LONG
    while ticks[0] == before:
        assert time.monotonic() < end
        p.write(data)
    assert (owner.bytes == 7).all()
    short = bytes(4092)
    time.sleep(0.01)
    before = ticks[0]
    for _ in range(20_000):
        p.write(short)
    assert ticks[0] == before
    assert p.slow == []


def test_flush_is_quick(owner):
    p = probe(owner)
    assert p.flush() is None
    assert p.slow == []


def test_detached_everything_is_slow(owner):
    p = probe(owner)
    p._detach()
    p._detach()
    assert p.write(b"1") == "slow"
    assert p.flush() == "slow"
    with pytest.raises(BufferError, match="says the subclass"):
        _ = p.buffer
    q = Probe()  # never attached
    assert q.write(b"1") == "slow"
    attach(q, 0, SIZE, owner)  # not mapped
    assert q.write(b"1") == "slow"
    assert q.flush() == "slow"


def test_without_a_subclass_the_slow_way_is_an_attribute_error():
    with pytest.raises(AttributeError, match="_write_slow"):
        Mapped().write(b"1")


def test_an_exception_of_the_slow_way_comes_out(owner):
    class Raising(Probe):
        def _write_slow(self, *args, **kwargs):
            raise LookupError("as told")

        def _buffer_slow(self):
            return None

    r = Raising()
    with pytest.raises(LookupError, match="as told"):
        r.write(b"1")
    assert r.buffer is None


def test_attach_refuses_what_is_no_mapping(owner):
    p = Probe()
    rest = (owner, "f", 0, DEVICE, 0, 0, (SIZE // 4,), np.dtype("f4"))
    good = (owner.address, SIZE, *rest, 4)
    for place, wrong in ((0, "x"), (1, "x"), (3, 3), (5, None), (6, "x"), (7, []), (8, [1]), (10, "x")):
        with pytest.raises(TypeError):
            p._attach(*good[:place], wrong, *good[place + 1 :])
    with pytest.raises(TypeError):
        p._attach()
    with pytest.raises(ValueError, match="negative"):
        p._attach(owner.address, -1, *rest, 4)
    with pytest.raises(ValueError, match="itemsize"):
        p._attach(owner.address, SIZE, *rest, 0)
    assert p.write(b"1") == "slow"


def test_a_revoked_mapping_goes_the_slow_way():
    fd = os.memfd_create("revoked")
    os.ftruncate(fd, SIZE)
    at = int(lib.gd_map(0, SIZE, 1, 1, fd, 0, 0))
    p = Probe()
    attach(p, at, SIZE, None, "f", lib.GD_GUARDED)
    assert p.write(b"1234") is None
    os.ftruncate(fd, 0)
    for n in (4, SIZE):  # with the GIL, and without
        assert p.write(bytes(n)) == "slow"
    assert len(p.slow) == 2
    p._detach()
    lib.gd_unmap(at, SIZE)
    os.close(fd)


def test_what_it_is_can_be_read_and_not_changed(owner):
    p = probe(owner)
    assert (p.shape, p.dtype, p.ptr) == ((SIZE // 4,), np.dtype("f4"), DEVICE)
    for name in ("shape", "dtype", "ptr", "buffer"):
        with pytest.raises(AttributeError):
            setattr(p, name, 1)
        with pytest.raises((AttributeError, TypeError)):
            delattr(p, name)
    p._detach()
    assert (p.shape, p.dtype, p.ptr) == ((SIZE // 4,), np.dtype("f4"), DEVICE)
    with pytest.raises(AttributeError):
        _ = Probe().shape  # never attached


# ---- buffers ----


def test_it_exports_no_buffer(owner):
    """NumPy would take it for an array of bytes."""
    with pytest.raises(TypeError):
        memoryview(probe(owner))


def test_the_buffer_is_the_memory(owner):
    p = probe(owner)
    view = p.buffer
    assert (view.format, view.ndim, view.shape, view.strides) == ("B", 1, (SIZE,), (1,))
    assert view.contiguous and not view.readonly
    view[10:14] = b"here"
    assert owner.bytes[10:14].tobytes() == b"here"
    assert np.frombuffer(view, np.uint8).ctypes.data == owner.address


def test_files_and_sockets_fill_it(owner, tmp_path):
    p = probe(owner)
    (tmp_path / "f").write_bytes(b"x" * 100)
    with open(tmp_path / "f", "rb", buffering=0) as f:
        assert f.readinto(p.buffer) == 100
    a, b = socket.socketpair()
    with a, b:
        a.sendall(b"y" * 50)
        assert b.recv_into(p.buffer, 50) == 50
    assert owner.bytes[:100].tobytes() == b"y" * 50 + b"x" * 50


def test_zero_bytes_can_be_exported(owner):
    p = Probe()
    attach(p, owner.address, 0, owner)
    assert p.buffer.nbytes == 0
    assert p.write(b"") is None
    assert p.write(b"1") == "slow"


def test_a_buffer_keeps_the_owner_not_the_array(owner):
    p = probe(owner)
    there, array_ = weakref.ref(owner), weakref.ref(p)
    address = owner.address
    view = p.buffer
    p._detach()
    del p, owner
    gc.collect()
    assert array_() is None
    assert there() is not None  # (the fixture holds it too, so the count tells)
    before = sys.getrefcount(there())
    assert view.nbytes == SIZE
    view[0] = 9
    assert ffi.cast("unsigned char *", address)[0] == 9
    view.release()
    after = sys.getrefcount(there())
    assert after == before - 1


def test_nothing_leaks(owner):
    before = sys.getrefcount(owner)
    for _ in range(100):
        p = probe(owner)
        p.loop = p  # a cycle, for the collector
        p.buffer.release()
        p.write(b"1234")
        p.write(b"1234", -1)
        attach(p, owner.address, SIZE, owner)
        if _ % 2:
            p._detach()
    del p
    gc.collect()
    assert sys.getrefcount(owner) == before
    data = b"some data"
    p, before = probe(owner), sys.getrefcount(data)
    for _ in range(1000):
        p.write(data)
        p.write(data, SIZE)
    p.slow.clear()
    assert sys.getrefcount(data) == before


def test_it_can_be_subclassed_with_slots_and_weakly_referenced(owner):
    class Slotted(Mapped):
        __slots__ = ("x",)

    s = Slotted()
    s.x = 1
    assert weakref.ref(s)() is s
    assert not hasattr(s, "__dict__")


def test_a_child_of_fork_goes_the_slow_way(owner):
    p = probe(owner)
    pid = os.fork()
    if pid == 0:
        ok = p.write(b"1234") == p.flush() == "slow" and p.read(bytearray(SIZE)) == "slow"
        try:
            _ = p.buffer
            ok = False
        except BufferError:
            pass
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert p.write(b"1234") is None


def test_errno_of_an_overlap_is_what_the_header_says(owner):
    source = ffi.cast("char *", owner.address)
    assert lib.gd_write(owner.address + 1, source, 8, 0) == -errno.EINVAL


@pytest.mark.parametrize("dtype", ["i4,f4", "S5", ">i4", "V24"])
def test_dtypes_without_a_letter_stay_in_c_too(dtype, monkeypatch):
    """Writing a list of structs took ten times as long as the same bytes."""
    data = np.random.default_rng(1).integers(0, 256, 60 * np.dtype(dtype).itemsize, "u1").view(dtype)
    with gd.empty((6, 10), dtype) as a:
        slow = []
        for name in ("_write_slow", "_read_slow"):
            own = getattr(gd.Array, name)
            monkeypatch.setattr(
                gd.Array, name, lambda *x, own=own, **k: slow.append(1) or own(*x, **k)
            )
        out = np.empty((6, 10), dtype)
        a.write(data)
        assert a.read(out) is out and out.tobytes() == data.tobytes() and not slow
        for wrong in (np.empty((10, 6), dtype), np.empty((6, 10), f"V{a.itemsize + 1}")):
            with pytest.raises(gd.ArgumentError):
                a.read(wrong)
        other = np.zeros(60, [("x", "u1", a.itemsize)])
        if a.dtype != other.dtype:
            with pytest.raises(gd.DTypeError):
                a.write(other)
        assert a.read().tobytes() == data.tobytes()
