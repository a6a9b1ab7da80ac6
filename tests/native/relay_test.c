/* SPDX-License-Identifier: MIT */
/*
 * The relay against a driver and kernels that are threads of this program: residents nap, are parked and are
 * called back while calls come at random moments, most of them about when a resident makes up its mind.
 *
 *   relay_test CALLS         each of two callers makes so many; half of them look at nothing after the packet
 *   relay_test CALLS SLICE   with a slice of so many ns, so long that every launch ends with a nap and no wake
 *                            may be left to the waker
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lane.h"
#include "relay.h"

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "relay_test: line %d: %s\n", __LINE__, #condition);                    \
            report();                                                                              \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

enum { SLOTS = 16, MOST = 64, SLICE = 400000, NAP_AFTER = 150000, PARK_AFTER = 600000 };
static const uint64_t HANG = 60000000000u;

/* ---- streams: a thread each that does one thing after the other ---- */

struct event { uint32_t recorded, reached; };
struct operation {
    enum { WORD, EVENT, RECORD, KERNEL } kind;
    uint64_t address;
    uint32_t value;
    struct event *event;
    uint32_t turn, round;
    uint64_t slice;
};
struct stream {
    pthread_mutex_t lock;
    struct operation queue[MOST];
    uint32_t put, got;
    struct service *service;
};

/* ---- services: a lane, its resident, and what the kernel knows ---- */

struct service {
    struct gd_lane lane;
    struct gd_resident resident;
    struct stream stream;
    struct p2pmod_packet packets[SLOTS] __attribute__((aligned(64)));
    struct p2pmod_reply replies[SLOTS] __attribute__((aligned(64)));
    uint32_t told[16];
    uint64_t arguments[2];
    uint32_t answered, launches, doubled;
    uint64_t worked;
    pthread_t thread, caller;
    uint64_t seed, slowest;
};
static struct service services[2];
static uint32_t wake_word __attribute__((aligned(64)));
static struct gd_relay *relay;
static uint32_t calls, lost;
static uint64_t slice;

static void report(void)
{
    for (int i = 0; i < 2; i++) {
        struct service *s = &services[i];

        fprintf(stderr, "service %d: %u sent, %u answered, %u launches, away %u, park %u, parked %u times\n", i,
                s->lane.sent, s->answered, s->launches, s->resident.away, s->resident.park.state,
                s->resident.park.times);
    }
    fprintf(stderr, "wake word %u, %u, %u\n", wake_word, services[0].resident.round, services[1].resident.round);
}

static void pause_for(uint64_t ns)
{
    struct timespec t = {0, (long)ns};

    nanosleep(&t, NULL);
}

