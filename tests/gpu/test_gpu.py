"""What only a real GPU can show. Run by ``make test-gpu``."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import gpudirect as gd
from gpudirect import devices

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def needs_a_gpu():
    if reason := devices.cuda_reason():
        pytest.fail(f"these tests need a GPU: {reason}")


def test_ten_thousand_cycles_leave_nothing_behind(record_property):
    device = gd.device()
    keep = gd.empty(100, "u1")
    keep.write(b"x")
    gd.trim()
    free, used = device.memory()[0], device.aperture().used
    import psutil

    files = psutil.Process().num_fds()
    for i in range(10_000):
        with gd.empty(2 << 20, "u1", pool=False) as a:
            a.write(b"0123456789abcdef", i)
    gc.collect()
    gd.trim()
    assert device.memory()[0] == free
    assert device.aperture().used == used
    assert psutil.Process().num_fds() == files


def test_device_memory_exhausted_says_so_and_the_next_call_works():
    total = gd.device().memory()[1]
    with pytest.raises(gd.OutOfMemoryError, match="cuMemCreate|allocating"):
        gd.empty(total + (1 << 30), "u1")
    with gd.empty(1000, "u1") as a:
        a.write(b"fine")


def test_a_mapping_of_many_gigabytes():
    size = 16 << 30
    with gd.empty(size, "u1", pool=False) as a:
        for offset in (0, size // 2 + 1, size - 5):
            a.write(b"there", offset)
            assert a.read(start=offset, count=5, via="dma").tobytes() == b"there"


def test_a_pytorch_tensor_of_expandable_segments_is_registered():
    program = """
    import torch, gpudirect as gd, numpy as np
    small = torch.zeros(1000, device="cuda")
    odd = torch.zeros(3_000_001, dtype=torch.uint8, device="cuda")[1:]
    large = torch.zeros(50_000_000, device="cuda")   # spans several physical blocks
    for t in (small, odd, large):
        a = gd.register(t)
        assert a.shape == tuple(t.shape), (a.shape, t.shape)
        want = np.random.default_rng(1).integers(0, 100, a.shape).astype(a.dtype)
        a.write(want)
        assert (t.cpu().numpy() == want).all()
        t.fill_(7)
        torch.cuda.synchronize()
        assert (a[-4:].read(via="map") == 7).all()
        print(len(a.pages), end=" ")
    print("fine")
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True,
        timeout=300, env={**__import__("os").environ,
                          "PYTORCH_ALLOC_CONF": "expandable_segments:True"},
    )  # fmt: skip
    assert run.stdout.endswith("fine\n"), run.stdout + run.stderr


def test_a_buffer_of_cuda_core_is_registered():
    core = pytest.importorskip("cuda.core")
    device = core.Device(0)
    device.set_current()
    resource = core.VirtualMemoryResource(device)
    buffer = resource.allocate(4 << 20)
    a = gd.register(buffer)
    want = np.random.default_rng(2).integers(0, 256, buffer.size, np.uint8)
    a.write(want)
    out = np.empty_like(want)
    gd.device().copy_out(out.ctypes.data, a.ptr, out.nbytes)
    assert np.array_equal(out, want)
    a.close()
    buffer.close()


def test_cuda_malloc_memory_names_the_bridges_that_could_map_it():
    from cuda.bindings import driver

    with gd.device().current():
        _, ptr = driver.cuMemAlloc(1 << 20)
    try:
        if gd.empty(1).bridge == "rm":
            with pytest.raises(gd.NotMappableError, match="p2pmod, gdrdrv"):
                gd.register(int(ptr), 1 << 20)
    finally:
        driver.cuMemFree(ptr)


def test_arrays_go_to_pytorch_and_cupy_without_a_copy():
    torch = pytest.importorskip("torch")
    cupy = pytest.importorskip("cupy")
    with gd.empty((100, 30), "f4") as a:
        want = np.random.default_rng(3).random((100, 30), np.float32)
        a.host[:] = want
        t = torch.from_dlpack(a)
        assert t.data_ptr() == a.ptr and torch.equal(t.cpu(), torch.from_numpy(want))
        c = cupy.asarray(a[10:20])
        assert c.data.ptr == a[10:20].ptr and np.array_equal(c.get(), want[10:20])
        t += 1
        torch.cuda.synchronize()
        assert np.array_equal(a.read(), want + 1)


def test_numpy_is_refused_device_memory_with_a_sentence():
    with gd.ones(10) as a:
        with pytest.raises((BufferError, RuntimeError, ValueError), match="[Dd]evice"):
            np.from_dlpack(a)
        assert np.asarray(a).tolist() == [1] * 10


