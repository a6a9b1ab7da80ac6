/* SPDX-License-Identifier: MIT */
/*
 * Copies between ordinary memory and a mapping: choice of the instructions, fences, guards, and
 * what is made of the simple copy: fills, strided and scattered copies, copies by several threads.
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

#define MAX_DIMS 8
#define FILL_CHUNK 1024

static const struct gd_engine *selected;

static const struct gd_engine *engine(void)
{
    const struct gd_engine *e = __atomic_load_n(&selected, __ATOMIC_RELAXED);

    if (__builtin_expect(!e, 0)) {
        gd_isa_select(NULL);
        e = __atomic_load_n(&selected, __ATOMIC_RELAXED);
    }
    return e;
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
    return engine()->name;
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

/*
 * Before loads that stream: without it the core may serve a line from a streaming buffer that an
 * earlier load left behind, which is older than what the device has now (Intel SDM, MOVNTDQA).
 */
static void load_fence(void)
{
#if defined(__x86_64__)
    _mm_mfence();
#else
    __sync_synchronize();
#endif
}

int gd_write(uintptr_t dst, const char *src, size_t n, unsigned flags)
{
    struct gd_guard guard;

    if (n == 0)
        return 0;
    if (!(flags & GD_ONE_THREAD) && gd_threads_wanted(n, 1))
        return gd_threads_copy(engine(), (char *)dst, src, n, 1, flags);
    if (flags & GD_GUARDED) {
        if (gd_guard_enter(&guard, dst, n))
            return -EFAULT;
        engine()->store((char *)dst, src, n);
        if (!(flags & GD_NO_FENCE))
            gd_fence();
        gd_guard_leave(&guard);
        return 0;
    }
    engine()->store((char *)dst, src, n);
    if (!(flags & GD_NO_FENCE))
        gd_fence();
    return 0;
}

int gd_read(char *dst, uintptr_t src, size_t n, unsigned flags)
{
    struct gd_guard guard;

    if (n == 0)
        return 0;
    if (!(flags & GD_ONE_THREAD) && gd_threads_wanted(n, 0))
        return gd_threads_copy(engine(), dst, (const char *)src, n, 0, flags);
    load_fence();
    if (flags & GD_GUARDED) {
        if (gd_guard_enter(&guard, src & ~(uintptr_t)63, n + 128))
            return -EFAULT;
        engine()->load(dst, (const char *)src, n);
        gd_guard_leave(&guard);
        return 0;
    }
    engine()->load(dst, (const char *)src, n);
    return 0;
}

int gd_fill(uintptr_t dst, int value, size_t n, unsigned flags)
{
    char chunk[FILL_CHUNK] __attribute__((aligned(64)));
    int code = 0;

    memset(chunk, value, sizeof(chunk));
    for (size_t k; n && !code; dst += k, n -= k) {
        k = n < FILL_CHUNK ? n : FILL_CHUNK;
        code = gd_write(dst, chunk, k, flags | GD_NO_FENCE | GD_ONE_THREAD);
    }
    if (!(flags & GD_NO_FENCE))
        gd_fence();
    return code;
}

/* ---- strided ---- */

struct walk {
    const int64_t *shape, *mapped, *other; /* extents, and strides on both sides */
    int ndim;                              /* dimensions outside the contiguous run */
    size_t run;                            /* bytes that are contiguous on both sides */
    int write;
    const struct gd_engine *engine;
};

static void walk(const struct walk *w, int dim, char *mapped, char *other)
{
    if (dim == w->ndim) {
        if (w->write)
            w->engine->store(mapped, other, w->run);
        else
            w->engine->load(other, mapped, w->run);
        return;
    }
    for (int64_t i = 0; i < w->shape[dim]; i++)
        walk(w, dim + 1, mapped + i * w->mapped[dim], other + i * w->other[dim]);
}

