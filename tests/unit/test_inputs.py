"""Inputs of a replayed step: each step reads its own values, however far the CPU runs ahead."""

from __future__ import annotations

import gc
import os
import threading
import time

import numpy as np
import pytest
from waiting import HOLD

import gpudirect as gd
from gpudirect import _inputs, _native

SUM = """
__global__ void sum(const int *ids, const int *table, int n, long long *out, int spin)
{
    for (volatile int i = 0; i < spin; i++) ;
    long long found = 0;
    for (int i = 0; i < 64; i++) found = found * 3 + ids[i];
    for (int i = 0; i < n; i++) found = found * 3 + table[i];
    *out = found;
}"""
FIELDS = {"ids": (64, "i4"), "table": ((16, 32), "i4")}


@pytest.fixture(autouse=True)
def emulated():
    gd.use(device="emulated", bridge="emulated")
    yield
    gd.synchronize()
    gd.use()


class Graph:
    """Stands for a captured graph: what it launches is queued again by each replay."""

    def __init__(self, inputs, out, stream, spin=0):
        self.inputs, self.out, self.stream, self.spin, self.count = inputs, out, stream, spin, 0
        self.sum = gd.kernel(SUM, "sum")

    def replay(self):
        self.inputs.take(self.stream)
        arrays = self.inputs.arrays
        n = arrays["table"].size
        self.sum[1, 1, self.stream](arrays["ids"], arrays["table"], n, self.out[self.count :], self.spin)
        self.count += 1


def horner(*values) -> int:
    found = 0
    for v in np.concatenate([np.ravel(v) for v in values]).tolist():
        found = (found * 3 + v) % (1 << 64)
    return found - (1 << 64) if found >> 63 else found


@pytest.mark.parametrize("ahead", [0, 1, 2, 3, 8])
@pytest.mark.parametrize("waiting", [True, False])
def test_each_step_reads_its_own_values(ahead, waiting):
    stream, steps = gd.stream(), 60
    inputs = gd.Inputs(FIELDS, ahead=ahead)
    out = gd.zeros(steps, "i8")
    graph = Graph(inputs, out, stream, spin=0 if waiting else 200_000)
    addresses = {n: a.ptr for n, a in inputs.arrays.items()}
    draw, want = np.random.default_rng(ahead), []
    for i in range(steps):
        inputs["ids"][: i % 64] += i  # what is not written keeps its value
        if i % 4 == 0:
            inputs["table"][draw.integers(16), :7] = i
        want.append(horner(inputs["ids"], inputs["table"]))
        inputs.replay(graph, stream)
        if waiting:
            stream.synchronize()
    stream.synchronize()
    assert out.read().tolist() == want
    assert addresses == {n: a.ptr for n, a in inputs.arrays.items()}


def test_the_cpu_runs_as_far_ahead_as_was_said_and_no_farther():
    gate = gd.pinned(1, "u4")
    gate[0] = 0
    wait = gd.kernel(HOLD + "__global__ void wait(volatile unsigned *gate) { hold(gate); }", "wait")
    stream = gd.stream()
    for ahead in (1, 2, 4):
        gate[0] = 0
        inputs = gd.Inputs(FIELDS, ahead=ahead)
        out = gd.zeros(20, "i8")
        graph = Graph(inputs, out, stream)
        wait[1, 1, stream](gate)  # no step begins before
        for i in range(ahead):
            inputs["ids"] = i + 1
            inputs.replay(graph, stream)
        done = threading.Event()

        def one_more(inputs=inputs, graph=graph, done=done):
            inputs["ids"] = 99
            inputs.replay(graph, stream)
            done.set()

        other = threading.Thread(target=one_more)
        other.start()
        assert not done.wait(0.1)
        gate[0] = 1
        assert done.wait(60)
        other.join(60)
        stream.synchronize()
        zeros = np.zeros(16 * 32, "i4")
        want = [horner(np.full(64, v), zeros) for v in [*range(1, ahead + 1), 99]]
        assert out.read()[: ahead + 1].tolist() == want


