"""The emulated GPU by itself, without the rest of gpudirect: its process, compiler and shim."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from waiting import until

from gpudirect.devices._nvrtc import compile_kernel as compile_with_nvrtc
from gpudirect.devices.emulation import compiler
from gpudirect.devices.emulation.client import GpuProcess
from gpudirect.devices.emulation.compiler import SHARED_MEMORY, compile_kernel
from gpudirect.errors import (
    ArgumentError,
    ClosedError,
    CompileError,
    DeviceLostError,
    ForkError,
    KernelNotFoundError,
    LaunchError,
)

EMULATED_ONLY = "\n#ifdef GPUDIRECT_EMULATED\n{}\n#endif\n"  # not for NVRTC's eyes
ADDRESS, SIZE = 0x6100_0000_0000, 1 << 20


class Machine:
    """A GPU process with 1 MiB of memory at ADDRESS, which ``memory`` shows."""

    def __init__(self) -> None:
        self.gpu = GpuProcess("emulated:test")
        self.fd = os.memfd_create("device-memory")
        os.ftruncate(self.fd, SIZE)
        self.memory = np.frombuffer(mmap.mmap(self.fd, SIZE), "u1")
        self.gpu.map(ADDRESS, SIZE, self.fd)
        self.stream = self.gpu.open_stream()

    def view(self, dtype: str, n: int, offset: int = 0):
        return self.memory[offset : offset + n * np.dtype(dtype).itemsize].view(dtype)

    def run(self, source: str, name: str = "k", grid: int = 1, block: int = 32, shared: int = 0,
            arguments: bytes = struct.pack("Q", ADDRESS), stream=None, **how) -> None:  # fmt: skip
        module = self.gpu.load(compile_kernel(source, name))
        (stream or self.stream).launch(
            module, (grid, 1, 1), (block, 1, 1), shared, arguments, **how
        )

    def body(self, body: str, kind: str = "int", before: str = "", **how) -> None:
        """Run a kernel that has ``out`` at ADDRESS, ``t`` its thread and ``lane``."""
        self.run(
            f"{before}__global__ void k({kind} *out) {{ int t = blockIdx.x * blockDim.x + threadIdx.x; "
            f"int lane = threadIdx.x % 32; (void)t; (void)lane; {body} }}",
            **how,
        )

    def close(self) -> None:
        self.gpu.close()
        os.close(self.fd)


@pytest.fixture
def machine():
    it = Machine()
    yield it
    it.close()


# ---- the shim


INTEGERS = {
    # expression: what it is for each of 32 threads
    "__shfl_sync(~0u, t * 2, 5)": lambda t: 10,
    "__shfl_sync(~0u, t, 1, 8)": lambda t: t // 8 * 8 + 1,
    "__shfl_up_sync(~0u, t, 2)": lambda t: t - 2 if t >= 2 else t,
    "__shfl_up_sync(~0u, t, 3, 16)": lambda t: t - 3 if t % 16 >= 3 else t,
    "__shfl_down_sync(~0u, t, 4)": lambda t: t + 4 if t < 28 else t,
    "__shfl_xor_sync(~0u, t, 31)": lambda t: 31 - t,
    "(int)(__shfl_xor_sync(~0u, t + 0.5, 1) * 2)": lambda t: 2 * (t ^ 1) + 1,
    "(int)(__shfl_sync(~0u, (long long)t << 40, 3) >> 40)": lambda t: 3,
    "__ballot_sync(~0u, t % 3 == 0) == 0x49249249": lambda t: 1,
    "__any_sync(~0u, t == 40) * 2 + __any_sync(~0u, t == 4)": lambda t: 1,
    "__all_sync(~0u, t < 31) * 2 + __all_sync(~0u, t < 32)": lambda t: 1,
    "__activemask() >> t & 1": lambda t: 1,
    "(int)__match_any_sync(~0u, t / 16) == (t < 16 ? 0xffff : (int)0xffff0000)": lambda t: 1,
    "__reduce_add_sync(~0u, t)": lambda t: 496,
    "__reduce_min_sync(~0u, t - 5)": lambda t: -5,
    "__reduce_max_sync(~0u, (unsigned)t)": lambda t: 31,
    "__reduce_xor_sync(~0u, 1u << t) == ~0u": lambda t: 1,
    "__syncthreads_count(t < 5)": lambda t: 5,
    "__syncthreads_and(t < 31) * 2 + __syncthreads_or(t == 31)": lambda t: 1,
    "__popc(t) + __popcll(~0ull)": lambda t: bin(t).count("1") + 64,
    "__clz(t) + 100 * __clzll(t)": lambda t: 32 - t.bit_length() + 100 * (64 - t.bit_length()),
    "__ffs(t) + 100 * __ffsll((long long)t << 32)": lambda t: ffs(t) + 100 * (t and ffs(t) + 32),
    "(int)(__brev(t) >> 27)": lambda t: int(f"{t:05b}"[::-1], 2),
    "(int)(__brevll(t) >> 59)": lambda t: int(f"{t:05b}"[::-1], 2),
    "__byte_perm(0x33221100, 0x77665544, 0x5410) == 0x55441100": lambda t: 1,
    "__funnelshift_l(0x80000000, t, 1)": lambda t: 2 * t + 1,
    "__funnelshift_r(t << 4, 0, 4)": lambda t: t,
    "__mulhi(t << 28, 64)": lambda t: (t << 28 & 0xFFFFFFFF if t < 8 else sign32(t << 28)) * 64 >> 32,
    "__umulhi(t << 20, 1 << 20)": lambda t: t << 8,
    "(int)__umul64hi((unsigned long long)t << 60, 32)": lambda t: ((t << 60) % 2**64) * 32 >> 64,
    "__mul24(t, -3)": lambda t: -3 * t,
    "__sad(t, 40, 1)": lambda t: 41 - t,
    "min(t, 3) + max(t, 30) + min(2, 3u)": lambda t: min(t, 3) + max(t, 30) + 2,
    "(int)(min(1.5f, 2.0f) * 2 + max((float)t, 0.5f) * 2)": lambda t: 3 + max(2 * t, 1),
    "(int)fmaxf(t, 3.0f) + (int)fmin(1.0, (double)NAN)": lambda t: max(t, 3) + 1,
    "__float2int_rn(t + 0.5f) + 100 * __float2int_rz(-t - 0.5f)": lambda t: round(t + 0.5) - 100 * t,
    "__float2int_ru(t + 0.1f) + 100 * __double2int_rd(-0.1)": lambda t: t + 1 - 100,
    "__float2int_rn(1e20f) == 0x7fffffff && __float2uint_rz(-4.0f) == 0": lambda t: 1,
    "__float2int_rn(NAN)": lambda t: 0,
    "__float_as_int(__int_as_float(t)) + (int)__float_as_uint(0.0f)": lambda t: t,
    "(int)__double_as_longlong(__longlong_as_double(t))": lambda t: t,
    "__double2loint(__hiloint2double(7, t)) + 100 * __double2hiint(__hiloint2double(7, t))":
        lambda t: t + 700,
    "(int)(rsqrtf(4.0f) * 10 + rsqrt(16.0) * 100 + sqrtf(9))": lambda t: 33,
    "(int)(__expf(0) + __logf(1) + __powf(2, 5) + __cosf(0) + __fdividef(6, 2))": lambda t: 37,
    "(int)(__fmaf_rn(2, 3, 4) + __frcp_rn(0.5f) + __fsqrt_rn(16) + __saturatef(7))": lambda t: 17,
    "isnan(NAN) * 4 + isinf(INFINITY) * 2 + (abs(-1) == 1)": lambda t: 7,
    "(int)(sinpif(0.5f) + cospif(0) + sinpi(2.5) + 0.5)": lambda t: 3,
    "(int)(rcbrt(8.0) * 10 + rcbrtf(27) * 9 + cospi(1.0) + rsqrt(4.0) * 8 + 0.5)": lambda t: 11,
    "sizeof(rsqrt(2.0f)) + sizeof(sinpi(2.0f)) + 10 * sizeof(rsqrt(2.0))": lambda t: 88,
    "sizeof(float2) + sizeof(float3) * 100 + alignof(float4) * 10000": lambda t: 161208,
    "alignof(ulonglong2) + 100 * alignof(longlong4) + alignof(uchar4)": lambda t: 1620,
    "make_int4(1, 2, 3, t).w + make_uchar4(1, 2, 3, 4).z + (int)make_double2(1, 2).y": lambda t: t + 5,
    "dim3(4, 2).x + dim3(4).y + warpSize": lambda t: 37,
    "gridDim.x + blockDim.x + blockDim.y + blockIdx.z + threadIdx.x": lambda t: 34 + t,
    "clock64() <= clock64() && clock() <= clock()": lambda t: 1,
    "__ldg(out) == 0 && __ldcv(out + 999) == 0 && __ldcg(out + 999) == 0": lambda t: 1,
}  # fmt: skip


def ffs(t: int) -> int:
    return (t & -t).bit_length()


def sign32(t: int) -> int:
    return (t + 2**31) % 2**32 - 2**31


def test_every_built_in_that_is_an_expression(machine):
    """All of them in one kernel: expression i's results stand in row i."""
    rows = "".join(
        f"__syncthreads(); int v{i} = (int)({e}); __syncthreads(); out[{2000 + 32 * i} + t] = v{i};\n"
        for i, e in enumerate(INTEGERS)
    )
    machine.body(rows, before="#include <cmath>\n")
    got = machine.view("i4", 32 * len(INTEGERS), 8000).reshape(-1, 32)
    for row, (expression, want) in zip(got.tolist(), INTEGERS.items(), strict=True):
        assert row == [want(t) for t in range(32)], expression


