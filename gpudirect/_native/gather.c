/* SPDX-License-Identifier: MIT */
/*
 * Gathering: elements of the mapping, wherever they are, packed in ordinary memory. Each costs one
 * read over the link; what counts is how many are under way at once, so nothing here waits for one
 * before it asks for the next.
 */
#include <errno.h>

#include "engine.h"
#include "guard.h"
#include "native.h"

int64_t gd_indices_check(const int64_t *indices, size_t count, size_t size, int64_t *low,
                         int64_t *high)
{
    int64_t least = INT64_MAX, most = INT64_MIN, limit = (int64_t)size;

    for (size_t i = 0; i < count; i++) {
        int64_t at = indices[i] + (indices[i] < 0 ? limit : 0);

        least = at < least ? at : least;
        most = at > most ? at : most;
    }
    *low = least;
    *high = most;
    if (!count || (least >= 0 && most < limit))
        return -1;
    for (size_t i = 0;; i++)
        if (indices[i] < -limit || indices[i] >= limit)
            return (int64_t)i;
}

static void pick(char *dst, const char *src, size_t size, const int64_t *indices, size_t count,
                 size_t itemsize)
{
    const struct gd_engine *engine = gd_engine();

    gd_load_fence();
    if (engine->pick && itemsize <= 16 && !(itemsize & (itemsize - 1)) &&
        !((uintptr_t)src & (itemsize - 1))) {
        engine->pick(dst, src, (int64_t)size, indices, count, itemsize);
        return;
    }
    for (size_t i = 0; i < count; i++, dst += itemsize) {
        int64_t at = indices[i] + (indices[i] < 0 ? (int64_t)size : 0);

        engine->load(dst, src + at * (int64_t)itemsize, itemsize);
    }
}

int gd_gather_items(char *dst, uintptr_t src, size_t size, const int64_t *indices, size_t count,
                    size_t itemsize, unsigned flags)
{
    struct gd_guard guard;
    uintptr_t to = (uintptr_t)dst;
    int64_t low, high;
    size_t length;

    if (itemsize == 0 || count == 0)
        return 0;
    if (__builtin_mul_overflow(size, itemsize, &length) || length > INT64_MAX ||
        count > SIZE_MAX / itemsize)
        return -EINVAL;
    if (gd_indices_check(indices, count, size, &low, &high) >= 0)
        return -ERANGE;
    if (to < src + length && src < to + count * itemsize)
        return -EINVAL;
    if (flags & GD_GUARDED) {
        if (gd_guard_enter(&guard, src & ~(uintptr_t)63, length + 128))
            return -EFAULT;
        pick(dst, (const char *)src, size, indices, count, itemsize);
        gd_guard_leave(&guard);
    } else {
        pick(dst, (const char *)src, size, indices, count, itemsize);
    }
    return 0;
}
