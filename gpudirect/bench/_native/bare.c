/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>

#include "../../_native/native.h"
#include "../../_native/relax.h"
#include "bare.h"
#include "runtime.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#define LINE 64
#define MAX_THREADS 64

typedef int run_fn(char *mapped, char *ordinary, size_t n);

static int always(void)
{
    return 1;
}

static void load_fence(void)
{
#if defined(__x86_64__)
    _mm_mfence();
#else
    __sync_synchronize();
#endif
}

static int store_memcpy(char *mapped, char *ordinary, size_t n)
{
    memcpy(mapped, ordinary, n);
    gd_runtime.fence();
    return 0;
}

static int load_memcpy(char *mapped, char *ordinary, size_t n)
{
    load_fence();
    memcpy(ordinary, mapped, n);
    return 0;
}

#if defined(__x86_64__)
static int has_sse41(void)
{
    return __builtin_cpu_supports("sse4.1");
}

static int has_avx2(void)
{
    return __builtin_cpu_supports("avx2");
}

static int has_avx512(void)
{
    return __builtin_cpu_supports("avx512f");
}

static int has_movdir64b(void)
{
    unsigned a, b, c, d;

    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 28 & 1);
}

/* Lines in the middle by STORE, the rest by memcpy. */
#define STORES(name, isa, STORE)                                                                  \
    __attribute__((target(isa))) static int name(char *mapped, char *ordinary, size_t n)          \
    {                                                                                             \
        size_t k = -(uintptr_t)mapped & (LINE - 1);                                               \
                                                                                                  \
        if (n < LINE + k) {                                                                       \
            memcpy(mapped, ordinary, n);                                                          \
        } else {                                                                                  \
            if (k)                                                                                \
                memcpy(mapped, ordinary, k);                                                      \
            for (; k + LINE <= n; k += LINE)                                                      \
                STORE(mapped + k, ordinary + k);                                                  \
            if (k < n)                                                                            \
                memcpy(mapped + k, ordinary + k, n - k);                                          \
        }                                                                                         \
        _mm_sfence();                                                                             \
        return 0;                                                                                 \
    }

#define STREAM64(to, from) _mm512_stream_si512((__m512i *)(to), _mm512_loadu_si512(from))
#define DIRECT64(to, from) _movdir64b(to, from)
STORES(store_avx512, "avx512f", STREAM64)
STORES(store_movdir64b, "movdir64b", DIRECT64)

/* Aligned loads only, so the first and the last may hold bytes that nobody asked for. */
#define LOADS(name, isa, WIDTH, LOAD, FENCE)                                                      \
    __attribute__((target(isa))) static int name(char *mapped, char *ordinary, size_t n)          \
    {                                                                                             \
        char part[WIDTH] __attribute__((aligned(WIDTH)));                                         \
        size_t skip = (uintptr_t)mapped & (WIDTH - 1), k = 0;                                     \
                                                                                                  \
        FENCE;                                                                                    \
        if (skip && n) {                                                                          \
            k = WIDTH - skip < n ? WIDTH - skip : n;                                              \
            LOAD(part, mapped - skip);                                                            \
            memcpy(ordinary, part + skip, k);                                                     \
        }                                                                                         \
        for (; k + WIDTH <= n; k += WIDTH)                                                        \
            LOAD(ordinary + k, mapped + k);                                                       \
        if (k < n) {                                                                              \
            LOAD(part, mapped + k);                                                               \
            memcpy(ordinary + k, part, n - k);                                                    \
        }                                                                                         \
        return 0;                                                                                 \
    }

#define LOAD16(to, from)                                                                          \
    _mm_storeu_si128((__m128i *)(to), _mm_stream_load_si128((__m128i *)(from)))
#define LOAD32(to, from)                                                                          \
    _mm256_storeu_si256((__m256i *)(to), _mm256_stream_load_si256((__m256i *)(from)))
#define LOAD64(to, from) _mm512_storeu_si512((to), _mm512_stream_load_si512((from)))
LOADS(load16, "sse4.1", 16, LOAD16, _mm_mfence())
LOADS(load32, "avx2", 32, LOAD32, _mm_mfence())
LOADS(load64, "avx512f", 64, LOAD64, _mm_mfence())
LOADS(load16_unfenced, "sse4.1", 16, LOAD16, (void)0)
LOADS(load32_unfenced, "avx2", 32, LOAD32, (void)0)
LOADS(load64_unfenced, "avx512f", 64, LOAD64, (void)0)
#endif

