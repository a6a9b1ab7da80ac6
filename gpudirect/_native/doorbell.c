/* SPDX-License-Identifier: MIT */
/* Single words in a mapping, and waiting for one to change. */
#define _GNU_SOURCE
#include <errno.h>
#include <time.h>

#include "guard.h"
#include "native.h"

#if defined(__x86_64__)
#define relax() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define relax() __asm__ volatile("yield")
#else
#define relax() ((void)0)
#endif

#define LOOKS_A_CLOCK 64 /* looks at the word between two looks at the clock */

uint64_t gd_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

#define ACCESS(name, type, access)                                                                \
    {                                                                                             \
        struct gd_guard guard;                                                                    \
                                                                                                  \
        if (flags & GD_GUARDED) {                                                                 \
            if (gd_guard_enter(&guard, address, sizeof(type)))                                    \
                return -EFAULT;                                                                   \
            access;                                                                               \
            gd_guard_leave(&guard);                                                               \
        } else {                                                                                  \
            access;                                                                               \
        }                                                                                         \
    }

#define STORE(bits)                                                                               \
    int gd_store##bits(uintptr_t address, uint##bits##_t value, unsigned flags)                   \
    {                                                                                             \
        ACCESS(store, uint##bits##_t, *(volatile uint##bits##_t *)address = value)                \
        if (!(flags & GD_NO_FENCE))                                                               \
            gd_fence();                                                                           \
        return 0;                                                                                 \
    }

#define LOAD(bits)                                                                                \
    int gd_load##bits(uintptr_t address, uint##bits##_t *value, unsigned flags)                   \
    {                                                                                             \
        ACCESS(load, uint##bits##_t, *value = *(volatile uint##bits##_t *)address)                \
        return 0;                                                                                 \
    }

#define WAIT(bits)                                                                                \
    int gd_wait##bits(uintptr_t address, uint##bits##_t value, int64_t timeout)                   \
    {                                                                                             \
        volatile uint##bits##_t *word = (volatile uint##bits##_t *)address;                       \
        uint64_t end = 0;                                                                         \
                                                                                                  \
        if (*word == value)                                                                       \
            return 0;                                                                             \
        if (timeout == 0)                                                                         \
            return -ETIMEDOUT;                                                                    \
        if (timeout > 0)                                                                          \
            end = gd_now() + (uint64_t)timeout;                                                   \
        for (;;) {                                                                                \
            for (int i = 0; i < LOOKS_A_CLOCK; i++) {                                             \
                if (*word == value)                                                               \
                    return 0;                                                                     \
                relax();                                                                          \
            }                                                                                     \
            if (end && gd_now() >= end)                                                           \
                return -ETIMEDOUT;                                                                \
        }                                                                                         \
    }

STORE(32)
STORE(64)
LOAD(32)
LOAD(64)
WAIT(32)
WAIT(64)

int gd_pingpong(uintptr_t bell, uintptr_t answer, uint32_t first, int rounds, double *ns,
                int64_t timeout)
{
    for (int i = 0; i < rounds; i++) {
        uint64_t start = gd_now();
        int code;

        *(volatile uint32_t *)bell = first + (uint32_t)i;
        gd_fence();
        code = gd_wait32(answer, first + (uint32_t)i, timeout);
        if (code)
            return code;
        ns[i] = (double)(gd_now() - start);
    }
    return rounds;
}
