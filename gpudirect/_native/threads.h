/* SPDX-License-Identifier: MIT */
#ifndef GPUDIRECT_THREADS_H
#define GPUDIRECT_THREADS_H

#include <stddef.h>
#include <stdint.h>

#include "engine.h"
#include "native.h"

/* A copy that can be cut at any line of the mapping and done in any order. */
struct gd_job {
    /* Do bytes [from, from + n) of the job. */
    void (*piece)(const struct gd_job *job, size_t from, size_t n);
    const struct gd_engine *engine;
    uintptr_t mapped;
    char *other;    /* ordinary memory */
    int value;      /* of a fill */
    size_t n;       /* bytes */
    int write;      /* the mapping is written, so every thread fences its own stores */
    unsigned flags;
};

extern size_t gd_threads_write_threshold, gd_threads_read_threshold; /* bytes */

/* Whether a copy of n bytes is worth more than one thread. */
static inline int gd_threads_wanted(size_t n, int write)
{
    size_t from = write ? __atomic_load_n(&gd_threads_write_threshold, __ATOMIC_RELAXED)
                        : __atomic_load_n(&gd_threads_read_threshold, __ATOMIC_RELAXED);

    return __builtin_expect(n >= from, 0) && gd_threads_count() > 1;
}

/*
 * Do the job with the caller and the copy threads. -EFAULT: a piece met a revoked mapping, others
 * may have been done. -EBUSY: the threads work for somebody else, nothing was done.
 */
int gd_threads_run(const struct gd_job *job);

#endif
