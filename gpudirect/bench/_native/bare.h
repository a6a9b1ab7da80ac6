/* SPDX-License-Identifier: MIT */
/*
 * Bare loops that the copy engine is held against, and the stopwatch for both. Measurement only:
 * nothing in the runtime calls these.
 *
 * A kind is one way to do one thing, by name:
 *   store-avx512, store-movdir64b, store-memcpy   a loop of that store over whole lines (what is
 *                                                 left over goes through memcpy), then a fence
 *   store-engine, store-engine-guarded            gd_write, one thread
 *   store-engine-threads                          gd_write, as many threads as it likes
 *   load-16, load-32, load-64, load-memcpy        a fence, then a loop of streaming loads that wide
 *   load-16-unfenced, ...                         the same without the fence before it, which is
 *                                                 what keeps stale streaming buffers out
 *   load-engine, load-engine-guarded, load-engine-threads   gd_read
 *   word-store, word-store-fence, word-load       one 4-byte access, n is ignored
 *   fence, nothing                                what the parts cost; touch no memory
 *   guard                                         a guarded 4-byte load of ordinary memory
 */
#ifndef GPUDIRECT_BARE_H
#define GPUDIRECT_BARE_H

#include <stddef.h>
#include <stdint.h>

int gd_bare_count(void);
const char *gd_bare_name(int kind);  /* NULL out of range */
int gd_bare_find(const char *name);  /* the kind, or -EINVAL */
int gd_bare_usable(int kind);        /* 1 if this CPU has the instructions */
int gd_bare_reads(int kind);         /* 1 if data goes from the mapping to ordinary memory */

/* Do it once. 0, -EINVAL, -ENOTSUP or what the engine answered. */
int gd_bare_run(int kind, uintptr_t mapped, char *ordinary, size_t n);

/*
 * Time it: every sample is `batch` runs in a row, ns[i] the nanoseconds of one run. Not warmed up.
 * Returns 0 or -errno.
 */
int gd_bare_time(int kind, uintptr_t mapped, char *ordinary, size_t n, int batch, int samples,
                 double *ns);

/*
 * The same with `threads` threads (1 to 64) that take equal shares of whole lines and spin between
 * runs: what the machine gives when starting costs nothing. Bare kinds only.
 */
int gd_bare_time_threads(int kind, uintptr_t mapped, char *ordinary, size_t n, int threads,
                         const int *cpus, int cpu_count, int samples, double *ns);

#endif