def test_a_consumer_waits_for_our_kernels_on_any_stream():
    """By DLPack and by the array interface: a slow kernel of ours is done before theirs begins."""
    torch = pytest.importorskip("torch")
    slow = gd.kernel(
        "__global__ void slow(int *p, int v) { long long t = clock64(); "
        "while (clock64() - t < 20000000) ; *p = v; }",
        "slow",
    )
    ours, theirs = [gd.stream(), gd.stream()], torch.cuda.Stream()
    with gd.zeros(1, "i4") as a:
        for round_ in range(1, 6):
            slow[1, 1, ours[round_ % 2]](a, round_)
            with torch.cuda.stream(theirs):
                seen = torch.from_dlpack(a).clone()
            theirs.synchronize()
            assert int(seen[0]) == round_
            slow[1, 1, ours[0]](a, -round_)
            slow[1, 1, ours[1]](a, -round_)
            seen = torch.as_tensor(a, device="cuda").clone()
            torch.cuda.synchronize()
            assert int(seen[0]) == -round_


def test_small_numbers_go_to_pytorch_and_come_back():
    torch = pytest.importorskip("torch")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        want = np.array([1, 2, 0.5, 4]).astype(getattr(ml_dtypes, name))
        with gd.asarray(want) as a:
            try:
                t = torch.from_dlpack(a)
            except (RuntimeError, BufferError):
                assert name != "bfloat16", "PyTorch has had bfloat16 in DLPack for years"
                continue
            assert str(t.dtype) == f"torch.{name}" and t.float().tolist() == [1, 2, 0.5, 4]
            back = gd.register(t)
            assert back.dtype == want.dtype and back.read().tobytes() == want.tobytes()


def test_exit_while_pytorch_holds_memory_of_ours():
    pytest.importorskip("torch")
    run = subprocess.run(
        [sys.executable, "-c", "import torch, gpudirect as gd; t = torch.from_dlpack(gd.ones(10)); t += 1"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_a_kernel_fault_is_told_and_ends_the_context():
    program = """
    import gpudirect as gd
    k = gd.kernel("__global__ void k(int *p) { *p = 1; }", "k")
    k[1, 1](16)
    try:
        gd.synchronize()
    except gd.DeviceLostError as e:
        print("lost", e.code)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True,
                         text=True, timeout=120)  # fmt: skip
    assert run.stdout.startswith("lost 7"), run.stdout + run.stderr


def test_devices_are_found_by_uuid_and_pci_address():
    device = gd.device("cuda:0")
    assert gd.device(device.uuid) is device
    assert gd.device(device.pci_address) is device
    with pytest.raises(gd.DeviceNotFoundError, match="CUDA sees"):
        gd.device("cuda:99")


def test_every_gpu_of_the_host_is_mapped_from_one_process():
    gpus = [d for d in devices.available() if d.kind == "cuda"]
    arrays = [gd.empty(8 << 20, "u1", device=d) for d in gpus]
    wants = [np.random.default_rng(i).integers(0, 256, 8 << 20, np.uint8) for i in range(len(gpus))]
    for a, want in zip(arrays, wants, strict=True):
        a.write(want)
    for a, want in zip(arrays, wants, strict=True):
        assert np.array_equal(a.read(via="dma"), want)
        k = gd.kernel("__global__ void k(unsigned char *p) { p[threadIdx.x] += 1; }", "k",
                      device=a.device)  # fmt: skip
        k[1, 64](a)
        assert np.array_equal(a[:64].read(), want[:64] + 1)


def test_memory_on_any_gpu_is_registered_without_naming_it():
    for d in (d for d in devices.available() if d.kind == "cuda"):
        with gd.zeros(3 << 20, "u1", device=d) as owner:
            b = gd.register(owner.ptr + 11, 1 << 20)
            assert b.device is d
            b.write(b"found")
            assert owner.read(start=11, count=5).tobytes() == b"found"


def test_another_process_reads_what_a_kernel_stores_in_shared_host_memory():
    """A memfd that the driver has page-locked: the descriptor is all that the other process needs."""
    import mmap

    memory = gd.device().host_allocate(4096, shared=True)
    assert memory.descriptor is not None, "this driver registers no memfd"
    source = "__global__ void tell(volatile unsigned *to) { to[5] = 1234; __threadfence_system(); }"
    gd.kernel(source, "tell")[1, 1](memory.ptr)
    gd.synchronize()
    here = mmap.mmap(memory.descriptor, 4096, prot=mmap.PROT_READ)
    assert int.from_bytes(here[20:24], "little") == 1234
    code = ("import mmap, sys; m = mmap.mmap(int(sys.argv[1]), 4096, prot=mmap.PROT_READ); "
            "print(int.from_bytes(m[20:24], 'little'))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, str(memory.descriptor)], capture_output=True, text=True,
                          pass_fds=[memory.descriptor], check=True)  # fmt: skip
    assert done.stdout.strip() == "1234"
