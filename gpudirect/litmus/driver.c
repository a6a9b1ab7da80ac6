/* SPDX-License-Identifier: MIT */
/*
 * The CPU's side of the litmus tests: loops that must not leave C between two stores. (A Python
 * call in between would do for a fence: it takes locks, and a locked instruction empties the
 * write-combining buffers.) Compiled on first use by __init__.py.
 *
 * Every function returns how many rounds went wrong, or -ETIMEDOUT when the device did not answer.
 */
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define TIMEOUT 10 /* seconds */
#define NO_FENCE 1 /* GD_NO_FENCE of native.h */

typedef int store_function(uintptr_t to, const char *from, size_t n, unsigned flags);

static void fence(void)
{
#if defined(__x86_64__)
    __asm__ volatile("sfence" ::: "memory");
#elif defined(__aarch64__)
    __asm__ volatile("dsb st" ::: "memory");
#else
    __sync_synchronize();
#endif
}

static int wait_for(const volatile uint32_t *word, uint32_t value)
{
    time_t start = time(NULL);

    for (unsigned looks = 1; __atomic_load_n(word, __ATOMIC_ACQUIRE) != value; looks++)
        if (looks % 65536 == 0 && time(NULL) - start > TIMEOUT)
            return -ETIMEDOUT;
    return 0;
}

/*
 * Built with -DSABOTAGE the CPU breaks what is promised, so that the tests can be seen to fail:
 * flags go first, and what belongs behind them comes 20 us later.
 */
#ifdef SABOTAGE
#define SABOTAGED 1
#else
#define SABOTAGED 0
#endif

static void linger(void)
{
    struct timespec start, now;

    fence();
    clock_gettime(CLOCK_MONOTONIC, &start);
    do
        clock_gettime(CLOCK_MONOTONIC, &now);
    while ((now.tv_sec - start.tv_sec) * 1000000000 + now.tv_nsec - start.tv_nsec < 20000);
}

enum { FENCED, BARE, FLAG_LINE_OPEN };

/*
 * Message passing: the payload, one word in each of several lines, and then the flag. FENCED has a
 * fence between them. FLAG_LINE_OPEN stores a word beside the flag before the payload, so that the
 * flag joins a write-combining buffer that is older than the payload's.
 */
int send_messages(volatile uint32_t *payload, int words, int step, volatile uint32_t *flag,
                  const volatile uint32_t *answer, uint32_t first, int rounds, int how)
{
    for (uint32_t v = first; v != first + (uint32_t)rounds; v++) {
        if (how == FLAG_LINE_OPEN)
            flag[1] = v;
        if (SABOTAGED) {
            *flag = v;
            linger();
        }
        for (int i = 0; i < words; i++)
            payload[i * step] = v;
        if (how == FENCED)
            fence();
        __asm__ volatile("" ::: "memory");
        *flag = v;
        fence();
        if (wait_for(answer, v))
            return -ETIMEDOUT;
    }
    return 0;
}

/* Packets of n bytes whose every word is the round, stored by the copy engine. */
int send_packets(store_function *store, uintptr_t at, int n, const volatile uint32_t *answer,
                 uint32_t first, int rounds)
{
    uint32_t packet[64] __attribute__((aligned(64)));

    for (uint32_t v = first; v != first + (uint32_t)rounds; v++) {
        for (int i = 0; i < n / 4; i++)
            packet[i] = v;
        if (SABOTAGED) {
            store(at, (const char *)packet, 4, 0);
            linger();
        }
        store(at, (const char *)packet, (size_t)n, 0);
        if (wait_for(answer, v))
            return -ETIMEDOUT;
    }
    return 0;
}

/* The device answers with a payload and then a flag; what of the payload is old when it comes? */
int take_replies(volatile uint32_t *bell, const volatile uint32_t *payload, int words, int step,
                 const volatile uint32_t *flag, uint32_t first, int rounds)
{
    int wrong = 0;

    for (uint32_t v = first; v != first + (uint32_t)rounds; v++) {
        int old = 0;

        *bell = v;
        fence();
        if (wait_for(flag, v))
            return -ETIMEDOUT;
        for (int i = words; i-- > 0;)
            old |= payload[i * step] != v;
        wrong += old;
    }
    return wrong;
}

/*
 * Pieces of 1 to 63 bytes at random places, one over the other, by plain stores and by the engine
 * in turn, never fenced before the end. The same goes into `shadow`, in ordinary memory.
 */
int scribble(store_function *store, volatile uint8_t *at, uint8_t *shadow, uint32_t size,
             uint64_t seed, int rounds)
{
    for (int round = 0; round < rounds; round++) {
        uint8_t piece[64];
        uint32_t offset, n;

        seed = seed * 6364136223846793005u + 1442695040888963407u;
        n = 1 + (uint32_t)(seed >> 33) % 63;
        offset = (uint32_t)(seed >> 39) % (size - n);
        for (uint32_t i = 0; i < n; i++)
            piece[i] = (uint8_t)((seed >> 17) + i * 7);
        if (round & 1)
            store((uintptr_t)at + offset, (const char *)piece, n, NO_FENCE);
        else
            for (uint32_t i = 0; i < n; i++)
                at[offset + i] = piece[i];
        memcpy(shadow + offset, piece, n - SABOTAGED);
    }
    fence();
    return 0;
}
