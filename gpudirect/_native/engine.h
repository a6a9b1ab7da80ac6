/* SPDX-License-Identifier: MIT */
/*
 * One way to move bytes to and from a mapping, for one set of instructions. A processor family is
 * a file of its own (engine_x86.c, engine_neon.c); copy.c chooses at run time.
 */
#ifndef GPUDIRECT_ENGINE_H
#define GPUDIRECT_ENGINE_H

#include <stddef.h>
#include <stdint.h>

struct gd_engine {
    const char *name;
    int (*usable)(void);
    /* Store n >= 1 bytes at any alignment. Never loads from dst, never writes outside it. */
    void (*store)(char *dst, const char *src, size_t n);
    /* Load n >= 1 bytes at any alignment, from the lines that hold them and no others. */
    void (*load)(char *dst, const char *src, size_t n);
    /*
     * Load elements of 1, 2, 4, 8 or 16 bytes, src being aligned to that, by their indices; negative
     * ones count from the end of `size`. NULL: there is nothing better than load() for each.
     */
    void (*pick)(char *dst, const char *src, int64_t size, const int64_t *indices, size_t count,
                 size_t itemsize);
};

extern const struct gd_engine gd_engine_both, gd_engine_avx512, gd_engine_movdir64b, gd_engine_avx2,
    gd_engine_sse2, gd_engine_neon; /* where the processor family has them */
/* In order of preference; NULL ends it. The last one works everywhere. */
extern const struct gd_engine *const gd_engines[];

/* The one in use. */
const struct gd_engine *gd_engine(void);

/*
 * Before loads that stream: without it the core may serve a line from a streaming buffer that an
 * earlier load left behind, which is older than what the device has now (Intel SDM, MOVNTDQA).
 */
void gd_load_fence(void);

#endif
