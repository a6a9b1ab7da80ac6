/* SPDX-License-Identifier: MIT */
/*
 * Strided copies. The geometry is first brought into the order of the mapping: dimensions by
 * falling stride there, all of them ascending, neighbours merged where both sides allow it. What
 * then matters is that the mapping sees whole lines:
 *
 *   - contiguous runs of a line or more go straight through the engine;
 *   - shorter ones, where the mapping is dense and ordinary memory is not (a transposed source, a
 *     column), pass through a block on the stack that stays in the first-level cache: the mapping
 *     is accessed in full lines, in order. Nothing is allocated and nothing is copied twice through
 *     memory;
 *   - anything else is done run by run.
 */
#include <errno.h>
#include <string.h>

#include "engine.h"
#include "guard.h"
#include "native.h"

#define LINE 64
#define BLOCK 4096 /* bytes gathered or spread at once */

struct geometry {
    const struct gd_engine *engine;
    int write;
    size_t run;  /* bytes that are contiguous on both sides */
    int dims;    /* outside the run */
    int dense;   /* innermost dimensions over which the mapping is contiguous */
    int64_t shape[GD_MAX_DIMS], mapped[GD_MAX_DIMS], other[GD_MAX_DIMS];
    uintptr_t at; /* lowest address of the mapped side */
    size_t reach; /* bytes from there to its end */
    char *other_at; /* element 0 of the reordered geometry */
};

static void merge(struct geometry *g)
{
    size_t expected;

    for (; g->dims && g->mapped[g->dims - 1] == (int64_t)g->run &&
           g->other[g->dims - 1] == (int64_t)g->run; g->dims--)
        g->run *= (size_t)g->shape[g->dims - 1];
    for (int i = g->dims - 2; i >= 0; i--) {
        int j = i + 1;

        if (g->mapped[i] != g->mapped[j] * g->shape[j] || g->other[i] != g->other[j] * g->shape[j])
            continue;
        g->shape[i] *= g->shape[j];
        g->mapped[i] = g->mapped[j];
        g->other[i] = g->other[j];
        g->dims--;
        for (; j < g->dims; j++) {
            g->shape[j] = g->shape[j + 1];
            g->mapped[j] = g->mapped[j + 1];
            g->other[j] = g->other[j + 1];
        }
    }
    g->dense = 0;
    expected = g->run;
    for (int i = g->dims - 1; i >= 0 && g->mapped[i] == (int64_t)expected; i--) {
        expected *= (size_t)g->shape[i];
        g->dense++;
    }
}

/* 0, 1 if there is nothing to copy, or -EINVAL. */
static int normalise(struct geometry *g, uintptr_t mapped, const int64_t *mapped_strides,
                     char *other, const int64_t *other_strides, const int64_t *shape, int ndim,
                     size_t itemsize)
{
    int64_t low = 0, high = (int64_t)itemsize; /* reach of the other side */
    uintptr_t other_low = (uintptr_t)other;
    int empty = itemsize == 0;

    if (ndim < 0 || ndim > GD_MAX_DIMS || itemsize > INT64_MAX)
        return -EINVAL;
    g->run = itemsize;
    g->dims = 0;
    g->reach = itemsize;
    for (int i = 0; i < ndim; i++) {
        int64_t m = mapped_strides[i], o = other_strides[i], span;
        int at = g->dims;

        if (shape[i] < 0)
            return -EINVAL;
        empty |= shape[i] == 0;
        if (shape[i] <= 1)
            continue;
        if (__builtin_mul_overflow(shape[i] - 1, o, &span) ||
            __builtin_add_overflow(o < 0 ? low : high, span, o < 0 ? &low : &high))
            return -EINVAL;
        if (__builtin_mul_overflow(shape[i] - 1, m, &span) || span == INT64_MIN)
            return -EINVAL;
        if (m < 0) { /* walk it the other way round */
            mapped -= (uintptr_t)-span;
            other += (shape[i] - 1) * o;
            m = -m, o = -o, span = -span;
        }
        if (__builtin_add_overflow(g->reach, (size_t)span, &g->reach))
            return -EINVAL;
        for (; at > 0 && g->mapped[at - 1] < m; at--) {
            g->shape[at] = g->shape[at - 1];
            g->mapped[at] = g->mapped[at - 1];
            g->other[at] = g->other[at - 1];
        }
        g->shape[at] = shape[i], g->mapped[at] = m, g->other[at] = o;
        g->dims++;
    }
    if (empty)
        return 1;
    other_low += (uintptr_t)low;
    g->at = mapped;
    g->other_at = other;
    if (other_low + (uint64_t)(high - low) > mapped && other_low < mapped + g->reach)
        return -EINVAL; /* the two sides overlap */
    merge(g);
    return 0;
}

