/* SPDX-License-Identifier: MIT */
/*
 * The faster of two ways for a copy: CPU stores and loads through the mapping, or the device's own
 * copy engine (DMA), which is called here through functions that the device handed over. This file
 * knows their types (CUDA driver API: cuMemcpyHtoD, cuMemcpyDtoH, cuStreamSynchronize,
 * cuCtxGetCurrent, cuCtxPushCurrent, cuCtxPopCurrent, cuPointerGetAttribute) and nothing of CUDA.
 */
#include <errno.h>

#include "native.h"

typedef int copy_in_function(uint64_t to, const void *from, size_t n);
typedef int copy_out_function(void *to, uint64_t from, size_t n);
typedef int settle_function(void *stream);
typedef int current_function(void **context);
typedef int push_function(void *context);
typedef int pop_function(void **context);
typedef int attribute_function(void *value, int which, uint64_t address);

#define MEMORY_TYPE 2 /* CU_POINTER_ATTRIBUTE_MEMORY_TYPE */
#define TYPE_HOST 1   /* CU_MEMORYTYPE_HOST; memory that CUDA does not know gives an error */

_Static_assert(sizeof(struct gd_turns) == GD_TURNS * sizeof(size_t), "native.h says both");

#define CALL(name) ((name##_function *)(uintptr_t)p->name)

static int turned(const struct gd_turns *turns, size_t n)
{
    int dma = 0;

    for (int i = 0; i < GD_TURNS && n > turns->at[i]; i++)
        dma = !dma;
    return dma;
}

static int enter(const struct gd_paths *p, int *entered)
{
    void *now = NULL;
    int code;

    *entered = 0;
    if (!p->copy_in)
        return -ENOTSUP;
    code = CALL(current)(&now);
    if (code || (uintptr_t)now == p->context)
        return code;
    code = CALL(push)((void *)(uintptr_t)p->context);
    *entered = !code;
    return code;
}

static void leave(const struct gd_paths *p, int entered)
{
    void *ignored;

    if (entered)
        CALL(pop)(&ignored);
}

int gd_pinned(const struct gd_paths *p, const void *ordinary)
{
    int entered, pinned;
    unsigned type = 0;

    if (enter(p, &entered))
        return 0;
    pinned = !CALL(attribute)(&type, MEMORY_TYPE, (uintptr_t)ordinary) && type == TYPE_HOST;
    leave(p, entered);
    return pinned;
}

int gd_path(const struct gd_paths *p, int write, const void *ordinary, size_t n)
{
    int pageable = turned(write ? &p->write_pageable : &p->read_pageable, n);
    int pinned = turned(write ? &p->write_pinned : &p->read_pinned, n);

    return pageable == pinned || !gd_pinned(p, ordinary) ? pageable : pinned;
}

int gd_dma_in(const struct gd_paths *p, uint64_t to, const char *from, size_t n)
{
    int entered, code;

    gd_fence(); /* mapped stores made before the copy come first */
    code = enter(p, &entered);
    if (code)
        return code;
    code = CALL(copy_in)(to, from, n);
    /*
     * From pageable memory the driver returns once it has staged the data (CUDA driver API, "API
     * synchronization behavior"): a load through the mapping could still see what was there.
     */
    if (!code && !gd_pinned(p, from))
        code = CALL(settle)(NULL);
    leave(p, entered);
    return code;
}

int gd_dma_out(const struct gd_paths *p, char *to, uint64_t from, size_t n)
{
    int entered, code;

    gd_fence(); /* stores of ours that are still on their way come first */
    code = enter(p, &entered);
    if (code)
        return code;
    code = CALL(copy_out)(to, from, n);
    leave(p, entered);
    return code;
}
