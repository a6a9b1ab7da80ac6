"""Other libraries on a GPU: memory goes in and out without a copy, and what they allocate is mapped.

Each test is a row of docs/frameworks.md. A library that is not installed is skipped with that reason.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import gpudirect as gd
from gpudirect import _allocator, aperture, devices

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]

TWICE = "__global__ void twice(float *x, int n) { int i = threadIdx.x; if (i < n) x[i] *= 2; }"
SLOW = """
__global__ void slow(float *x, int n, float value)
{
    for (long long start = clock64(); clock64() - start < 200000000;) ;
    if (threadIdx.x < n) x[threadIdx.x] = value;
}"""


@pytest.fixture(autouse=True)
def needs_a_gpu():
    if reason := devices.cuda_reason():
        pytest.fail(f"these tests need a GPU: {reason}")
    gd.use(device="cuda")
    yield
    gd.synchronize()
    gd.use()


@pytest.fixture
def torch():
    return pytest.importorskip("torch", exc_type=ImportError)


@pytest.fixture
def settle():
    def wait(reached, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < until
            time.sleep(1e-3)

    return wait


def program(source: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True, timeout=300,
        env={**os.environ, "GPUDIRECT_DEVICE": "cuda", **environment},
    )  # fmt: skip


# -- PyTorch ----------------------------------------------------------------------------------


def test_pytorch_allocates_from_us(torch):
    with gd.torch.mapped():
        x = torch.zeros(1024, device="cuda")
        y = torch.ones(8, 4, device="cuda", dtype=torch.bfloat16)
    view = gd.host(x)
    view[:] = np.arange(1024)
    assert x.cpu().tolist() == list(range(1024))
    a = gd.register(x)
    assert a.unified and a.ptr == x.data_ptr()
    gd.kernel(TWICE, "twice")[1, 1024](x, 1024)
    x += 1
    assert a.read().tolist() == [2 * i + 1 for i in range(1024)]
    pytest.importorskip("ml_dtypes")
    gd.host(y)[0] = 3
    assert y.float().sum().item() == 4 * 3 + 7 * 4


def test_a_fill_of_pytorchs_that_still_runs_does_not_overwrite_what_is_stored(torch):
    slow = gd.kernel(SLOW, "slow")
    for side in (torch.cuda.default_stream(), torch.cuda.Stream()):
        with gd.torch.mapped(), torch.cuda.stream(side):
            slow[1, 1, side](torch.empty(1, device="cuda"), 0, 0.0)
            x = torch.zeros(100, device="cuda")
            gd.host(x)[:] = 7
        torch.cuda.synchronize()
        assert x.sum().item() == 700


READ = """
__device__ float at(const float *a, int i) { return a[i]; }
__device__ void set(float *a, int i, float v) { a[i] = v; }
"""


@pytest.mark.parametrize("side", [False, True])
def test_a_call_on_a_tensor_waits_for_pytorchs_current_stream(torch, side):
    with gd.Service(READ, ["at", "set"]) as service:
        stream = torch.cuda.Stream() if side else torch.cuda.default_stream()
        x = torch.zeros(64, device="cuda")
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for i in range(1, 20):
                torch.cuda._sleep(20_000_000)  # some 10 ms
                x.fill_(i)
                assert service.at(x, 5) == i  # a call that does not wait finds the one before
                service.set(x, 6, float(-i))
                assert x[6].item() == -i
            torch.cuda._sleep(20_000_000)
            x.fill_(99)
            assert service.submit("at", x, 63).result(60) == 99
        graph = torch.cuda.CUDAGraph()
        with pytest.raises(gd.ServiceError, match="captures a graph"), torch.cuda.graph(graph):
            service.at(x, 0)
        torch.cuda.synchronize()
        assert service.at(x, 0) == 99


def test_a_call_on_a_cupy_array_waits_for_cupys_current_stream():
    cupy = pytest.importorskip("cupy", exc_type=ImportError)
    with gd.Service(READ, ["at", "set"]) as service:
        slow = cupy.RawKernel(r"""extern "C" __global__ void slow(float *x, float v) {
            long long end = clock64() + 20000000; while (clock64() < end) { } x[threadIdx.x] = v; }""", "slow")
        x = cupy.zeros(64, "f4")
        cupy.cuda.Device().synchronize()
        for stream in (cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream.null):
            with stream:
                for i in range(1, 10):
                    slow((1,), (64,), (x, cupy.float32(i)))
                    assert service.at(x, 5) == i


def test_pytorchs_own_out_of_memory_and_then_it_works_again(torch):
    free, _ = torch.cuda.mem_get_info()
    with gd.torch.mapped():
        kept = torch.full((1 << 20,), 3.0, device="cuda")
        gd.host(kept)[5] = 4
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.empty(free * 2, dtype=torch.uint8, device="cuda")
        large = torch.empty(free // 2, dtype=torch.uint8, device="cuda")
        gd.host(large)[-5:] = 9
        assert large[-5:].cpu().tolist() == [9] * 5
        del large
    with gd.torch.mapped():  # what was cached serves later blocks
        again = torch.empty(free // 2 - (64 << 20), dtype=torch.uint8, device="cuda")
        gd.host(again)[:3] = 8
    assert again[:3].cpu().tolist() == [8] * 3 and kept[5].item() == 4
    del again
    gc.collect()
    torch.cuda.empty_cache()


def test_what_pytorch_gives_back_is_unmapped_and_freed(torch, settle):
    device = gd.device()
    with gd.torch.mapped():
        torch.zeros(10, device="cuda")
    gc.collect()
    torch.cuda.empty_cache()
    before = _allocator.statistics(device)["bytes"], aperture.account(device).use().registered
    for i in range(50):
        with gd.torch.mapped():
            x = torch.empty(3_000_000 + i, device="cuda")
        gd.host(x)[:1000] = i
        assert x[999].item() == i
        del x
        torch.cuda.empty_cache()
    account = aperture.account(device)
    settle(lambda: (_allocator.statistics(device)["bytes"], account.use().registered) == before)
    assert _allocator.statistics(device)["waiting"] == 0


def test_pytorch_allocates_from_us_on_several_threads(torch):
    wrong, done = [], []

    def work(seed: int) -> None:
        for i in range(100):
            with gd.torch.mapped():
                x = torch.empty(5000, dtype=torch.int32, device="cuda")
            gd.host(x)[:] = seed + i
            if not bool((x == seed + i).all()):
                wrong.append((seed, i))
            if i % 10 == 0:
                torch.cuda.empty_cache()
        done.append(seed)

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert not wrong and len(done) == 4


def test_a_graph_captured_on_mapped_tensors_reads_what_the_cpu_stored(torch):
    with gd.torch.mapped():
        x = torch.zeros(64, device="cuda")
    out = torch.zeros(64, device="cuda")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out.copy_(x * 2)
    view = gd.host(x)
    for i in range(20):
        view[:] = i
        gd.register(x).flush()
        graph.replay()
        torch.cuda.synchronize()
        assert out.cpu().tolist() == [2.0 * i] * 64


def test_pytorch_ends_with_mapped_tensors_alive(torch):
    run = program("""
        import torch, gpudirect as gd
        with gd.torch.mapped():
            x = torch.zeros(1000, device="cuda")
        view = gd.host(x)
        view[:] = 3
        print(x.sum().item())
        """)
    assert (run.returncode, run.stdout.strip()) == (0, "3000.0"), run.stderr


def test_expandable_segments_do_not_mind(torch):
    run = program("""
        import torch, gpudirect as gd
        y = torch.zeros(10, device="cuda")
        with gd.torch.mapped():
            x = torch.zeros(1000, device="cuda")
        gd.host(x)[:] = 3
        gd.host(y)[:] = 4
        print(x.sum().item(), y.sum().item())
        """, PYTORCH_ALLOC_CONF="expandable_segments:True")  # fmt: skip
    assert (run.returncode, run.stdout.strip()) == (0, "3000.0 40.0"), run.stderr


# -- the inputs of a replayed step --------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
@pytest.mark.parametrize("waiting", [True, False])
def test_each_replay_of_a_graph_reads_the_values_of_its_step(torch, ahead, waiting):
    inputs = gd.torch.Inputs({"ids": (64, torch.int32), "scale": (1, torch.float32),
                              "tables": ((64, 128), torch.int32)}, ahead=ahead)  # fmt: skip
    out = torch.zeros(64, device="cuda", dtype=torch.float64)
    heavy = torch.randn(2048, 2048, device="cuda")
    assert inputs.tensors["ids"].is_cuda
    torch.mm(heavy, heavy)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        inputs.take()
        for _ in range(4):
            torch.mm(heavy, heavy)  # a step that takes a while, and then reads
        out.copy_(inputs.tensors["ids"].double() * inputs.tensors["scale"] + inputs.tensors["tables"].sum(1))
    history, want = [], []
    draw = np.random.default_rng(ahead)
    for i in range(300):
        inputs["ids"][: i % 64] += i
        inputs["scale"] = i % 7
        inputs["tables"][i % 64, draw.integers(0, 128, 5)] = draw.integers(0, 1000, 5)
        want.append(inputs["ids"].astype("f8") * (i % 7) + inputs["tables"].sum(1))
        inputs.replay(graph)
        history.append(out.clone())
        if waiting:
            torch.cuda.synchronize()
    assert np.array_equal(torch.stack(history).cpu().numpy(), np.stack(want))


def test_a_graph_without_take_is_found_out(torch):
    inputs = gd.torch.Inputs({"ids": (64, torch.int32)}, ahead=1)
    out = torch.zeros(64, device="cuda", dtype=torch.int32)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out.copy_(inputs.tensors["ids"] + 1)
    inputs.replay(graph)
    with pytest.raises(gd.Error, match="take"):
        inputs.replay(graph)


def test_several_graphs_share_their_inputs(torch):
    inputs = gd.torch.Inputs({"ids": (64, torch.int32)}, ahead=2)
    out = torch.zeros(64, device="cuda", dtype=torch.int32)
    graphs = []
    torch.cuda.synchronize()
    for size in (8, 16, 64):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            inputs.take()
            out[:size] = inputs.tensors["ids"][:size] * size
        graphs.append((size, graph))
    for i in range(100):
        size, graph = graphs[i % 3]
        inputs["ids"] = i
        inputs.replay(graph)
        found = out.clone()
        if i % 10 == 0:
            graph.replay()  # nobody gave it values: those of the step before
        assert found[:size].tolist() == [i * size] * size


def test_inputs_take_bfloat16(torch):
    pytest.importorskip("ml_dtypes")
    with gd.torch.Inputs({"x": (8, torch.bfloat16)}) as inputs:
        inputs["x"] = 1.5
        inputs.replay(lambda: None)
        assert inputs.tensors["x"].tolist() == [1.5] * 8


def test_the_decoder_has_the_same_results_whichever_way_its_inputs_come(tmp_path, torch):
    figures = tmp_path / "figures.json"
    run = subprocess.run(
        [sys.executable, "examples/decode_inputs.py", "--json", str(figures), "--measured", "60"],
        capture_output=True, text=True, timeout=600, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    ways = json.loads(figures.read_text())["ways"]
    assert len(ways) == 7 and all(w["equal"] and w["equal ahead"] for w in ways.values())
    pinned, ours = (ways[n]["waiting"]["update_us"] for n in ("six copy_, pinned", "gpudirect, slots"))
    assert 8 * ours <= pinned, run.stdout


# -- CuPy ---------------------------------------------------------------------------------------


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy", exc_type=ImportError)


def test_cupy_allocates_from_us(cupy):
    with gd.cupy.mapped():
        x = cupy.zeros(1024, "f4")
    gd.host(x)[:] = np.arange(1024)
    assert gd.register(x).unified
    gd.kernel(TWICE, "twice")[1, 1024](x, 1024)
    x += 1
    assert cupy.asnumpy(x).tolist() == [2 * i + 1 for i in range(1024)]
    assert gd.register(x).read().tolist() == [2 * i + 1 for i in range(1024)]


def test_a_fill_of_cupys_that_still_runs_does_not_overwrite_what_is_stored(cupy):
    slow = gd.kernel(SLOW, "slow")
    for side in (cupy.cuda.Stream.null, cupy.cuda.Stream(), cupy.cuda.Stream(non_blocking=True)):
        with gd.cupy.mapped(), side:
            slow[1, 1, side](cupy.empty(1, "f4"), 0, 0.0)
            x = cupy.zeros(100, "f4")
            gd.host(x)[:] = 7
        cupy.cuda.runtime.deviceSynchronize()
        assert float(x.sum()) == 700


def test_cupys_own_out_of_memory_and_then_it_works_again(cupy):
    free, _ = cupy.cuda.runtime.memGetInfo()
    with gd.cupy.mapped() as pool:
        kept = cupy.full(1 << 20, 3, "f4")
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
            cupy.empty(free * 2, "u1")
        large = cupy.empty(free // 2, "u1")
        gd.host(large)[-5:] = 9
        assert cupy.asnumpy(large[-5:]).tolist() == [9] * 5
        del large
        again = cupy.empty(free // 2 + (64 << 20), "u1")
        gd.host(again)[:3] = 8
        assert cupy.asnumpy(again[:3]).tolist() == [8] * 3 and float(kept[5]) == 3
    del again
    pool.free_all_blocks()
    gd.trim()


def test_a_graph_of_cupys_reads_inputs(cupy):
    inputs = gd.Inputs({"x": (64, "f4")}, ahead=1)
    x, out = cupy.asarray(inputs.arrays["x"]), cupy.zeros(64, "f4")
    cupy.multiply(x, 2, out=out)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.runtime.deviceSynchronize()
    with stream:
        stream.begin_capture()
        inputs.take(stream)
        cupy.multiply(x, 2, out=out)
        graph = stream.end_capture()
    for i in range(20):
        inputs["x"] = i
        inputs.replay(lambda: graph.launch(stream), stream)
        stream.synchronize()
        assert cupy.asnumpy(out).tolist() == [2.0 * i] * 64


# -- JAX ----------------------------------------------------------------------------------------


def test_jax_goes_in_and_out_without_a_copy():
    pytest.importorskip("jax", exc_type=ImportError)
    run = program("""
        import jax, jax.numpy as jnp, numpy as np, gpudirect as gd
        a = gd.asarray(np.arange(100, dtype="f4"))
        x = jax.dlpack.from_dlpack(a)
        assert x.unsafe_buffer_pointer() == a.ptr
        a.host[3] = 50
        a.flush()
        print(float(x.sum()))
        k = gd.kernel("__global__ void put(float *to, const float *from) { *to = from[3]; }", "put")
        y = gd.zeros(1)
        k[1, 1](y, jnp.asarray(x) + 1)   # a launch on an array of JAX's
        print(y.read()[0])
        """, XLA_PYTHON_CLIENT_PREALLOCATE="false")  # fmt: skip
    assert (run.returncode, run.stdout.split()) == (0, ["4997.0", "51.0"]), run.stderr


# -- cuda.core ----------------------------------------------------------------------------------


def test_cuda_core_allocates_from_us():
    core = pytest.importorskip("cuda.core", exc_type=ImportError)
    device = core.Device(0)
    device.set_current()
    stream = device.create_stream()
    resource = gd.cuda_core.resource()
    buffer = resource.allocate(4096, stream=stream)
    gd.host(buffer)[:] = 7
    assert gd.register(buffer).unified and gd.register(buffer).read().tolist() == [7] * 4096
    other = core.Buffer.from_handle(int(gd.zeros(4096, "u1").ptr), 4096)
    other.close()
    for _ in range(300):
        with_fill = resource.allocate(1 << 20, stream=stream)
        with_fill.fill(3, stream=stream)
        with_fill.close(stream)
    device.sync()
    buffer.close()
    with pytest.raises(MemoryError):
        resource.allocate(1 << 45, stream=stream)
    assert len(resource._loans) == 0


# -- Numba --------------------------------------------------------------------------------------


def test_numba_allocates_from_us():
    run = program("""
        import sys
        try:
            from numba import cuda
            cuda.to_device
        except Exception as e:
            sys.exit(f"broken here: {type(e).__name__}: {e}")
        import numpy as np, gpudirect as gd
        gd.numba.install()
        x = cuda.device_array(1024, "f4")
        gd.host(x)[:] = np.arange(1024)
        print(x.copy_to_host().sum(), gd.register(x).unified)
        """)
    if "broken here" in run.stderr or "row_stack" in run.stderr:
        pytest.skip(f"Numba-CUDA cannot be used with this NumPy: {run.stderr.strip().splitlines()[-1]}")
    assert (run.returncode, run.stdout.split()) == (0, ["523776.0", "True"]), run.stderr


def test_rmm_allocates_from_us():
    rmm = pytest.importorskip("rmm", exc_type=ImportError)
    rmm.mr.set_current_device_resource(gd.rmm.resource())
    try:
        buffer = rmm.DeviceBuffer(size=4096)
        gd.host(buffer)[:] = 7
        assert bytes(buffer.copy_to_host()) == b"\7" * 4096
    finally:
        rmm.mr.set_current_device_resource(rmm.mr.CudaMemoryResource())


def test_a_launch_comes_between_what_pytorch_queues_on_its_tensors(torch):
    slow = gd.kernel(SLOW, "slow")
    side = torch.cuda.Stream()
    x, seen = torch.zeros(100, device="cuda"), torch.zeros(100, device="cuda")
    torch.cuda.synchronize()
    for i in range(5):
        with torch.cuda.stream(side):
            torch.cuda._sleep(50_000_000)
            x.fill_(i)  # on PyTorch's stream, after a while
            with gd.stream():
                gd.kernel(TWICE, "twice")[1, 128](x, 100)  # on ours
                slow[1, 128](seen, 100, 0.0)
            seen.copy_(x)  # on PyTorch's again
        torch.cuda.synchronize()
        assert seen.cpu().tolist() == [2.0 * i] * 100
