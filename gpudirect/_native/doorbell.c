/* SPDX-License-Identifier: MIT */
/* Single words in a mapping, and waiting for one to change. */
#define _GNU_SOURCE
#include <errno.h>
#include <time.h>

#include "guard.h"
#include "native.h"
#include "relax.h"

#define LOOKS_A_CLOCK 64 /* looks at the word between two looks at the clock */

uint64_t gd_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/*
 * Loads acquire: who has seen a flag sees what was written before it. (On x86 that is any load.)
 * Accesses are naturally aligned words, so each is one transaction on the link.
 */
#define WORD(bits)                                                                                \
    static void store##bits(uintptr_t address, uint##bits##_t value)                              \
    {                                                                                             \
        __atomic_store_n((uint##bits##_t *)address, value, __ATOMIC_RELAXED);                     \
    }                                                                                             \
                                                                                                  \
    static uint##bits##_t load##bits(uintptr_t address)                                           \
    {                                                                                             \
        return __atomic_load_n((uint##bits##_t *)address, __ATOMIC_ACQUIRE);                      \
    }                                                                                             \
                                                                                                  \
    int gd_store##bits(uintptr_t address, uint##bits##_t value, unsigned flags)                   \
    {                                                                                             \
        struct gd_guard guard;                                                                    \
                                                                                                  \
        if (address % (bits / 8))                                                                 \
            return -EINVAL;                                                                       \
        if (flags & GD_GUARDED) {                                                                 \
            if (gd_guard_enter(&guard, address, bits / 8))                                        \
                return -EFAULT;                                                                   \
            store##bits(address, value);                                                          \
            gd_guard_leave(&guard);                                                               \
        } else {                                                                                  \
            store##bits(address, value);                                                          \
        }                                                                                         \
        if (!(flags & GD_NO_FENCE))                                                               \
            gd_fence();                                                                           \
        return 0;                                                                                 \
    }                                                                                             \
                                                                                                  \
    int gd_load##bits(uintptr_t address, uint##bits##_t *value, unsigned flags)                   \
    {                                                                                             \
        struct gd_guard guard;                                                                    \
                                                                                                  \
        if (address % (bits / 8))                                                                 \
            return -EINVAL;                                                                       \
        if (flags & GD_GUARDED) {                                                                 \
            if (gd_guard_enter(&guard, address, bits / 8))                                        \
                return -EFAULT;                                                                   \
            *value = load##bits(address);                                                         \
            gd_guard_leave(&guard);                                                               \
        } else {                                                                                  \
            *value = load##bits(address);                                                         \
        }                                                                                         \
        return 0;                                                                                 \
    }                                                                                             \
                                                                                                  \
    static int spin##bits(uintptr_t address, uint##bits##_t value, int64_t timeout)               \
    {                                                                                             \
        uint64_t start;                                                                           \
                                                                                                  \
        if (load##bits(address) == value)                                                         \
            return 0;                                                                             \
        if (timeout == 0)                                                                         \
            return -ETIMEDOUT;                                                                    \
        for (start = gd_now();;) {                                                                \
            for (int i = 0; i < LOOKS_A_CLOCK; i++) {                                             \
                if (load##bits(address) == value)                                                 \
                    return 0;                                                                     \
                gd_relax();                                                                       \
            }                                                                                     \
            if (timeout > 0 && gd_now() - start >= (uint64_t)timeout)                             \
                return -ETIMEDOUT;                                                                \
            gd_guard_keep();                                                                      \
        }                                                                                         \
    }                                                                                             \
                                                                                                  \
    int gd_wait##bits(uintptr_t address, uint##bits##_t value, int64_t timeout)                   \
    {                                                                                             \
        struct gd_guard guard;                                                                    \
        int code;                                                                                 \
                                                                                                  \
        if (address % (bits / 8))                                                                 \
            return -EINVAL;                                                                       \
        if (gd_guard_enter(&guard, address, bits / 8))                                            \
            return -EFAULT;                                                                       \
        code = spin##bits(address, value, timeout);                                               \
        gd_guard_leave(&guard);                                                                   \
        return code;                                                                              \
    }

WORD(32)
WORD(64)
