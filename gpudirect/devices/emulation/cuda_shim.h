/*
 * CUDA C++ for the host's compiler: what a kernel may use of the language and its built-ins when
 * it runs on the emulated GPU. GPUDIRECT_EMULATED is defined, __CUDA_ARCH__ is not, so that a
 * source can keep its PTX for the GPU. What is absent here needs a GPU; compiler.py says so.
 *
 * As with NVRTC nothing has to be included. Types and names follow NVIDIA's CUDA C++ Programming
 * Guide and Math API; CUDA's atomics are relaxed, and so are these.
 */
#ifndef GPUDIRECT_EMULATION_CUDA_SHIM_H
#define GPUDIRECT_EMULATION_CUDA_SHIM_H

#include <cstddef>
#undef _GLIBCXX_USE_STD_SPEC_FUNCS        /* std::legendre and its like took half of the compiler's time */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <type_traits>
#include <utility>

#include "runtime.h"

#define GPUDIRECT_EMULATED 1

/* ---- the language ---- */

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __shared__ thread_local           /* a block runs on one OS thread */
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(n) __attribute__((__aligned__(n)))
#define __forceinline__ inline __attribute__((__always_inline__))
#define __noinline__ __attribute__((__noinline__))
#ifndef __clang__
#define __builtin_assume(condition) ((condition) ? (void)0 : __builtin_unreachable())
#endif
#undef assert
#ifdef NDEBUG
#define assert(what) ((void)0)
#else
#define assert(what) ((what) ? (void)0 : gd_assert_failed(#what, __FILE__, __LINE__, __func__))
#endif

#define GD_BUILTIN __attribute__((tls_model("initial-exec")))
extern __thread const uint3 threadIdx GD_BUILTIN, blockIdx GD_BUILTIN;
extern __thread const dim3 blockDim GD_BUILTIN, gridDim GD_BUILTIN;
constexpr int warpSize = 32;

#ifdef GD_DYNAMIC_SHARED                  /* the source has `extern __shared__` arrays */
extern "C" {
__attribute__((aligned(128))) __thread char gd_dynamic_shared[GD_DYNAMIC_SHARED];
}
struct gd_dynamic_shared_pointer {
    template <class T> operator T *() const { return reinterpret_cast<T *>(gd_dynamic_shared); }
};
#endif

#define GD_FUNCTION static inline __attribute__((unused))

/* ---- vector types ---- */

#define __VECTOR_TYPES_H__                /* CUDA's own headers find these types made */
#define __VECTOR_FUNCTIONS_H__
#define __NV_SILENCE_DEPRECATION_BEGIN
#define __NV_SILENCE_DEPRECATION_END

#define GD_VECTORS(T, name, align2, align4)                                                       \
    struct name##1 { T x; };                                                                      \
    struct __align__(align2) name##2 { T x, y; };                                                 \
    GD_VECTOR3(T, name)                                                                           \
    struct __align__(align4) name##4 { T x, y, z, w; };                                           \
    GD_FUNCTION name##1 make_##name##1(T x) { return {x}; }                                       \
    GD_FUNCTION name##2 make_##name##2(T x, T y) { return {x, y}; }                               \
    GD_FUNCTION name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                       \
    GD_FUNCTION name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
#define GD_VECTOR3(T, name) struct name##3 { T x, y, z; };
GD_VECTORS(signed char, char, 2, 4)
GD_VECTORS(unsigned char, uchar, 2, 4)
GD_VECTORS(short, short, 4, 8)
GD_VECTORS(unsigned short, ushort, 4, 8)
GD_VECTORS(int, int, 8, 16)
GD_VECTORS(long, long, 16, 16)
GD_VECTORS(unsigned long, ulong, 16, 16)
GD_VECTORS(long long, longlong, 16, 16)
GD_VECTORS(unsigned long long, ulonglong, 16, 16)
GD_VECTORS(float, float, 8, 16)
GD_VECTORS(double, double, 16, 16)
#undef GD_VECTOR3
#define GD_VECTOR3(T, name)               /* uint3 stands in runtime.h */
GD_VECTORS(unsigned int, uint, 8, 16)
#undef GD_VECTOR3
#undef GD_VECTORS

