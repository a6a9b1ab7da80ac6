/* SPDX-License-Identifier: MIT */
/*
 * x86-64. A mapping is write-combined: a store goes into a 64-byte buffer of the core, and a buffer
 * that is filled at once leaves as one PCIe packet. So: align to lines of the destination first,
 * then whole lines with stores that bypass the cache.
 */
#include "engine.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

#include "words.h"

#define LINE 64

/*
 * Bytes up to the next line (or to the end), by stores that are naturally aligned, so that none
 * crosses a line: sizes double while they lead to the line, and halve at the end.
 */
__attribute__((always_inline, target("sse2"))) static inline void edge(char *dst, const char *src,
                                                                     size_t n)
{
    size_t done = 0;

    for (size_t bit = 1; bit < 16; bit <<= 1) {
        if (((uintptr_t)(dst + done) & bit) && n - done >= bit) {
            gd_store_words(dst + done, src + done, bit);
            done += bit;
        }
    }
    for (; n - done >= 16; done += 16)
        _mm_store_si128((__m128i *)(dst + done),
                        _mm_loadu_si128((const __m128i *)(src + done)));
    if (n > done)
        gd_store_words(dst + done, src + done, n - done);
}

/* How many bytes come before the first whole line; all n when there is no whole line. */
static inline size_t lead(const char *dst, size_t n)
{
    size_t k = -(uintptr_t)dst & (LINE - 1);

    return k < n ? k : n;
}

#define STORE_IN_LINES(LINES)                                                                     \
    do {                                                                                          \
        size_t k = lead(dst, n);                                                                  \
                                                                                                  \
        if (k)                                                                                    \
            edge(dst, src, k);                                                                    \
        dst += k, src += k, n -= k;                                                               \
        for (; n >= LINE; dst += LINE, src += LINE, n -= LINE)                                    \
            LINES;                                                                                \
        if (n)                                                                                    \
            edge(dst, src, n);                                                                    \
    } while (0)

