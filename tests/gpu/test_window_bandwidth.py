"""A 1 GiB array under a 64 MiB aperture budget, written from start to end. Run by ``make test-gpu``.

One write is held against a bar. A writer's bandwidth is printed: it cannot give a part to DMA, so
where the first store to a page of a mapping is dear (shadowed page tables: 40 ns a page with eight
threads) it reaches three quarters.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytest

import gpudirect as gd
from gpudirect import aperture, devices

pytestmark = pytest.mark.gpu
SIZE, BUDGET, BAR = 1 << 30, 64 << 20, 0.8


@pytest.fixture(autouse=True)
def needs_a_gpu():
    if reason := devices.cuda_reason():
        pytest.fail(f"these tests need a GPU: {reason}")


@pytest.mark.parametrize("how", ["one write", "writer, 1 MiB", "writer, 64 KiB"])
def test_windows_keep_the_bandwidth(how, record_property, capsys):
    """The data is right and the budget never exceeded; one write reaches 80% of the fully mapped."""
    device = gd.device()
    source = np.random.default_rng(1).integers(0, 256, SIZE, np.uint8)
    chunk = {"one write": SIZE, "writer, 1 MiB": 1 << 20, "writer, 64 KiB": 64 << 10}[how]

    def seconds(a: gd.Array) -> float:
        start = time.perf_counter()
        if chunk == SIZE:
            a.write(source)
        else:
            with a.writer() as file:
                for at in range(0, SIZE, chunk):
                    file.write(source[at : at + chunk])
        return time.perf_counter() - start

    gd.trim()
    account = aperture.account(device)
    with gd.empty(SIZE, "u1", mapped=True, pool=False) as whole, \
            gd.empty(SIZE, "u1", mapped=False) as windowed:  # fmt: skip
        full = []
        for _ in range(6):
            full.append(seconds(whole))
        whole.close()
        gd.trim()
        before = account.use().total
        aperture.set_budget(before + BUDGET, device)
        try:
            account._peak = before
            parts = [seconds(windowed) for _ in range(6)]
            peak = account.use().peak
        finally:
            aperture.set_budget(None, device)
        for at in range(0, SIZE, 100 << 20):
            assert np.array_equal(windowed.read(start=at, count=4096), source[at : at + 4096])
    ratio = statistics.median(full[1:]) / statistics.median(parts[1:])
    record_property("ratio", ratio)
    with capsys.disabled():
        print(f"\n{how}: {SIZE / statistics.median(full[1:]) / 1e9:.1f} GB/s mapped whole, "
              f"{ratio:.0%} of it through windows within {BUDGET >> 20} MiB")  # fmt: skip
    assert peak <= before + BUDGET
    if how == "one write":
        assert ratio >= BAR