/* ---- barriers and fences ---- */

GD_FUNCTION void __syncthreads() { gd_barrier(GD_BARRIER_COUNT, 0); }
GD_FUNCTION int __syncthreads_count(int p) { return int(gd_barrier(GD_BARRIER_COUNT, p)); }
GD_FUNCTION int __syncthreads_and(int p) { return int(gd_barrier(GD_BARRIER_AND, p)); }
GD_FUNCTION int __syncthreads_or(int p) { return int(gd_barrier(GD_BARRIER_OR, p)); }
GD_FUNCTION void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
GD_FUNCTION void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
GD_FUNCTION void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

/* ---- warps ---- */

GD_FUNCTION unsigned long long gd_bits(const void *value, size_t size)
{
    unsigned long long bits = 0;
    memcpy(&bits, value, size);
    return bits;
}

template <class T> inline T gd_from_bits(unsigned long long bits)
{
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

template <class T> struct gd_shuffled : std::is_arithmetic<T> {};

template <class T> inline T gd_shuffle(unsigned mask, T value, unsigned lane)
{
    static_assert(gd_shuffled<T>::value, "__shfl_sync takes numbers of up to 8 bytes");
    return gd_from_bits<T>(gd_warp(GD_SHUFFLE, mask, gd_bits(&value, sizeof value), lane));
}

template <class T> inline T __shfl_sync(unsigned mask, T value, int from, int width = 32)
{
    unsigned lane = gd_lane(), group = lane & ~unsigned(width - 1);
    return gd_shuffle(mask, value, group | (from & (width - 1)));
}

template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32)
{
    unsigned lane = gd_lane(), group = lane & ~unsigned(width - 1);
    return gd_shuffle(mask, value, lane - group >= delta ? lane - delta : lane);
}

template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32)
{
    unsigned lane = gd_lane(), group = lane & ~unsigned(width - 1);
    return gd_shuffle(mask, value, lane - group + delta < unsigned(width) ? lane + delta : lane);
}

template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32)
{
    unsigned lane = gd_lane(), other = lane ^ bits, end = (lane & ~unsigned(width - 1)) + width;
    return gd_shuffle(mask, value, other < end ? other : lane);
}

GD_FUNCTION void __syncwarp(unsigned mask = 0xffffffff) { gd_warp(GD_VOTE, mask, 0, 0); }
GD_FUNCTION unsigned __ballot_sync(unsigned mask, int predicate)
{
    return unsigned(gd_warp(GD_VOTE, mask, predicate != 0, 0));
}
GD_FUNCTION int __any_sync(unsigned mask, int predicate)
{
    return __ballot_sync(mask, predicate) != 0;
}
GD_FUNCTION int __all_sync(unsigned mask, int predicate)
{
    unsigned long long vote = gd_warp(GD_VOTE, mask, predicate != 0, 0);
    return unsigned(vote) == unsigned(vote >> 32);
}
/* CUDA promises no more than that this lane is in it; others may be or not. */
GD_FUNCTION unsigned __activemask() { return 1u << gd_lane(); }

template <class T> inline unsigned __match_any_sync(unsigned mask, T value)
{
    return unsigned(gd_warp(GD_MATCH, mask, gd_bits(&value, sizeof value), 0));
}

template <class T> inline unsigned __match_all_sync(unsigned mask, T value, int *all)
{
    unsigned long long match = gd_warp(GD_MATCH, mask, gd_bits(&value, sizeof value), 0);
    *all = unsigned(match) == unsigned(match >> 32);
    return *all ? unsigned(match) : 0;
}

#define GD_REDUCE(name, T, operation)                                                             \
    GD_FUNCTION T __reduce_##name##_sync(unsigned mask, T value)                                  \
    {                                                                                             \
        return T(gd_warp(operation, mask, unsigned(value), 0));                                   \
    }
GD_REDUCE(add, int, GD_REDUCE_ADD)
GD_REDUCE(add, unsigned, GD_REDUCE_ADD)
GD_REDUCE(min, int, GD_REDUCE_MIN)
GD_REDUCE(min, unsigned, GD_REDUCE_UMIN)
GD_REDUCE(max, int, GD_REDUCE_MAX)
GD_REDUCE(max, unsigned, GD_REDUCE_UMAX)
GD_REDUCE(and, unsigned, GD_REDUCE_AND)
GD_REDUCE(or, unsigned, GD_REDUCE_OR)
GD_REDUCE(xor, unsigned, GD_REDUCE_XOR)
#undef GD_REDUCE