@pytest.mark.parametrize(
    ("kind", "statement", "start", "want"),
    [("int", "atomicAdd(out, t)", 5, 5 + 2016),
     ("unsigned", "atomicAdd_system(out, 1u)", 5, 69),
     ("unsigned long long", "atomicAdd_block(out, 1ull << 32)", 0, 64 << 32),
     ("float", "atomicAdd(out, 0.5f)", 1, 33),
     ("double", "atomicAdd(out, 0.25)", 1, 17),
     ("int", "atomicSub(out, 2)", 5, 5 - 128),
     ("int", "atomicMin(out, t - 9)", 5, -9),
     ("unsigned", "atomicMin(out, (unsigned)t + 3)", 50, 3),
     ("long long", "atomicMax(out, (long long)t << 33)", -5, 63 << 33),
     ("unsigned long long", "atomicMax_system(out, (unsigned long long)t)", 5, 63),
     ("int", "atomicOr(out, 1 << lane)", 0, -1),
     ("unsigned", "atomicAnd(out, ~(1u << lane))", 0xFFFFFFFF, 0),
     ("unsigned long long", "atomicXor(out, 1ull << t)", 0, 2**64 - 1),
     ("unsigned", "atomicInc(out, 6)", 0, 64 % 7),
     ("unsigned", "atomicDec(out, 6)", 0, 6),
     ("unsigned", "if (t == 0) atomicExch(out, atomicExch(out, 9u) + 1)", 4, 5),
     ("float", "if (t == 0) atomicExch(out, 1.5f)", 4, 1.5),
     ("unsigned short", "atomicCAS(out, (unsigned short)t, (unsigned short)(t + 1))", 0, None),
     ("unsigned long long",
      "unsigned long long o = *out, s; do { s = o; o = atomicCAS(out, s, s + 2); } while (o != s)",
      1, 129)],
)  # fmt: skip
def test_atomics(machine, kind, statement, start, want):
    dtype = {"int": "i4", "unsigned": "u4", "long long": "i8", "unsigned long long": "u8",
             "float": "f4", "double": "f8", "unsigned short": "u2"}[kind]  # fmt: skip
    word = machine.view(dtype, 1)
    word[0] = start
    machine.body(statement + ";", kind, grid=2)
    if want is None:  # in what order the threads come is not told
        assert 1 <= word[0] <= 64
    else:
        assert word[0] == want


