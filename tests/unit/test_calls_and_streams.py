"""Calls with other libraries' arrays: what their current stream has queued is done before a call is sent."""

from __future__ import annotations

import sys
import threading
import types

import pytest
from waiting import LONG

import gpudirect as gd
from gpudirect.devices import Now
from gpudirect.service import _packing

SOURCE = """
__device__ float at(const float *a, int i) { return a[i]; }
__device__ void set(float *a, int i, float v) { a[i] = v; }
__device__ float first(const float *a, const float *b) { return a[0] + b[0]; }
"""
FILL = "extern __global__ void fill(float *a, float v) { a[threadIdx.x] = v; }"


@pytest.fixture
def service():
    with gd.Service(SOURCE, ["at", "set", "first"], device="emulated") as svc:
        yield svc


@pytest.fixture
def array():
    with gd.zeros(8, device="emulated") as a:
        yield a


class Tensor:
    """Another library's: memory, and the stream that it is used on."""

    def __init__(self, array, stream=None):
        self.array = array
        self.__cuda_array_interface__ = {"shape": array.shape, "typestr": "<f4", "data": (array.ptr, False),
                                         "version": 3, "stream": stream}  # fmt: skip


@pytest.fixture
def behind(array):
    """A stream on which a fill of the array waits behind a gate: (stream, gate, whoever waits for it)."""
    stream, gate, waited = gd.stream("emulated"), threading.Event(), threading.Event()
    stream.queue.submit(lambda: gate.wait(LONG))
    gd.kernel(FILL, "fill", device="emulated")[1, 8, stream](array, 5.0)
    whole = stream.queue.synchronize

    def synchronize():
        waited.set()
        whole()

    stream.queue.synchronize = synchronize
    yield stream, gate, waited
    gate.set()
    whole()


@pytest.mark.parametrize("way", ["call", "submit"])
def test_a_call_waits_for_what_is_queued(service, array, behind, way):
    stream, gate, waited = behind
    found = []

    def call():
        tensor = Tensor(array, stream)
        found.append(service.at(tensor, 3) if way == "call" else service.submit("at", tensor, 3).result(LONG))

    thread = threading.Thread(target=call)
    thread.start()
    assert waited.wait(LONG) and not found  # it has begun to wait, and cannot have read before the gate opens
    gate.set()
    thread.join(LONG)
    assert found == [5.0]


def test_pytorchs_tensors_wait_for_its_current_stream(service, array, behind, monkeypatch):
    stream, gate, _ = behind

    class TorchTensor:
        device = "cuda:0"

        @property
        def __cuda_array_interface__(self):
            return {"shape": (8,), "typestr": "<f4", "data": (array.ptr, False), "version": 2}

    def current_stream(device):
        assert device == "cuda:0"
        return stream

    torch = types.SimpleNamespace(Tensor=TorchTensor, cuda=types.SimpleNamespace(current_stream=current_stream))
    monkeypatch.setitem(sys.modules, "torch", torch)
    threading.Timer(0.05, gate.set).start()
    assert service.at(TorchTensor(), 7) == 5.0


def test_each_argument_is_waited_for(service, array, behind):
    stream, gate, _ = behind
    with gd.full(8, 2, device="emulated") as other:
        threading.Timer(0.05, gate.set).start()
        assert service.first(Tensor(other, gd.stream("emulated")), Tensor(array, stream)) == 7.0


def test_what_is_queued_behind_the_call_sees_what_it_stored(service, array):
    stream = gd.stream("emulated")
    service.set(Tensor(array, stream), 2, 9.0)
    twice = gd.kernel("extern __global__ void twice(float *a) { a[threadIdx.x] *= 2; }", "twice",
                      device="emulated")  # fmt: skip
    twice[1, 8, stream](array)
    assert service.at(Tensor(array, stream), 2) == 18.0


@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: gd.register(a)])
def test_an_array_asks_no_stream(service, array, behind, wrap, monkeypatch):
    """Nothing of this is on the way of our own arrays: the gate is closed, and the call returns."""
    monkeypatch.setattr(_packing, "_await", lambda *a: pytest.fail("it asked a stream"))
    given = wrap(array)
    assert service.at(given, 3) == 0.0
    service.set(given, 0, 1.0)
    assert service.at(given, 0) == 1.0 and service.at(given, 1) == 0.0


def test_no_stream_is_no_wait(service, array, behind):
    assert service.at(Tensor(array), 3) == 0.0


def test_an_idle_stream_is_asked_once(service, array, monkeypatch):
    stream, asked = gd.stream("emulated"), []
    now = stream.queue.now
    monkeypatch.setattr(stream.queue, "now", lambda: asked.append(1) or now())
    monkeypatch.setattr(stream.queue, "synchronize", lambda: pytest.fail("it waited"))
    assert service.at(Tensor(array, stream), 3) == 0.0 and asked == [1]


def test_while_a_graph_is_captured_nothing_is_called(service, array, monkeypatch):
    stream = gd.stream("emulated")
    monkeypatch.setattr(stream.queue, "now", lambda: Now.CAPTURED)
    with pytest.raises(gd.ServiceError, match=r"argument of set .*captures a graph.*register\(x\)"):
        service.set(Tensor(array, stream), 0, 4.0)
    with pytest.raises(gd.ServiceError, match="captures"):
        service.submit("set", Tensor(array, stream), 0, 4.0)
    assert not array.read().any() and service.at(array, 0) == 0.0


def test_what_went_wrong_on_the_stream_is_told_and_nothing_is_sent(service, array, behind, monkeypatch):
    stream, _, _ = behind

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(stream.queue, "synchronize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        service.set(Tensor(array, stream), 0, 4.0)
    assert service.at(array, 0) == 0.0 and service.pending == (0,)


def test_wrong_arguments_are_refused_before_anybody_waits(service, array, behind):
    with pytest.raises(gd.DTypeError):
        service.at(Tensor(array, behind[0]), "x")


class Gpu:
    """As much of a CUDA device as is asked: queues by the number of a stream."""

    emulated = False

    def __init__(self, **queues):
        self.queues = queues

    def as_stream(self, number):
        return types.SimpleNamespace(queue=self.queues[f"s{number}"])


def test_a_drivers_stream_is_asked_and_waited_for():
    done = []

    def queue(name, now):
        return types.SimpleNamespace(now=lambda: done.append(name) or now,
                                     synchronize=lambda: done.append(f"{name} waited"))  # fmt: skip

    gpu = Gpu(s1=queue("legacy", Now.IDLE), s7=queue("theirs", Now.BUSY))
    _packing._await("f", 1, gpu)
    _packing._await("f", 7, gpu)
    assert done == ["legacy", "theirs", "theirs waited"]