static uint32_t load(const uint32_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
static void store(uint32_t *at, uint32_t value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }

/* What ends.cuh and polling.cuh do, for one lane. */
static void kernel(struct service *s, const struct operation *o)
{
    uint64_t start = gd_now(), cut = (start / o->slice + 1) * o->slice;
    uint32_t first = s->answered;
    int rests;

    s->launches++;
    store(&s->told[P2PMOD_TOLD_BEGUN], o->round);
    if (!s->worked)
        s->worked = start;
    if (cut - start < o->slice / 4)
        cut += o->slice;
    do {
        const struct p2pmod_packet *p = &s->packets[(s->answered + 1) & (SLOTS - 1)];
        uint64_t now = gd_now();

        if (load(&p->sequence) == s->answered + 1 &&
            (load(&p->tag) & 0xffff) == ((s->answered + 1) & 0xffff)) {
            struct p2pmod_reply *r = &s->replies[(s->answered + 1) & (SLOTS - 1)];

            r->value = (uint64_t)p->words[0] + 1;
            r->status = 0;
            if (load(&r->sequence) == s->answered + 1)
                s->doubled++;
            store(&r->sequence, s->answered + 1);
            s->answered++;
            s->worked = now;
        }
        rests = now - s->worked > NAP_AFTER;
        if (rests)
            break;
    } while (gd_now() < cut);
    if (rests)
        store(&s->told[P2PMOD_TOLD_NAPPED], o->round);
    if (s->answered != first)
        store(&s->told[P2PMOD_TOLD_CALLED], o->round);
    store(&s->told[P2PMOD_TOLD_ENDED], o->round);
    if (!rests && (int32_t)(load(&wake_word) - o->round) <= 0)
        store(&wake_word, o->round + 1);
}

static void *streaming(void *argument)
{
    struct stream *s = argument;

    for (;;) {
        struct operation o;
        int any;

        pthread_mutex_lock(&s->lock);
        any = s->got != s->put;
        if (any)
            o = s->queue[s->got % MOST];
        pthread_mutex_unlock(&s->lock);
        if (!any) {
            pause_for(5000);
            continue;
        }
        while ((o.kind == WORD && (int32_t)(load((uint32_t *)o.address) - o.value) < 0) ||
               (o.kind == EVENT && (int32_t)(load(&o.event->reached) - o.value) < 0))
            pause_for(2000);
        if (o.kind == RECORD)
            store(&o.event->reached, o.value);
        if (o.kind == KERNEL)
            kernel(s->service, &o);
        pthread_mutex_lock(&s->lock);
        s->got++;
        pthread_mutex_unlock(&s->lock);
    }
    return NULL;
}

/* ---- the driver ---- */

static int queue(void *stream, struct operation o)
{
    struct stream *s = stream;

    pthread_mutex_lock(&s->lock);
    CHECK(s->put - s->got < MOST);
    s->queue[s->put++ % MOST] = o;
    pthread_mutex_unlock(&s->lock);
    return 0;
}

static int context(void **c) { *c = NULL; return 0; }
static int push(void *c) { (void)c; return 0; }
static int mode(int *m) { (void)m; return 0; }

static int query(void *stream)
{
    struct stream *s = stream;
    int done;

    pthread_mutex_lock(&s->lock);
    done = s->put == s->got;
    pthread_mutex_unlock(&s->lock);
    return done ? 0 : 600;
}

static int event_new(void **event, unsigned flags)
{
    (void)flags;
    *event = calloc(1, sizeof(struct event));
    return 0;
}

static int event_free(void *event) { (void)event; return 0; }

static int event_record(void *event, void *stream)
{
    struct event *e = event;

    return queue(stream, (struct operation){.kind = RECORD, .event = e, .value = ++e->recorded});
}

static int stream_wait(void *stream, void *event, unsigned flags)
{
    struct event *e = event;

    (void)flags;
    return queue(stream, (struct operation){.kind = EVENT, .event = e, .value = e->recorded});
}

static int stream_wait_word(void *stream, uint64_t address, uint32_t value, unsigned flags)
{
    (void)flags;
    return queue(stream, (struct operation){.kind = WORD, .address = address, .value = value});
}

static int launch(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                  unsigned shared, void *stream, void **parameters, void **extra)
{
    const uint32_t *numbers = (const uint32_t *)extra[1];
    uint64_t slice;

    (void)function, (void)gx, (void)gy, (void)gz, (void)bx, (void)by, (void)bz, (void)shared, (void)parameters;
    memcpy(&slice, numbers + 2, sizeof(slice));
    return queue(stream, (struct operation){.kind = KERNEL, .turn = numbers[0], .round = numbers[1],
                                            .slice = slice});
}

/* ---- callers ---- */

static uint64_t drawn(struct service *s, uint64_t below)
{
    s->seed = s->seed * 6364136223846793005u + 1442695040888963407u;
    return (s->seed >> 33) % below;
}

static void *calling(void *argument)
{
    struct service *s = argument;

    for (uint32_t i = 0; i < calls; i++) {
        uint32_t word = (uint32_t)drawn(s, 1u << 30);
        struct p2pmod_reply reply;
        uint64_t start;

        /* about when it naps, about when it is parked, or just so */
        switch (drawn(s, 4)) {
        case 0: pause_for(drawn(s, 2 * NAP_AFTER)); break;
        case 1: pause_for(drawn(s, 4 * PARK_AFTER)); break;
        case 2: /* the moment in which it is said to be parked */
            start = gd_now();
            while (s->resident.away == GD_RIDES && gd_now() - start < 5 * PARK_AFTER)
                ;
            pause_for(drawn(s, 60000));
        }
        start = gd_now();
        if (slice != SLICE || drawn(s, 2)) {
            CHECK(gd_lane_call(&s->lane, 0, (const char *)&word, 4, (int64_t)HANG, &reply) == 0);
        } else {
            CHECK(gd_lane_submit(&s->lane, 0, (const char *)&word, 4) == 0);
            while (gd_lane_look(&s->lane, s->lane.sent, &reply)) { /* which wakes nobody */
                CHECK(gd_now() - start < HANG);
                pause_for(5000);
            }
            s->lane.taken = s->lane.sent;
        }
        CHECK(reply.value == (uint64_t)word + 1 && reply.status == 0);
        if (gd_now() - start > s->slowest)
            s->slowest = gd_now() - start;
    }
    return NULL;
}

static void serve(struct service *s, uint64_t seed)
{
    struct gd_resident *r = &s->resident;

    s->seed = seed;
    s->stream.service = s;
    pthread_mutex_init(&s->stream.lock, NULL);
    CHECK(!pthread_create(&s->thread, NULL, streaming, &s->stream));
    r->stream = (uintptr_t)&s->stream;
    r->arguments = (uintptr_t)s->arguments;
    r->arguments_size = sizeof(s->arguments);
    r->turn_at = 0, r->round_at = 4, r->slice_at = 8;
    r->slice = slice;
    r->pace = NAP_AFTER;
    r->park_after = PARK_AFTER;
    r->wake = r->wake_device = (uintptr_t)&wake_word;
    r->told = (uintptr_t)s->told;
    s->lane.packets = (uintptr_t)s->packets;
    s->lane.replies = (uintptr_t)s->replies;
    s->lane.slots = SLOTS;
    s->lane.told = (uintptr_t)s->told;
    s->lane.wake = (uintptr_t)&wake_word;
    s->lane.park = (uintptr_t)&r->park;
    CHECK(!gd_lane_init(&s->lane));
    CHECK(!gd_relay_add(relay, r));
}

int main(int count, char **words)
{
    static struct gd_driver driver;
    uint32_t launches;

    calls = count > 1 ? (uint32_t)atoi(words[1]) : 2000;
    slice = count > 2 ? strtoull(words[2], NULL, 10) : SLICE;
    driver.launch = (uintptr_t)launch;
    driver.query = (uintptr_t)query;
    driver.event_new = (uintptr_t)event_new;
    driver.event_free = (uintptr_t)event_free;
    driver.event_record = (uintptr_t)event_record;
    driver.stream_wait = (uintptr_t)stream_wait;
    driver.stream_wait_word = (uintptr_t)stream_wait_word;
    driver.current = driver.pop = (uintptr_t)context;
    driver.push = (uintptr_t)push;
    driver.capture_mode = (uintptr_t)mode;
    relay = gd_relay_new(&driver);
    CHECK(relay && gd_relay_naps(relay));
    for (int i = 0; i < 2; i++)
        serve(&services[i], (uint64_t)i + 1);
    for (int i = 0; i < 2; i++)
        CHECK(!pthread_create(&services[i].caller, NULL, calling, &services[i]));
    for (int i = 0; i < 2; i++)
        pthread_join(services[i].caller, NULL);
    for (int i = 0; i < 2; i++) {
        CHECK(services[i].answered == calls && !services[i].doubled && !services[i].resident.failure);
        if (slice != SLICE) {
            CHECK(services[i].slowest < slice / 8);
            continue;
        }
        CHECK(services[i].resident.park.times > calls / 100);
        CHECK(services[i].resident.napped > 0);
    }
    if (slice != SLICE)
        return 0;
    /* left alone, both are parked: nothing is queued, nothing is launched */
    for (uint64_t start = gd_now(); services[0].resident.away != GD_PARKED ||
                                    services[1].resident.away != GD_PARKED; pause_for(100000))
        CHECK(gd_now() - start < HANG);
    launches = services[0].launches + services[1].launches;
    pause_for(50000000);
    CHECK(services[0].launches + services[1].launches == launches);
    CHECK(!query(&services[0].stream) && !query(&services[1].stream));
    /* one that is to stay comes back, and stays */
    gd_relay_stay(relay, &services[0].resident);
    for (uint64_t start = gd_now(); services[0].launches + services[1].launches < launches + 50; pause_for(100000))
        CHECK(gd_now() - start < HANG);
    CHECK(services[0].resident.away == GD_RIDES && services[1].resident.away == GD_PARKED);
    printf("%u calls each: parked %u and %u times, slowest %.1f and %.1f ms\n", calls,
           services[0].resident.park.times, services[1].resident.park.times, services[0].slowest * 1e-6,
           services[1].slowest * 1e-6);
    (void)lost;
    return 0;
}