def test_cached_loads_and_stores_of_vectors_are_whole(machine):
    machine.run(
        """__global__ void k(uint4 *v) {
            __stcg(v + 1, __ldcv(v)); __stwt(&v[2].x, 7u);
            double d = 0.5; __stcs((double *)(v + 3), d); }""",
        block=1,
    )
    machine.view("u4", 4)[:] = 1, 2, 3, 4
    machine.run("__global__ void k(uint4 *v) { __stcg(v + 1, __ldcv(v)); }", block=1)
    assert machine.view("u4", 9)[4:].tolist() == [1, 2, 3, 4, 7]
    assert machine.view("f8", 7)[6] == 0.5


def test_printf_reaches_the_programs_output(capfd):
    machine = Machine()  # here, because its standard output is the one of now
    machine.body('if (t == 3) printf("thread %d of %s\\n", t, "three");')
    machine.close()
    assert capfd.readouterr().out == "thread 3 of three\n"


def test_shared_memory_static_dynamic_and_at_namespace_scope(machine):
    machine.run(
        """
        extern __shared__ __align__(16) unsigned char raw[];
        __constant__ int factor = 3;
        __device__ int reverse(int t) { return ((int *)raw)[31 - t]; }
        namespace n { template <class T> __global__ void k(T *out) {
            extern __shared__ T mine[];
            __shared__ T other[32];
            mine[threadIdx.x] = other[threadIdx.x] = threadIdx.x;
            __syncthreads();
            out[threadIdx.x] = reverse(threadIdx.x) * 100 + other[threadIdx.x ^ 1] * factor;
        } }""",
        "n::k<int>",
        shared=128,
    )
    want = [(31 - t) * 100 + (t ^ 1) * 3 for t in range(32)]
    assert machine.view("i4", 32).tolist() == want


