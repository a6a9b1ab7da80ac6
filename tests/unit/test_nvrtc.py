"""The emulated device is as strict as NVRTC, and takes the headers that a GPU takes."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import gpudirect as gd
from gpudirect.devices import _headers, _nvrtc

H100 = (9, 0)
REFUSED = {
    "a host function is no kernel": "void k(int *a) { *a = 1; }",
    "a device function is no kernel": "__device__ void k(int *a) { *a = 1; }",
    "there is no C++ library": "#include <vector>\n__global__ void k(int *a) { std::vector<int> v; }",
    "without its header there is none": "__global__ void k(int *a) { std::vector<int> v; }",
    "integers with a size need a header": "__global__ void k(uint32_t *a) { *a = 1; }",
    "NAN needs a header": "__global__ void k(float *a) { *a = NAN; }",
    "exceptions": "__global__ void k(int *a) { throw 1; }",
    "a host function called": "int f() { return 1; }\n__global__ void k(int *a) { *a = f(); }",
    "no such overload": "__global__ void k(float *a) { *a = max(1, 0.5f); }",
    "more shared memory than there is":
        "__global__ void k(int *a) { __shared__ int b[20000]; b[threadIdx.x] = *a; *a = b[1]; }",
    "a PTX instruction that is none": '''__global__ void k(int *a) {
    #ifndef GPUDIRECT_EMULATED
        asm("garbage;");
    #endif
    }''',
    "a body that is missing": "__device__ int f(); __global__ void k(int *a) { *a = f(); }",
}  # fmt: skip


@pytest.fixture(autouse=True)
def emulated():
    gd.use(device="emulated")
    yield
    gd.use()


@pytest.fixture
def without_nvrtc(monkeypatch, tmp_path):
    monkeypatch.setenv("GPUDIRECT_CACHE", str(tmp_path))
    monkeypatch.setattr(_nvrtc, "_load", lambda: "libnvrtc.so is not there")
    monkeypatch.setattr(_nvrtc, "_WHEELS", ())
    _nvrtc._identity.cache_clear()
    yield
    _nvrtc._identity.cache_clear()


def test_nvrtc_is_here():
    """Without it this module proves nothing: the test extra brings it, and CI has no excuse."""
    if _nvrtc.reason() is not None and not os.environ.get("GPUDIRECT_REQUIRE_NVRTC"):
        pytest.skip(_nvrtc.reason())
    assert _nvrtc.reason() is None
    assert {"cuda_fp16.h", "cooperative_groups.h"} <= {
        f.name for folder in _headers.folders() for f in folder.glob("c*.h")
    }


@pytest.mark.parametrize("source", REFUSED.values(), ids=REFUSED)
def test_what_nvrtc_refuses_the_emulated_device_refuses_in_the_same_words(source):
    with pytest.raises((gd.CompileError, gd.KernelNotFoundError)) as here:
        gd.kernel(source, "k")
    with pytest.raises((gd.CompileError, gd.KernelNotFoundError)) as there:
        _nvrtc.compile_kernel(source, "k", H100)
    assert type(here.value) is type(there.value) and str(here.value) == str(there.value)
    assert "error" in str(here.value) or "fatal" in str(here.value)


def test_a_warning_does_not_hide_that_only_the_name_is_wrong():
    with pytest.raises(gd.KernelNotFoundError, match=r"no kernel 'other'.*Its kernels: k\n"):
        gd.kernel("__global__ void k(int *a) { int unused = 1; }", "other")


@pytest.mark.parametrize(
    "parameter", ["const void *p", "volatile void *p", "struct opaque *p", "int (*p)[]", "void (*p)(int)"]
)
def test_pointers_to_what_has_no_size(parameter):
    k = gd.kernel(f"struct opaque;\n__global__ void k({parameter}) {{}}", "k")
    assert [(p.kind, p.size) for p in k.parameters] == [("p", 8)]


# -- headers


HEADERS = {
    "cuda_fp16.h": "a[0] = __half2float(__hadd(__float2half(1.5f), __float2half(2.0f)));",
    "cuda_bf16.h": "a[0] = __bfloat162float(__float2bfloat16(3.5f));",
    "cooperative_groups.h": "a[0] = 2.5f + cooperative_groups::this_thread_block().size();",
    "cuda/atomic": "cuda::atomic_ref<float, cuda::thread_scope_device>(a[0]).store(3.5f);",
    "cuda/std/cstdint": "cuda::std::uint32_t n = 7; a[0] = n / 2.0f;",
    "cstdint": "std::uint32_t n = UINT32_MAX; int64_t m = 7; a[0] = (n == ~0u) * m / 2.0f;",
    "stdint.h": "uint8_t n = 7; uintptr_t p = (uintptr_t)a; a[0] = n / 2.0f + (p & 1);",
    "cstddef": "std::size_t n = offsetof(int2, y); a[0] = n - 0.5f;",
    "climits": "a[0] = CHAR_BIT - 4.5f;",
    "cfloat": "a[0] = 3.5f + (FLT_MAX < 0);",
    "limits": "a[0] = 3.5f + (std::numeric_limits<int>::max() < 0);",
    "type_traits": "a[0] = std::is_same<int, int>::value * 3.5f;",
    "utility": "float x = 3.5f; a[0] = std::move(x);",
    "cmath": "a[0] = 3.5f + (isnan(NAN) - 1) + (int)(INFINITY < M_PI);",
    "math.h": "a[0] = 3.5f + (isnan(NAN) - 1) + (int)(INFINITY < M_PI);",
    "cassert": "assert(a); a[0] = 3.5f;",
    "string.h": "float x = 3.5f; memcpy(a, &x, 4);",
    "cstdio": "if (!a) printf(\"never\"); a[0] = 3.5f;",
    "cuda_runtime.h": "a[0] = make_float2(3.5f, 1).x;",
    "math_constants.h": "a[0] = 3.5f + (CUDART_INF_F < 0);",
}  # fmt: skip


@pytest.mark.parametrize("header", HEADERS)
def test_headers_that_a_kernel_may_include(header):
    source = f"#include <{header}>\n__global__ void k(float *a) {{ {HEADERS[header]} }}"
    with gd.zeros(1, "f4") as a:
        gd.kernel(source, "k")[1, 1](a)
        assert a.read()[0] == 3.5


def test_headers_of_a_wheel_serve_without_a_toolkit():
    """That they lie in wheels too is what the extras [cu12] and [cu13] promise."""
    from importlib import metadata

    folders = {str(folder) for folder in _headers.folders()}
    for wheel in ("nvidia-cuda-runtime", "nvidia-cuda-cccl"):
        try:
            files = metadata.files(wheel) or []
        except metadata.PackageNotFoundError:
            pytest.skip(f"{wheel} is not installed")
        roots = {str(f.locate()) for f in files}
        assert any(r.startswith(folder + "/") for r in roots for folder in folders), wheel


def test_a_header_that_is_not_there_says_where_it_was_looked_for():
    with pytest.raises(gd.CompileError, match=r"vector is in none of the folders searched.*cstdint"):
        gd.kernel("#include <vector>\n__global__ void k() {}", "k")


def test_without_cudas_headers_the_error_says_how_to_get_them(monkeypatch):
    monkeypatch.setattr(_headers, "folders", lambda: ())
    monkeypatch.setattr(_headers, "version", lambda: None)
    with pytest.raises(gd.CompileError, match=r"headers were not found.*gpudirect\[cu1\d\].*CUDA_HOME"):
        gd.kernel("#include <cuda_fp16.h>\n__global__ void k() { }", "k")


def test_headers_of_another_cuda_are_not_used(monkeypatch):
    monkeypatch.setattr(_headers, "version", lambda: (11, 8))
    with pytest.raises(gd.CompileError, match=r"they are of CUDA 11\.8 and NVRTC is 1"):
        gd.kernel("#include <cuda_fp16.h>\n__global__ void k() {  }", "k")


def test_a_header_that_changed_is_compiled_again(tmp_path):
    (tmp_path / "one.h").write_text('#include "two.h"\n')
    source = '#include "one.h"\n__global__ void k(int *a) { *a = N; }'
    with gd.zeros(1, "i4") as a:
        for n in (3, 4):
            (tmp_path / "two.h").write_text(f"#define N {n}\n")
            gd.kernel(source, "k", options=[f"-I{tmp_path}"])[1, 1](a)
            assert a.read()[0] == n


def test_a_folder_of_headers_may_be_named_relatively(tmp_path, monkeypatch):
    (tmp_path / "runtime.h").write_text("#define N 5\n")  # the emulation has one of that name, too
    monkeypatch.chdir(tmp_path)
    with gd.zeros(1, "i4") as a:
        for options in (["-I."], ["-I", "."], []):  # a quoted name is looked for here as well
            gd.kernel(f'#include "runtime.h"\n__global__ void k(int *a) {{ *a = N + {len(options)}; }}',
                      "k", options=options)[1, 1](a)  # fmt: skip
            assert a.read()[0] == 5 + len(options)


# -- what those headers offer comes out right


def outcome(before: str, body: str, n: int = 32, block: int = 32, grid: int = 1, **how) -> np.ndarray:
    source = f"""{before}
    __global__ void k(float *out, const float *in) {{
        int t = blockIdx.x * blockDim.x + threadIdx.x; {body} }}"""
    with gd.zeros(n, "f4") as out, gd.asarray(np.arange(1024, dtype="f4")) as given:
        gd.kernel(source, "k").launch(grid, block, out, given, **how)
        return out.read()


def outcomes(before: str, bodies: list[str]) -> list[list[float]]:
    """What each body leaves in out[t], all of them in one kernel: such headers take their time."""
    rows = "\n".join(f"{{ {body} }} out += 32; __syncthreads();" for body in bodies)
    return outcome(before, rows, n=32 * len(bodies)).reshape(-1, 32).tolist()


@pytest.mark.parametrize(
    ("header", "kind", "to", "n"),
    [("fp16", "__half", "half", 128), ("bf16", "__nv_bfloat16", "bfloat16", 16)],
)
def test_sixteen_bit_numbers(header, kind, to, n):
    x = np.arange(32)
    wanted = {
        "H a = H(in[t]), b = H(2.0f); out[t] = float(a * b + H(1.0f));": 2 * x + 1,
        "out[t] = float(__hfma(H(in[t]), H(3.0f), H(0.5f)));": 3 * x + 0.5,
        "out[t] = float(hsqrt(H(in[t] * in[t])));": x,
        f"out[t] = __{to}2int_rd(H(in[t] + 0.75f)) + 100 * __{to}2int_ru(H(0.25f));": x + 100,
        "out[t] = float(__shfl_sync(~0u, H(in[t]), 5));": np.full(32, 5),
        "H a = H(in[t]); out[t] = a > H(3.0f) ? 1 : 0;": x > 3,
        "__shared__ H s[1]; if (t == 0) s[0] = H(0.0f); __syncthreads(); atomicAdd(s, H(1.0f)); "
        "__syncthreads(); out[t] = float(s[0]);": np.full(32, 32),
        # rounded in between, the product would lose its last bit
        f"H y = H(1 + 1.0f / {n}); out[t] = float(__hfma(y, y, H(-1.0f)));":
            np.full(32, 2 / n + 1 / n**2),
    }  # fmt: skip
    got = outcomes(f"#include <cuda_{header}.h>\ntypedef {kind} H;", list(wanted))
    for row, (body, want) in zip(got, wanted.items(), strict=True):
        assert row == want.tolist(), body


GROUPS = """#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
namespace cg = cooperative_groups;
"""
ON_GROUPS = {
    "b.sync(); out[t] = b.thread_rank() + 100 * b.size();": lambda t: t + 3200,
    "out[t] = eight.thread_rank() + 100 * eight.meta_group_rank() + 10000 * eight.size();":
        lambda t: t % 8 + 100 * (t // 8) + 80000,
    "out[t] = eight.shfl(t, 3);": lambda t: t // 8 * 8 + 3,
    "out[t] = eight.shfl_up(t, 3);": lambda t: t - 3 if t % 8 >= 3 else t,
    "out[t] = eight.shfl_down(t, 2);": lambda t: t + 2 if t % 8 < 6 else t,
    "out[t] = eight.shfl_xor(t, 5);": lambda t: t ^ 5,
    "out[t] = eight.ballot(t % 8 == 1);": lambda t: 2,
    "out[t] = eight.match_any(t % 2);": lambda t: 0xAA if t % 2 else 0x55,
    "out[t] = cg::reduce(eight, (int)t, cg::plus<int>());":
        lambda t: sum(range(t // 8 * 8, t // 8 * 8 + 8)),
    "out[t] = cg::reduce(eight, (int)t, cg::greater<int>());": lambda t: t // 8 * 8 + 7,
    "auto w = cg::tiled_partition<32>(b); auto four = cg::tiled_partition<4>(w); "
    "out[t] = four.meta_group_rank() + 10 * four.meta_group_size();": lambda t: t // 4 + 80,
    "auto w = cg::tiled_partition<32>(b); w.sync(); out[t] = w.any(t == 3) + 2 * w.all(t < 31);":
        lambda t: 1,
    "auto a = cg::coalesced_threads(); a.sync(); "
    "out[t] = a.size() >= 1 && a.thread_rank() < a.size();": lambda t: 1,
}  # fmt: skip


def test_groups():
    before = "auto b = cg::this_thread_block(); auto eight = cg::tiled_partition<8>(b); "
    for row, (body, want) in zip(
        outcomes(GROUPS, [before + body for body in ON_GROUPS]), ON_GROUPS.items(), strict=True
    ):
        assert row == [want(t) for t in range(32)], body


def test_a_grid_waits_for_itself():
    body = """auto g = cg::this_grid();
    for (int i = 0; i < 5; i++) {
        atomicAdd(&out[0], 1.0f);
        g.sync();
        if (out[0] != 128.0f * (i + 1)) out[1] = 1;
        g.sync();
    }
    if (!g.is_valid()) out[1] = 2;"""
    got = outcome(GROUPS, body, grid=4, cooperative=True)
    assert got[0] == 640 and got[1] == 0


def test_a_grid_that_was_not_launched_for_it_cannot_wait():
    program = f"""
