"""The ports: every version of each gives the sequential result, and bad input is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gpudirect as gd
from gpudirect.experiment import measure, ports

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
VERSIONS = ("copy, pageable", "copy, pinned", "direct")


@pytest.fixture(autouse=True)
def emulated():
    gd.use(device="emulated")
    yield
    gd.synchronize()
    gd.use()


@pytest.fixture(params=[n for n in ports.NAMES if (EXAMPLES / f"{n}.py").exists()])
def port(request: pytest.FixtureRequest) -> ports.Port:
    return ports.load(request.param)


def test_every_version_of_every_kind_gives_the_sequential_result(port):
    for kind in port.kinds:
        work = port.work(port.small, kind)
        runner = measure.Runner(port, work, measure.expected(port, work))
        tried = getattr(port.module, "CHUNKS", measure.chunks(work.nbytes))
        made = port.versions(tried)
        for name in (*VERSIONS, ports.chunked(tried[0]), ports.chunked(tried[-1])):
            runner.add(name, made[name])  # compares its result
            runner.one(name)
            runner.check(name)


def test_a_wrong_result_is_found():
    port = ports.load("vector_add")
    work = port.work(port.small, "scale")
    expected = measure.expected(port, work)
    expected[0][17] += 1
    runner = measure.Runner(port, work, expected)
    with pytest.raises(measure.WrongResultError, match="1 of 10007 elements, first at 17"):
        runner.add("direct", port.module.direct)


def test_vector_add_carries_nan_and_refuses_sizes_of_nothing_and_beyond_memory():
    port = ports.load("vector_add")
    signal = np.array([1, np.nan, 3], "f4")
    result = port.module.direct(port.module.Work(3, "scale", signal))()
    assert np.isnan(result[1]) and not np.isnan(result[[0, 2]]).any()
    with pytest.raises(gd.ArgumentError, match="at least 1"):
        port.work(0, "scale")
    beyond = port.module.Work(1 << 30, "scale", signal)
    with pytest.raises(gd.OutOfMemoryError, match="asked for"):
        port.module.direct(beyond)