def test_dynamic_shared_memory_up_to_the_limit(machine):
    machine.body(
        f"extern __shared__ volatile int big[]; for (int i = t; i < {SHARED_MEMORY // 4}; i += 32) "
        f"big[i] = i; __syncthreads(); out[t] = big[{SHARED_MEMORY // 4} - 1 - t];",
        shared=SHARED_MEMORY,
    )
    last = SHARED_MEMORY // 4 - 1
    assert machine.view("i4", 32).tolist() == [last - t for t in range(32)]
    with pytest.raises(LaunchError, match="dynamic shared memory"):
        machine.body("", shared=SHARED_MEMORY + 1)


def test_arguments_of_every_layout(machine):
    source = """
    enum Mode : unsigned char { A = 200 };
    struct S { char c; double d; };
    struct __align__(16) V { float x, y, z, w; };
    extern "C" __global__ void k(long long *out, bool b, Mode m, short s, S st, char c, V v, float f,
                                 const void *p) {
        out[0] = b; out[1] = m; out[2] = s; out[3] = st.c; out[4] = st.d; out[5] = c;
        out[6] = v.w; out[7] = f; out[8] = (long long)p; }"""
    kernel = compile_kernel(source, "k")
    assert [p.offset for p in kernel.parameters] == [0, 8, 9, 10, 16, 32, 48, 64, 72]
    block = bytearray(kernel.argument_size)
    values = [(0, "Q", ADDRESS), (8, "?", True), (9, "B", 200), (10, "h", -5), (16, "b", -6),
              (24, "d", 7.0), (32, "b", -8), (60, "f", 9.0), (64, "f", 10.0), (72, "Q", 11)]  # fmt: skip
    for offset, kind, value in values:
        struct.pack_into(kind, block, offset, value)
    machine.run(source, block=1, arguments=bytes(block))
    assert machine.view("i8", 9).tolist() == [1, 200, -5, -6, 7, -8, 9, 10, 11]
    with pytest.raises(ArgumentError, match="argument block of 8 bytes; the kernel's is 80"):
        machine.run(source, block=1)


# ---- threads that wait for each other


def test_tree_reduction_with_many_barriers(machine):
    machine.body(
        """__shared__ int s[1024]; s[threadIdx.x] = t; __syncthreads();
        for (int n = blockDim.x / 2; n; n /= 2) {
            if (threadIdx.x < n) s[threadIdx.x] += s[threadIdx.x + n];
            __syncthreads(); }
        if (threadIdx.x == 0) out[blockIdx.x] = s[0];""",
        grid=100, block=1024,
    )  # fmt: skip
    want = [sum(range(b * 1024, (b + 1) * 1024)) for b in range(100)]
    assert machine.view("i4", 100).tolist() == want


def test_threads_that_have_ended_are_not_waited_for(machine):
    machine.body(
        "if (t >= 40) return; out[t] = __syncthreads_count(1); "
        "if (t % 2) return; out[t] += __popc(__ballot_sync(~0u, 1)) * 100;",
        block=64,
    )
    want = [40 if t % 2 else 40 + (1600 if t < 32 else 400) for t in range(40)]
    assert machine.view("i4", 40).tolist() == want


def test_parts_of_a_warp_go_their_own_ways(machine):
    machine.body(
        """int low = lane < 16; unsigned mask = low ? 0xffffu : 0xffff0000u;
        int sum = t;
        for (int i = 0; i < (low ? 3 : 7); i++) sum = __shfl_xor_sync(mask, sum, 1) + 1;
        __syncwarp(); out[t] = sum + 1000 * __popc(__ballot_sync(~0u, low));"""
    )
    want = [(t ^ 1) + (3 if t < 16 else 7) + 16000 for t in range(32)]
    assert machine.view("i4", 32).tolist() == want


