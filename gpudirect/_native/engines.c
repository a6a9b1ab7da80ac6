/* SPDX-License-Identifier: MIT */
/*
 * The implementations. A mapping is write-combined: a store goes into a 64-byte buffer of the
 * core, and a buffer that is filled at once leaves as one PCIe packet. So: align to lines of the
 * destination first, then whole lines with stores that bypass the cache.
 */
#include "engine.h"

#include <stdint.h>
#include <string.h>

#define LINE 64

static int always(void)
{
    return 1;
}

/* ---- plain: naturally aligned words, whatever the processor ---- */

#define WORD(type)                                                                                \
    do {                                                                                          \
        type word;                                                                                \
        memcpy(&word, src, sizeof(word));                                                         \
        *(volatile type *)dst = word;                                                             \
        dst += sizeof(word);                                                                      \
        src += sizeof(word);                                                                      \
        n -= sizeof(word);                                                                        \
    } while (0)

static void plain_store(char *dst, const char *src, size_t n)
{
    if (((uintptr_t)dst & 1) && n >= 1)
        WORD(uint8_t);
    if (((uintptr_t)dst & 2) && n >= 2)
        WORD(uint16_t);
    if (((uintptr_t)dst & 4) && n >= 4)
        WORD(uint32_t);
    while (n >= 8)
        WORD(uint64_t);
    if (n & 4)
        WORD(uint32_t);
    if (n & 2)
        WORD(uint16_t);
    if (n & 1)
        WORD(uint8_t);
}
#undef WORD

#define WORD(type)                                                                                \
    do {                                                                                          \
        type word = *(const volatile type *)src;                                                  \
        memcpy(dst, &word, sizeof(word));                                                         \
        dst += sizeof(word);                                                                      \
        src += sizeof(word);                                                                      \
        n -= sizeof(word);                                                                        \
    } while (0)

static void plain_load(char *dst, const char *src, size_t n)
{
    if (((uintptr_t)src & 1) && n >= 1)
        WORD(uint8_t);
    if (((uintptr_t)src & 2) && n >= 2)
        WORD(uint16_t);
    if (((uintptr_t)src & 4) && n >= 4)
        WORD(uint32_t);
    while (n >= 8)
        WORD(uint64_t);
    if (n & 4)
        WORD(uint32_t);
    if (n & 2)
        WORD(uint16_t);
    if (n & 1)
        WORD(uint8_t);
}
#undef WORD

static const struct gd_engine plain = {"plain", always, plain_store, plain_load};

#if defined(__x86_64__)
#include <immintrin.h>

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
            plain_store(dst + done, src + done, bit);
            done += bit;
        }
    }
    for (; n - done >= 16; done += 16)
        _mm_store_si128((__m128i *)(dst + done),
                        _mm_loadu_si128((const __m128i *)(src + done)));
    if (n > done)
        plain_store(dst + done, src + done, n - done);
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

/* The edges of a copy in one masked store each: bytes outside the mask are not touched. */
__attribute__((always_inline, target("avx512f,avx512bw"))) static inline void
masked(char *dst, const char *src, size_t n)
{
    __mmask64 mask = ~0ull >> (LINE - n);

    _mm512_mask_storeu_epi8(dst, mask, _mm512_maskz_loadu_epi8(mask, src));
}

#define STORE_IN_MASKED_LINES(LINES)                                                              \
    do {                                                                                          \
        size_t k = lead(dst, n);                                                                  \
                                                                                                  \
        if (k)                                                                                    \
            masked(dst, src, k);                                                                  \
        dst += k, src += k, n -= k;                                                               \
        LINES;                                                                                    \
        if (n)                                                                                    \
            masked(dst, src, n);                                                                  \
    } while (0)

__attribute__((target("avx512f,avx512bw"))) static void avx512_store(char *dst, const char *src,
                                                                    size_t n)
{
    STORE_IN_MASKED_LINES({
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
    });
}

__attribute__((target("movdir64b,avx512f,avx512bw"))) static void
movdir64b_store(char *dst, const char *src, size_t n)
{
    STORE_IN_MASKED_LINES({
        for (; n >= LINE; dst += LINE, src += LINE, n -= LINE)
            _movdir64b(dst, src);
    });
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

    /* CPUID leaf 7, ECX bit 28 (Intel SDM, CPUID) */
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "0"(7), "2"(0));
    return (c >> 28 & 1) && has_avx512();
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

#define SMALL_LOAD 512 /* bytes: up to here 16-byte loads were measured fastest */

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

static const struct gd_engine avx512 = {"avx512", has_avx512, avx512_store, avx512_load};
static const struct gd_engine movdir64b = {"movdir64b", has_movdir64b, movdir64b_store,
                                           avx512_load};
static const struct gd_engine avx2 = {"avx2", has_avx2, avx2_store, avx2_load};
static const struct gd_engine sse2 = {"sse2", has_sse41, sse2_store, sse41_load};

const struct gd_engine *const gd_engines[] = {&avx512, &movdir64b, &avx2, &sse2, &plain, NULL};

#elif defined(__aarch64__)
#include <arm_neon.h>

static void neon_store(char *dst, const char *src, size_t n)
{
    size_t k = -(uintptr_t)dst & 15;

    if (k > n)
        k = n;
    plain_store(dst, src, k);
    dst += k, src += k, n -= k;
    for (; n >= LINE; dst += LINE, src += LINE, n -= LINE) {
        uint8x16x4_t line = vld1q_u8_x4((const uint8_t *)src);

        vst1q_u8((uint8_t *)dst, line.val[0]);
        vst1q_u8((uint8_t *)dst + 16, line.val[1]);
        vst1q_u8((uint8_t *)dst + 32, line.val[2]);
        vst1q_u8((uint8_t *)dst + 48, line.val[3]);
    }
    for (; n >= 16; dst += 16, src += 16, n -= 16)
        vst1q_u8((uint8_t *)dst, vld1q_u8((const uint8_t *)src));
    plain_store(dst, src, n);
}

static void neon_load(char *dst, const char *src, size_t n)
{
    size_t k = -(uintptr_t)src & 15;

    if (k > n)
        k = n;
    plain_load(dst, src, k);
    dst += k, src += k, n -= k;
    for (; n >= LINE; dst += LINE, src += LINE, n -= LINE) {
        uint8x16_t a = vld1q_u8((const uint8_t *)src);
        uint8x16_t b = vld1q_u8((const uint8_t *)src + 16);
        uint8x16_t c = vld1q_u8((const uint8_t *)src + 32);
        uint8x16_t d = vld1q_u8((const uint8_t *)src + 48);

        vst1q_u8((uint8_t *)dst, a);
        vst1q_u8((uint8_t *)dst + 16, b);
        vst1q_u8((uint8_t *)dst + 32, c);
        vst1q_u8((uint8_t *)dst + 48, d);
    }
    for (; n >= 16; dst += 16, src += 16, n -= 16)
        vst1q_u8((uint8_t *)dst, vld1q_u8((const uint8_t *)src));
    plain_load(dst, src, n);
}

static const struct gd_engine neon = {"neon", always, neon_store, neon_load};

const struct gd_engine *const gd_engines[] = {&neon, &plain, NULL};

#else

const struct gd_engine *const gd_engines[] = {&plain, NULL};

#endif
