"""Device memory lent to other libraries: DLPack's capsules, streams and types; the array interface."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

import gpudirect as gd
from gpudirect import arrays
from gpudirect._native import _dlpack as dlpack
from gpudirect.arrays import _dlpack, _export

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def emulated():
    gd.use(device="emulated", bridge="emulated")
    yield
    gd.use()


def program(source: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True, timeout=60,
        cwd=ROOT, env={**os.environ, "GPUDIRECT_DEVICE": "emulated", "GPUDIRECT_BRIDGE": "emulated"},
    )  # fmt: skip


# -- life -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, (0, 8), (1, 0), (1, 1), (2, 0)])
def test_the_memory_lives_as_long_as_the_consumer(version):
    a = gd.asarray(np.arange(6, dtype="f4"))
    piece = weakref.ref(a._piece)
    keeper, address, shape, strides, kind, where, flags = dlpack.borrow(a.__dlpack__(max_version=version))
    assert (address, shape, strides, kind, where, flags) == (a.host_ptr, (6,), (1,), (2, 32, 1), (1, 0), 0)
    a.close()
    del a
    gc.collect()
    assert piece() is not None
    del keeper
    gc.collect()
    assert piece() is None


def test_a_capsule_that_nobody_takes():
    a = gd.ones(3)
    piece = weakref.ref(a._piece)
    capsule = a.__dlpack__(max_version=(1, 0))
    a.close()
    del a, capsule
    gc.collect()
    assert piece() is None


def test_a_capsule_is_consumed_once():
    capsule = gd.ones(3).__dlpack__()
    keeper = dlpack.borrow(capsule)[0]
    with pytest.raises(ValueError, match="consumed"):
        dlpack.borrow(capsule)
    for wrong in (None, 3, object()):
        with pytest.raises(ValueError, match="no DLPack capsule"):
            dlpack.borrow(wrong)
    del keeper


def test_a_consumer_that_raises_is_heard_and_leaves_nothing():
    a = gd.ones(3)
    piece = weakref.ref(a._piece)

    def consume(capsule):
        keeper = dlpack.borrow(capsule)[0]
        raise KeyboardInterrupt(f"while {keeper!r} was held")  # let go with the exception set

    for version in (None, (1, 0)):
        with pytest.raises(KeyboardInterrupt, match="while"):
            consume(a.__dlpack__(max_version=version))

    def refuse(capsule):
        raise RuntimeError("not for me")  # the capsule is abandoned with the exception set

    with pytest.raises(RuntimeError, match="not for me"):
        refuse(a.__dlpack__(max_version=(1, 0)))
    a.close()
    del a
    gc.collect()
    assert piece() is None


def test_numpy_refuses_device_memory_with_a_sentence(monkeypatch):
    a = gd.ones(3)
    monkeypatch.setattr(_export, "dlpack_device", lambda extent: (2, 0))  # as a GPU's
    piece = weakref.ref(a._piece)
    with pytest.raises((BufferError, RuntimeError, ValueError), match="[Dd]evice"):
        np.from_dlpack(a)
    a.close()
    del a
    gc.collect()
    assert piece() is None


def test_it_is_let_go_on_a_thread_without_python():
    a = gd.ones(3)
    piece = weakref.ref(a._piece)
    capsule = a.__dlpack__()
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    managed = pointer(capsule, b"dltensor")
    rename = ctypes.pythonapi.PyCapsule_SetName
    rename.argtypes = [ctypes.py_object, ctypes.c_char_p]
    name = ctypes.create_string_buffer(b"used_dltensor")
    rename(capsule, ctypes.addressof(name) and name.value)
    deleter = ctypes.cast(managed + 56, ctypes.POINTER(ctypes.c_void_p))[0]
    a.close()
    del a
    assert piece() is not None
    libc = ctypes.CDLL(None)
    thread = ctypes.c_ulong()  # one that Python never saw
    arguments = ctypes.c_void_p(deleter), ctypes.c_void_p(managed)
    assert libc.pthread_create(ctypes.byref(thread), None, *arguments) == 0
    assert libc.pthread_join(thread, None) == 0
    assert piece() is None


@pytest.mark.parametrize("held", ["a = np.from_dlpack(gd.ones(5))",
                                  "a = gd.ones(5).__dlpack__(max_version=(1, 0))",
                                  "import builtins; builtins.kept = np.from_dlpack(gd.ones(5))",
                                  "sys.kept = dlpack.borrow(gd.ones(5).__dlpack__())"])  # fmt: skip
def test_exit_while_a_consumer_lives(held):
    run = program(f"""
        import sys
        import numpy as np, gpudirect as gd
        from gpudirect._native import _dlpack as dlpack
        {held}
        """)
    assert (run.returncode, run.stderr) == (0, "")


def test_threads_lend_and_let_go():
    a = gd.asarray(np.arange(1000, dtype="i4"))
    wrong = []

    def work():
        for _ in range(300):
            seen = np.from_dlpack(a[::2])
            if seen[3] != 6:
                wrong.append(seen)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not wrong


# -- what can be lent -------------------------------------------------------------------------


def test_what_numpy_gets_is_the_memory():
    want = np.arange(24, dtype="i4").reshape(2, 3, 4)
    a = gd.asarray(want)
    for cut in (np.s_[...], np.s_[:, 1:, ::2], np.s_[::-1], np.s_[1, 2, 3, ...], np.s_[:0]):
        assert np.array_equal(np.from_dlpack(a[cut]), want[cut])
    np.from_dlpack(a, copy=True)[...] = 0
    assert np.array_equal(a.read(), want)
    np.from_dlpack(a)[0, 0, 0] = 9
    assert a.read()[0, 0, 0] == 9


def test_strides_that_cannot_be_divided_are_refused():
    packed = np.dtype([("a", "u1"), ("b", "<i4")])
    want = np.zeros(6, packed)
    want["b"] = np.arange(6)
    a = gd.asarray(want)
    with pytest.raises(gd.ExportError, match="5.*copy"):
        a["b"].__dlpack__()
    with pytest.raises(BufferError):
        np.from_dlpack(a["b"])
    assert np.array_equal(np.from_dlpack(a["b"].copy()), want["b"])
    fine = gd.asarray(np.zeros(6, np.dtype([("a", "<i4"), ("b", "<i4")])))
    assert np.from_dlpack(fine["b"]).shape == (6,)


def test_what_dlpack_has_no_word_for():
    for dtype in (">f4", "M8[s]", "S4", "V3", "g", "G", [("a", "i4")]):
        with pytest.raises(gd.DTypeError, match="view"):
            gd.zeros(3, dtype).__dlpack__()
    with pytest.raises(gd.ExportError, match="emulated:0"):
        gd.zeros(3).__dlpack__(dl_device=(2, 0))
    with pytest.raises(gd.ExportError, match="not mapped"):
        gd.zeros(3, mapped=False).__dlpack__()
    with pytest.raises(gd.ClosedError):
        a = gd.zeros(3)
        a.close()
        a.__dlpack__()


SMALL = [("bfloat16", 4, 16), ("float8_e4m3fn", 10, 8), ("float8_e5m2", 12, 8),
         ("float8_e8m0fnu", 14, 8), ("float8_e3m4", 7, 8), ("float4_e2m1fn", 17, 4),
         ("float6_e2m3fn", 15, 6), ("int4", 0, 4), ("uint4", 1, 4)]  # fmt: skip


@pytest.mark.parametrize("name,code,bits", SMALL)
def test_small_numbers_go_and_come_back(name, code, bits):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(getattr(ml_dtypes, name))
    want = np.array([[1, 2, 4], [1, 0.5, 1]]).astype(dtype)
    a = gd.asarray(want)
    assert a.dtype == dtype and a.read().tobytes() == want.tobytes() and a.host.dtype == dtype
    if bits < 8:
        for version in (None, (1, 0)):
            with pytest.raises(gd.ExportError, match="byte each"):
                a.__dlpack__(max_version=version)
    keeper, address, shape, strides, found = _dlpack.unpacked(a.T.__dlpack__(max_version=(1, 1)))
    assert (address, shape, found) == (a.host_ptr, (3, 2), dtype)
    assert strides == (dtype.itemsize, 3 * dtype.itemsize)
    del keeper
    flags = dlpack.borrow(a.__dlpack__(max_version=(1, 1)))[4::2]
    assert flags == ((code, bits, 1), _dlpack.PADDED if bits < 8 else 0)


def test_types_that_look_alike_are_not_taken_for_each_other():
    """ml_dtypes uses the letters of NumPy's own types again."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for name, other in (("int1", "e"), ("int4", "i1"), ("float8_e4m3b11fnuz", "L"), ("bfloat16", "u2")):
        with gd.zeros(8, getattr(ml_dtypes, name)) as a, pytest.raises(gd.DTypeError, match="astype"):
            a.write(np.ones(4, other))