def test_only_what_changed_is_stored():
    for ahead in (0, 1, 2):
        inputs = gd.Inputs(FIELDS, ahead=ahead)
        graph = Graph(inputs, gd.zeros(20, "i8"), None)
        inputs["ids"][5] = 1
        inputs["table"][3, 3] = 2
        stored = []
        for _ in range(3):
            stored.append(inputs.commit())
            graph.replay()
            gd.synchronize()
        # each slot once, and then nothing any more
        assert stored == [128 if i < max(ahead, 1) else 0 for i in range(3)]
        inputs["table"][:] = 9
        assert inputs.commit() == 16 * 32 * 4


def test_a_replay_of_the_graph_alone_keeps_the_values():
    inputs = gd.Inputs(FIELDS, ahead=2)
    out = gd.zeros(50, "i8")
    graph = Graph(inputs, out, None)
    graph.replay()  # before any
    gd.synchronize()
    want, zeros = [0], np.zeros(16 * 32, "i4")
    for i in range(1, 12):
        inputs["ids"] = i
        inputs.replay(graph)
        want.append(horner(np.full(64, i), zeros))
        for _ in range(i % 3):
            graph.replay()
            want.append(want[-1])
        gd.synchronize()  # else those that have not begun find the next values already
    gd.synchronize()
    assert out.read()[: len(want)].tolist() == want


def test_a_graph_that_fails_to_replay_leaves_the_values_for_the_next():
    for ahead in (0, 1, 3):
        inputs = gd.Inputs(FIELDS, ahead=ahead)
        out = gd.zeros(20, "i8")
        graph = Graph(inputs, out, None)

        def broken():
            raise RuntimeError("not captured")

        want = []
        for i in range(8):
            inputs["ids"] = 2 * i
            with pytest.raises(RuntimeError, match="not captured"):
                inputs.replay(broken)
            inputs["ids"] += 1
            inputs.replay(graph)
            want.append(horner(np.full(64, 2 * i + 1), np.zeros(16 * 32, "i4")))
        gd.synchronize()
        assert out.read()[:8].tolist() == want


def test_a_graph_that_takes_nothing_is_found_out():
    inputs = gd.Inputs(FIELDS, ahead=1)
    inputs.replay(lambda: None)
    with pytest.raises(gd.Error, match=r"1 steps were replayed and 0 took.*inputs.take\(\)"):
        inputs.replay(lambda: None)
    with gd.Inputs(FIELDS) as direct:
        for _ in range(3):
            direct.replay(lambda: None)  # nothing to take where the step reads the memory itself


def test_values_are_read_back_at_no_cost_and_assigned_as_in_numpy():
    fields = {"x": np.zeros((2, 3), "f8"), "y": ((), "u2"), "z": (4, [("a", "i4"), ("b", "f4")])}
    with gd.Inputs(fields) as inputs:
        assert type(inputs["x"]) is np.ndarray and [*inputs] == ["x", "y", "z"] and len(inputs) == 3
        assert inputs["x"].shape == (2, 3) and "y" in inputs and "w" not in inputs and inputs.nbytes == 768
        inputs["x"] = [1, 2, 3]
        inputs["y"] = 7
        inputs["z"]["b"][2] = 0.5
        inputs.replay(lambda: None)
        assert inputs.arrays["x"].read().tolist() == [[1, 2, 3]] * 2
        assert inputs.arrays["y"].read() == 7 and inputs.arrays["z"].read()["b"].tolist() == [0, 0, 0.5, 0]
        with pytest.raises(ValueError):
            inputs["x"] = [1, 2]
        assert "x 2x3 float64" in repr(inputs) and "emulated" in repr(inputs)