static int store_engine(char *mapped, char *ordinary, size_t n)
{
    return gd_runtime.write((uintptr_t)mapped, ordinary, n, GD_ONE_THREAD);
}

static int store_engine_guarded(char *mapped, char *ordinary, size_t n)
{
    return gd_runtime.write((uintptr_t)mapped, ordinary, n, GD_ONE_THREAD | GD_GUARDED);
}

static int store_engine_threads(char *mapped, char *ordinary, size_t n)
{
    return gd_runtime.write((uintptr_t)mapped, ordinary, n, 0);
}

static int load_engine(char *mapped, char *ordinary, size_t n)
{
    return gd_runtime.read(ordinary, (uintptr_t)mapped, n, GD_ONE_THREAD);
}

static int load_engine_guarded(char *mapped, char *ordinary, size_t n)
{
    return gd_runtime.read(ordinary, (uintptr_t)mapped, n, GD_ONE_THREAD | GD_GUARDED);
}

static int load_engine_threads(char *mapped, char *ordinary, size_t n)
{
    return gd_runtime.read(ordinary, (uintptr_t)mapped, n, 0);
}

static int word_store(char *mapped, char *ordinary, size_t n)
{
    (void)n;
    *(volatile uint32_t *)mapped = *(const uint32_t *)ordinary;
    return 0;
}

static int word_store_fence(char *mapped, char *ordinary, size_t n)
{
    word_store(mapped, ordinary, n);
    gd_runtime.fence();
    return 0;
}

static int word_load(char *mapped, char *ordinary, size_t n)
{
    (void)n;
    *(uint32_t *)ordinary = *(volatile uint32_t *)mapped;
    return 0;
}

static int fence(char *mapped, char *ordinary, size_t n)
{
    (void)mapped, (void)ordinary, (void)n;
    gd_runtime.fence();
    return 0;
}

static int nothing(char *mapped, char *ordinary, size_t n)
{
    (void)ordinary, (void)n;
    __asm__ volatile("" : : "r"(mapped) : "memory");
    return 0;
}

static int guard(char *mapped, char *ordinary, size_t n)
{
    uint32_t word;

    (void)mapped, (void)n;
    return gd_runtime.load32((uintptr_t)ordinary, &word, GD_GUARDED);
}

static const struct kind {
    const char *name;
    run_fn *run;
    int (*usable)(void);
    int reads, bare; /* bare: its cost is that of the loop, so that threads may share it out */
} kinds[] = {
#if defined(__x86_64__)
    {"store-avx512", store_avx512, has_avx512, 0, 1},
    {"store-movdir64b", store_movdir64b, has_movdir64b, 0, 1},
#endif
    {"store-memcpy", store_memcpy, always, 0, 1},
    {"store-engine", store_engine, always, 0, 0},
    {"store-engine-guarded", store_engine_guarded, always, 0, 0},
    {"store-engine-threads", store_engine_threads, always, 0, 0},
#if defined(__x86_64__)
    {"load-16", load16, has_sse41, 1, 1},
    {"load-32", load32, has_avx2, 1, 1},
    {"load-64", load64, has_avx512, 1, 1},
    {"load-16-unfenced", load16_unfenced, has_sse41, 1, 1},
    {"load-32-unfenced", load32_unfenced, has_avx2, 1, 1},
    {"load-64-unfenced", load64_unfenced, has_avx512, 1, 1},
#endif
    {"load-memcpy", load_memcpy, always, 1, 1},
    {"load-engine", load_engine, always, 1, 0},
    {"load-engine-guarded", load_engine_guarded, always, 1, 0},
    {"load-engine-threads", load_engine_threads, always, 1, 0},
    {"word-store", word_store, always, 0, 0},
    {"word-store-fence", word_store_fence, always, 0, 0},
    {"word-load", word_load, always, 1, 0},
    {"fence", fence, always, 0, 0},
    {"guard", guard, always, 0, 0},
    {"nothing", nothing, always, 0, 0},
};
#define KINDS ((int)(sizeof(kinds) / sizeof(kinds[0])))

int gd_bare_count(void)
{
    return KINDS;
}

const char *gd_bare_name(int kind)
{
    return kind >= 0 && kind < KINDS ? kinds[kind].name : NULL;
}

int gd_bare_find(const char *name)
{
    for (int i = 0; i < KINDS; i++)
        if (!strcmp(name, kinds[i].name))
            return i;
    return -EINVAL;
}

int gd_bare_usable(int kind)
{
    return kind >= 0 && kind < KINDS && kinds[kind].usable();
}