def test_there_and_back_for_every_code():
    for dtype in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16", "?"):
        assert _dlpack.dtype_of(*_dlpack.code_of(np.dtype(dtype)), 1) == np.dtype(dtype)
    for wrong in ((2, 32, 4), (3, 64, 1), (99, 8, 1), (2, 7, 1)):
        with pytest.raises(gd.DTypeError):
            _dlpack.dtype_of(*wrong)


# -- order ------------------------------------------------------------------------------------


def test_a_consumer_on_the_cpu_sees_what_kernels_did():
    f = gd.kernel("__global__ void f(int *p) { for (volatile int i = 0; i < 30000000; i++) ; *p = 7; }", "f")
    a = gd.zeros(1, "i4")
    f[1, 1](a)
    assert np.from_dlpack(a)[0] == 7


class Queue:
    """A queue with work on it, which notes what waits for it."""

    def __init__(self, handle):
        self.handle, self.retired, self.waits = handle, False, []

    def record(self, timing):
        return f"event of {self.handle}"


class Consumer:
    def __init__(self, queue):
        self.queue = queue

    def wait(self, event):
        self.queue.waits.append(event)


class Gpu:
    """As much of a GPU as an order needs."""

    emulated = False

    def __init__(self, *handles):
        self.queues = {h: Queue(h) for h in handles}
        self.default_stream = Consumer(Queue(0))
        self.adopted = []

    def pending_queues(self):
        return list(self.queues.values())

    def adopt_stream(self, stream):
        self.adopted.append(stream)
        if stream == 1:
            return self.default_stream
        return Consumer(self.queues.get(stream) or Queue(stream))


