/* SPDX-License-Identifier: MIT */
/* Queues the launches of resident kernels; relay.h says why and in which order. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lane.h"
#include "relay.h"

/* In the time until a launch may end: */
#define LOOKS_A_PACE 4       /* how often the thread looks whether it has, */
#define LOOKS_WHEN_QUICK 20  /* and while naps and wakes end launches sooner */
#define PART_ALONE 4         /* it is alone for that time divided by this, at least */
#define SHORTEST_NAP 20000   /* ns between looks */
#define FOREVER 3600000000000 /* ns between looks where there is nothing to look at */
#define SUSPECT 50000000     /* ns without an end after which the driver is asked for a fault */

/* Who needs both locks takes `lock` first. */
struct gd_relay {
    const struct gd_driver *driver;
    int no_naps;                /* no waker, or a driver that knows no waits for a word */
    uintptr_t wake;             /* the wake word of those that run; 0: no naps */
    uint64_t wake_device;
    int no_parking;             /* threads cannot be made to fence */
    pthread_mutex_t lock;       /* held while launches are queued, however long the driver takes */
    uint32_t bell;              /* rung when there is something to do */
    pthread_mutex_t list;       /* held for moments: the residents, for the waker */
    pthread_cond_t listed;
    struct gd_resident *first;
    uint32_t round;             /* the last one that was queued */
    uint32_t begun;             /* the last one that was seen to run */
    uint64_t begun_at;
    uint64_t progress;          /* when a launch was last queued, or the driver asked for faults */
};

static uint32_t word(uintptr_t at)
{
    return __atomic_load_n((const uint32_t *)at, __ATOMIC_ACQUIRE);
}

static uint32_t told(const struct gd_resident *r, unsigned which)
{
    return word(r->told + which * sizeof(uint32_t));
}

static int runs(const struct gd_resident *r)
{
    return !r->failure && !told(r, P2PMOD_TOLD_OVER);
}

/* Whether it is launched once a round. */
static int rides(const struct gd_resident *r)
{
    return runs(r) && __atomic_load_n(&r->away, __ATOMIC_ACQUIRE) < GD_LAST;
}

/* Rounds that were queued since the last one that it ended. */
static uint32_t queued(const struct gd_resident *r)
{
    return r->round - told(r, P2PMOD_TOLD_ENDED);
}

static void set_wake(const struct gd_relay *relay, uint32_t round)
{
    if (relay->wake && !gd_store32(relay->wake, round, GD_GUARDED))
        gd_fence();
}

/* The least of those that ride: their slice, and how soon a launch may end, with that or with a nap before. */
struct shortest {
    uint64_t slice, pace;
};

static struct shortest shortest(const struct gd_relay *relay)
{
    struct shortest found = {UINT64_MAX, UINT64_MAX};

    for (const struct gd_resident *r = relay->first; r; r = r->next) {
        if (!rides(r))
            continue;
        found.slice = r->slice < found.slice ? r->slice : found.slice;
        found.pace = r->pace < found.pace ? r->pace : found.pace;
    }
    return found;
}

/* How long the round that runs now has been seen to run; for ever if none does. */
static uint64_t running_for(struct gd_relay *relay)
{
    int any = 0;

    for (const struct gd_resident *r = relay->first; r; r = r->next) {
        uint32_t begun = told(r, P2PMOD_TOLD_BEGUN);

        if (!rides(r) || !r->joined || begun == told(r, P2PMOD_TOLD_ENDED))
            continue;
        any = 1;
        if ((int32_t)(begun - relay->begun) > 0) {
            relay->begun = begun;
            relay->begun_at = gd_now();
        }
    }
    return any ? gd_now() - relay->begun_at : UINT64_MAX;
}

/*
 * Whether every resident that still runs has room for a further launch. While one answers calls, its
 * successor is queued when a part of the time until it may end is over and not before: who waits for the
 * device waits for all that is queued.
 */
static int due(struct gd_relay *relay, uint64_t pace)
{
    int early = running_for(relay) < pace / PART_ALONE, any = 0;

    for (const struct gd_resident *r = relay->first; r; r = r->next) {
        uint32_t now;

        if (!rides(r))
            continue;
        now = queued(r);
        if (now >= GD_RELAY_AHEAD || (now && early))
            return 0;
        any = 1;
    }
    return any;
}

