/* SPDX-License-Identifier: MIT */
/*
 * One way to move bytes to and from a mapping, for one family of instructions.
 * Each implementation is a file of its own; copy.c chooses among them at run time.
 */
#ifndef GPUDIRECT_ENGINE_H
#define GPUDIRECT_ENGINE_H

#include <stddef.h>

struct gd_engine {
    const char *name;
    int (*usable)(void);
    /* Store n >= 1 bytes at any alignment. Never loads from dst, never writes outside it. */
    void (*store)(char *dst, const char *src, size_t n);
    /* Load n >= 1 bytes at any alignment, from the lines that hold them and no others. */
    void (*load)(char *dst, const char *src, size_t n);
};

/* In order of preference; NULL ends it. The last one works everywhere. */
extern const struct gd_engine *const gd_engines[];

#endif
