"""The ports on a GPU: every result is right, and the bars that hold on any such machine hold."""

from __future__ import annotations

import numpy as np
import pytest

import gpudirect
from gpudirect.experiment import measure, ports

pytestmark = pytest.mark.gpu
SECONDS = 0.3
UPDATES = ("spmv_updates", "linked", "inference_params", "steering")


@pytest.fixture(autouse=True)
def cuda():
    gpudirect.use(device="cuda")
    yield
    gpudirect.synchronize()
    gpudirect.use()


def runner(name: str, n: int, kind: str) -> tuple[ports.Port, measure.Runner]:
    port = ports.load(name)
    work = port.work(n, kind)
    return port, measure.Runner(port, work, measure.expected(port, work))


@pytest.mark.parametrize("name", ports.NAMES)
def test_every_version_gives_the_sequential_result(name):
    port = ports.load(name)
    for kind in port.kinds:
        _, run = runner(name, port.sizes[0], kind)
        tried = getattr(port.module, "CHUNKS", measure.chunks(run.work.nbytes))
        for version, make in port.versions((tried[0], tried[-1])).items():
            run.add(version, make)  # compares its result
        for version in run.steps:
            for _ in range(2 * measure.ROUNDS):
                run.one(version)
            run.check(version)


@pytest.mark.parametrize("name", UPDATES)
def test_a_small_update_is_three_times_faster_than_a_copy(name):
    port = ports.load(name)
    _, run = runner(name, port.sizes[0], port.kinds[0])
    made = port.versions(())
    versions = ["copy, pageable", "copy, pinned", "direct"]
    for version in versions:
        run.add(version, made[version])
    times = {v: np.median(updates) for v, (_, updates) in run.times(versions, SECONDS).items()}
    assert 3 * times["direct"] <= min(times["copy, pageable"], times["copy, pinned"]), times


@pytest.mark.parametrize("name", ["vector_add", "stencil3d", "sad"])
def test_direct_takes_no_longer_than_double_buffered_with_any_chunk(name):
    port = ports.load(name)
    _, run = runner(name, port.sizes[1], port.kinds[0])
    tried = measure.chunks(run.work.nbytes)[-6:]
    made = port.versions(tried)
    versions = [*map(ports.chunked, tried), "direct"]
    for version in versions:
        run.add(version, made[version])
    times = {v: np.median(steps) for v, (steps, _) in run.times(versions, SECONDS).items()}
    assert times["direct"] <= min(t for v, t in times.items() if v != "direct"), times


@pytest.mark.parametrize("name", ["spmv_updates", "histogram"])
def test_with_a_courier_scattered_words_are_faster_than_any_copy(name):
    """In every size and kind, beside what packs with the best chunk, too."""
    port = ports.load(name)
    slower = []
    for n in port.sizes:
        for kind in port.kinds:
            _, run = runner(name, n, kind)
            made = port.versions(port.module.CHUNKS)
            copies = [v for v in made if v.startswith(("copy", "double"))]
            for version in copies:
                run.add(version, made[version])
            least = min(np.median(updates) for _, updates in run.times(copies, SECONDS).values())
            run.add(ports.COURIER, made[ports.COURIER])  # by itself, as in the experiment
            own = np.median(run.times([ports.COURIER], SECONDS)[ports.COURIER][1])
            if own >= least:
                slower.append((kind, n, own, least))
    assert not slower, "(kind, size, ns with a courier, ns of the best copy)"