/* ---- atomics ---- */

template <class T, class F> inline T gd_atomic_update(T *address, F update)
{
    T old, next;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    do
        next = update(old);
    while (!__atomic_compare_exchange(address, &old, &next, true, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED));
    return old;
}

/* One function of CUDA, its _block and its _system form. */
#define GD_ATOMIC(name, T, ...)                                                                   \
    GD_FUNCTION T name(T *address, T value) { __VA_ARGS__; }                                      \
    GD_FUNCTION T name##_block(T *address, T value) { return name(address, value); }              \
    GD_FUNCTION T name##_system(T *address, T value) { return name(address, value); }
#define GD_UPDATE(name, T, ...)                                                                   \
    GD_ATOMIC(name, T, return gd_atomic_update(address, [value](T old) -> T { __VA_ARGS__; }))
#define GD_FETCH(name, T, builtin)                                                                \
    GD_ATOMIC(name, T, return __atomic_##builtin(address, value, __ATOMIC_RELAXED))

GD_FETCH(atomicAdd, int, fetch_add)
GD_FETCH(atomicAdd, unsigned, fetch_add)
GD_FETCH(atomicAdd, unsigned long long, fetch_add)
GD_UPDATE(atomicAdd, float, return old + value)
GD_UPDATE(atomicAdd, double, return old + value)
GD_FETCH(atomicSub, int, fetch_sub)
GD_FETCH(atomicSub, unsigned, fetch_sub)
GD_FETCH(atomicAnd, int, fetch_and)
GD_FETCH(atomicAnd, unsigned, fetch_and)
GD_FETCH(atomicAnd, unsigned long long, fetch_and)
GD_FETCH(atomicOr, int, fetch_or)
GD_FETCH(atomicOr, unsigned, fetch_or)
GD_FETCH(atomicOr, unsigned long long, fetch_or)
GD_FETCH(atomicXor, int, fetch_xor)
GD_FETCH(atomicXor, unsigned, fetch_xor)
GD_FETCH(atomicXor, unsigned long long, fetch_xor)
GD_UPDATE(atomicMin, int, return value < old ? value : old)
GD_UPDATE(atomicMin, unsigned, return value < old ? value : old)
GD_UPDATE(atomicMin, long long, return value < old ? value : old)
GD_UPDATE(atomicMin, unsigned long long, return value < old ? value : old)
GD_UPDATE(atomicMax, int, return value > old ? value : old)
GD_UPDATE(atomicMax, unsigned, return value > old ? value : old)
GD_UPDATE(atomicMax, long long, return value > old ? value : old)
GD_UPDATE(atomicMax, unsigned long long, return value > old ? value : old)
GD_UPDATE(atomicInc, unsigned, return old >= value ? 0 : old + 1)
GD_UPDATE(atomicDec, unsigned, return old == 0 || old > value ? value : old - 1)
/* Whoever exchanges may be waiting for a lock: gd_relax() shortens its slice. */
#define GD_EXCHANGE(T)                                                                            \
    GD_ATOMIC(atomicExch, T, T old; gd_relax();                                                   \
              __atomic_exchange(address, &value, &old, __ATOMIC_RELAXED); return old)
GD_EXCHANGE(int)
GD_EXCHANGE(unsigned)
GD_EXCHANGE(unsigned long long)
GD_EXCHANGE(float)
#define GD_COMPARE(name, T)                                                                       \
    GD_FUNCTION T name(T *address, T compare, T value)                                            \
    {                                                                                             \
        if (!__atomic_compare_exchange(address, &compare, &value, false, __ATOMIC_RELAXED,        \
                                       __ATOMIC_RELAXED))                                         \
            gd_relax();                                                                           \
        return compare;                                                                           \
    }
#define GD_COMPARES(T)                                                                            \
    GD_COMPARE(atomicCAS, T) GD_COMPARE(atomicCAS_block, T) GD_COMPARE(atomicCAS_system, T)
GD_COMPARES(int)
GD_COMPARES(unsigned)
GD_COMPARES(unsigned long long)
GD_COMPARES(unsigned short)
#undef GD_ATOMIC
#undef GD_UPDATE
#undef GD_FETCH
#undef GD_EXCHANGE
#undef GD_COMPARE
#undef GD_COMPARES

/* ---- loads and stores that say how they use the caches ---- */

template <size_t size> struct gd_word {};
template <> struct gd_word<1> { typedef uint8_t type; };
template <> struct gd_word<2> { typedef uint16_t type; };
template <> struct gd_word<4> { typedef uint32_t type; };
template <> struct gd_word<8> { typedef uint64_t type; };
/* One 16-byte access, as on the GPU. */
template <> struct gd_word<16> {
    typedef long long type __attribute__((vector_size(16), may_alias));
};

template <class T> inline T gd_load(const T *address)
{
    typedef typename gd_word<sizeof(T)>::type word;
    word bits = *reinterpret_cast<const volatile word *>(address);
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

template <class T> inline void gd_store(T *address, T value)
{
    typedef typename gd_word<sizeof(T)>::type word;
    word bits;
    memcpy(&bits, &value, sizeof value);
    *reinterpret_cast<volatile word *>(address) = bits;
}

#define GD_LOAD(name) template <class T> inline T name(const T *p) { return gd_load(p); }
#define GD_STORE(name)                                                                            \
    template <class T> inline void name(T *p, typename std::common_type<T>::type v)               \
    {                                                                                             \
        gd_store(p, v);                                                                           \
    }
GD_LOAD(__ldg) GD_LOAD(__ldca) GD_LOAD(__ldcg) GD_LOAD(__ldcs) GD_LOAD(__ldlu) GD_LOAD(__ldcv)
GD_STORE(__stwb) GD_STORE(__stcg) GD_STORE(__stcs) GD_STORE(__stwt)
#undef GD_LOAD
#undef GD_STORE

/* ---- time, and the end ---- */

GD_FUNCTION void __nanosleep(unsigned ns) { gd_sleep(ns); }
GD_FUNCTION long long clock64() { return (long long)gd_nanoseconds(); }
GD_FUNCTION void __trap() { gd_trap(); }
GD_FUNCTION void __brkpt() { gd_trap(); }

/* ---- bits ---- */

GD_FUNCTION int __popc(unsigned x) { return __builtin_popcount(x); }
GD_FUNCTION int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
GD_FUNCTION int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
GD_FUNCTION int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
GD_FUNCTION int __ffs(int x) { return __builtin_ffs(x); }
GD_FUNCTION int __ffsll(long long x) { return __builtin_ffsll(x); }
GD_FUNCTION unsigned long long __brevll(unsigned long long x)
{
    unsigned long long r = 0;
    for (int i = 0; i < 64; i++, x >>= 1)
        r = r << 1 | (x & 1);
    return r;
}
GD_FUNCTION unsigned __brev(unsigned x) { return unsigned(__brevll(x) >> 32); }
GD_FUNCTION unsigned __byte_perm(unsigned x, unsigned y, unsigned selector)
{
    unsigned long long bytes = (unsigned long long)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++)
        r |= unsigned(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return r;
}
GD_FUNCTION unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n)
{
    return unsigned(((unsigned long long)hi << 32 | lo) << (n & 31) >> 32);
}
GD_FUNCTION unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n)
{
    return unsigned(((unsigned long long)hi << 32 | lo) >> (n & 31));
}
GD_FUNCTION int __mul24(int a, int b) { return int(unsigned(a << 8 >> 8) * unsigned(b << 8 >> 8)); }
GD_FUNCTION unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffff) * (b & 0xffffff); }
GD_FUNCTION int __mulhi(int a, int b) { return int((long long)a * b >> 32); }
GD_FUNCTION unsigned __umulhi(unsigned a, unsigned b)
{
    return unsigned((unsigned long long)a * b >> 32);
}
GD_FUNCTION long long __mul64hi(long long a, long long b)
{
    return (long long)((__int128)a * b >> 64);
}
GD_FUNCTION unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
GD_FUNCTION unsigned __sad(int a, int b, unsigned c)
{
    return c + (a < b ? unsigned(b) - unsigned(a) : unsigned(a) - unsigned(b));
}
GD_FUNCTION unsigned __usad(unsigned a, unsigned b, unsigned c) { return c + (a < b ? b - a : a - b); }

