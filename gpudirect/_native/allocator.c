/* SPDX-License-Identifier: MIT */
/* Device memory for other libraries: see allocator.h. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "native.h"

#include "allocator.h"

#define EXPORTED __attribute__((visibility("default")))
#define OUT_OF_MEMORY 2                /* CUDA_ERROR_OUT_OF_MEMORY */
#define LONGEST_WAIT (250 * 1000000LL) /* ns: for Python to give memory back, when none is left */

enum state { LIVE, HELD, FREED, LEAVING };

struct owned {
    struct gd_block is;
    uint64_t handle;
    enum state state;
    struct owned *next;
};

static struct {
    struct gd_origin from;
    struct gd_driver driver; /* a copy: Python's goes before the last free at exit does */
    struct gd_allocated is;
    int open;
} origins[GD_MOST_DEVICES];

/* guards all that follows and the counts above; never held during a call of the driver */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work, done; /* for Python there is something to do; it did something */
static struct owned *blocks;
static int pressed, ended;
static unsigned forks; /* of the process that all this belongs to */

__attribute__((constructor)) static void prepare(void)
{
    pthread_condattr_t clock;

    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&work, &clock);
    pthread_cond_init(&done, &clock);
    pthread_condattr_destroy(&clock);
}

/* Whether this process may use a device: what a parent opened is the parent's, its lock as well. */
static int usable(int device)
{
    return device >= 0 && device < GD_MOST_DEVICES && !ended && origins[device].open &&
           forks == *gd_forks();
}

static void forget_the_parent(void)
{
    blocks = NULL;
    pressed = 0;
    for (int i = 0; i < GD_MOST_DEVICES; i++)
        origins[i].open = 0;
    pthread_mutex_init(&lock, NULL);
    prepare();
    forks = *gd_forks();
}

int gd_allocator_open(int device, const struct gd_origin *origin)
{
    if (device < 0 || device >= GD_MOST_DEVICES)
        return -EINVAL;
    if (usable(device))
        return 0;
    if (forks != *gd_forks())
        forget_the_parent();
    origins[device].from = *origin;
    if (origin->driver) {
        origins[device].driver = *origin->driver;
        origins[device].from.driver = &origins[device].driver;
    }
    origins[device].is = (struct gd_allocated){0};
    __atomic_store_n(&origins[device].open, 1, __ATOMIC_RELEASE);
    return 0;
}

void gd_allocator_close(void)
{
    __atomic_store_n(&ended, 1, __ATOMIC_RELEASE);
}

static int make(int device, size_t size, uint64_t *address, uint64_t *handle)
{
    const struct gd_origin *from = &origins[device].from;

    if (from->driver)
        return gd_driver_memory_new(from->driver, size, from->granularity, address, handle);
    return from->make(device, size, address, handle);
}

static void unmake(const struct owned *block)
{
    const struct gd_origin *from = &origins[block->is.device].from;

    if (from->driver)
        gd_driver_memory_free(from->driver, block->is.address, block->is.size, block->handle);
    else
        from->unmake(block->is.device, block->is.address, block->is.size, block->handle);
}

static struct timespec after(int64_t ns)
{
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    ns += at.tv_nsec;
    at.tv_sec += ns / 1000000000;
    at.tv_nsec = ns % 1000000000;
    return at;
}

/* Have Python give back what it can, and wait for that: not for long. Whether there may be more. */
static int press(int device)
{
    struct timespec until = after(LONGEST_WAIT);
    uint64_t before;
    int more;

    pthread_mutex_lock(&lock);
    before = origins[device].is.waiting;
    pressed = 1;
    pthread_cond_broadcast(&work);
    while (pressed || origins[device].is.waiting)
        if (pthread_cond_timedwait(&done, &lock, &until))
            break;
    more = !pressed || origins[device].is.waiting < before;
    pressed = 0;
    pthread_mutex_unlock(&lock);
    return more;
}

