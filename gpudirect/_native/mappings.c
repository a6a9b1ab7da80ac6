/* SPDX-License-Identifier: MIT */
/* Placing and removing mappings. */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "guard.h"
#include "native.h"

int64_t gd_map(uintptr_t at, size_t length, int readable, int writable, int fd, int64_t offset,
               int private_anonymous)
{
    int protection = (readable ? PROT_READ : 0) | (writable ? PROT_WRITE : 0);
    int flags = private_anonymous ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    void *p = mmap((void *)at, length, protection, flags | (at ? MAP_FIXED : 0), fd, offset);

    if (p == MAP_FAILED)
        return -errno;
    /* the module's own mappings refuse this call because they are never inherited anyway */
    madvise(p, length, MADV_DONTFORK);
    gd_guard_renew();
    return (int64_t)(uintptr_t)p;
}

int64_t gd_reserve(uintptr_t at, size_t length, size_t alignment)
{
    size_t extra = !at && alignment > (size_t)sysconf(_SC_PAGESIZE) ? alignment : 0;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at ? MAP_FIXED : 0);
    char *p = mmap((void *)at, length + extra, PROT_NONE, flags, -1, 0);
    size_t lead;

    if (p == MAP_FAILED)
        return -errno;
    if (extra) {
        lead = -(uintptr_t)p & (alignment - 1);
        if (lead)
            munmap(p, lead);
        p += lead;
        munmap(p + length, extra - lead);
    }
    return (int64_t)(uintptr_t)p;
}

int gd_unmap(uintptr_t at, size_t length)
{
    return munmap((void *)at, length) ? -errno : 0;
}