__attribute__((target("sse2"))) static void sse2_store(char *dst, const char *src, size_t n)
{
    STORE_IN_LINES({
        __m128i a = _mm_loadu_si128((const __m128i *)src);
        __m128i b = _mm_loadu_si128((const __m128i *)(src + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(src + 32));
        __m128i d = _mm_loadu_si128((const __m128i *)(src + 48));
        _mm_stream_si128((__m128i *)dst, a);
        _mm_stream_si128((__m128i *)(dst + 16), b);
        _mm_stream_si128((__m128i *)(dst + 32), c);
        _mm_stream_si128((__m128i *)(dst + 48), d);
    });
}

__attribute__((target("avx2"))) static void avx2_store(char *dst, const char *src, size_t n)
{
    STORE_IN_LINES({
        __m256i a = _mm256_loadu_si256((const __m256i *)src);
        __m256i b = _mm256_loadu_si256((const __m256i *)(src + 32));
        _mm256_stream_si256((__m256i *)dst, a);
        _mm256_stream_si256((__m256i *)(dst + 32), b);
    });
}

/*
 * n < 64 bytes that do not cross a line, by two stores that may overlap: they meet in the line's
 * write-combining buffer. (One masked store would do, and takes 8 ns longer.) What is one word is
 * stored once.
 */
#define TWICE(STORE, SIZE) STORE(dst, src), STORE(dst + n - SIZE, src + n - SIZE)
#define STORE8(to, from) _mm_storel_epi64((__m128i *)(to), _mm_loadl_epi64((const __m128i *)(from)))
#define STORE4(to, from) _mm_storeu_si32((to), _mm_loadu_si32(from))
#define STORE32(to, from)                                                                         \
    _mm256_storeu_si256((__m256i *)(to), _mm256_loadu_si256((const __m256i *)(from)))
#define STORE16(to, from) _mm_storeu_si128((__m128i *)(to), _mm_loadu_si128((const __m128i *)(from)))

__attribute__((always_inline, target("avx2"))) static inline void
within_line(char *dst, const char *src, size_t n)
{
    if (n > 32)
        TWICE(STORE32, 32);
    else if (n > 16)
        TWICE(STORE16, 16);
    else if (n == 16)
        STORE16(dst, src);
    else if (n > 8)
        TWICE(STORE8, 8);
    else if (n == 8)
        STORE8(dst, src);
    else if (n > 4)
        TWICE(STORE4, 4);
    else
        gd_store_words(dst, src, n);
}

__attribute__((target("avx512f,avx512bw"))) static void avx512_store(char *dst, const char *src,
                                                                    size_t n)
{
    size_t at = (uintptr_t)dst & (LINE - 1);

    if (at) {
        size_t k = LINE - at < n ? LINE - at : n;

        within_line(dst, src, k);
        dst += k, src += k, n -= k;
    }
    for (; n >= 4 * LINE; dst += 4 * LINE, src += 4 * LINE, n -= 4 * LINE) {
        __m512i a = _mm512_loadu_si512(src);
        __m512i b = _mm512_loadu_si512(src + LINE);
        __m512i c = _mm512_loadu_si512(src + 2 * LINE);
        __m512i d = _mm512_loadu_si512(src + 3 * LINE);
        _mm512_stream_si512((__m512i *)dst, a);
        _mm512_stream_si512((__m512i *)(dst + LINE), b);
        _mm512_stream_si512((__m512i *)(dst + 2 * LINE), c);
        _mm512_stream_si512((__m512i *)(dst + 3 * LINE), d);
    }
    for (; n >= LINE; dst += LINE, src += LINE, n -= LINE)
        _mm512_stream_si512((__m512i *)dst, _mm512_loadu_si512(src));
    if (n)
        within_line(dst, src, n);
}

__attribute__((target("movdir64b"))) static void movdir64b_store(char *dst, const char *src,
                                                                size_t n)
{
    STORE_IN_LINES(_movdir64b(dst, src));
}

/*
 * Both: up to here MOVDIR64B takes 2% less, beyond it up to 25% more, than AVX-512 (Sapphire
 * Rapids, writing to an H200).
 */
#define MOVDIR64B_UP_TO 4096

__attribute__((target("avx512f,avx512bw,movdir64b"))) static void both_store(char *dst,
                                                                            const char *src,
                                                                            size_t n)
{
    size_t k = lead(dst, n);

    if (n > MOVDIR64B_UP_TO) {
        avx512_store(dst, src, n);
        return;
    }
    if (k)
        within_line(dst, src, k);
    dst += k, src += k, n -= k;
    for (; n >= LINE; dst += LINE, src += LINE, n -= LINE)
        _movdir64b(dst, src);
    if (n)
        within_line(dst, src, n);
}

/*
 * Streaming loads. All loads of one line are served by one read over the link as long as they
 * follow each other, so the width matters little beyond that; what counts is how many lines are
 * asked for at once. The first and last line go through a buffer: a load is always aligned, so it
 * stays inside a line that holds requested bytes.
 */
#define LOAD_IN_LINES(WIDTH, WIDE, NARROW)                                                        \
    do {                                                                                          \
        size_t skip = (uintptr_t)src & (WIDTH - 1);                                               \
        char line[WIDTH] __attribute__((aligned(64)));                                            \
                                                                                                  \
        if (skip) {                                                                               \
            size_t k = WIDTH - skip < n ? WIDTH - skip : n;                                       \
                                                                                                  \
            NARROW(line, src - skip);                                                             \
            memcpy(dst, line + skip, k);                                                          \
            dst += k, src += k, n -= k;                                                           \
        }                                                                                         \
        WIDE;                                                                                     \
        for (; n >= WIDTH; dst += WIDTH, src += WIDTH, n -= WIDTH)                                \
            NARROW(dst, src);                                                                     \
        if (n) {                                                                                  \
            NARROW(line, src);                                                                    \
            memcpy(dst, line, n);                                                                 \
        }                                                                                         \
    } while (0)

#define LOAD16(to, from)                                                                          \
    _mm_storeu_si128((__m128i *)(to), _mm_stream_load_si128((__m128i *)(uintptr_t)(from)))
#define LOAD32(to, from)                                                                          \
    _mm256_storeu_si256((__m256i *)(to), _mm256_stream_load_si256((__m256i *)(uintptr_t)(from)))
#define LOAD64(to, from)                                                                          \
    _mm512_storeu_si512((to), _mm512_stream_load_si512((void *)(uintptr_t)(from)))

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
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
}

static int has_movdir64b(void)
{
    unsigned a, b, c, d;

    /* leaf 7, ECX bit 28 (Intel SDM, CPUID); uses general registers, so the OS need not know */
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 28 & 1) && has_sse41();
}

__attribute__((target("sse4.1"))) static void sse41_load(char *dst, const char *src, size_t n)
{
    LOAD_IN_LINES(16, {
        for (; n >= 64; dst += 64, src += 64, n -= 64) {
            __m128i a = _mm_stream_load_si128((__m128i *)(uintptr_t)src);
            __m128i b = _mm_stream_load_si128((__m128i *)(uintptr_t)(src + 16));
            __m128i c = _mm_stream_load_si128((__m128i *)(uintptr_t)(src + 32));
            __m128i d = _mm_stream_load_si128((__m128i *)(uintptr_t)(src + 48));
            _mm_storeu_si128((__m128i *)dst, a);
            _mm_storeu_si128((__m128i *)(dst + 16), b);
            _mm_storeu_si128((__m128i *)(dst + 32), c);
            _mm_storeu_si128((__m128i *)(dst + 48), d);
        }
    }, LOAD16);
}

