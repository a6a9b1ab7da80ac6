/* SPDX-License-Identifier: MIT */
/*
 * Calls of random sizes over several lanes, every reply checked. A function of N words returns a
 * ticket in the upper half (how many calls the device had run) and a hash of its arguments in the
 * lower one: a torn packet has another hash, a call that ran twice or never leaves the tickets.
 * test_service.py compiles this, and runs it in several threads.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../../gpudirect/_native/lane.h"

#define SIZES 16
#define MOST_WORDS 64
#define TIMEOUT 5000000000 /* ns */
#define SHORT 1000000

struct soak {
    const struct gd_lane_api *api;
    struct gd_lane *lanes[8];
    int lane_count;
    uint32_t words[SIZES];    /* of arguments */
    uint32_t function[SIZES]; /* that takes so many */
    uint64_t seed;
    uint64_t calls;    /* to be made */
    volatile uint64_t halt; /* leave, with calls open */
    /* results */
    uint64_t sent, answered, stopped;
    uint64_t unrun;    /* sent when the kernel had ended */
    uint64_t wrong;    /* another hash than expected, or another status */
    uint64_t disorder; /* a ticket no higher than the one before on its lane */
    uint64_t *tickets; /* a bit for each: which calls the device has run */
    uint64_t ticket_bits, doubled;
};

struct expected {
    uint32_t hash[P2PMOD_LANE_SLOTS_MAX];
    uint64_t last_ticket;
    int stopped;
};

static uint32_t random32(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return (uint32_t)(*seed >> 32);
}

static void check(struct soak *s, struct gd_lane *lane, struct expected *e,
                  const struct p2pmod_reply *reply)
{
    uint64_t ticket = reply->value >> 32;

    if (reply->status == P2PMOD_STATUS_STOPPED) { /* from then on all of them */
        e->stopped = 1;
        s->stopped++;
        return;
    }
    s->answered++;
    if (reply->status || e->stopped ||
        (uint32_t)reply->value != e->hash[reply->sequence & (lane->slots - 1)])
        s->wrong++;
    if (ticket <= e->last_ticket || ticket >= s->ticket_bits)
        s->disorder++;
    else if (__atomic_fetch_or(&s->tickets[ticket / 64], 1ull << ticket % 64, __ATOMIC_RELAXED) >>
                 ticket % 64 & 1)
        s->doubled++;
    e->last_ticket = ticket;
}

static int take(struct soak *s, struct gd_lane *lane, struct expected *e, int64_t timeout)
{
    struct p2pmod_reply reply;
    int code = s->api->wait(lane, lane->taken + 1, timeout, &reply);

    if (code)
        return code;
    lane->taken++;
    check(s, lane, e, &reply);
    return 0;
}

/* expected: one for each lane, kept between calls. 0 or -errno. */
int soak(struct soak *s, struct expected *expected)
{
    uint32_t words[MOST_WORDS];

    while (s->sent < s->calls && !s->halt) {
        int n = (int)(random32(&s->seed) % (uint32_t)s->lane_count), code;
        uint32_t size = random32(&s->seed) % SIZES, hash = 2166136261u;
        struct gd_lane *lane = s->lanes[n];
        struct expected *e = &expected[n];

        while (lane->sent - lane->taken >= lane->slots || random32(&s->seed) % 8 == 0) {
            int full = lane->sent - lane->taken >= lane->slots;

            if (lane->sent == lane->taken)
                break;
            for (int64_t waited = 0;; waited += SHORT) {
                code = take(s, lane, e, full ? SHORT : 0);
                if (!code || !full || s->halt)
                    break;
                if (waited > TIMEOUT)
                    return code;
            }
            if (code && s->halt)
                return 0;
        }
        for (uint32_t i = 0; i < s->words[size]; i++) {
            words[i] = random32(&s->seed);
            hash = (hash ^ words[i]) * 16777619u;
        }
        e->hash[(lane->sent + 1) & (lane->slots - 1)] = hash;
        code = s->api->send(lane, s->function[size], (const char *)words, s->words[size] * 4);
        if (code)
            return code;
        s->sent++;
    }
    return 0;
}

/* Take what is open. ended: the kernel has, so what is not there does not come. */
int drain(struct soak *s, struct expected *expected, int ended)
{
    for (int n = 0; n < s->lane_count; n++) {
        struct gd_lane *lane = s->lanes[n];

        while (lane->taken != lane->sent) {
            int code = take(s, lane, &expected[n], ended ? 0 : TIMEOUT);

            if (code && !ended)
                return code;
            if (code) {
                lane->taken++;
                s->unrun++;
                expected[n].stopped = 1; /* later ones are not there either */
            }
        }
    }
    return 0;
}

size_t soak_expected_size(void)
{
    return sizeof(struct expected);
}