/* A resident's next launch waits for its round, and for the launches of all others queued now. */
static int gate(struct gd_relay *relay, const struct gd_resident *r)
{
    int code = 0;

    if (relay->wake) {
        code = gd_driver_stream_wait_word(relay->driver, r->stream, relay->wake_device, relay->round);
        if (code == GD_DRIVER_NOT_SUPPORTED) {
            relay->no_naps = 1;
            relay->wake = 0;
            code = 0;
        }
    }
    for (const struct gd_resident *other = relay->first; other && !code; other = other->next)
        if (other != r && other->turns && !other->failure)
            code = gd_driver_stream_wait(relay->driver, r->stream, other->event);
    return code;
}

static int launch(const struct gd_relay *relay, struct gd_resident *r, uint64_t slice)
{
    char *arguments = (char *)r->arguments;
    uint32_t turn = r->turns + 1;
    int code;

    memcpy(arguments + r->turn_at, &turn, sizeof(turn));
    memcpy(arguments + r->round_at, &relay->round, sizeof(relay->round));
    memcpy(arguments + r->slice_at, &slice, sizeof(slice));
    if (!r->joined) { /* nothing of it is queued: it has ended all rounds before */
        __atomic_store_n((uint32_t *)r->told + P2PMOD_TOLD_BEGUN, relay->round - 1, __ATOMIC_RELEASE);
        __atomic_store_n((uint32_t *)r->told + P2PMOD_TOLD_ENDED, relay->round - 1, __ATOMIC_RELEASE);
        r->round = relay->round - 1;
    } else if (!queued(r)) {
        r->late++;
    }
    if (r->cooperative)
        code = gd_driver_launch_cooperative(relay->driver, r->function, &r->grid, r->stream,
                                            arguments, (const uint32_t *)r->offsets, r->parameters);
    else
        code = gd_driver_launch(relay->driver, r->function, &r->grid, r->stream, arguments,
                                r->arguments_size, NULL);
    if (code)
        return code;
    r->round = relay->round;
    __atomic_store_n(&r->joined, 1, __ATOMIC_RELEASE);
    __atomic_store_n(&r->turns, turn, __ATOMIC_RELEASE);
    return 0;
}