/* ---- conversions ---- */

#define GD_CAST(name, From, To)                                                                   \
    GD_FUNCTION To name(From x) { return gd_from_bits<To>(gd_bits(&x, sizeof x)); }
GD_CAST(__float_as_int, float, int)
GD_CAST(__float_as_uint, float, unsigned)
GD_CAST(__int_as_float, int, float)
GD_CAST(__uint_as_float, unsigned, float)
GD_CAST(__double_as_longlong, double, long long)
GD_CAST(__longlong_as_double, long long, double)
#undef GD_CAST
GD_FUNCTION int __double2loint(double x) { return int(__double_as_longlong(x)); }
GD_FUNCTION int __double2hiint(double x) { return int(__double_as_longlong(x) >> 32); }
GD_FUNCTION double __hiloint2double(int hi, int lo)
{
    return __longlong_as_double((long long)((unsigned long long)hi << 32 | unsigned(lo)));
}

/* Out of range gives the nearest number there is and NaN gives 0, as on the GPU. */
template <class To, class From> inline To gd_to_integer(From x)
{
    constexpr To most = To(~(std::is_signed<To>::value ? To(1) << (8 * sizeof(To) - 1) : To(0)));
    constexpr To least = std::is_signed<To>::value ? To(-most - 1) : To(0);
    if (x != x)
        return 0;
    return x >= From(most) ? most : x <= From(least) ? least : To(x);
}
#define GD_ROUND(From, from, To, to)                                                              \
    GD_FUNCTION To __##from##2##to##_rn(From x) { return gd_to_integer<To>(rint(x)); }            \
    GD_FUNCTION To __##from##2##to##_rz(From x) { return gd_to_integer<To>(trunc(x)); }           \
    GD_FUNCTION To __##from##2##to##_rd(From x) { return gd_to_integer<To>(floor(x)); }           \
    GD_FUNCTION To __##from##2##to##_ru(From x) { return gd_to_integer<To>(ceil(x)); }            \
    GD_FUNCTION From __##to##2##from##_rn(To x) { return From(x); }