EXPORTED void *gpudirect_alloc(size_t size, int device, void *stream)
{
    struct owned *block;
    size_t unit;
    int code;

    (void)stream;
    if (!usable(device) || !(block = calloc(1, sizeof(*block))))
        return NULL;
    unit = origins[device].from.granularity;
    if (size > SIZE_MAX - unit) {
        free(block);
        return NULL;
    }
    block->is.size = (size ? size + unit - 1 : unit) / unit * unit;
    block->is.device = device;
    code = make(device, block->is.size, &block->is.address, &block->handle);
    if (code == OUT_OF_MEMORY && press(device))
        code = make(device, block->is.size, &block->is.address, &block->handle);

    pthread_mutex_lock(&lock);
    if (code) {
        origins[device].is.refused++;
        origins[device].is.code = code;
    } else {
        origins[device].is.blocks++;
        origins[device].is.bytes += block->is.size;
        block->next = blocks;
        blocks = block;
    }
    pthread_mutex_unlock(&lock);
    if (!code)
        return (void *)(uintptr_t)block->is.address;
    free(block);
    return NULL;
}

/* The place in the list of the block at an address, or that it lies in. The lock is held. */
static struct owned **find(uint64_t address, int inside)
{
    struct owned **at = &blocks;

    while (*at && (inside ? address - (*at)->is.address >= (*at)->is.size
                          : address != (*at)->is.address))
        at = &(*at)->next;
    return at;
}

EXPORTED void gpudirect_free(void *address, size_t size, int device, void *stream)
{
    struct owned **at, *block;

    (void)size;
    if (!usable(device) || !address)
        return;
    /* unlike cuMemFree, taking memory apart does not wait for what was queued there */
    if (origins[device].from.driver)
        gd_driver_settle(origins[device].from.driver, (uintptr_t)stream);
    pthread_mutex_lock(&lock);
    at = find((uintptr_t)address, 0);
    block = *at;
    if (block && block->state <= HELD) {
        origins[device].is.blocks--;
        origins[device].is.bytes -= block->is.size;
        if (block->state == HELD) {
            block->state = FREED;
            origins[device].is.waiting++;
            pthread_cond_broadcast(&work);
            block = NULL;
        } else
            *at = block->next;
    } else
        block = NULL; /* not ours, or freed twice */
    pthread_mutex_unlock(&lock);
    if (block)
        unmake(block);
    free(block);
}

int gd_allocator_hold(uint64_t address, struct gd_block *found)
{
    struct owned *block;
    int there;

    if (ended)
        return 0;
    pthread_mutex_lock(&lock);
    block = *find(address, 1);
    there = block && block->state <= HELD && usable(block->is.device);
    if (there) {
        block->state = HELD;
        *found = block->is;
    }
    pthread_mutex_unlock(&lock);
    return there;
}

int gd_allocator_next(struct gd_block *found, int64_t timeout)
{
    struct timespec until = after(timeout);
    struct owned *block;
    int what = 0;

    pthread_mutex_lock(&lock);
    for (;;) {
        for (block = blocks; block && block->state != FREED; block = block->next)
            ;
        if (block) {
            block->state = LEAVING;
            *found = block->is;
            what = GD_UNMAP;
        } else if (pressed)
            what = GD_PRESS;
        if (what || pthread_cond_timedwait(&work, &lock, &until))
            break;
    }
    pthread_mutex_unlock(&lock);
    return what;
}

void gd_allocator_bury(uint64_t address)
{
    struct owned **at, *block;

    pthread_mutex_lock(&lock);
    at = find(address, 0);
    block = *at;
    if (block && block->state == LEAVING)
        *at = block->next;
    else
        block = NULL;
    pthread_mutex_unlock(&lock);
    if (!block)
        return;
    unmake(block);
    pthread_mutex_lock(&lock);
    origins[block->is.device].is.waiting--;
    pthread_cond_broadcast(&done);
    pthread_mutex_unlock(&lock);
    free(block);
}

void gd_allocator_pressed(void)
{
    pthread_mutex_lock(&lock);
    pressed = 0;
    pthread_cond_broadcast(&done);
    pthread_mutex_unlock(&lock);
}

void gd_allocator_statistics(int device, struct gd_allocated *found)
{
    *found = (struct gd_allocated){0};
    if (!usable(device))
        return;
    pthread_mutex_lock(&lock);
    *found = origins[device].is;
    pthread_mutex_unlock(&lock);
}
