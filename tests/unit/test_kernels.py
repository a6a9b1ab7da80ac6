"""Kernels: compiling, arguments, launches, faults."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest

import gpudirect as gd

SCALE = """
template <class T> __global__ void scale(T *a, int n, T f)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        a[i] *= f;
}
struct Pair { float x; int y; };
namespace deep { __global__ void set(int *a, Pair p, double d, bool b, unsigned char c)
{ a[0] = p.y; a[1] = (int)p.x; a[2] = (int)d; a[3] = b; a[4] = c; } }
__global__ void nothing() {}
extern "C" __global__ void sum(const int *a, int n, int *out)
{
    extern __shared__ int part[];
    int t = threadIdx.x;
    part[t] = t < n ? a[t] : 0;
    __syncthreads();
    for (int s = blockDim.x / 2; s > 0; s /= 2) {
        if (t < s)
            part[t] += part[t + s];
        __syncthreads();
    }
    if (t == 0)
        *out = part[0];
}
"""


@pytest.fixture(autouse=True)
def emulated():
    gd.use(device="emulated")
    yield
    gd.synchronize()
    gd.use()


def test_templates_namespaces_structs_and_shared_memory():
    with gd.asarray(np.arange(100, dtype="f8")) as a, gd.zeros(8, "i4") as b:
        gd.kernel(SCALE, "scale<double>")[1, 128](a, 100, 0.5)
        assert np.array_equal(a.read(), np.arange(100) / 2)
        pair = np.array((2.75, -7), [("x", "f4"), ("y", "i4")])[()]
        gd.kernel(SCALE, "deep::set")[1, 1](b, pair, 9.0, True, np.uint8(200))
        assert b.read()[:5].tolist() == [-7, 2, 9, 1, 200]
        c = gd.asarray(np.arange(64, dtype="i4"))
        gd.kernel(SCALE, "sum").launch(1, 64, c, 64, b, shared=64 * 4)
        assert b.read()[0] == 2016
        gd.kernel(SCALE, "nothing")[(2, 2, 2), (4, 4)]()


def test_options_define_macros():
    k = gd.kernel("__global__ void k(int *a) { *a = N; }", "k", options=["-DN=41"])
    with gd.zeros(1, "i4") as a:
        k[1, 1](a)
        assert a.read()[0] == 41


def test_source_that_does_not_compile_shows_the_compilers_words():
    with pytest.raises(gd.CompileError, match="does not compile") as caught:
        gd.kernel("__global__ void k(int *a) {\n  *a = undefined_thing;\n}", "k")
    assert "undefined_thing" in caught.value.log and "kernel.cu(2)" in caught.value.log


def test_a_kernel_that_is_not_there():
    with pytest.raises(gd.KernelNotFoundError, match="other"):
        gd.kernel(SCALE, "other")
    for source, name in (("", "k"), ("  ", "k"), (SCALE, ""), (3, "k"), (SCALE, None)):
        with pytest.raises(gd.ArgumentError):
            gd.kernel(source, name)


def test_what_the_emulation_lacks_is_named():
    with pytest.raises(gd.CompileError, match="inline PTX"):
        gd.kernel('__global__ void k() { asm volatile("bar.sync 0;"); }', "k")


@pytest.mark.parametrize("arguments", [(), (1,), (1, 2, 3, 4)])
def test_a_wrong_number_of_arguments(arguments):
    k = gd.kernel(SCALE, "scale<float>")
    with pytest.raises(gd.ArgumentError, match=r"takes 3 argument\(s\).*given"):
        k[1, 1](*arguments)


def test_arguments_of_wrong_types():
    k = gd.kernel(SCALE, "scale<float>")
    with gd.zeros(4, "f4") as a, gd.zeros(4, "i4") as ints:
        for bad, words in (
            ((ints, 4, 1.0), "elements are i4"),
            ((np.zeros(4, "f4"), 4, 1.0), "CPU memory"),
            ((a.host, 4, 1.0), "not its CPU view"),
            ((a, 4.5, 1.0), "argument 2"),
            ((a, 1 << 40, 1.0), "out of the range"),
            ((a, a, 1.0), "goes to a pointer"),
            ((a, 4, "x"), "argument 3"),
            (("a", 4, 1.0), "argument 1"),
            ((-1, 4, 1.0), "no address"),
        ):
            with pytest.raises(gd.DTypeError, match=words):
                k[1, 1](*bad)
        k[1, 4](a.ptr, 0, 1.0)
        k[1, 4](a, np.int32(4), np.float32(2))
        k[1, 4](None, 0, 1)
    closed = gd.zeros(3)
    closed.close()
    with pytest.raises(gd.ClosedError):
        k[1, 1](closed, 3, 1.0)


@pytest.mark.parametrize("how", [(1,), 1, (1, 2, None, 0, 5), (0, 1), (1, -1), ("x", 1), ((1,) * 4, 1),
                                 (1, 1, None, -5), (1, 1, None, "s"), (1, 1, "stream"), (1.5, 1)])  # fmt: skip
def test_a_launch_configuration_that_cannot_be(how):
    k = gd.kernel(SCALE, "nothing")
    with pytest.raises(gd.ArgumentError):
        k[how]()


def test_a_block_too_large():
    with pytest.raises(gd.LaunchError, match="1024"):
        gd.kernel(SCALE, "nothing")[1, 2048]()


def test_streams_are_asynchronous_and_ordered():
    slow = gd.kernel(
        """
        __global__ void step(unsigned *a, unsigned want, unsigned rounds)
        {
            unsigned x = *a == want;
            for (unsigned i = 0; i < rounds; i++)
                x = x * 1664525u + (i & 0);
            *a = x ? want + 1 : 0xffff;
        }
        """,
        "step",
    )
    s = gd.stream()
    with gd.zeros(1, "u4") as a:
        for i in range(5):
            slow[1, 1, s](a, i, 2_000_000)
        early = a.read(synchronize=False, via="map")[0]
        s.synchronize()
        assert early < 5 and a.read()[0] == 5
    s.close()


def test_a_fault_in_a_kernel_ends_the_device_and_not_the_program():
    program = """
    import gpudirect as gd
    k = gd.kernel("__global__ void k(int *p) { p[3] = 1; }", "k")
    a = gd.zeros(4, "i4")
    k[1, 1](16)
    for expected in (gd.LaunchError, gd.DeviceLostError):
        try:
            gd.synchronize()
            gd.zeros(4)
        except expected as e:
            print(type(e).__name__, "illegal address" in str(e))
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True,
                         text=True, timeout=60,
                         env={**__import__("os").environ, "GPUDIRECT_DEVICE": "emulated"})  # fmt: skip
    assert run.stdout == "LaunchError True\nDeviceLostError True\n", run.stdout + run.stderr