def test_threads_of_a_block_that_poll_each_others_memory(machine):
    """No barrier and no built-in in the loop: only the slices make this end."""
    machine.body(
        "volatile int *turn = out; while (turn[0] != (int)blockDim.x - 1 - t) {} turn[0]++;",
        block=70,
    )
    assert machine.view("i4", 1)[0] == 70


@pytest.mark.parametrize("acquire", ["atomicCAS(out, 0, 1) != 0", "atomicExch(out, 1) != 0"])
def test_a_lock_within_and_between_blocks(machine, acquire):
    machine.body(
        f"volatile int *n = out + 1; while ({acquire}) {{}} int v = *n; __nanosleep(1); "
        "*n = v + 1; __threadfence(); atomicExch(out, 0);",
        grid=8, block=64,
    )  # fmt: skip
    assert machine.view("i4", 2).tolist() == [0, 512]


def test_a_barrier_of_the_whole_grid(machine):
    machine.body(
        """for (int round = 1; round <= 5; round++) {
            __syncthreads();
            if (threadIdx.x == 0) {
                atomicAdd(out, 1);
                while (*(volatile int *)out < round * (int)gridDim.x) {} }
            __syncthreads();
            if (*(volatile int *)out < round * (int)gridDim.x) atomicAdd(out + 1, 1);
        }""",
        grid=64, block=32, cooperative=True,
    )  # fmt: skip
    assert machine.view("i4", 2).tolist() == [320, 0]


def test_a_cooperative_launch_too_large(machine):
    with pytest.raises(LaunchError, match="cooperative launch of 65 blocks.* runs 64"):
        machine.body("", grid=65, cooperative=True)
    machine.body("out[0] = 1;", grid=65)


def test_nanosleep_sleeps_and_costs_no_processor(machine):
    machine.body("")
    before, start = processor_time(machine.gpu.pid), time.monotonic()
    machine.body("for (int i = 0; i < 20; i++) __nanosleep(10000000);", block=32)
    assert time.monotonic() - start >= 0.2
    assert processor_time(machine.gpu.pid) - before < 0.1


def processor_time(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_streams_run_at_once(machine):
    """A launch on one stream ends only when one on another has run."""
    wait = "__global__ void k(volatile int *a) { a[2] = 1; while (!a[0]) {} a[1] = 1; }"
    thread = threading.Thread(target=machine.run, args=(wait,), kwargs={"block": 1})
    thread.start()
    until(lambda: machine.view("i4", 3)[2])
    assert machine.view("i4", 2).tolist() == [0, 0]
    machine.run(
        "__global__ void k(int *a) { a[0] = 1; }", block=1, stream=machine.gpu.open_stream()
    )
    thread.join(60)
    assert machine.view("i4", 2).tolist() == [1, 1]


# ---- faults


@pytest.mark.parametrize(
    ("body", "words"),
    [("if (t >= 32) *(volatile int *)0x10 = t;", r"illegal address 0x10: nothing is mapped.*block \(1, 0, 0\)"),
     ("if (t == 37) *(int *)0x8000000000000000 = 1;", r"not one that a pointer can have.*\(5, 0, 0\)"),
     ("out[1 << 28] = 1;", "illegal address 0x610040000000"),
     ("*(volatile int *)(out + 262144 - 1024) = 1; ((volatile int *)out)[262144] = 1;",
      "illegal address 0x610000100000"),
     ("*(volatile int *)&out[0] = 7 / ((volatile int *)out)[9];", "integer division by zero"),
     ("__trap();", r"__trap\(\) was executed"),
     ("assert(t == -1 && \"why\");", r"kernel.cu:1: assertion `t == -1 && \"why\"' failed in k\(\)"),
     (EMULATED_ONLY.format("abort();"), r"abort\(\) was called"),
     (EMULATED_ONLY.format("__builtin_trap();"), "illegal instruction"),
     ("volatile char big[1 << 19]; for (int i = (1 << 19) - 1; i >= 0; i -= 64) big[i] = t;",
      "more than its 256 KiB of stack"),
     ("if (lane == 0) __syncthreads(); else __shfl_sync(~0u, t, 0);",
      r"deadlock: 31 threads wait in a warp operation \(mask 0xffffffff\).*; 1 wait in __sync"),
     ("__shfl_sync(1u << (lane ^ 1), t, 0);", "leaves out lane"),
     ("if (lane < 8) __ballot_sync(~0u, 1); else __shfl_sync(~0u, t, 0);",
      "different warp operations")],
)  # fmt: skip
def test_a_fault_ends_the_gpu_and_says_why(machine, body, words):
    other = machine.gpu.open_stream()
    with pytest.raises(LaunchError, match=words) as caught:
        machine.body(body, grid=2)
    assert "emulated:test" in str(caught.value) and "in kernel 'k'" in str(caught.value)
    for stream in machine.stream, other:
        with pytest.raises(DeviceLostError, match=words):
            machine.body("", stream=stream)
    with pytest.raises(DeviceLostError):
        machine.gpu.map(ADDRESS + SIZE, SIZE, machine.fd)
    assert "lost" in repr(machine.gpu)


def test_memory_that_is_gone_or_read_only(machine):
    machine.gpu.map(ADDRESS + SIZE, SIZE, machine.fd, prot=mmap.PROT_READ)
    machine.run("__global__ void k(int *a) { a[0] = a[1 << 18]; }", block=1)
    with pytest.raises(LaunchError, match="does not permit"):
        machine.run("__global__ void k(int *a) { a[1 << 18] = 1; }", block=1)


def test_another_streams_fault_is_not_ones_own(machine):
    caught: list[BaseException] = []

    def poll() -> None:
        try:
            machine.run("__global__ void k(volatile int *a) { a[1] = 1; while (!a[0]) {} }", block=1)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=poll)
    thread.start()
    until(lambda: machine.view("i4", 2)[1])
    with pytest.raises(LaunchError, match="__trap"):
        machine.body("__trap();", stream=machine.gpu.open_stream())
    thread.join(60)
    assert isinstance(caught[0], DeviceLostError) and "__trap" in str(caught[0])