__attribute__((target("avx2"))) static void avx2_load(char *dst, const char *src, size_t n)
{
    LOAD_IN_LINES(32, {
        for (; n >= 128; dst += 128, src += 128, n -= 128) {
            __m256i a = _mm256_stream_load_si256((__m256i *)(uintptr_t)src);
            __m256i b = _mm256_stream_load_si256((__m256i *)(uintptr_t)(src + 32));
            __m256i c = _mm256_stream_load_si256((__m256i *)(uintptr_t)(src + 64));
            __m256i d = _mm256_stream_load_si256((__m256i *)(uintptr_t)(src + 96));
            _mm256_storeu_si256((__m256i *)dst, a);
            _mm256_storeu_si256((__m256i *)(dst + 32), b);
            _mm256_storeu_si256((__m256i *)(dst + 64), c);
            _mm256_storeu_si256((__m256i *)(dst + 96), d);
        }
    }, LOAD32);
}

/*
 * Up to here one 16-byte load does. Beyond it, a line that is fetched by four loads is sometimes
 * fetched twice, where the program does something else in between (seen from Python: 1.1 or 2.0 us
 * for 64 bytes); one load of the whole line never is.
 */
#define SMALL_LOAD 16

__attribute__((target("avx512f,avx512bw"))) static void avx512_load(char *dst, const char *src,
                                                                   size_t n)
{
    if (n <= SMALL_LOAD) {
        sse41_load(dst, src, n);
        return;
    }
    LOAD_IN_LINES(64, {
        for (; n >= 256; dst += 256, src += 256, n -= 256) {
            __m512i a = _mm512_stream_load_si512((void *)(uintptr_t)src);
            __m512i b = _mm512_stream_load_si512((void *)(uintptr_t)(src + 64));
            __m512i c = _mm512_stream_load_si512((void *)(uintptr_t)(src + 128));
            __m512i d = _mm512_stream_load_si512((void *)(uintptr_t)(src + 192));
            _mm512_storeu_si512(dst, a);
            _mm512_storeu_si512(dst + 64, b);
            _mm512_storeu_si512(dst + 128, c);
            _mm512_storeu_si512(dst + 192, d);
        }
    }, LOAD64);
}

static void movdir64b_load(char *dst, const char *src, size_t n)
{
    (has_avx512() ? avx512_load : has_avx2() ? avx2_load : sse41_load)(dst, src, n);
}

/*
 * The 16 bytes that hold an element, by one load; then the element out of them. The loads of many
 * elements are under way at once: nothing depends on the one before.
 */
#define PICK(SIZE)                                                                                \
    case SIZE:                                                                                    \
        for (size_t i = 0; i < count; i++, dst += SIZE) {                                         \
            const char *at = src + (indices[i] + (indices[i] < 0 ? size : 0)) * SIZE;             \
            size_t skip = (uintptr_t)at & 15;                                                     \
            char wide[16] __attribute__((aligned(16)));                                           \
                                                                                                  \
            LOAD16(wide, at - skip);                                                              \
            memcpy(dst, wide + skip, SIZE);                                                       \
        }                                                                                         \
        break

__attribute__((target("sse4.1"))) static void sse41_pick(char *dst, const char *src, int64_t size,
                                                       const int64_t *indices, size_t count,
                                                       size_t itemsize)
{
    switch (itemsize) {
        PICK(1);
        PICK(2);
        PICK(4);
        PICK(8);
        PICK(16);
    }
}

static int has_both(void)
{
    return has_avx512() && has_movdir64b();
}

const struct gd_engine gd_engine_both = {"avx512+movdir64b", has_both, both_store, avx512_load,
                                         sse41_pick};
const struct gd_engine gd_engine_avx512 = {"avx512", has_avx512, avx512_store, avx512_load,
                                           sse41_pick};
const struct gd_engine gd_engine_movdir64b = {"movdir64b", has_movdir64b, movdir64b_store,
                                              movdir64b_load, sse41_pick};
const struct gd_engine gd_engine_avx2 = {"avx2", has_avx2, avx2_store, avx2_load, sse41_pick};
const struct gd_engine gd_engine_sse2 = {"sse2", has_sse41, sse2_store, sse41_load, sse41_pick};

#endif