import gpudirect as gd
k = gd.kernel('''{GROUPS}
__global__ void k() {{ cg::this_grid().sync(); }}''', "k")
k[2, 1]()
try:
    gd.synchronize()
except gd.LaunchError as e:
    print(e)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                         env={**os.environ, "GPUDIRECT_DEVICE": "emulated"})  # fmt: skip
    assert "not cooperative" in run.stdout, run.stdout + run.stderr


def test_atomics_of_libcu():
    body = """cuda::atomic_ref<float, cuda::thread_scope_device> r(out[0]); r.fetch_add(1.0f);
    __shared__ int n; if (t == 0) n = 0; __syncthreads();
    cuda::atomic_ref<int, cuda::thread_scope_block>(n).fetch_add(2, cuda::memory_order_relaxed);
    __syncthreads(); if (t == 0) out[1] = n;"""
    assert outcome("#include <cuda/atomic>", body)[:2].tolist() == [32, 64]


# -- where there is no NVRTC


def test_where_nvrtc_cannot_be_loaded_the_device_says_so(without_nvrtc):
    device = gd.device()
    assert "not judged by NVRTC" in repr(device)
    facts = device.facts()
    assert facts["nvrtc"] is None and "pip install gpudirect[cu13]" in facts["nvrtc_reason"]
    with gd.zeros(1, "i4") as a:
        gd.kernel("__global__ void k(int *a) { *a = 3; }", "k")[1, 1](a)
        assert a.read()[0] == 3
    with pytest.raises(gd.CompileError, match=r"kernel\.cu:1:.*undefined_thing") as caught:
        gd.kernel("__global__ void k(int *a) { *a = undefined_thing; }", "k")
    assert "NVRTC" not in str(caught.value)
    with pytest.raises(gd.CompileError, match="NVRTC, CUDA's run-time compiler, cannot be used"):
        _nvrtc.compile_kernel("__global__ void k() {}", "k", H100)