/* `count` items of `run` bytes from one stride to another. */
static inline void move_items(char *to, int64_t to_stride, const char *from, int64_t from_stride,
                              size_t count, size_t run)
{
#define MOVE(size)                                                                                \
    for (size_t i = 0; i < count; i++, to += to_stride, from += from_stride)                      \
        memcpy(to, from, size);                                                                   \
    break
    switch (run) {
    case 1: MOVE(1);
    case 2: MOVE(2);
    case 4: MOVE(4);
    case 8: MOVE(8);
    case 16: MOVE(16);
    default: MOVE(run);
    }
#undef MOVE
}

/* ---- the ways ---- */

/* A dense part of the mapping on its way through a block. */
struct stream {
    char block[BLOCK] __attribute__((aligned(LINE)));
    char *mapped;   /* next byte of the mapping to store or load */
    size_t left;    /* bytes of the mapping from there to the end of the part (loads) */
    size_t at, end; /* gathered: [0, end); loaded and not yet spread: [at, end) */
};

/* Store what was gathered, but keep the start of a line that is not full. */
static void drain(const struct geometry *g, struct stream *s)
{
    size_t keep = ((uintptr_t)s->mapped + s->end) & (LINE - 1), n;

    if (keep >= s->end)
        return;
    n = s->end - keep;
    g->engine->store(s->mapped, s->block, n);
    memmove(s->block, s->block + n, keep);
    s->mapped += n;
    s->end = keep;
}

static void gather(const struct geometry *g, struct stream *s, int dim, const char *other)
{
    size_t count = (size_t)g->shape[dim], k;

    if (dim < g->dims - 1) {
        for (; count; count--, other += g->other[dim])
            gather(g, s, dim + 1, other);
        return;
    }
    for (; count; count -= k, other += (int64_t)k * g->other[dim]) {
        k = (BLOCK - s->end) / g->run;
        if (k > count)
            k = count;
        move_items(s->block + s->end, (int64_t)g->run, other, g->other[dim], k, g->run);
        s->end += k * g->run;
        if (BLOCK - s->end < g->run)
            drain(g, s);
    }
}

/* Load more, up to the end of a line, behind what is left of an item. */
static void refill(const struct geometry *g, struct stream *s)
{
    size_t rest = s->end - s->at, n = BLOCK - rest;

    memmove(s->block, s->block + s->at, rest);
    n -= ((uintptr_t)s->mapped + n) & (LINE - 1);
    if (n > s->left)
        n = s->left;
    g->engine->load(s->block + rest, s->mapped, n);
    s->mapped += n;
    s->left -= n;
    s->at = 0;
    s->end = rest + n;
}

static void spread(const struct geometry *g, struct stream *s, int dim, char *other)
{
    size_t count = (size_t)g->shape[dim], k;

    if (dim < g->dims - 1) {
        for (; count; count--, other += g->other[dim])
            spread(g, s, dim + 1, other);
        return;
    }
    for (; count; count -= k, other += (int64_t)k * g->other[dim]) {
        if (s->end - s->at < g->run)
            refill(g, s);
        k = (s->end - s->at) / g->run;
        if (k > count)
            k = count;
        move_items(other, g->other[dim], s->block + s->at, (int64_t)g->run, k, g->run);
        s->at += k * g->run;
    }
}