# ---- the process


def test_mapping_where_something_is_mapped(machine):
    with pytest.raises(OSError, match="0x610000000000") as caught:
        machine.gpu.map(ADDRESS, SIZE, machine.fd)
    assert caught.value.errno == errno.EEXIST
    machine.gpu.unmap(ADDRESS, SIZE)
    machine.gpu.map(ADDRESS, SIZE, machine.fd)
    machine.body("out[0] = 5;")
    assert machine.view("i4", 1)[0] == 5


def test_the_region_of_device_addresses_is_free_in_both_processes(machine):
    machine.body("")
    machine.gpu.unmap(ADDRESS, SIZE)
    for pid in os.getpid(), machine.gpu.pid:
        with open(f"/proc/{pid}/maps") as maps:
            starts = [int(line.split("-")[0], 16) for line in maps]
        mine = [s for s in starts if 0x6100_0000_0000 <= s < 0x6FFF_FFFF_FFFF]
        assert starts and not mine, [hex(s) for s in mine]


def test_two_gpus_do_not_see_each_others_memory(machine):
    second = Machine()
    try:
        machine.body("out[0] = 1;")
        second.body("out[0] = 2;")
        assert machine.view("i4", 1)[0] == 1
        assert second.view("i4", 1)[0] == 2
        assert machine.gpu.pid != second.gpu.pid
        with pytest.raises(LaunchError):
            second.body("__trap();")
        machine.body("out[0] = 3;")
        assert machine.view("i4", 1)[0] == 3
    finally:
        second.close()


def test_closing_ends_whatever_runs(machine):
    caught: list[BaseException] = []

    def forever() -> None:
        try:
            machine.body("*(volatile int *)out = 1; for (;;) {}")
        except ClosedError as error:
            caught.append(error)

    running = threading.Thread(target=forever)
    running.start()
    until(lambda: machine.view("i4", 1)[0])
    machine.gpu.close()
    machine.gpu.close()
    running.join(60)
    assert caught
    with pytest.raises(ClosedError, match="closed"):
        machine.body("")
    assert "emulated" in repr(machine.gpu) and "closed" in repr(machine.gpu)


def test_a_killed_gpu_is_lost_with_the_signals_name(machine):
    os.kill(machine.gpu.pid, signal.SIGKILL)
    with pytest.raises(DeviceLostError, match="SIGKILL"):
        machine.body("")


def test_a_forked_child_is_refused_and_harms_nothing(machine):
    pid = os.fork()
    if pid == 0:
        try:
            machine.body("")
        except ForkError:
            machine.gpu.close()
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    machine.body("out[0] = 9;")
    assert machine.view("i4", 1)[0] == 9


