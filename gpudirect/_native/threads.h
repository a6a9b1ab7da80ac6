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

/*
 * Bytes from which a copy is worth several threads: where it comes in a row with others, so that the
 * threads are awake, and where it comes alone, so that they must be woken first. [0]: reads, [1]:
 * writes.
 */
extern size_t gd_threads_in_a_row[2], gd_threads_alone[2];
/* ticks: when the last copy ended that was large enough in a row; of each team */
extern uint64_t gd_threads_last[GD_TEAMS];

/* The team that serves a copy. */
static inline unsigned gd_team_of(unsigned flags)
{
    return flags >> GD_TEAM_SHIFT & (GD_TEAMS - 1);
}

int gd_threads_count_of(unsigned team);

#define GD_THREADS_SPIN 50000 /* ns that a thread waits awake for the next copy */

/*
 * A clock of a few ns; clock_gettime takes 200 in some virtual machines, a tenth of a copy that it
 * would be asked for. GD_THREADS_ROW of its ticks are about GD_THREADS_SPIN.
 */
#if defined(__x86_64__)
#define GD_THREADS_ROW 120000 /* of 2 to 3 GHz */
static inline uint64_t gd_ticks(void)
{
    return __builtin_ia32_rdtsc();
}
#elif defined(__aarch64__)
#define GD_THREADS_ROW (gd_ticks_of("cntfrq_el0") / (1000000000 / GD_THREADS_SPIN))
#define gd_ticks_of(name)                                                                         \
    ({                                                                                            \
        uint64_t value;                                                                           \
        __asm__ volatile("mrs %0, " name : "=r"(value));                                          \
        value;                                                                                    \
    })
static inline uint64_t gd_ticks(void)
{
    return gd_ticks_of("cntvct_el0");
}
#else
#define GD_THREADS_ROW GD_THREADS_SPIN
#define gd_ticks gd_now
#endif

/* Whether a copy of n bytes may be worth more than one thread. */
static inline int gd_threads_considered(size_t n, int write)
{
    return n >= __atomic_load_n(&gd_threads_in_a_row[!!write], __ATOMIC_RELAXED);
}

/* Whether it is. */
static inline int gd_threads_wanted(size_t n, int write, unsigned flags)
{
    unsigned team = gd_team_of(flags);

    if (!gd_threads_considered(n, write))
        return 0;
    return (n >= __atomic_load_n(&gd_threads_alone[!!write], __ATOMIC_RELAXED) ||
            gd_ticks() - __atomic_load_n(&gd_threads_last[team], __ATOMIC_RELAXED) < GD_THREADS_ROW) &&
           gd_threads_count_of(team) > 1;
}

/* To be called at the end of a copy that used one thread: the next one may be in a row with it. */
static inline void gd_threads_note(size_t n, int write, unsigned flags)
{
    if (!(flags & GD_ONE_THREAD) && gd_threads_considered(n, write))
        __atomic_store_n(&gd_threads_last[gd_team_of(flags)], gd_ticks(), __ATOMIC_RELAXED);
}

/*
 * Do the job with the caller and the copy threads. -EFAULT: a piece met a revoked mapping, others
 * may have been done. -EBUSY: the threads work for somebody else, nothing was done.
 */
int gd_threads_run(const struct gd_job *job);

#endif
