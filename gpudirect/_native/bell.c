/* SPDX-License-Identifier: MIT */
/* Waking a thread that sleeps, and fences of all threads at once: for what is rare, so that what is not need not. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "native.h"

void gd_ring_bell(uint32_t *bell)
{
    int before = errno;

    __atomic_fetch_add(bell, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, bell, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
    errno = before;
}

void gd_await_bell(uint32_t *bell, uint32_t heard, uint64_t ns)
{
    struct timespec most = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};

    syscall(SYS_futex, bell, FUTEX_WAIT_PRIVATE, heard, &most, NULL, 0);
}

int gd_fence_all_ready(void)
{
    return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) ? -errno : 0;
}

int gd_fence_all(void)
{
    return syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) ? -errno : 0;
}