def test_it_goes_with_its_owner_even_when_a_fork_and_a_kernel_live_on():
    program = """
    import os, signal, threading, time
    from gpudirect.devices.emulation.client import GpuProcess
    from gpudirect.devices.emulation.compiler import compile_kernel
    gpu = GpuProcess()
    module = gpu.load(compile_kernel("__global__ void k() { for (;;) {} }", "k"))
    stream = gpu.open_stream()
    threading.Thread(target=stream.launch, args=(module, (4, 1, 1), (4, 1, 1))).start()
    time.sleep(0.1)
    child = os.fork()
    if child == 0:
        os.close(1)
        time.sleep(600)
    print(gpu.pid, child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout
        pid, child = map(int, owner.stdout.readline().split())
        owner.wait(60)
    end = time.monotonic()
    try:
        while alive(pid):
            assert time.monotonic() < end + 60, "the emulated GPU outlived its owner"
            time.sleep(0.01)
    finally:
        os.kill(child, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has buried yet does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("grid", "block", "error"),
    [((0, 1, 1), (1, 1, 1), ArgumentError), ((1, 65536, 1), (1, 1, 1), ArgumentError),
     ((1, 1), (1, 1, 1), ArgumentError), ((1, 1, 1), (1, 1, 65), ArgumentError),
     ((1, 1, 1), (1, -1, 1), ArgumentError), ((1, 1, 1), (32, 33, 1), LaunchError)],
)  # fmt: skip
def test_a_launch_that_cannot_be(machine, grid, block, error):
    module = machine.gpu.load(compile_kernel("__global__ void k() {}", "k"))
    with pytest.raises(error, match="k: "):
        machine.stream.launch(module, grid, block)
    machine.stream.launch(module, (1, 1, 1), (1024, 1, 1))


# ---- the compiler


@pytest.mark.parametrize(
    ("line", "what"),
    [('asm volatile("mov.u32 %0, %%laneid;" : "=r"(*a));', "inline PTX"),
     ("cudaTextureObject_t t;", "textures"),
     ("*a = __dp4a(1, 2, 3);", "__dp4a")],
)  # fmt: skip
def test_what_needs_a_gpu_is_named_with_its_line(line, what):
    source = f"// asm(\n__global__ void k(int *a)\n{{\n    {line}\n}}\n"
    with pytest.raises(CompileError, match=f"line 4: the emulated device does not offer .*{what}"):
        compile_kernel(source, "k")
    guarded = source.replace(line, f"\n#ifndef GPUDIRECT_EMULATED\n{line}\n#endif\n")
    assert compile_kernel(guarded, "k").parameters


@pytest.mark.parametrize("header", ["cooperative_groups/scan.h", "mma.h"])
def test_headers_that_need_a_gpu(header):
    with pytest.raises(CompileError, match="does not offer .*; it needs a GPU"):
        compile_kernel(f"#include <{header}>\n__global__ void k() {{}}", "k")


def test_errors_have_the_users_lines():
    with pytest.raises(CompileError) as caught:
        compile_kernel("\n\n__global__ void k(int *a)\n{\n    a[0] = nonsense;\n}\n", "k")
    assert "kernel.cu(5): error" in str(caught.value)
    assert "nonsense" in caught.value.log


def test_a_function_without_a_body_is_a_compile_error():
    with pytest.raises(CompileError, match="does not compile") as caught:
        compile_kernel("__device__ int f(); __global__ void k(int *a) { *a = f(); }", "k")
    assert "Unresolved extern function '_Z1fv'" in caught.value.log


@pytest.mark.parametrize("name", ["missing", "t", "n::k", "t<int", "helper"])
def test_names_that_are_no_kernel(name):
    source = """__device__ int helper(int) { return 1; }
    template <class T> __global__ void __launch_bounds__(32) t(T *a) {}
    __global__ void k(int a) {}"""
    with pytest.raises((KernelNotFoundError, CompileError), match="t, k|does not compile"):
        compile_kernel(source, name)


def test_options():
    source = "__global__ void k(int *a, char (*b)[N]) { *a = N; }"
    for options in (["-DN=4"], ["-D", "N=4"], ["--define-macro=N=4", "-w"],
                    ["-DN=4", "--std=c++14", "-use_fast_math", "-lineinfo"]):  # fmt: skip
        assert compile_kernel(source, "k", options).parameters[1].pointee == "s4"
    with pytest.raises(ArgumentError, match="--nonsense"):
        compile_kernel(source, "k", ["-DN=4", "--nonsense"])
    with pytest.raises(ArgumentError, match="for the device that runs them"):
        compile_kernel(source, "k", ["-DN=4", "-arch=sm_90"])


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    compiler._compiler.cache_clear()
    compiler._version.cache_clear()
    try:
        with pytest.raises(CompileError, match="no-such-compiler -O1 not found.*install g\\+\\+"):
            compile_kernel("__global__ void k() {}", "k")
    finally:
        compiler._compiler.cache_clear()
        compiler._version.cache_clear()


def test_the_c_library_may_have_functions_that_cuda_has(tmp_path, monkeypatch):
    """As glibc has from 2.41 on: plain functions, declared before anything of CUDA."""
    names = [f"{name}{kind}" for name in ("sinpi", "cospi", "rsqrt", "rcbrt") for kind in ("", "f")]
    kinds = ["float" if name.endswith("f") else "double" for name in names]
    (tmp_path / "math.h").write_text("#include <math.h>\n" + "".join(
        f'extern "C" {kind} {name}({kind}) noexcept;\n' for kind, name in zip(kinds, names, strict=True)
    ))  # fmt: skip
    monkeypatch.setenv("CXX", f"c++ -include {tmp_path / 'math.h'}")
    compiler._compiler.cache_clear()
    compiler._version.cache_clear()
    try:
        code = "*a = rsqrt(*a) + sinpi(*a) + cospi(*a) + rcbrt(*a);"
        compile_kernel(f"__global__ void k(float *a) {{ {code} }}", "k")
    finally:
        compiler._compiler.cache_clear()
        compiler._version.cache_clear()


def test_the_cache_is_used_and_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    source = f"__global__ void k(int *a) {{ *a = {time.time_ns()} % 1000; }}"
    monkeypatch.setenv("GPUDIRECT_CACHE", str(tmp_path))
    first = compile_kernel(source, "k")
    assert first.path.parent == tmp_path / "emulated"
    made = first.path.stat().st_mtime_ns
    assert compile_kernel(source, "k") == first
    assert first.path.stat().st_mtime_ns == made
    kept = list(first.path.parent.iterdir())  # the runtime as well, unless this process has it elsewhere
    assert first.path in kept and {p.suffix for p in kept} == {".so"}

    (tmp_path / "file").touch()
    monkeypatch.setenv("GPUDIRECT_CACHE", str(tmp_path / "file"))
    second = compile_kernel(source, "k")
    assert second.path.exists() and tmp_path not in second.path.parents


KERNELS = """
struct S { int a; double b; };
enum E : unsigned char { A };
typedef unsigned long long u64;
extern "C" __global__ void plain(const float *__restrict__ x, int n, S s, E e, bool b,
                                 volatile u64 *p, void *v, float **pp, const short c, S *sp) {}