def test_where_it_can_the_device_says_which():
    assert gd.device().facts()["nvrtc"] == _nvrtc.version()
    assert "not judged" not in repr(gd.device())


def test_a_kernel_from_the_cache_does_not_load_nvrtc(tmp_path):
    program = """
import sys, gpudirect as gd
gd.kernel("__global__ void k(int *a) { *a = 1; }", "k")
print("cuda.bindings.nvrtc" in sys.modules)
"""
    env = {**os.environ, "GPUDIRECT_DEVICE": "emulated", "GPUDIRECT_CACHE": str(tmp_path)}
    said = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env).stdout
            for _ in range(2)]  # fmt: skip
    assert said == ["True\n", "False\n"]


# -- options and text


@pytest.mark.parametrize("options", [None, "-DN=3", 3, ["-DN=3", 4], [None], ["-DN=\0"], ["-arch=sm_80"]])
def test_options_that_are_none(options):
    with pytest.raises(gd.ArgumentError, match="option"):
        gd.kernel("__global__ void k() {}", "k", options=options)


@pytest.mark.parametrize("source", ["__global__ void k() {}\0", "__global__ void k() {} // \ud800"])
def test_sources_that_no_compiler_can_read(source):
    with pytest.raises(gd.ArgumentError, match="source"):
        gd.kernel(source, "k")
