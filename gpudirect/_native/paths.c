/* SPDX-License-Identifier: MIT */
/*
 * The faster of two ways for a copy: CPU stores and loads through the mapping, or the device's own
 * copy engine (DMA).
 */
#include <errno.h>

#include "courier.h"
#include "native.h"

_Static_assert(sizeof(struct gd_turns) == GD_TURNS * sizeof(size_t), "native.h says both");

static int turned(const struct gd_turns *turns, size_t n)
{
    int dma = 0;

    for (int i = 0; i < GD_TURNS && n > turns->at[i]; i++)
        dma = !dma;
    return dma;
}

/*
 * Whether memory is page-locked, asked again every ASK_AGAIN times only: the driver takes 0.6 us to
 * say no, and a program mostly copies from where it copied last. An old answer costs time, never
 * data: gd_dma_in asks for itself what it must wait for.
 */
#define ASK_AGAIN 64

static int probably_pinned(const struct gd_driver *driver, const void *ordinary)
{
    static __thread struct {
        const struct gd_driver *driver;
        const void *ordinary;
        int pinned;
        unsigned left;
    } last;

    if (last.left && last.driver == driver && last.ordinary == ordinary) {
        last.left--;
        return last.pinned;
    }
    last.driver = driver;
    last.ordinary = ordinary;
    last.pinned = gd_driver_pinned(driver, ordinary);
    last.left = ASK_AGAIN;
    return last.pinned;
}

int gd_path(const struct gd_paths *p, int write, const void *ordinary, size_t n)
{
    int pageable = turned(write ? &p->write_pageable : &p->read_pageable, n);
    int pinned = turned(write ? &p->write_pinned : &p->read_pinned, n);

    if (pageable == pinned || !p->driver || !probably_pinned(p->driver, ordinary))
        return pageable;
    return pinned;
}

int gd_path_courier(const struct gd_paths *p, const void *ordinary, size_t n, int forced)
{
    if (!p->courier)
        return -1;
    if (forced)
        return GD_COURIER_FORCED | (gd_locked(ordinary, n, p->courier->owner) ? GD_COURIER_DIRECT : 0);
    if (n >= p->courier_pinned[0] && n <= p->courier_pinned[1] &&
        gd_locked(ordinary, n, p->courier->owner))
        return GD_COURIER_DIRECT;
    return n >= p->courier_pageable[0] && n <= p->courier_pageable[1] ? 0 : -1;
}

int gd_dma_in(const struct gd_paths *p, uint64_t to, const char *from, size_t n)
{
    int code;

    if (!p->driver)
        return -ENOTSUP;
    gd_fence(); /* mapped stores made before the copy come first */
    code = gd_driver_copy_in(p->driver, to, from, n);
    /*
     * From pageable memory the driver returns once it has staged the data (CUDA driver API, "API
     * synchronization behavior"): a load through the mapping could still see what was there.
     */
    if (!code && !gd_driver_pinned(p->driver, from))
        code = gd_driver_settle(p->driver, 0);
    return code;
}

int gd_dma_out(const struct gd_paths *p, char *to, uint64_t from, size_t n)
{
    if (!p->driver)
        return -ENOTSUP;
    gd_fence(); /* stores of ours that are still on their way come first */
    return gd_driver_copy_out(p->driver, to, from, n);
}