static void round_of_all(struct gd_relay *relay)
{
    uint64_t slice = shortest(relay).slice;
    int joining = 0;

    relay->round++;
    for (const struct gd_resident *r = relay->first; r; r = r->next)
        joining |= rides(r) && !r->joined;
    for (struct gd_resident *r = relay->first; r; r = r->next)
        if (rides(r))
            r->failure = gate(relay, r);
    for (struct gd_resident *r = relay->first; r; r = r->next)
        if (rides(r))
            r->failure = launch(relay, r, slice);
    /* by one that is alone as well: who joins later waits for it */
    for (struct gd_resident *r = relay->first; r; r = r->next)
        if (rides(r))
            r->failure = gd_driver_event_record(relay->driver, r->event, r->stream);
    for (struct gd_resident *r = relay->first; r; r = r->next)
        if (r->away == GD_LEAVING)
            __atomic_store_n(&r->away, GD_LAST, __ATOMIC_RELEASE);
    if (joining)
        set_wake(relay, relay->round);
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

static struct timespec after(uint64_t ns)
{
    struct timespec then;

    clock_gettime(CLOCK_MONOTONIC, &then);
    then.tv_nsec += (long)(ns % 1000000000);
    then.tv_sec += (time_t)(ns / 1000000000) + then.tv_nsec / 1000000000;
    then.tv_nsec %= 1000000000;
    return then;
}

/* Whether nothing of it is resident, and why it left the last time. */
static int naps(const struct gd_relay *relay, const struct gd_resident *r)
{
    uint32_t ended = told(r, P2PMOD_TOLD_ENDED);

    return relay->wake && r->joined && told(r, P2PMOD_TOLD_NAPPED) == ended &&
           told(r, P2PMOD_TOLD_BEGUN) == ended;
}

/* It is launched again from the next round on. */
static void ride_again(struct gd_relay *relay, struct gd_resident *r)
{
    if (r->away >= GD_LAST)
        __atomic_store_n(&r->joined, 0, __ATOMIC_RELAXED); /* the waker looks at it, too */
    __atomic_store_n(&r->away, GD_RIDES, __ATOMIC_RELEASE);
    __atomic_store_n(&r->park.state, GD_PARK_NO, __ATOMIC_SEQ_CST);
    r->called_at = gd_now();
    set_wake(relay, relay->round); /* others that nap shall not keep it waiting */
    pthread_mutex_lock(&relay->list);
    pthread_cond_signal(&relay->listed);
    pthread_mutex_unlock(&relay->list);
}

/* The last launch has ended: has it found what it was for? */
static void see_off(struct gd_relay *relay, struct gd_resident *r, int asked)
{
    set_wake(relay, relay->round); /* what is queued still waits for its round */
    if (queued(r) || told(r, P2PMOD_TOLD_BEGUN) != r->round)
        return;
    if (asked || told(r, P2PMOD_TOLD_CALLED) != r->called) {
        ride_again(relay, r);
        return;
    }
    r->park.times++;
    __atomic_store_n(&r->away, GD_PARKED, __ATOMIC_RELEASE);
}

/* Park those without calls, call back those with. Whether one is on its way there or back. */
static int park(struct gd_relay *relay)
{
    int moves = 0;

    for (struct gd_resident *r = relay->first; r; r = r->next) {
        uint32_t called = told(r, P2PMOD_TOLD_CALLED);
        uint64_t now = gd_now();
        int asked = __atomic_load_n(&r->stays, __ATOMIC_ACQUIRE) ||
                    __atomic_load_n(&r->park.state, __ATOMIC_ACQUIRE) == GD_PARK_ASKED;

        if (!runs(r))
            continue;
        if (r->away < GD_LAST && r->called != called) {
            r->called = called;
            r->called_at = now;
        }
        if (r->away != GD_PARKED && naps(relay, r))
            r->napped += now - r->looked;
        r->looked = now;
        if (r->away == GD_RIDES && !asked && r->park_after && !relay->no_parking && naps(relay, r) &&
            now - r->called_at > r->park_after) {
            __atomic_store_n(&r->park.state, GD_PARK_PARKED, __ATOMIC_SEQ_CST);
            if (gd_fence_all()) {
                relay->no_parking = 1;
                ride_again(relay, r);
                continue;
            }
            __atomic_store_n(&r->away, GD_LEAVING, __ATOMIC_RELEASE);
        } else if (r->away == GD_LEAVING && (asked || r->called_at == now)) {
            ride_again(relay, r);
        } else if (r->away == GD_LAST) {
            see_off(relay, r, asked);
        } else if (r->away == GD_PARKED && asked) {
            ride_again(relay, r);
        }
        moves |= r->away == GD_LEAVING || r->away == GD_LAST || (r->away == GD_RIDES && !r->joined);
    }
    return moves;
}

static void *launcher(void *argument)
{
    struct gd_relay *relay = argument;
    uint64_t quick_until = 0;

    gd_driver_thread(relay->driver);
    pthread_mutex_lock(&relay->lock);
    for (;;) {
        uint32_t heard = __atomic_load_n(&relay->bell, __ATOMIC_SEQ_CST);
        uint64_t nap, pace, last = relay->progress;
        int moves = park(relay);

        pace = shortest(relay).pace;
        while (due(relay, pace))
            round_of_all(relay);
        if (relay->progress != last && relay->progress - last < pace / 2)
            quick_until = relay->progress + pace;
        if (pace != UINT64_MAX && gd_now() - relay->progress > SUSPECT)
            look_for_faults(relay);
        nap = pace == UINT64_MAX                ? FOREVER /* nobody rides */
              : relay->progress < quick_until   ? pace / LOOKS_WHEN_QUICK
                                                : pace / LOOKS_A_PACE;
        nap = moves || nap < SHORTEST_NAP ? SHORTEST_NAP : nap;
        pthread_mutex_unlock(&relay->lock);
        gd_await_bell(&relay->bell, heard, nap);
        pthread_mutex_lock(&relay->lock);
    }
    return NULL;
}

/* Whether nothing is resident, and the round that has ended last. */
static int nobody(const struct gd_relay *relay, uint32_t *ended)
{
    int any = 0;

    for (const struct gd_resident *r = relay->first; r; r = r->next) {
        uint32_t now = told(r, P2PMOD_TOLD_ENDED);

        /* one that waits for its first round waits, perhaps, for those that nap */
        if (!rides(r) || !__atomic_load_n(&r->joined, __ATOMIC_ACQUIRE))
            continue;
        if (told(r, P2PMOD_TOLD_BEGUN) != now)
            return 0;
        if (!any || (int32_t)(now - *ended) > 0)
            *ended = now;
        any = 1;
    }
    return any;
}

static void *waker(void *argument)
{
    struct gd_relay *relay = argument;

    pthread_mutex_lock(&relay->list);
    for (;;) {
        uint32_t ended = 0;
        struct timespec until;
        uint64_t slice;

        if (!relay->first) {
            pthread_cond_wait(&relay->listed, &relay->list);
            continue;
        }
        if (nobody(relay, &ended))
            set_wake(relay, ended + 1);
        slice = shortest(relay).slice;
        until = after(slice == UINT64_MAX ? FOREVER : slice);
        pthread_cond_timedwait(&relay->listed, &relay->list, &until);
    }
    return NULL;
}

static int start(void *(*what)(void *), struct gd_relay *relay)
{
    pthread_attr_t detached;
    sigset_t all, before;
    pthread_t thread;
    int code;

    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    /* signals of the program are for its own threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    code = pthread_create(&thread, &detached, what, relay);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&detached);
    return code;
}

struct gd_relay *gd_relay_new(const struct gd_driver *driver)
{
    struct gd_relay *relay = calloc(1, sizeof(*relay));
    pthread_condattr_t monotonic;

    if (!relay)
        return NULL;
    relay->driver = driver;
    pthread_mutex_init(&relay->lock, NULL);
    pthread_mutex_init(&relay->list, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&relay->listed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    relay->no_parking = gd_fence_all_ready() != 0;
    if (start(launcher, relay)) {
        free(relay);
        return NULL;
    }
    relay->no_naps = start(waker, relay) != 0; /* without it a nap would keep others waiting */
    return relay;
}

int gd_relay_naps(const struct gd_relay *relay)
{
    return !relay->no_naps;
}

int gd_relay_add(struct gd_relay *relay, struct gd_resident *resident)
{
    int code = gd_driver_event_new(relay->driver, &resident->event);

    if (code)
        return code;
    pthread_mutex_lock(&relay->lock);
    pthread_mutex_lock(&relay->list);
    if (!relay->first) { /* words come and go with those who use them */
        relay->wake = relay->no_naps ? 0 : resident->wake;
        relay->wake_device = resident->wake_device;
    }
    resident->failure = 0;
    resident->joined = 0;
    resident->away = GD_RIDES;
    resident->park.state = GD_PARK_NO;
    resident->park.bell = (uintptr_t)&relay->bell;
    resident->called = told(resident, P2PMOD_TOLD_CALLED);
    resident->called_at = resident->looked = gd_now();
    resident->next = relay->first;
    relay->first = resident;
    relay->progress = gd_now();
    set_wake(relay, relay->round); /* who naps shall not keep it waiting */
    pthread_cond_signal(&relay->listed);
    pthread_mutex_unlock(&relay->list);
    pthread_mutex_unlock(&relay->lock);
    gd_ring_bell(&relay->bell);
    return 0;
}

void gd_relay_remove(struct gd_relay *relay, struct gd_resident *resident)
{
    struct gd_resident **at;

    pthread_mutex_lock(&relay->lock);
    pthread_mutex_lock(&relay->list);
    for (at = &relay->first; *at && *at != resident; at = &(*at)->next)
        ;
    if (*at) {
        *at = resident->next;
        __atomic_store_n(&resident->park.state, GD_PARK_NO, __ATOMIC_SEQ_CST);
        /* the driver frees it when what was recorded has been reached, and keeps waits on it */
        gd_driver_event_free(relay->driver, resident->event);
    }
    pthread_mutex_unlock(&relay->list);
    pthread_mutex_unlock(&relay->lock);
    gd_relay_wake(relay);
}

void gd_relay_stay(struct gd_relay *relay, struct gd_resident *resident)
{
    __atomic_store_n(&resident->stays, 1, __ATOMIC_SEQ_CST);
    gd_ring_bell(&relay->bell);
}

void gd_relay_wake(struct gd_relay *relay)
{
    set_wake(relay, __atomic_load_n(&relay->round, __ATOMIC_RELAXED));
}
