"""Functions that all blocks of a lane run together: every block gets each order once, whole, and is awaited.

GPUDIRECT_TEST_SERVICE_DEVICE=cuda runs them on a GPU; there GPUDIRECT_GRID_CALLS makes more calls.
"""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

import gpudirect as gd

DEVICE = os.environ.get("GPUDIRECT_TEST_SERVICE_DEVICE", "emulated")
CALLS = int(os.environ.get("GPUDIRECT_GRID_CALLS", 300))
BLOCKS, THREADS = 3, 64
ALL = BLOCKS * THREADS

SOURCE = """
template <int n> struct words { unsigned v[n]; };
template <int n> __device__ inline unsigned hashed(const words<n> &w)
{
    unsigned hash = 2166136261u;
    for (int i = 0; i < n; i++) hash = (hash ^ w.v[i]) * 16777619u;
    return hash;
}
__device__ unsigned kept[4096];
__device__ unsigned near(words<12> w, unsigned *out) { return out[gd_rank()] = hashed(w); }
__device__ unsigned far(words<62> w, unsigned *out) { return out[gd_rank()] = hashed(w); }
__device__ void add(unsigned *a) { a[gd_rank()]++; }
__device__ void keep(unsigned v) { kept[gd_rank()] = v; }                  // by a grid, no pointer in sight
__device__ unsigned kept_by(unsigned rank) { return kept[rank]; }
__device__ void keep_one(unsigned v) { kept[0] = v; }                      // by a thread
__device__ void keep_block(unsigned v) { kept[gd_rank()] = v; }            // by a block
__device__ void copy_one(unsigned *out) { out[gd_rank()] = kept[0]; }
__device__ void copy_last(unsigned *out) { out[gd_rank()] = kept[63]; }
__device__ unsigned fails(unsigned rank) { gd_assert(gd_rank() != rank, 0); return gd_size(); }
__device__ unsigned turns(unsigned *a, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        if (gd_rank() == i) a[0] = a[0] * 3 + i;
        gd_sync();
    }
    return a[0];
}
"""
FUNCTIONS = {
    "near": "grid", "far": "grid", "add": "grid", "keep": "grid", "kept_by": "thread", "keep_one": "thread",
    "keep_block": "block", "copy_one": "grid", "copy_last": "grid", "fails": "grid", "turns": "grid",
}  # fmt: skip


def serve(source=SOURCE, functions=FUNCTIONS, **options):
    given = {"blocks": BLOCKS, "threads": THREADS, "slots": 16, "device": DEVICE, "lifetime": 600}
    return gd.Service(source, functions, **{**given, **options})


@pytest.fixture(scope="module")
def svc():
    with serve(lanes=2, slice=2e-3) as running:
        yield running


@pytest.fixture
def out():
    with gd.zeros(ALL, "u4", device=DEVICE) as array:
        yield array


def hashed(words):
    found = 2166136261
    for word in words.tolist():
        found = (found ^ word) * 16777619 & 0xFFFFFFFF
    return found


@pytest.mark.parametrize("name, count", [("near", 12), ("far", 62)])
def test_every_thread_gets_all_words_of_each_call(svc, out, name, count):
    draw = np.random.default_rng(count)
    for _ in range(CALLS // 4):
        words = draw.integers(0, 1 << 32, count, dtype=np.uint32)
        want = hashed(words)
        assert svc.call(name, words.tobytes(), out, timeout=60) == want
        assert (out.read() == want).all()


def test_calls_sent_ahead_run_one_after_the_other(svc, out):
    draw = np.random.default_rng(3)
    sets = [draw.integers(0, 1 << 32, 12, dtype=np.uint32) for _ in range(CALLS // 4)]
    found = list(svc.map("near", (w.tobytes() for w in sets), (out for _ in sets), timeout=60))
    assert found == [hashed(w) for w in sets]


def test_each_block_runs_each_call_once_across_slices_and_naps(out):
    with serve(slice=1e-3, nap_after=1e-3) as service:
        lives = service.info.slices
        for _ in range(CALLS):
            service.call("add", out, timeout=60)
        assert (out.read() == CALLS).all()
        assert service.info.slices > lives, "no slice ended: the test shows nothing"


def test_each_block_is_waited_for(svc):
    """What the last block wrote is there when the next call runs, without a pointer in sight."""
    for n in range(CALLS // 4):
        svc.call("keep", n, timeout=60)
        assert svc.call("kept_by", n % ALL, timeout=60) == n
        assert svc.call("kept_by", ALL - 1, timeout=60) == n


@pytest.mark.parametrize("writer, reader", [("keep_one", "copy_one"), ("keep_block", "copy_last")])
def test_all_blocks_see_what_the_function_before_wrote(svc, out, writer, reader):
    for n in range(CALLS // 4):
        futures = [svc.submit(writer, n, lane=0), svc.submit(reader, out, lane=0)]
        for future in futures:
            future.result(60)
        assert (out.read() == n).all()


@pytest.mark.parametrize("rank", [0, THREADS, ALL - 1])
def test_a_failure_in_any_block_is_the_calls_and_not_the_next_ones(svc, rank):
    for _ in range(5):
        with pytest.raises(gd.DeviceAssertionError):
            svc.call("fails", rank, timeout=60)
        assert svc.call("fails", ALL, timeout=60) == ALL


def test_a_sync_orders_what_blocks_write(svc, out):
    want = 0
    for i in range(ALL):
        want = (want * 3 + i) & 0xFFFFFFFF
    assert svc.call("turns", out, ALL, timeout=60) == want


def test_two_lanes_keep_their_grids_apart(svc):
    arrays = [gd.zeros(ALL, "u4", device=DEVICE) for _ in range(2)]
    wrong: list[BaseException] = []

    def call(lane):
        try:
            for _ in range(CALLS // 4):
                svc.call("add", arrays[lane], lane=lane, timeout=60)
        except BaseException as e:
            wrong.append(e)

    threads = [threading.Thread(target=call, args=(lane,)) for lane in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert not wrong
    assert all((a.read() == CALLS // 4).all() for a in arrays)


def test_pauses_and_new_lives_lose_no_order(out):
    with serve() as service:
        for n in range(5):
            service.call("add", out, timeout=60)
            with service.device.quiet():
                pass
            service.call("add", out, timeout=60)
            service.stop()
            service.start()
            assert (out.read() == 2 * (n + 1)).all()


def test_a_grid_of_one_block_needs_nobody(out):
    with serve(blocks=1) as service:
        service.call("add", out, timeout=60)
        assert out.read().sum() == THREADS
        assert service.call("fails", ALL, timeout=60) == THREADS


def test_macros_of_the_source_change_nothing_of_ours(out):
    source = "#define GRID 7\n#define writes never\n#define far 1\n" + """
    __device__ void add(unsigned *a) { a[gd_rank()]++; }
    """
    with serve(source, {"add": "grid"}) as service:
        service.call("add", out, timeout=60)
        assert (out.read() == 1).all()
