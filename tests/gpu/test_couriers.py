"""Couriers on a GPU: the emulated device's own tests, and what only a GPU has."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import gpudirect as gd
from gpudirect import devices

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
ROOT = Path(__file__).resolve().parents[2]
# what CUDA has otherwise: no device in a child of fork(), page-locked memory that every device reaches
OTHERWISE = ("fork", "page_locked_memory_is_known", "shares_the_first")


@pytest.fixture(autouse=True)
def needs_a_gpu():
    if reason := devices.cuda_reason():
        pytest.fail(f"these tests need a GPU: {reason}")


@pytest.mark.parametrize("name", ["test_courier.py", "test_gather.py", "test_elements.py",
                                  "test_quick_reads.py"])
def test_what_holds_emulated_holds_here(name):
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/unit/{name}",
         "-k", " and ".join(f"not {word}" for word in OTHERWISE)],
        capture_output=True, text=True, cwd=ROOT, check=False,
        env={**os.environ, "GPUDIRECT_DEVICE": "cuda", "GPUDIRECT_TEST_PAIRS": ""},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]


def test_page_locked_memory_of_others_is_not_stored_to_straight():
    """Its address on the device may be another; and it may be given back at any time."""
    torch = pytest.importorskip("torch")
    words = np.random.default_rng(1).integers(0, 1 << 32, 50_000, "u4")
    out = torch.empty(50_000, dtype=torch.int32, pin_memory=True).numpy().view("u4")
    with gd.asarray(words) as a, gd.Courier():
        a.read(out, via="courier")
        assert np.array_equal(out, words)
        registered = np.zeros(50_000, "u4")
        error = torch.cuda.cudart().cudaHostRegister(registered.ctypes.data, registered.nbytes, 0)
        assert int(error) == 0
        try:
            a.read(registered, via="courier")
            assert np.array_equal(registered, words)
        finally:
            torch.cuda.cudart().cudaHostUnregister(registered.ctypes.data)


def test_who_waits_for_the_device_waits_for_slices_beside_a_busy_one():
    from cuda.bindings import driver

    from gpudirect.bench.others import current

    a = gd.zeros(1 << 16, "u4")
    out, ended, reads = np.empty(1 << 12, "u4"), threading.Event(), []

    def steady():
        part = a[: 1 << 12]
        while not ended.is_set():
            part.read(out, via="courier")
            reads.append(1)

    with gd.Courier(), current(gd.device("cuda:0")):
        thread = threading.Thread(target=steady)
        thread.start()
        try:
            times = []
            for i in range(200):
                time.sleep(1e-4 * (i % 7))
                start = time.perf_counter()
                driver.cuCtxSynchronize()
                times.append(time.perf_counter() - start)
        finally:
            ended.set()
            thread.join()
    assert len(reads) > 1000
    median, worst = float(np.median(times)), max(times)
    print(f"\nwaited for the device: median {median * 1e3:.2f} ms, worst {worst * 1e3:.2f} ms")
    assert median <= 1.2e-3 and worst <= 3e-3
