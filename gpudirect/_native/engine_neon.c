/* SPDX-License-Identifier: MIT */
/*
 * arm64. Normal non-cacheable memory merges stores into write buffers, much as write combining
 * does; there are no streaming loads, so what counts is that no line is asked for byte by byte.
 */
#include "engine.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#include "words.h"

#define LINE 64
#define WIDTH 16

static int always(void)
{
    return 1; /* part of the architecture */
}

static void neon_store(char *dst, const char *src, size_t n)
{
    size_t k = -(uintptr_t)dst & (WIDTH - 1);

    if (k > n)
        k = n;
    gd_store_words(dst, src, k);
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
    for (; n >= WIDTH; dst += WIDTH, src += WIDTH, n -= WIDTH)
        vst1q_u8((uint8_t *)dst, vld1q_u8((const uint8_t *)src));
    gd_store_words(dst, src, n);
}

/* Aligned loads only: the first and the last may hold bytes that nobody asked for. */
static void neon_load(char *dst, const char *src, size_t n)
{
    size_t skip = (uintptr_t)src & (WIDTH - 1);
    uint8_t part[WIDTH];

    if (skip) {
        size_t k = WIDTH - skip < n ? WIDTH - skip : n;

        vst1q_u8(part, vld1q_u8((const uint8_t *)src - skip));
        memcpy(dst, part + skip, k);
        dst += k, src += k, n -= k;
    }
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
    for (; n >= WIDTH; dst += WIDTH, src += WIDTH, n -= WIDTH)
        vst1q_u8((uint8_t *)dst, vld1q_u8((const uint8_t *)src));
    if (n) {
        vst1q_u8(part, vld1q_u8((const uint8_t *)src));
        memcpy(dst, part, n);
    }
}

const struct gd_engine gd_engine_neon = {"neon", always, neon_store, neon_load, 0};

#endif