static void dense(const struct geometry *g, int dim, char *mapped, char *other)
{
    struct stream s;

    s.mapped = mapped;
    s.at = s.end = 0;
    if (g->write) {
        gather(g, &s, dim, other);
        if (s.end)
            g->engine->store(s.mapped, s.block, s.end);
    } else {
        s.left = g->run;
        for (int i = dim; i < g->dims; i++)
            s.left *= (size_t)g->shape[i];
        spread(g, &s, dim, other);
    }
}

/* Loads of items that lie at most a line apart: every line holds one, so take whole lines. */
static void sift(const struct geometry *g, int dim, char *mapped, char *other)
{
    char block[BLOCK] __attribute__((aligned(LINE)));
    size_t count = (size_t)g->shape[dim], stride = (size_t)g->mapped[dim], k;

    for (; count; count -= k, mapped += k * stride, other += (int64_t)k * g->other[dim]) {
        k = (BLOCK - g->run) / stride + 1;
        if (k > count)
            k = count;
        g->engine->load(block, mapped, (k - 1) * stride + g->run);
        move_items(other, g->other[dim], block, (int64_t)stride, k, g->run);
    }
}

static void one(const struct geometry *g, int dim, char *mapped, char *other)
{
    (void)dim;
    if (g->write)
        g->engine->store(mapped, other, g->run);
    else
        g->engine->load(other, mapped, g->run);
}

typedef void way(const struct geometry *g, int dim, char *mapped, char *other);

/* Walk the dimensions before `until`; the way does the rest. */
static void walk(const struct geometry *g, way *rest, int until, int dim, char *mapped, char *other)
{
    if (dim == until) {
        rest(g, dim, mapped, other);
        return;
    }
    for (int64_t i = 0; i < g->shape[dim]; i++)
        walk(g, rest, until, dim + 1, mapped + i * g->mapped[dim], other + i * g->other[dim]);
}

static void run(const struct geometry *g)
{
    int64_t stride = g->mapped[g->dims - 1];
    way *rest = one;
    int until = g->dims;

    if (g->run < LINE && g->dense)
        rest = dense, until -= g->dense;
    else if (g->run < LINE && !g->write && stride > 0 && stride <= LINE)
        rest = sift, until -= 1;
    walk(g, rest, until, 0, (char *)g->at, g->other_at);
}

static int copy(uintptr_t mapped, const int64_t *mapped_strides, char *other,
                const int64_t *other_strides, const int64_t *shape, int ndim, size_t itemsize,
                unsigned flags, int write)
{
    struct geometry g = {.engine = gd_engine(), .write = write};
    int code = normalise(&g, mapped, mapped_strides, other, other_strides, shape, ndim, itemsize);
    struct gd_guard guard;

    if (code)
        return code < 0 ? code : 0;
    if (!g.dims)
        return write ? gd_write(g.at, g.other_at, g.run, flags)
                     : gd_read(g.other_at, g.at, g.run, flags);
    if (!write)
        gd_load_fence();
    if ((flags & GD_GUARDED) && gd_guard_enter(&guard, g.at & ~(uintptr_t)(LINE - 1),
                                               g.reach + 2 * LINE))
        return -EFAULT;
    run(&g);
    if (write && !(flags & GD_NO_FENCE))
        gd_fence();
    if (flags & GD_GUARDED)
        gd_guard_leave(&guard);
    return 0;
}

int gd_write_nd(uintptr_t dst, const int64_t *dst_strides, const char *src,
                const int64_t *src_strides, const int64_t *shape, int ndim, size_t itemsize,
                unsigned flags)
{
    return copy(dst, dst_strides, (char *)(uintptr_t)src, src_strides, shape, ndim, itemsize,
                flags, 1);
}

int gd_read_nd(char *dst, const int64_t *dst_strides, uintptr_t src, const int64_t *src_strides,
               const int64_t *shape, int ndim, size_t itemsize, unsigned flags)
{
    return copy(src, src_strides, dst, dst_strides, shape, ndim, itemsize, flags, 0);
}
