/* SPDX-License-Identifier: MIT */
/* The implementations in order of preference, and the one that works on any processor. */
#include "engine.h"
#include "words.h"

static int always(void)
{
    return 1;
}

static void plain_store(char *dst, const char *src, size_t n)
{
    gd_store_words(dst, src, n);
}

static void plain_load(char *dst, const char *src, size_t n)
{
    gd_load_words(dst, src, n);
}

static const struct gd_engine plain = {"plain", always, plain_store, plain_load, 0};

const struct gd_engine *const gd_engines[] = {
#if defined(__x86_64__)
    &gd_engine_both, &gd_engine_avx512, &gd_engine_movdir64b, &gd_engine_avx2, &gd_engine_sse2,
#elif defined(__aarch64__)
    &gd_engine_neon,
#endif
    &plain, NULL,
};