@pytest.mark.parametrize("fields, more, said", [
    ({}, {}, "by name"), (None, {}, "by name"), ([("a", 3)], {}, "by name"), ({3: (3, "f4")}, {}, "no name"),
    ({"a": 3}, {}, "shape and dtype"), ({"a": (3, "f4", 1)}, {}, "shape and dtype"),
    ({"a": (0, "f4")}, {}, "no elements"), ({"a": (-1, "f4")}, {}, "negative"), ({"a": (3, "O")}, {}, "object"),
    ({"a": (3, "f4")}, {"ahead": -1}, "0 to 64"), ({"a": (3, "f4")}, {"ahead": 65}, "0 to 64"),
    ({"a": (3, "f4")}, {"ahead": 1.5}, "whole number"),
])  # fmt: skip
def test_bad_fields_are_refused(fields, more, said):
    with pytest.raises(gd.ArgumentError, match=said):
        gd.Inputs(fields, **more)


def test_a_wrong_name_and_a_closed_set():
    inputs = gd.Inputs(FIELDS, ahead=1)
    with pytest.raises(gd.ArgumentError, match="no input 'idz': there are ids, table"):
        inputs["idz"] = 3
    inputs.close()
    inputs.close()
    for call in (lambda: inputs.replay(lambda: None), inputs.commit, inputs.take):
        with pytest.raises(gd.ClosedError, match="ids, table"):
            call()


def test_the_memory_goes_back_after_the_last_step():
    gc.collect()
    gd.trim()
    before = gd.statistics()[0].in_use
    for ahead in (0, 2):
        stream = gd.stream()
        inputs = gd.Inputs(FIELDS, ahead=ahead)
        out = gd.zeros(3, "i8")
        graph = Graph(inputs, out, stream, spin=3_000_000)
        inputs["ids"] = 4
        inputs.replay(graph, stream)
        del inputs, graph.inputs
        gc.collect()
        others = [gd.full(64, -1, "i4") for _ in range(300)]  # would be given what went back too early
        stream.synchronize()
        assert out.read()[0] == horner(np.full(64, 4), np.zeros(16 * 32, "i4"))
        del out, graph, others, stream
        gc.collect()
    gd.trim()
    assert gd.statistics()[0].in_use == before


def test_a_child_of_fork_is_told():
    inputs = gd.Inputs(FIELDS, ahead=1)
    child = os.fork()
    if not child:
        try:
            inputs.replay(lambda: None)
        except gd.ForkError:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    inputs.replay(lambda: None)


def test_stores_of_any_pattern_arrive():
    """The comparison by lines and areas: every length and place."""
    lib, ffi = _native.lib, _native.ffi
    draw = np.random.default_rng(3)
    for n in (8, 64, 72, 1024, 1032, 4096, 5000):
        n -= n % 8
        with gd.zeros(n, "u1") as a:
            now, there = np.zeros(n, "u1"), np.zeros(n, "u1")
            slot = ffi.new("struct gd_slot *", {"data": a.host_ptr, "there": ffi.from_buffer("char[]", there)})
            state = ffi.new("struct gd_inputs *",
                            {"slots": slot, "n": n, "now": ffi.from_buffer("char[]", now)})  # fmt: skip
            for _ in range(50):
                start, count = draw.integers(n), draw.integers(1, 200)
                now[start : start + count] = draw.integers(0, 256)
                changed = int((now != there).any())
                stored = lib.gd_inputs_commit(state, 0)
                assert stored >= changed and np.array_equal(a.read(), now) and np.array_equal(there, now)


def test_a_wait_that_is_too_long_says_what_is_wrong_and_ends_with_the_device(monkeypatch):
    monkeypatch.setattr(_inputs, "PATIENCE", 100_000)
    inputs = gd.Inputs(FIELDS, ahead=1)
    spin = gd.kernel("__global__ void spin() { for (volatile long long i = 0; i < 300000000; i++) ; }", "spin")
    graph = Graph(inputs, gd.zeros(4, "i8"), None)
    spin[1, 1]()
    inputs.replay(graph)
    start = time.monotonic()
    inputs.replay(graph)  # waits for the kernel before
    assert time.monotonic() - start < 60