def test_a_kernel_and_an_array_of_two_devices(monkeypatch):
    program = """
    import gpudirect as gd
    a = gd.zeros(4, device="emulated:1")
    k = gd.kernel("__global__ void k(float *p) { p[0] = 1; }", "k", device="emulated:0")
    try:
        k[1, 1](a)
    except gd.DTypeError as e:
        print("emulated:1" in str(e) and "emulated:0" in str(e))
    k1 = gd.kernel("__global__ void k(float *p) { p[0] = 1; }", "k", device=a.device)
    k1[1, 1](a)
    print(a.read()[0], len(gd.devices.available()))
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True,
                         text=True, timeout=60,
                         env={**__import__("os").environ, "GPUDIRECT_DEVICE": "emulated",
                              "GPUDIRECT_EMULATED_DEVICES": "2"})  # fmt: skip
    assert run.stdout.startswith("True\n1.0 "), run.stdout + run.stderr


def test_the_same_sources_compile_for_a_gpu():
    """NVRTC needs no GPU: the demo's kernels and the argument tables, for a real architecture."""
    from gpudirect import demo
    from gpudirect.devices._nvrtc import compile_kernel

    for name in ("count", "walk"):
        there = compile_kernel(demo.source(name), name, (9, 0))
        here = gd.kernel(demo.source(name), name)
        assert there.parameters == here.parameters and there.code.startswith(b"\x7fELF")
    for name in ("scale<double>", "deep::set", "sum", "nothing"):
        assert compile_kernel(SCALE, name, (9, 0)).parameters == gd.kernel(SCALE, name).parameters
    with pytest.raises(gd.CompileError, match="undefined_thing"):
        compile_kernel("__global__ void k(int *a) { *a = undefined_thing; }", "k", (9, 0))
    with pytest.raises(gd.KernelNotFoundError, match="other"):
        compile_kernel(SCALE, "other", (9, 0))
    with pytest.raises(gd.ArgumentError, match="--frobnicate"):
        compile_kernel(SCALE, "sum", (9, 0), ("--frobnicate",))


def test_kernels_are_cached_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUDIRECT_CACHE", str(tmp_path))
    from gpudirect.devices._nvrtc import compile_kernel

    first = compile_kernel(SCALE, "sum", (9, 0))
    (file,) = (tmp_path / "cuda").iterdir()
    stamp = file.stat().st_mtime_ns
    assert compile_kernel(SCALE, "sum", (9, 0)) == first and file.stat().st_mtime_ns == stamp
    file.write_bytes(b"rubbish")
    assert compile_kernel(SCALE, "sum", (9, 0)) == first


def test_the_emulated_device_has_no_handle_for_the_driver():
    kernel = gd.kernel("__global__ void f(int *p) { p[0] = 1; }", "f")
    with pytest.raises(gd.LaunchError, match="no CUDA driver"):
        _ = kernel.handle
