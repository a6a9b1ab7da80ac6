"""What one thread does with services, couriers and memory leaves a graph alone that another captures."""

from __future__ import annotations

import ctypes
import threading
import time

import numpy as np
import pytest

import gpudirect as gd
from gpudirect import devices

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
SOURCE = "__device__ int add(int a, int b) { return a + b; }"
KERNEL = 'extern "C" __global__ void count(unsigned *a) { *a += 1; }'
HANG = 60.0  # seconds
ROUNDS = 5


@pytest.fixture(autouse=True)
def needs_a_gpu():
    if reason := devices.cuda_reason():
        pytest.fail(f"these tests need a GPU: {reason}")


class Other:
    """A thread that does one of everything, round after round; ``rounds`` are over."""

    def __init__(self) -> None:
        self.rounds, self.doing, self.failure = 0, "", None
        self._end = threading.Event()
        self._words = np.arange(5000, dtype="u4")
        self._array = gd.asarray(self._words)
        self._service = gd.Service(SOURCE, "add", nap_after=1e-3, park_after=0.01, lifetime=240).start()
        self._courier = gd.Courier().start()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _step_by_step(self) -> None:
        a, words, svc = self._array, self._words, self._service
        at = np.arange(0, 5000, 7)
        self.doing = "empty"
        gd.empty(1 << 16, "u1", pool=False).close()
        self.doing = "page-locked memory"
        gd.pinned(1 << 20, "u1")
        for via in ("map", "dma", "courier"):
            self.doing = f"read by {via}"
            assert np.array_equal(a.read(via=via), words)
            self.doing = f"gather by {via}"
            assert np.array_equal(a.gather(at, via=via), words[at])
        self.doing = "scatter"
        a.scatter(at, words[at], via="courier")
        self.doing = "call"
        assert svc.call("add", 2, 3, timeout=HANG) == 5
        for state in ("napping", "parked"):
            self.doing = f"call of one {state}"
            self._until(state)
            assert svc.call("add", 2, 3, timeout=HANG) == 5
        self.doing = "stop"
        svc.stop()
        self.doing = "start"
        svc.start()

    def _until(self, state: str) -> None:
        end = time.monotonic() + HANG
        while self._service.info.state not in (state, "parked"):
            assert time.monotonic() < end, state
            time.sleep(1e-4)

    def _run(self) -> None:
        try:
            while not self._end.is_set():
                self._step_by_step()
                self.rounds += 1
        except BaseException as e:
            self.failure = e

    def round_over(self) -> None:
        """Wait until a whole round has been since now."""
        wanted, end = self.rounds + 2, time.monotonic() + HANG
        while self.rounds < wanted:
            assert self.failure is None, f"{self.doing}: {self.failure!r}"
            assert time.monotonic() < end, f"it hangs in {self.doing}"
            time.sleep(1e-3)

    def stop(self) -> None:
        self._end.set()
        self._thread.join(HANG)
        self._courier.stop()
        self._service.stop()


@pytest.mark.parametrize("mode", ["GLOBAL", "THREAD_LOCAL", "RELAXED"])
def test_a_capture_goes_on_beside_services_couriers_and_memory(mode):
    """GLOBAL, PyTorch's default, forbids every thread what may wait: the driver says so to who does it
    nevertheless, and may end the capture."""
    from cuda.bindings import driver as d

    def done(result):
        assert int(result[0]) == 0, result[0]
        return result[1] if len(result) > 1 else None

    counted = gd.zeros(1, "u4")
    kernel = gd.kernel(KERNEL, "count")
    kernel[1, 1](counted)
    gd.synchronize()
    capture_mode = d.CUstreamCaptureMode[f"CU_STREAM_CAPTURE_MODE_{mode}"]
    other = Other()
    try:
        with gd.device().current():
            stream = done(d.cuStreamCreate(d.CUstream_flags.CU_STREAM_NON_BLOCKING))

            def launch():
                done(d.cuLaunchKernel(kernel.handle, 1, 1, 1, 1, 1, 1, 0, stream,
                                      ((counted.ptr,), (ctypes.c_void_p,)), 0))  # fmt: skip

            other.round_over()
            for n in range(ROUNDS):
                done(d.cuStreamBeginCapture(stream, capture_mode))
                launch()
                other.round_over()
                launch()
                graph = done(d.cuStreamEndCapture(stream))
                ready = done(d.cuGraphInstantiate(graph, 0))
                done(d.cuGraphLaunch(ready, stream))
                done(d.cuStreamSynchronize(stream))
                assert counted.read()[0] == 1 + 2 * (n + 1)
            done(d.cuStreamDestroy(stream))
        assert other.failure is None, f"{other.doing}: {other.failure!r}"
    finally:
        other.stop()
