/* SPDX-License-Identifier: MIT */
/* Queues the launches of resident kernels; relay.h says why and in which order. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "relay.h"

#define LOOKS_A_SLICE 4      /* how often the thread looks whether a launch has ended */
#define SHORTEST_NAP 20000   /* ns between looks */
#define SUSPECT 50000000     /* ns without an end after which the driver is asked for a fault */

struct gd_relay {
    const struct gd_driver *driver;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct gd_resident *first;
    uint64_t progress;          /* when a launch was last seen to end, or queued */
};

static uint32_t word(uintptr_t at)
{
    return __atomic_load_n((const uint32_t *)at, __ATOMIC_ACQUIRE);
}

static int runs(const struct gd_resident *r)
{
    return !r->failure && !word(r->over);
}

static uint32_t queued(const struct gd_resident *r)
{
    return r->launched - word(r->ended);
}

/* Whether every resident that still runs has room for a further launch. */
static int due(const struct gd_relay *relay)
{
    int any = 0;

    for (const struct gd_resident *r = relay->first; r; r = r->next) {
        if (!runs(r))
            continue;
        if (queued(r) >= GD_RELAY_AHEAD)
            return 0;
        any = 1;
    }
    return any;
}

static uint64_t shortest(const struct gd_relay *relay)
{
    uint64_t slice = UINT64_MAX;

    for (const struct gd_resident *r = relay->first; r; r = r->next)
        if (runs(r) && r->slice < slice)
            slice = r->slice;
    return slice;
}

/* A resident's next launch waits for the launches of all others that are queued now. */
static void gate(const struct gd_relay *relay, struct gd_resident *r)
{
    for (struct gd_resident *other = relay->first; other && !r->failure; other = other->next)
        if (other != r && other->launched && !other->failure)
            r->failure = gd_driver_stream_wait(relay->driver, r->stream, other->event);
}

static void launch(const struct gd_relay *relay, struct gd_resident *r, uint64_t slice)
{
    char *arguments = (char *)r->arguments;
    uint32_t number = r->launched + 1;

    memcpy(arguments + r->number_at, &number, sizeof(number));
    memcpy(arguments + r->slice_at, &slice, sizeof(slice));
    if (r->launched && !queued(r))
        r->late++;
    if (r->cooperative)
        r->failure = gd_driver_launch_cooperative(relay->driver, r->function, &r->grid, r->stream,
                                                  arguments, (const uint32_t *)r->offsets,
                                                  r->parameters);
    else
        r->failure = gd_driver_launch(relay->driver, r->function, &r->grid, r->stream, arguments,
                                      r->arguments_size, NULL);
    if (!r->failure)
        __atomic_store_n(&r->launched, number, __ATOMIC_RELEASE);
}

static void round_of_all(struct gd_relay *relay)
{
    uint64_t slice = shortest(relay);
    int several = relay->first && relay->first->next;

    for (struct gd_resident *r = relay->first; several && r; r = r->next)
        if (runs(r))
            gate(relay, r);
    for (struct gd_resident *r = relay->first; r; r = r->next)
        if (runs(r))
            launch(relay, r, slice);
    /* recorded when alone as well: who joins later waits for it */
    for (struct gd_resident *r = relay->first; r; r = r->next)
        if (runs(r))
            r->failure = gd_driver_event_record(relay->driver, r->event, r->stream);
    relay->progress = gd_now();
}

/* A fault of the context ends no launch: only the driver tells. */
static void look_for_faults(struct gd_relay *relay)
{
    for (struct gd_resident *r = relay->first; r; r = r->next) {
        int code = r->failure ? 0 : gd_driver_query(relay->driver, r->stream);

        if (code > 0)
            r->failure = code;
    }
    relay->progress = gd_now();
}

static void *run(void *argument)
{
    struct gd_relay *relay = argument;

    gd_driver_thread(relay->driver);
    pthread_mutex_lock(&relay->lock);
    for (;;) {
        struct timespec until;
        uint64_t nap, slice;

        if (!relay->first) {
            pthread_cond_wait(&relay->changed, &relay->lock);
            continue;
        }
        while (due(relay))
            round_of_all(relay);
        if (gd_now() - relay->progress > SUSPECT)
            look_for_faults(relay);
        slice = shortest(relay);
        nap = slice == UINT64_MAX ? SUSPECT : slice / LOOKS_A_SLICE;
        if (nap < SHORTEST_NAP)
            nap = SHORTEST_NAP;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += (long)(nap % 1000000000);
        until.tv_sec += (time_t)(nap / 1000000000) + until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&relay->changed, &relay->lock, &until);
    }
    return NULL;
}

struct gd_relay *gd_relay_new(const struct gd_driver *driver)
{
    struct gd_relay *relay = calloc(1, sizeof(*relay));
    pthread_condattr_t monotonic;
    pthread_attr_t detached;
    sigset_t all, before;
    pthread_t thread;
    int code;

    if (!relay)
        return NULL;
    relay->driver = driver;
    pthread_mutex_init(&relay->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&relay->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    /* signals of the program are for its own threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    code = pthread_create(&thread, &detached, run, relay);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&detached);
    if (code) {
        free(relay);
        return NULL;
    }
    return relay;
}

int gd_relay_add(struct gd_relay *relay, struct gd_resident *resident)
{
    int code = gd_driver_event_new(relay->driver, &resident->event);

    if (code)
        return code;
    pthread_mutex_lock(&relay->lock);
    resident->failure = 0;
    resident->next = relay->first;
    relay->first = resident;
    relay->progress = gd_now();
    pthread_cond_signal(&relay->changed);
    pthread_mutex_unlock(&relay->lock);
    return 0;
}

void gd_relay_remove(struct gd_relay *relay, struct gd_resident *resident)
{
    struct gd_resident **at;

    pthread_mutex_lock(&relay->lock);
    for (at = &relay->first; *at && *at != resident; at = &(*at)->next)
        ;
    if (*at) {
        *at = resident->next;
        /* the driver frees it when what was recorded has been reached, and keeps waits on it */
        gd_driver_event_free(relay->driver, resident->event);
    }
    pthread_mutex_unlock(&relay->lock);
}