int gd_bare_reads(int kind)
{
    return kind >= 0 && kind < KINDS && kinds[kind].reads;
}

static int check(int kind)
{
    if (kind < 0 || kind >= KINDS)
        return -EINVAL;
    return kinds[kind].usable() ? 0 : -ENOTSUP;
}

int gd_bare_run(int kind, uintptr_t mapped, char *ordinary, size_t n)
{
    int code = check(kind);

    return code ? code : kinds[kind].run((char *)mapped, ordinary, n);
}

int gd_bare_time(int kind, uintptr_t mapped, char *ordinary, size_t n, int batch, int samples,
                 double *ns)
{
    int code = check(kind);
    run_fn *run;

    if (code)
        return code;
    if (batch < 1 || samples < 0)
        return -EINVAL;
    run = kinds[kind].run;
    for (int i = 0; i < samples; i++) {
        uint64_t start = gd_runtime.now();

        for (int j = 0; j < batch; j++) {
            code = run((char *)mapped, ordinary, n);
            if (code)
                return code;
        }
        ns[i] = (double)(gd_runtime.now() - start) / batch;
    }
    return 0;
}

/* ---- several bare threads ---- */

struct team {
    run_fn *run;
    char *mapped, *ordinary;
    size_t n;
    int threads, samples;
    int go;   /* number of the run that may start */
    int done; /* helpers that have finished it */
};

struct member {
    struct team *team;
    int index;
};

static void member_share(struct team *team, int index)
{
    size_t skew = (uintptr_t)team->mapped & (LINE - 1);
    size_t lines = (team->n + skew + LINE - 1) / LINE;
    size_t from = lines * (size_t)index / (size_t)team->threads * LINE;
    size_t to = lines * (size_t)(index + 1) / (size_t)team->threads * LINE;

    from = from > skew ? from - skew : 0;
    to = to > skew ? to - skew : 0;
    if (to > team->n)
        to = team->n;
    if (from < to)
        team->run(team->mapped + from, team->ordinary + from, to - from);
}

static void *member_main(void *argument)
{
    struct member *member = argument;
    struct team *team = member->team;

    for (int i = 1; i <= team->samples; i++) {
        int go;

        while ((go = __atomic_load_n(&team->go, __ATOMIC_ACQUIRE)) < i && go >= 0)
            gd_relax();
        if (go < 0)
            break;
        member_share(team, member->index);
        __atomic_add_fetch(&team->done, 1, __ATOMIC_RELEASE);
    }
    return NULL;
}

int gd_bare_time_threads(int kind, uintptr_t mapped, char *ordinary, size_t n, int threads,
                         const int *cpus, int cpu_count, int samples, double *ns)
{
    struct member members[MAX_THREADS];
    pthread_t handles[MAX_THREADS];
    struct team team = {.mapped = (char *)mapped, .ordinary = ordinary, .n = n,
                        .threads = threads, .samples = samples};
    int code = check(kind), started = 1;
    pthread_attr_t attributes;
    cpu_set_t set;

    if (code)
        return code;
    if (!kinds[kind].bare || threads < 1 || threads > MAX_THREADS || samples < 0 || cpu_count < 0)
        return -EINVAL;
    team.run = kinds[kind].run;
    CPU_ZERO(&set);
    for (int i = 0; i < cpu_count; i++) {
        if (cpus[i] < 0 || cpus[i] >= CPU_SETSIZE)
            return -EINVAL;
        CPU_SET(cpus[i], &set);
    }
    pthread_attr_init(&attributes);
    if (cpu_count)
        pthread_attr_setaffinity_np(&attributes, sizeof(set), &set);
    for (; started < threads; started++) {
        members[started] = (struct member){&team, started};
        code = -pthread_create(&handles[started], &attributes, member_main, &members[started]);
        if (code)
            break;
    }
    for (int i = 1; i <= samples && !code; i++) {
        uint64_t start = gd_runtime.now();

        __atomic_store_n(&team.done, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&team.go, i, __ATOMIC_RELEASE);
        member_share(&team, 0);
        for (int spins = 0; __atomic_load_n(&team.done, __ATOMIC_ACQUIRE) < threads - 1; spins++)
            spins < 1 << 16 ? gd_relax() : (void)sched_yield();
        ns[i - 1] = (double)(gd_runtime.now() - start);
    }
    if (code)
        __atomic_store_n(&team.go, -1, __ATOMIC_RELEASE);
    for (int i = 1; i < started; i++)
        pthread_join(handles[i], NULL);
    pthread_attr_destroy(&attributes);
    return code;
}
