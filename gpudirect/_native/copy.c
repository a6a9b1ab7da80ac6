/* SPDX-License-Identifier: MIT */
/*
 * Copies between ordinary memory and a mapping: choice of the instructions, fences, guards, fills
 * and scattered stores. Strided copies are in strided.c, several threads in threads.c.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>

#include "engine.h"
#include "guard.h"
#include "native.h"
#include "threads.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define FILL_CHUNK 1024 /* bytes */

static const struct gd_engine *selected;

static __attribute__((noinline, cold)) const struct gd_engine *select_best(void)
{
    gd_isa_select(NULL);
    return __atomic_load_n(&selected, __ATOMIC_RELAXED);
}

const struct gd_engine *gd_engine(void)
{
    const struct gd_engine *e = __atomic_load_n(&selected, __ATOMIC_RELAXED);

    return __builtin_expect(!e, 0) ? select_best() : e;
}

int gd_isa_count(void)
{
    int n = 0;

    while (gd_engines[n])
        n++;
    return n;
}

const char *gd_isa_name(int index)
{
    return index >= 0 && index < gd_isa_count() ? gd_engines[index]->name : NULL;
}

int gd_isa_usable(int index)
{
    return index >= 0 && index < gd_isa_count() && gd_engines[index]->usable();
}

const char *gd_isa_selected(void)
{
    return gd_engine()->name;
}

int gd_isa_select(const char *name)
{
    for (int i = 0; gd_engines[i]; i++) {
        const struct gd_engine *e = gd_engines[i];

        if (name && strcmp(name, e->name))
            continue;
        if (e->usable()) {
            __atomic_store_n(&selected, e, __ATOMIC_RELAXED);
            return 0;
        }
        if (name)
            return -ENOTSUP;
    }
    return -EINVAL;
}

void gd_fence(void)
{
#if defined(__x86_64__)
    _mm_sfence();
#elif defined(__aarch64__)
    __asm__ volatile("dsb st" ::: "memory");
#else
    __sync_synchronize();
#endif
}

void gd_load_fence(void)
{
#if defined(__x86_64__)
    _mm_mfence();
#elif defined(__aarch64__)
    __asm__ volatile("dmb osh" ::: "memory"); /* a device is outside the CPUs' inner domain */
#else
    __sync_synchronize();
#endif
}

/* Whether [a, a + n) and [b, b + m) share a byte. */
static int overlap(uintptr_t a, size_t n, uintptr_t b, size_t m)
{
    return a < b + m && b < a + n;
}

/* ---- plain ---- */

static void write_piece(const struct gd_job *job, size_t from, size_t n)
{
    job->engine->store((char *)job->mapped + from, job->other + from, n);
}

static void read_piece(const struct gd_job *job, size_t from, size_t n)
{
    gd_load_fence();
    job->engine->load(job->other + from, (char *)job->mapped + from, n);
}

static void fill_piece(const struct gd_job *job, size_t from, size_t n)
{
    char chunk[FILL_CHUNK] __attribute__((aligned(64)));
    char *to = (char *)job->mapped + from;
    /* chunks end where lines of the mapping do */
    size_t k = FILL_CHUNK - ((uintptr_t)to & 63);

    memset(chunk, job->value, n < FILL_CHUNK ? n : FILL_CHUNK);
    for (; n; to += k, n -= k, k = FILL_CHUNK) {
        if (k > n)
            k = n;
        job->engine->store(to, chunk, k);
    }
}

/* The whole job: with the copy threads if it is large enough and they are free, else here. */
static int run(const struct gd_job *job)
{
    struct gd_guard guard;

    if (gd_threads_wanted(job->n, job->write, job->flags) && !(job->flags & GD_ONE_THREAD)) {
        int code = gd_threads_run(job);

        if (code != -EBUSY)
            return code;
    }
    if (job->flags & GD_GUARDED) {
        if (gd_guard_enter(&guard, job->mapped & ~(uintptr_t)63, job->n + 128))
            return -EFAULT;
        job->piece(job, 0, job->n);
        if (job->write && !(job->flags & GD_NO_FENCE))
            gd_fence();
        gd_guard_leave(&guard);
    } else {
        job->piece(job, 0, job->n);
        if (job->write && !(job->flags & GD_NO_FENCE))
            gd_fence();
    }
    gd_threads_note(job->n, job->write, job->flags);
    return 0;
}

/* Apart, so that the short way saves no registers for it: 5 ns of the 160 that 1 KiB takes. */
static __attribute__((noinline)) int write_job(uintptr_t dst, const char *src, size_t n,
                                               unsigned flags)
{
    return run(&(struct gd_job){.piece = write_piece, .engine = gd_engine(), .mapped = dst,
                                .other = (char *)(uintptr_t)src, .n = n, .write = 1,
                                .flags = flags});
}