GD_ROUND(float, float, int, int)
GD_ROUND(float, float, unsigned, uint)
GD_ROUND(float, float, long long, ll)
GD_ROUND(float, float, unsigned long long, ull)
GD_ROUND(double, double, int, int)
GD_ROUND(double, double, unsigned, uint)
GD_ROUND(double, double, long long, ll)
GD_ROUND(double, double, unsigned long long, ull)
#undef GD_ROUND
GD_FUNCTION float __double2float_rn(double x) { return float(x); }

/* ---- mathematics beyond <math.h> ---- */

template <class A, class B>
using gd_common = typename std::enable_if<std::is_arithmetic<A>::value &&
                                              std::is_arithmetic<B>::value,
                                          typename std::common_type<A, B>::type>::type;

/* As fmin() and fmax() a NaN gives the other argument. */
template <class A, class B> constexpr gd_common<A, B> min(A a, B b)
{
    typedef gd_common<A, B> T;
    return T(b) < T(a) || T(a) != T(a) ? T(b) : T(a);
}
template <class A, class B> constexpr gd_common<A, B> max(A a, B b)
{
    typedef gd_common<A, B> T;
    return T(a) < T(b) || T(a) != T(a) ? T(b) : T(a);
}
#define GD_INTEGER_MIN_MAX(prefix, T)                                                             \
    GD_FUNCTION T prefix##min(T a, T b) { return b < a ? b : a; }                                 \
    GD_FUNCTION T prefix##max(T a, T b) { return a < b ? b : a; }
GD_INTEGER_MIN_MAX(u, unsigned)
GD_INTEGER_MIN_MAX(ll, long long)
GD_INTEGER_MIN_MAX(ull, unsigned long long)
#undef GD_INTEGER_MIN_MAX

/*
 * Templates, because a C library may have functions of these names: glibc from 2.41 on. Where both fit,
 * the function goes before the template.
 */
