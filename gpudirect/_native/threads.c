/* SPDX-License-Identifier: MIT */
/*
 * The copy threads. One thread cannot fill the link: a core has too few write-combining and
 * line-fill buffers. The pool is started once, on the first copy that is large enough. A copy is
 * cut into one share a thread; the caller takes the first. Threads spin for a moment after a copy,
 * then sleep.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "guard.h"
#include "native.h"
#include "threads.h"

#define MAX_THREADS 16
#define SPIN_NS 50000 /* how long a thread waits awake for the next copy */
#define LINE 64

struct job {
    const struct gd_engine *engine;
    char *dst;
    const char *src;
    size_t n, share;
    int write;
    unsigned flags;
    int64_t fault;
    int code;
};

static struct {
    pthread_mutex_t call;  /* one copy at a time; who finds it taken copies alone */
    pthread_mutex_t lock;  /* for the sleepers */
    pthread_cond_t wake;
    int wanted;            /* threads, the caller included; 0: not configured */
    int running;           /* helpers started */
    int sleepers;
    uint64_t ticket;       /* counts copies */
    int left;              /* helpers that have not finished this one */
    struct job job;
    cpu_set_t cpus;
    int pinned;
    size_t write_threshold, read_threshold;
    pid_t owner;
} pool = {
    .call = PTHREAD_MUTEX_INITIALIZER,
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .wake = PTHREAD_COND_INITIALIZER,
    .write_threshold = 512 << 10,
    .read_threshold = 32 << 10,
};

static int configured(void)
{
    if (!pool.wanted) {
        long cpus = sysconf(_SC_NPROCESSORS_ONLN);

        /* half the processors: the others belong to the program */
        pool.wanted = cpus < 4 ? 1 : cpus / 2 < 8 ? (int)cpus / 2 : 8;
    }
    return pool.wanted;
}

static void share(struct job *job, int index)
{
    struct gd_guard guard;
    size_t from = (size_t)index * job->share, n;
    uintptr_t mapped;

    if (from >= job->n)
        return;
    n = job->n - from < job->share ? job->n - from : job->share;
    mapped = (uintptr_t)(job->write ? job->dst : job->src) + from;
    if (job->flags & GD_GUARDED) {
        if (gd_guard_enter(&guard, mapped & ~(uintptr_t)(LINE - 1), n + 2 * LINE)) {
            __atomic_store_n(&job->fault, gd_guard_fault, __ATOMIC_RELAXED);
            __atomic_store_n(&job->code, -EFAULT, __ATOMIC_RELEASE);
            return;
        }
    }
    if (job->write) {
        job->engine->store(job->dst + from, job->src + from, n);
        gd_fence(); /* a fence orders the stores of its own thread only */
    } else {
#if defined(__x86_64__)
        __builtin_ia32_mfence();
#else
        __sync_synchronize();
#endif
        job->engine->load(job->dst + from, job->src + from, n);
    }
    if (job->flags & GD_GUARDED)
        gd_guard_leave(&guard);
}

static void *helper(void *argument)
{
    int index = (int)(intptr_t)argument;
    uint64_t seen = 0, ticket;

    for (;;) {
        uint64_t since = gd_now();

        while ((ticket = __atomic_load_n(&pool.ticket, __ATOMIC_ACQUIRE)) == seen) {
            for (int i = 0; i < 64; i++) {
#if defined(__x86_64__)
                __builtin_ia32_pause();
#endif
            }
            if (gd_now() - since < SPIN_NS)
                continue;
            pthread_mutex_lock(&pool.lock);
            pool.sleepers++;
            while (__atomic_load_n(&pool.ticket, __ATOMIC_ACQUIRE) == seen)
                pthread_cond_wait(&pool.wake, &pool.lock);
            pool.sleepers--;
            pthread_mutex_unlock(&pool.lock);
        }
        seen = ticket;
        share(&pool.job, index);
        __atomic_sub_fetch(&pool.left, 1, __ATOMIC_RELEASE);
    }
    return NULL;
}

/* With pool.call held. A child of fork() has none of its parent's threads: it starts its own. */
static int start(void)
{
    pthread_attr_t attributes;
    pthread_t thread;

    if (pool.owner != getpid()) {
        pool.running = pool.sleepers = 0;
        pool.ticket = 0;
        pthread_mutex_init(&pool.lock, NULL);
        pthread_cond_init(&pool.wake, NULL);
        pool.owner = getpid();
    }
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    if (pool.pinned)
        pthread_attr_setaffinity_np(&attributes, sizeof(pool.cpus), &pool.cpus);
    while (pool.running < configured() - 1 && pool.ticket == 0) {
        if (pthread_create(&thread, &attributes, helper, (void *)(intptr_t)(pool.running + 1)))
            break; /* fewer threads, then */
        pool.running++;
    }
    pthread_attr_destroy(&attributes);
    return pool.running;
}

int gd_threads_wanted(size_t n, int write)
{
    return n >= (write ? pool.write_threshold : pool.read_threshold) && configured() > 1;
}

int gd_threads_copy(const struct gd_engine *engine, char *dst, const char *src, size_t n,
                    int write, unsigned flags)
{
    int helpers;

    if (pthread_mutex_trylock(&pool.call)) {
        flags |= GD_ONE_THREAD;
        return write ? gd_write((uintptr_t)dst, src, n, flags)
                     : gd_read(dst, (uintptr_t)src, n, flags);
    }
    helpers = start();
    pool.job = (struct job){.engine = engine, .dst = dst, .src = src, .n = n, .write = write,
                            .flags = flags};
    /* shares of whole lines, so that no line is written by two threads */
    pool.job.share = (n / (size_t)(helpers + 1) + LINE) & ~(size_t)(LINE - 1);
    if (write) /* the first share ends where a line of the destination does */
        pool.job.share += -(uintptr_t)dst & (LINE - 1);
    __atomic_store_n(&pool.left, helpers, __ATOMIC_RELAXED);
    pthread_mutex_lock(&pool.lock);
    __atomic_add_fetch(&pool.ticket, 1, __ATOMIC_RELEASE);
    if (pool.sleepers)
        pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    share(&pool.job, 0);
    while (__atomic_load_n(&pool.left, __ATOMIC_ACQUIRE))
#if defined(__x86_64__)
        __builtin_ia32_pause();
#else
        sched_yield();
#endif
    if (pool.job.code)
        gd_guard_fault = pool.job.fault;
    helpers = pool.job.code;
    pthread_mutex_unlock(&pool.call);
    return helpers;
}

int gd_threads_configure(int count, const int *cpus, int cpu_count, size_t write_threshold,
                         size_t read_threshold)
{
    if (count < 1 || count > MAX_THREADS || cpu_count < 0)
        return -EINVAL;
    if (pthread_mutex_trylock(&pool.call))
        return -EBUSY;
    CPU_ZERO(&pool.cpus);
    for (int i = 0; i < cpu_count; i++)
        if (cpus[i] >= 0 && cpus[i] < CPU_SETSIZE)
            CPU_SET(cpus[i], &pool.cpus);
    pool.pinned = cpu_count > 0;
    pool.wanted = count;
    pool.write_threshold = write_threshold;
    pool.read_threshold = read_threshold;
    pthread_mutex_unlock(&pool.call);
    return 0;
}

int gd_threads_count(void)
{
    return configured();
}