namespace filters { template <class T, int N> __global__ void scale(T *x, T by) { *x = by * N; } }
__global__ void none() {}
__global__ void __launch_bounds__(64) bounded(long a, unsigned char b, char c, double d) {}
__global__ void div(uint4 v, float3 w, const int (*rows)[8]) {}
"""


@pytest.mark.parametrize(
    ("name", "want"),
    [("plain", "p8@0>f4 i4@8 s16@16 u1@32 b1@33 p8@40>u8 p8@48>v0 p8@56>p8 i2@64 p8@72>s16"),
     ("filters::scale<float, 3>", "p8@0>f4 f4@8"),
     ("filters::scale<long long, 3>", "p8@0>i8 i8@8"),
     ("none", ""),
     ("bounded", "i8@0 u1@8 i1@9 f8@16"),
     ("div", "s16@0 s12@16 p8@32>s32")],
)  # fmt: skip
@pytest.mark.parametrize(
    "compile_it", [compile_kernel, lambda source, name: compile_with_nvrtc(source, name, (9, 0))],
    ids=["host", "nvrtc"],
)  # fmt: skip
def test_both_compilers_tell_the_same_parameters(compile_it, name, want):
    kernel = compile_it(KERNELS, name)
    told = " ".join(
        f"{p.kind}{p.size}@{p.offset}" + (f">{p.pointee}" if p.pointee else "")
        for p in kernel.parameters
    )
    assert told == want


def test_it_starts_quickly():
    """Interpreter and socket, no NumPy: 60 ms was asked for; a loaded machine gets some more."""
    best = min(start_time() for _ in range(5))
    assert best < 0.25, f"{best * 1000:.0f} ms"


def start_time() -> float:
    start = time.perf_counter()
    with GpuProcess() as gpu:
        gpu.open_stream().close()
        with open(f"/proc/{gpu.pid}/maps") as maps:
            assert "numpy" not in maps.read()
    return time.perf_counter() - start