static int copy_nd(char *mapped, const int64_t *mapped_strides, char *other,
                   const int64_t *other_strides, const int64_t *shape, int ndim, size_t itemsize,
                   unsigned flags, int write)
{
    struct walk w = {shape, mapped_strides, other_strides, ndim, itemsize, write, engine()};
    uintptr_t low = (uintptr_t)mapped, high = low + itemsize;
    struct gd_guard guard;

    if (ndim < 0 || ndim > MAX_DIMS)
        return -EINVAL;
    for (int i = 0; i < ndim; i++) {
        int64_t reach = (shape[i] - 1) * mapped_strides[i];

        if (shape[i] < 0)
            return -EINVAL;
        if (shape[i] == 0)
            return 0;
        if (reach < 0)
            low += (uintptr_t)reach;
        else
            high += (uintptr_t)reach;
    }
    while (w.ndim && mapped_strides[w.ndim - 1] == (int64_t)w.run &&
           other_strides[w.ndim - 1] == (int64_t)w.run)
        w.run *= (size_t)shape[--w.ndim];
    if (!write)
        load_fence();
    if (flags & GD_GUARDED) {
        if (gd_guard_enter(&guard, low & ~(uintptr_t)63, high - low + 128))
            return -EFAULT;
        walk(&w, 0, mapped, other);
        if (write && !(flags & GD_NO_FENCE))
            gd_fence();
        gd_guard_leave(&guard);
        return 0;
    }
    walk(&w, 0, mapped, other);
    if (write && !(flags & GD_NO_FENCE))
        gd_fence();
    return 0;
}

int gd_write_nd(uintptr_t dst, const int64_t *dst_strides, const char *src,
                const int64_t *src_strides, const int64_t *shape, int ndim, size_t itemsize,
                unsigned flags)
{
    return copy_nd((char *)dst, dst_strides, (char *)(uintptr_t)src, src_strides, shape, ndim,
                   itemsize, flags, 1);
}

int gd_read_nd(char *dst, const int64_t *dst_strides, uintptr_t src, const int64_t *src_strides,
               const int64_t *shape, int ndim, size_t itemsize, unsigned flags)
{
    return copy_nd((char *)src, src_strides, dst, dst_strides, shape, ndim, itemsize, flags, 0);
}

/* ---- scattered ---- */

int gd_scatter(uintptr_t dst, size_t dst_size, const struct gd_piece *pieces, size_t count,
               unsigned flags)
{
    struct gd_guard guard;

    for (size_t i = 0; i < count; i++)
        if (pieces[i].length > dst_size || pieces[i].offset > dst_size - pieces[i].length)
            return -ERANGE;
    if ((flags & GD_GUARDED) && gd_guard_enter(&guard, dst, dst_size))
        return -EFAULT;
    for (size_t i = 0; i < count; i++)
        if (pieces[i].length)
            engine()->store((char *)dst + pieces[i].offset,
                            (const char *)(uintptr_t)pieces[i].source, pieces[i].length);
    if (!(flags & GD_NO_FENCE))
        gd_fence();
    if (flags & GD_GUARDED)
        gd_guard_leave(&guard);
    return 0;
}

int gd_scatter_items(uintptr_t dst, size_t dst_size, const int64_t *offsets, size_t count,
                     const char *src, size_t itemsize, unsigned flags)
{
    struct gd_guard guard;

    if (itemsize == 0 || count == 0)
        return 0;
    for (size_t i = 0; i < count; i++)
        if (itemsize > dst_size || offsets[i] < 0 ||
            (uint64_t)offsets[i] > dst_size - itemsize)
            return -ERANGE;
    if ((flags & GD_GUARDED) && gd_guard_enter(&guard, dst, dst_size))
        return -EFAULT;
    for (size_t i = 0; i < count; i++)
        engine()->store((char *)dst + offsets[i], src + i * itemsize, itemsize);
    if (!(flags & GD_NO_FENCE))
        gd_fence();
    if (flags & GD_GUARDED)
        gd_guard_leave(&guard);
    return 0;
}

const struct gd_api *gd_api(void)
{
    static const struct gd_api api = {gd_write, gd_read, gd_fence};

    return &api;
}