static __attribute__((noinline)) int read_job(char *dst, uintptr_t src, size_t n, unsigned flags)
{
    return run(&(struct gd_job){.piece = read_piece, .engine = gd_engine(), .mapped = src,
                                .other = dst, .n = n, .flags = flags});
}

/* Whether the copy needs no guard and is too small for threads in any case. */
static inline int short_way(size_t n, int write, unsigned flags)
{
    return !(flags & GD_GUARDED) &&
           (flags & GD_ONE_THREAD || !gd_threads_considered(n, write));
}

int gd_write(uintptr_t dst, const char *src, size_t n, unsigned flags)
{
    if (overlap(dst, n, (uintptr_t)src, n))
        return n ? -EINVAL : 0;
    if (n == 0)
        return 0;
    if (__builtin_expect(!short_way(n, 1, flags), 0))
        return write_job(dst, src, n, flags);
    gd_engine()->store((char *)dst, src, n);
    if (!(flags & GD_NO_FENCE))
        gd_fence();
    return 0;
}

int gd_read(char *dst, uintptr_t src, size_t n, unsigned flags)
{
    if (overlap((uintptr_t)dst, n, src, n))
        return n ? -EINVAL : 0;
    if (n == 0)
        return 0;
    if (__builtin_expect(!short_way(n, 0, flags), 0))
        return read_job(dst, src, n, flags);
    gd_load_fence();
    gd_engine()->load(dst, (const char *)src, n);
    return 0;
}

int gd_fill(uintptr_t dst, int value, size_t n, unsigned flags)
{
    if (n == 0)
        return 0;
    return run(&(struct gd_job){.piece = fill_piece, .engine = gd_engine(), .mapped = dst,
                                .value = value, .n = n, .write = 1, .flags = flags});
}

/* ---- scattered ---- */

static void store_pieces(char *dst, const struct gd_piece *pieces, size_t count)
{
    const struct gd_engine *engine = gd_engine();

    for (size_t i = 0; i < count; i++)
        if (pieces[i].length)
            engine->store(dst + pieces[i].offset, (const char *)(uintptr_t)pieces[i].source,
                          pieces[i].length);
}

static void store_items(char *dst, size_t step, const int64_t *indices, size_t count, const char *src,
                        size_t itemsize)
{
    const struct gd_engine *engine = gd_engine();

    for (size_t i = 0; i < count; i++, src += itemsize)
        engine->store(dst + (size_t)indices[i] * step, src, itemsize);
}

int gd_scatter(uintptr_t dst, size_t dst_size, const struct gd_piece *pieces, size_t count,
               unsigned flags)
{
    struct gd_guard guard;

    for (size_t i = 0; i < count; i++) {
        if (pieces[i].length > dst_size || pieces[i].offset > dst_size - pieces[i].length)
            return -ERANGE;
        if (overlap(dst, dst_size, (uintptr_t)pieces[i].source, pieces[i].length))
            return -EINVAL;
    }
    if ((flags & GD_GUARDED) && gd_guard_enter(&guard, dst & ~(uintptr_t)63, dst_size + 128))
        return -EFAULT;
    store_pieces((char *)dst, pieces, count);
    if (!(flags & GD_NO_FENCE))
        gd_fence();
    if (flags & GD_GUARDED)
        gd_guard_leave(&guard);
    return 0;
}

int gd_scatter_items(uintptr_t dst, size_t dst_size, const int64_t *offsets, size_t count,
                     const char *src, size_t itemsize, unsigned flags)
{
    return gd_scatter_elements(dst, dst_size, 1, offsets, count, src, itemsize, flags);
}

int gd_scatter_elements(uintptr_t dst, size_t dst_size, size_t step, const int64_t *indices,
                        size_t count, const char *src, size_t itemsize, unsigned flags)
{
    struct gd_guard guard;
    uint64_t last;

    if (itemsize == 0 || count == 0 || step == 0)
        return 0;
    if (itemsize > dst_size)
        return -ERANGE;
    last = (dst_size - itemsize) / step;
    for (size_t i = 0; i < count; i++)
        if (indices[i] < 0 || (uint64_t)indices[i] > last)
            return -ERANGE;
    if (count > SIZE_MAX / itemsize || overlap(dst, dst_size, (uintptr_t)src, count * itemsize))
        return -EINVAL;
    if ((flags & GD_GUARDED) && gd_guard_enter(&guard, dst & ~(uintptr_t)63, dst_size + 128))
        return -EFAULT;
    store_items((char *)dst, step, indices, count, src, itemsize);
    if (!(flags & GD_NO_FENCE))
        gd_fence();
    if (flags & GD_GUARDED)
        gd_guard_leave(&guard);
    return 0;
}
