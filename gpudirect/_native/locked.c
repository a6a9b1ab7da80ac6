/* SPDX-License-Identifier: MIT */
/*
 * Which host memory is page-locked for certain. The driver knows too, but takes 0.6 us to say no, and
 * memory that others locked may have another address on the device.
 *
 * No lock: a child of fork() could inherit it taken. Who asks about memory holds it, so its own entry
 * does not change meanwhile; of others it must only not see halves of two.
 */
#include <errno.h>
#include <string.h>

#include "courier.h"

#define RANGES 1024
#define RESERVED UINTPTR_MAX

static struct {
    uintptr_t start, end;
    uint64_t owner;
} ranges[RANGES];
static unsigned used; /* entries up to the last that ever was in use */

int gd_locked_add(uintptr_t start, size_t n, uint64_t owner)
{
    for (unsigned i = 0; i < RANGES; i++) {
        uintptr_t none = 0;
        unsigned seen = __atomic_load_n(&used, __ATOMIC_RELAXED);

        if (!__atomic_compare_exchange_n(&ranges[i].start, &none, RESERVED, 0, __ATOMIC_ACQ_REL,
                                         __ATOMIC_RELAXED))
            continue;
        __atomic_store_n(&ranges[i].owner, owner, __ATOMIC_RELEASE);
        __atomic_store_n(&ranges[i].end, start + n, __ATOMIC_RELEASE);
        __atomic_store_n(&ranges[i].start, start, __ATOMIC_RELEASE);
        while (seen <= i && !__atomic_compare_exchange_n(&used, &seen, i + 1, 0, __ATOMIC_ACQ_REL,
                                                         __ATOMIC_RELAXED))
            ;
        return 0;
    }
    return -ENOSPC;
}

void gd_locked_remove(uintptr_t start)
{
    for (unsigned i = 0; i < RANGES; i++) {
        if (__atomic_load_n(&ranges[i].start, __ATOMIC_ACQUIRE) != start)
            continue;
        __atomic_store_n(&ranges[i].end, 0, __ATOMIC_RELEASE);
        __atomic_store_n(&ranges[i].start, 0, __ATOMIC_RELEASE);
        return;
    }
}

int gd_locked(const void *start, size_t n, uint64_t owner)
{
    uintptr_t from = (uintptr_t)start;
    unsigned count = __atomic_load_n(&used, __ATOMIC_ACQUIRE);

    for (unsigned i = 0; i < count; i++) {
        uintptr_t low = __atomic_load_n(&ranges[i].start, __ATOMIC_ACQUIRE);
        uintptr_t high = __atomic_load_n(&ranges[i].end, __ATOMIC_ACQUIRE);
        uint64_t whose = __atomic_load_n(&ranges[i].owner, __ATOMIC_ACQUIRE);

        if (low && low <= from && from < high && n <= high - from && (!whose || whose == owner) &&
            __atomic_load_n(&ranges[i].start, __ATOMIC_ACQUIRE) == low)
            return 1;
    }
    return 0;
}

void gd_locked_forget(void)
{
    memset(ranges, 0, sizeof(ranges));
    used = 0;
}