def test_the_consumers_stream_waits_for_what_is_queued():
    gpu = Gpu(11, 12)
    _export._before(gpu, 11)
    assert gpu.queues[11].waits == ["event of 12"] and not gpu.queues[12].waits
    _export._before(gpu, None)
    assert gpu.adopted == [11, 1] and gpu.default_stream.queue.waits == ["event of 11", "event of 12"]
    _export._before(gpu, -1)
    assert gpu.adopted == [11, 1]
    with pytest.raises(gd.ExportError, match="ambiguous"):
        _export._before(gpu, 0)


def test_the_array_interface_names_the_stream_to_wait_for():
    assert _export._stream_to_wait_for(Gpu()) is None
    assert _export._stream_to_wait_for(Gpu(33)) == 33
    assert _export._stream_to_wait_for(Gpu(0)) == 1
    gpu = Gpu(33, 34)
    assert _export._stream_to_wait_for(gpu) == 1
    assert gpu.default_stream.queue.waits == ["event of 33", "event of 34"]


# -- memory of others --------------------------------------------------------------------------


class Lender:
    """Lends emulated memory as if it were on a GPU, by DLPack only."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, *, stream=None, max_version=None):
        assert stream == 1
        return self.array.__dlpack__(max_version=max_version)


def test_memory_lent_by_dlpack_is_registered():
    owner = gd.asarray(np.arange(12, dtype="i2").reshape(3, 4))
    b = gd.register(Lender(owner))
    piece = weakref.ref(owner._piece)
    owner.close()
    assert np.array_equal(b.read(), np.arange(12).reshape(3, 4)) and b.dtype == np.int16
    b.close()
    del b, owner
    gc.collect()
    gd.trim()
    assert piece() is None
    transposed = gd.register(Lender(gd.asarray(np.arange(6, dtype="i2").reshape(2, 3)).T))
    assert transposed.read().tolist() == [[0, 3], [1, 4], [2, 5]]


def test_registering_an_array_keeps_its_memory_and_not_the_array():
    owner = gd.full(3, 7)
    b = gd.register(owner)
    owner.close()
    gd.full(3, 9)
    assert b.read().tolist() == [7, 7, 7]


# -- launches on arrays of others ---------------------------------------------------------------


class Line:
    """A stream that notes what it is told to wait for."""

    def __init__(self, name, device, capturing=False):
        self.name, self.device, self.waits = name, device, []
        self.queue = type("Q", (), {"capturing": lambda q: capturing})()

    def wait(self, what):
        self.waits.append(what.name)

    def __repr__(self):
        return f"<{self.name}>"


class Lines:
    """A GPU with streams by number."""

    emulated = False

    def __init__(self, *capturing):
        self.lines = {n: Line(f"stream {n}", self, n in capturing) for n in (1, 7, 8)}

    def adopt_stream(self, number):
        return self.lines[number]


def test_a_launch_comes_between_what_others_queue_on_its_arguments():
    launched = []
    gpu = Lines()
    mine, theirs, other = gpu.lines.values()
    k = gd.kernel("__global__ void f(float *a, float *b, float *c, float *d) { }", "f")
    a = gd.zeros(3)

    class On:
        def __init__(self, stream):
            self.__cuda_array_interface__ = {"shape": (3,), "typestr": "<f4", "data": (a.ptr, False),
                                             "version": 3, "stream": stream}  # fmt: skip

    class Function:
        def launch(self, *arguments, **more):
            launched.append([list(s.waits) for s in gpu.lines.values()])

    k._function = Function()
    launcher = k[1, 1]
    launcher._stream = mine
    launcher(On(7), On(8), On(7), On(1))
    assert launched == [[["stream 7", "stream 8"], [], []]]  # before it is queued
    assert theirs.waits == other.waits == ["stream 1"]  # after
    launcher(a, On(None), None, On(1))
    assert len(launched) == 2 and len(mine.waits) == 2
    gpu.lines = Lines(7).lines
    with pytest.raises(gd.LaunchError, match="captures a graph.*stream 1.*current_stream"):
        launcher(On(7), None, None, None)
    assert len(launched) == 2


def test_pytorchs_arrays_are_ordered_by_its_current_stream(monkeypatch):
    import sys
    import types

    class Tensor:
        device = "cuda:3"

    torch = types.SimpleNamespace(
        Tensor=Tensor, cuda=types.SimpleNamespace(current_stream=lambda device: ("current of", device)))
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert arrays.stream_of(Tensor(), {"version": 2}) == ("current of", "cuda:3")
    assert arrays.stream_of(object(), {"version": 2}) is None
    assert arrays.stream_of(Tensor(), {"version": 3, "stream": 5}) == 5


def test_memory_of_a_library_that_captures_a_graph_is_not_waited_for():
    from gpudirect.arrays import _foreign

    gpu = Lines(7)
    gpu.default_stream = gpu.lines[1]
    _foreign._after(gpu, 7)
    assert not gpu.default_stream.waits
    _foreign._after(gpu, None)