template <class T>
using gd_real = typename std::conditional<
    std::is_arithmetic<T>::value && !std::is_same<T, float>::value, double, float>::type;
constexpr double gd_pi = 3.14159265358979323846;
template <class T> GD_FUNCTION gd_real<T> rsqrt(T x) { return 1 / sqrt(gd_real<T>(x)); }
template <class T> GD_FUNCTION gd_real<T> rcbrt(T x) { return 1 / cbrt(gd_real<T>(x)); }
template <class T> GD_FUNCTION gd_real<T> sinpi(T x)
{
    return gd_real<T>(sin(fmod(double(gd_real<T>(x)), 2.0) * gd_pi));
}
template <class T> GD_FUNCTION gd_real<T> cospi(T x)
{
    return gd_real<T>(cos(fmod(double(gd_real<T>(x)), 2.0) * gd_pi));
}
template <class T> GD_FUNCTION float rsqrtf(T x) { return rsqrt(float(x)); }
template <class T> GD_FUNCTION float rcbrtf(T x) { return rcbrt(float(x)); }
template <class T> GD_FUNCTION float sinpif(T x) { return sinpi(float(x)); }
template <class T> GD_FUNCTION float cospif(T x) { return cospi(float(x)); }
GD_FUNCTION float fdividef(float a, float b) { return a / b; }
GD_FUNCTION float __fdividef(float a, float b) { return a / b; }
GD_FUNCTION float __saturatef(float x) { return x > 0.0f ? x < 1.0f ? x : 1.0f : 0.0f; }
/* Macros, because the C library declares functions of these names for itself. */
#define __expf(x) expf(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __powf(x, y) powf(x, y)
#define __sincosf(x, s, c) sincosf(x, s, c)
/* Rounding to nearest, which is how the CPU rounds. */
GD_FUNCTION float __fadd_rn(float a, float b) { return a + b; }
GD_FUNCTION float __fsub_rn(float a, float b) { return a - b; }
GD_FUNCTION float __fmul_rn(float a, float b) { return a * b; }
GD_FUNCTION float __fdiv_rn(float a, float b) { return a / b; }
GD_FUNCTION float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
GD_FUNCTION float __frcp_rn(float x) { return 1.0f / x; }
GD_FUNCTION float __fsqrt_rn(float x) { return sqrtf(x); }
GD_FUNCTION float __frsqrt_rn(float x) { return rsqrtf(x); }
GD_FUNCTION double __dadd_rn(double a, double b) { return a + b; }
GD_FUNCTION double __dsub_rn(double a, double b) { return a - b; }
GD_FUNCTION double __dmul_rn(double a, double b) { return a * b; }
GD_FUNCTION double __ddiv_rn(double a, double b) { return a / b; }
GD_FUNCTION double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
GD_FUNCTION double __dsqrt_rn(double x) { return sqrt(x); }

/* ---- the way in: unpack the argument block, each parameter at its natural alignment ---- */

template <class... P> struct gd_offsets {
    size_t at[sizeof...(P) + 1] = {};
    constexpr gd_offsets()
    {
        size_t sizes[] = {sizeof(P)..., 0}, alignments[] = {alignof(P)..., 1}, offset = 0;
        for (size_t i = 0; i < sizeof...(P); i++) {
            offset = (offset + alignments[i] - 1) / alignments[i] * alignments[i];
            at[i] = offset;
            offset += sizes[i];
        }
    }
};

template <class... P, size_t... I>
inline void gd_call(void (*kernel)(P...), const char *arguments, std::index_sequence<I...>)
{
    constexpr gd_offsets<P...> offsets;
    kernel(*reinterpret_cast<const P *>(arguments + offsets.at[I])...);
}

template <class... P> inline void gd_enter(void (*kernel)(P...), const void *arguments)
{
    gd_call(kernel, static_cast<const char *>(arguments), std::index_sequence_for<P...>());
}

#define GD_KERNEL(...)                                                                            \
    extern "C" __attribute__((__visibility__("default"))) void gd_entry(const void *gd_arguments) \
    {                                                                                             \
        gd_enter(__VA_ARGS__, gd_arguments);                                                      \
    }

#endif
