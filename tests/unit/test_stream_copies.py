"""``stream=`` on write, read, fill, copy and scatter: in the stream's order, and in no other's."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest
from waiting import HOLD

import gpudirect as gd
from gpudirect._transfer import ordered
from gpudirect.devices import Now

HANG = 60.0
KIB, MIB = 1 << 10, 1 << 20

WAIT = HOLD + "__global__ void wait(volatile unsigned *go) { hold(go); }"
MOVE = """
__global__ void move(const unsigned char *from, unsigned char *to, unsigned long long n)
{
    for (unsigned long long i = threadIdx.x; i < n; i += blockDim.x)
        to[i] = from[i];
}
"""


@pytest.fixture(autouse=True)
def device():
    gd.use(device="emulated", bridge="emulated")
    yield gd.device()
    gd.synchronize()
    gd.use()


class Busy:
    """A stream on which a kernel runs until ``go``."""

    def __init__(self):
        self.stream = gd.stream()
        self.word = gd.zeros(1, "u4")
        gd.kernel(WAIT, "wait")[1, 1, self.stream](self.word)
        assert self.stream.queue.now() is Now.BUSY

    def go(self):
        self.word.write(np.ones(1, "u4"))

    def later(self, seconds=0.1):
        thread = threading.Timer(seconds, self.go)
        thread.start()
        return thread


@pytest.fixture
def busy():
    found = Busy()
    yield found
    found.go()
    found.stream.synchronize()


def snapshot(a, stream):
    """What a kernel queued now sees of an array, in another one."""
    seen = gd.zeros(a.nbytes, "u1")
    gd.kernel(MOVE, "move")[1, 64, stream](a.view("u1").reshape(-1), seen, a.nbytes)
    return seen


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("via", [None, "dma"])
@pytest.mark.parametrize("n", [1, 64, 100_001, ordered.STAGED])
def test_a_write_comes_after_what_was_queued_and_before_what_is_queued_next(busy, n, via, mapped):
    with gd.zeros(n + 3, "u1", mapped=mapped) as a:
        before = snapshot(a, busy.stream)
        source = np.full(n, 7, "u1")
        a.write(source, 3, stream=busy.stream, via=via)  # returns while the kernel runs
        source[:] = 9  # the source is the caller's again
        after = snapshot(a, busy.stream)
        assert busy.stream.queue.now() is Now.BUSY
        busy.go()
        busy.stream.synchronize()
        assert not before.read().any()
        assert (after.read() == [0, 0, 0] + [7] * n).all() and np.array_equal(a.read(), after.read())


@pytest.mark.parametrize(("n", "via"), [(ordered.STAGED + 1, None), (64, "map"), (ordered.STAGED + 1, "dma")])
def test_what_is_not_copied_along_waits_for_the_stream(busy, n, via):
    with gd.zeros(n, "u1") as a:
        before = snapshot(a, busy.stream)
        timer = busy.later()
        a.write(np.full(n, 7, "u1"), stream=busy.stream, via=via)
        assert not before.read().any(), "stored while a kernel that was queued before ran"
        assert (a.read() == 7).all()
        timer.join()


def test_a_write_to_an_idle_stream_is_there_at_once(device):
    stream = gd.stream()
    with gd.zeros((4, 5), "f4") as a:
        a.write([1, 2], stream=stream)
        a.write(np.arange(20, dtype=">f4").reshape(4, 5)[2:], 10, stream=stream)
        assert not device.pending
        assert a.read(via="map", synchronize=False).ravel().tolist() == [1, 2, *[0] * 8, *range(10, 20)]
        a.T.write(np.arange(20, dtype="f4").reshape(5, 4), stream=stream)
        assert np.array_equal(a.T.read(), np.arange(20).reshape(5, 4))


def test_other_streams_are_not_waited_for(busy):
    free = gd.stream()
    with gd.zeros(1000, "f4") as a:
        a.write(np.ones(1000, "f4"), stream=free)
        a[10:20].fill(5, stream=free)
        b = a.copy(stream=free)
        assert b.read(stream=free).sum() == a.read(stream=free).sum() == 990 + 50
        assert a.read(stream=free, start=9, count=2).tolist() == [1, 5]
        a.scatter([3], np.zeros((1, 1), "f4"), stream=free)
        assert a.read(stream=free)[3] == 0
        assert busy.stream.queue.now() is Now.BUSY


def test_a_read_waits_for_its_stream(busy):
    with gd.zeros(10, "u1") as a:
        a.write(b"1234567890", stream=busy.stream)
        timer = busy.later()
        assert a.read(stream=busy.stream).tobytes() == b"1234567890"
        timer.join()
        out = np.empty((2, 5), "u1")
        assert a.reshape(2, 5).read(out, stream=busy.stream) is out and out.tobytes() == b"1234567890"


def test_a_read_that_does_not_wait(busy):
    with gd.zeros(1000, "i4") as a:
        a.fill(3, stream=busy.stream)
        given = gd.pinned((2, 500), "i4")
        given[:] = -1
        assert a.reshape(2, 500).read(given, stream=busy.stream, synchronize=False) is given
        made = a.read(start=10, count=5, stream=busy.stream, synchronize=False)
        assert isinstance(made, gd.PinnedArray) and made.shape == (5,)
        a.fill(4, stream=busy.stream)
        assert (given == -1).all() and busy.stream.queue.now() is Now.BUSY
        busy.go()
        busy.stream.synchronize()
        assert (given == 3).all() and (made == 3).all() and (a.read() == 4).all()


def test_where_a_read_that_does_not_wait_may_go(busy):
    with gd.zeros((4, 6), "i4") as a:
        for out in (np.empty((4, 6), "i4"), bytearray(96), gd.pinned((6, 4), "i4").T,
                    gd.pinned((4, 6), ">i4")):  # fmt: skip
            with pytest.raises(gd.ArgumentError, match="page-locked|contiguous"):
                a.read(out, stream=busy.stream, synchronize=False)
        with pytest.raises(gd.ArgumentError, match="contiguous"):
            a[:, 1].read(stream=busy.stream, synchronize=False)
        with pytest.raises(gd.ArgumentError, match="map"):
            a.read(stream=busy.stream, synchronize=False, via="map")


def test_a_page_locked_source_is_read_when_the_stream_gets_there(busy):
    source = gd.pinned(3 * MIB, "u1")
    source[:] = 5
    with gd.zeros(3 * MIB, "u1") as a:
        a.write(source, stream=busy.stream)
        source[0] = 6  # allowed to be seen: the source is to stay as it is until then
        busy.go()
        assert a.read(stream=busy.stream)[0] == 6 and (a.read()[1:] == 5).all()


@pytest.mark.parametrize("n", [100, 3 * MIB])
def test_a_source_that_is_dropped_is_not_handed_out_before_it_was_read(busy, n):
    with gd.zeros(n, "u1") as a:
        source = gd.pinned(n, "u1")
        source[:] = 5
        a.write(source[:], stream=busy.stream)  # a view of it
        a.write(np.full(n // 2, 6, "u1"), n // 2, stream=busy.stream)  # a copy of ours
        address = source.ptr
        del source
        gc.collect()
        others = [gd.pinned(n, "u1") for _ in range(20)]
        for other in others:
            other[:] = 9
        assert address not in [o.ptr for o in others]
        busy.go()
        assert np.array_equal(a.read(), [5] * (n // 2) + [6] * (n // 2))


def test_an_array_that_is_dropped_is_not_handed_out_before_it_was_written(busy):
    a = gd.zeros(500, "u1")
    address = a.ptr
    a.write(np.full(500, 5, "u1"), stream=busy.stream)
    a.copy(stream=busy.stream)
    a.close()
    taken = [gd.empty(500, "u1") for _ in range(20)]
    assert address not in [t.ptr for t in taken]
    for t in taken:
        t.write(bytes(500))
    busy.go()
    busy.stream.synchronize()
    assert not any(t.read().any() for t in taken)


@pytest.mark.parametrize(("dtype", "value"), [
    ("u1", 7), ("i2", -2), ("f4", 1.5), (">f4", 1.5), ("f8", 0.1), ("f8", 0), ("c16", 1 + 2j),
    ("S3", b"abc"), ([("a", "f4"), ("b", "u1")], (2.5, 3)), ("?", True), ("M8[s]", 5),
])  # fmt: skip
@pytest.mark.parametrize("n", [1, 3, 70_001])
def test_a_fill_in_a_stream(busy, dtype, value, n):
    with gd.zeros(n, dtype) as a:
        before = snapshot(a, busy.stream)
        a.fill(value, stream=busy.stream)
        after = snapshot(a, busy.stream)
        assert busy.stream.queue.now() is Now.BUSY
        busy.go()
        want = np.full(n, value, dtype) if np.dtype(dtype).names is None else \
            np.full(n, np.array(value, dtype), dtype)  # fmt: skip
        assert a.read().tobytes() == want.tobytes() == after.read().tobytes()
        assert not before.read().any()


def test_a_fill_leaves_what_is_beside_alone_and_takes_odd_addresses(device):
    stream = gd.stream()
    with gd.zeros(1001, "u1") as a:
        part = a[1:997].view("f4")
        part.fill(1.5, stream=stream)
        assert (part.read() == 1.5).all() and a.read()[[0, 997, 1000]].tolist() == [0, 0, 0]
    with gd.zeros((30, 40), "i4") as b:
        b.T.fill(3, stream=stream)
        b[::2, 1:5].fill(4, stream=stream)
        want = np.full((30, 40), 3)
        want[::2, 1:5] = 4
        assert np.array_equal(b.read(), want)


def test_array_to_array_is_copied_within_the_device(busy, monkeypatch):
    with gd.zeros(1000, "f4") as a, gd.zeros(300, "f4") as b:
        b.fill(2, stream=busy.stream)
        monkeypatch.setattr(type(a), "_read_slow", None)
        a.write(b, 100, stream=busy.stream)
        a.write(a[100:110], 0, stream=busy.stream)
        monkeypatch.undo()
        busy.go()
        want = np.zeros(1000)
        want[100:400] = want[:10] = 2
        assert np.array_equal(a.read(), want)
        with pytest.raises(gd.RangeError):
            a.write(b, 800, stream=busy.stream)
        a.write(a[:500], 250, stream=busy.stream)  # over itself
        want[250:750] = want[:500].copy()
        assert np.array_equal(a.read(), want)


@pytest.mark.parametrize("nbytes", [4, 1000, 300 * KIB])
def test_copy_without_a_stream_is_done_when_it_returns(device, nbytes):
    with gd.stream() as s, gd.zeros(nbytes, "u1") as a:
        a.fill(3)
        b = a.copy()
        assert not device.pending
        assert b.read(via="map", synchronize=False).min() == 3 and b.ptr != a.ptr
        c = a.reshape(-1, 2).T.copy()
        assert c.contiguous and c.shape == (2, nbytes // 2)
        assert not s.queue.pending


def test_fill_in_with_stream_goes_to_the_current_one(busy):
    """It comes after the kernels that were launched on it; and is done when it returns."""
    with busy.stream, gd.zeros(100, "u1") as a:
        before = snapshot(a, busy.stream)
        timer = busy.later()
        a.fill(0xFF)
        timer.join()
        assert not before.read(synchronize=False).any()
        assert (a.read(via="map", synchronize=False) == 0xFF).all()


def test_scatter_waits_for_the_stream_and_is_done(busy):
    with gd.zeros(100, "u1") as a:
        before = snapshot(a, busy.stream)
        timer = busy.later()
        a.scatter([5, 50], np.array([[1, 2], [3, 4]], "u1"), stream=busy.stream)
        timer.join()
        assert not before.read().any()
        assert a.read(via="map", synchronize=False)[[5, 6, 50, 51]].tolist() == [1, 2, 3, 4]


def test_windows_take_a_stream(busy):
    with gd.zeros(4 * MIB, "u1", mapped=False) as a, a.window(MIB, 100) as w:
        w.write(b"there", 3, stream=busy.stream)
        busy.go()
        assert w.read(start=3, count=5, stream=busy.stream).tobytes() == b"there"
        assert a.read(start=MIB + 3, count=5).tobytes() == b"there"


@pytest.mark.parametrize("use", [
    lambda a, s: a.write(b"1", stream=s), lambda a, s: a.read(stream=s), lambda a, s: a.fill(1, stream=s),
    lambda a, s: a.copy(stream=s), lambda a, s: a.scatter([0], 1, stream=s),
    lambda a, s: a.read(stream=s, synchronize=False),
])  # fmt: skip
@pytest.mark.parametrize("wrong", [1, "x", object(), 1.5, float("nan"), b"8", True])
def test_what_is_no_stream_is_refused(use, wrong):
    with gd.zeros(10, "u1") as a, pytest.raises(gd.ArgumentError, match="is no stream"):
        use(a, wrong)


def test_a_closed_stream_is_refused():
    stream = gd.stream()
    stream.close()
    with gd.zeros(10, "u1") as a:
        for use in (lambda: a.write(b"1", stream=stream), lambda: a.read(stream=stream),
                    lambda: a.fill(1, stream=stream), lambda: a.copy(stream=stream),
                    lambda: a.scatter([0], 1, stream=stream)):  # fmt: skip
            with pytest.raises(gd.ClosedError):
                use()
        assert not a.read().any()


def test_what_goes_wrong_on_a_stream_is_told_by_who_looks(device):
    stream = gd.stream()
    with gd.zeros(10, "u1") as a:
        for look in (lambda: a.write(b"1", stream=stream), lambda: a.read(stream=stream)):
            stream.queue.submit(lambda: 1 / 0)
            while not stream.idle():
                time.sleep(1e-3)
            with pytest.raises(ZeroDivisionError):
                look()
        assert a.read(stream=stream).size == 10


def test_wrong_arguments_change_nothing_and_say_what_is_wrong(busy):
    with gd.zeros(10, "f4") as a:
        for wrong, error in ((lambda: a.write([1] * 11, stream=busy.stream), gd.RangeError),
                             (lambda: a.write(np.ones(3), stream=busy.stream), gd.DTypeError),
                             (lambda: a.write([1], stream=busy.stream, via="air"), gd.ArgumentError),
                             (lambda: a.read(stream=busy.stream, synchronize=False, via="air"),
                              gd.ArgumentError),
                             (lambda: a.fill("x", stream=busy.stream), gd.DTypeError)):  # fmt: skip
            with pytest.raises(error):
                wrong()
        busy.go()
        assert not a.read().any()


class Captured:
    """A stream that is captured into a graph."""

    def __init__(self, stream, monkeypatch):
        monkeypatch.setattr(type(stream.queue), "now", lambda queue: Now.CAPTURED)
        monkeypatch.setattr(type(stream.queue), "synchronize", lambda queue: pytest.fail("it was waited for"))


def test_while_a_stream_is_captured_only_what_a_graph_can_repeat_is_queued(monkeypatch):
    stream = gd.stream()
    with gd.zeros(1000, "f4") as a, gd.zeros(3, "f8") as b, gd.zeros(1000, "f4") as twin:
        locked, out = gd.pinned(1000), gd.pinned(1000)
        locked[:], out[:] = 2, 0
        with monkeypatch.context() as m:
            Captured(stream, m)
            for refused in (lambda: a.write(np.ones(1000, "f4"), stream=stream),
                            lambda: a.write([1], stream=stream), lambda: a.read(stream=stream),
                            lambda: a.scatter([1], 1.0, stream=stream), lambda: a[::2].fill(1, stream=stream),
                            lambda: b.fill(0.1, stream=stream)):  # fmt: skip
                with pytest.raises(gd.ArgumentError, match="captured"):
                    refused()
            a.write(locked, stream=stream)
            twin.write(a, stream=stream)
            a.read(out, stream=stream, synchronize=False)
            a.fill(1.5, stream=stream)
        stream.synchronize()
        assert (out == 2).all() and (a.read() == 1.5).all() and (twin.read() == 2).all()


def test_foreign_memory_is_held_until_the_stream_got_there(busy):
    with gd.zeros(1000, "u1") as a:
        part = gd.register(a.ptr, 500)
        part.write(b"12345", stream=busy.stream)
        part.fill(3, stream=busy.stream)
        held = part._piece
        part.close()
        assert busy.stream.queue._kept
        assert any(held in objects for objects in busy.stream.queue._kept.values())
        busy.go()
        busy.stream.synchronize()
        assert not busy.stream.queue._kept
        assert (a.read()[:500] == 3).all()


@pytest.mark.parametrize("seed", range(6))
def test_a_stream_s_order_is_the_program_s(seed):
    """Whatever is done on one stream that is busy or idle gives what NumPy gives, in order."""
    rng = np.random.default_rng(seed)
    n = 5000
    arrays = [gd.zeros(n, "i4"), gd.zeros(n, "i4", mapped=False)]
    models = [np.zeros(n, "i4") for _ in arrays]
    seen = []
    for _ in range(3):
        gate = Busy()
        for step in range(40):
            i = int(rng.integers(2))
            a, model = arrays[i], models[i]
            start = int(rng.integers(n))
            data = rng.integers(1 << 30, size=int(rng.integers(n - start + 1)), dtype="i4")
            what = rng.integers(6)
            if what == 0:
                a.write(data, start, stream=gate.stream)
                model[start : start + data.size] = data
                data[:] = -1
            elif what == 1:
                source = gd.pinned(data.size, "i4")
                source[:] = data
                a.write(source, start, stream=gate.stream)
                model[start : start + data.size] = data
            elif what == 2:
                a[start:].fill(step, stream=gate.stream)
                model[start:] = step
            elif what == 3:
                arrays[1 - i].write(a[start:], stream=gate.stream)
                models[1 - i][: n - start] = model[start:]
            elif what == 4:
                arrays[i] = a.copy(stream=gate.stream)
            else:
                late = a.read(stream=gate.stream, synchronize=False)
                seen.append((late, model.copy()))
            if step == 30:
                gate.go()
        for a, model in zip(arrays, models, strict=True):
            assert np.array_equal(a.read(stream=gate.stream), model)
    for late, model in seen:
        assert np.array_equal(late, model)
