/* SPDX-License-Identifier: MIT */
/* The CPU's end of a lane: packets out, replies in. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <time.h>

#include "engine.h"
#include "guard.h"
#include "lane.h"
#include "native.h"
#include "relax.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define LINE P2PMOD_PACKET_BYTES
/*
 * A pause is long on recent processors, and costs a virtual machine an exit when many follow one
 * another; a call is shorter than that. So it is left out at first.
 */
#define EAGER 20000 /* ns without a pause between looks */
#define LOOKS_A_CLOCK 64

_Static_assert(sizeof(struct p2pmod_packet) == P2PMOD_PACKET_BYTES, "a packet is one line");
_Static_assert(sizeof(struct p2pmod_reply) == P2PMOD_REPLY_BYTES, "a reply is one store");

/* ---- storing a packet ---- */

#if defined(__x86_64__)
__attribute__((target("movdir64b"))) static void store_line(uintptr_t at, const void *packet)
{
    _movdir64b((void *)at, packet);
}

static int has_line_store(void)
{
    return gd_engine_movdir64b.usable();
}
#else
static void store_line(uintptr_t at, const void *packet)
{
    (void)at, (void)packet;
}

static int has_line_store(void)
{
    return 0;
}
#endif

/* Whoever sees the new first and last word sees the words between. */
static void store_words(uintptr_t at, const struct p2pmod_packet *packet)
{
    volatile struct p2pmod_packet *to = (volatile struct p2pmod_packet *)at;

    for (int i = 0; i < P2PMOD_PACKET_WORDS; i++)
        to->words[i] = packet->words[i];
    gd_fence();
    to->sequence = packet->sequence;
    to->tag = packet->tag;
    gd_fence();
}

int gd_lane_init(struct gd_lane *lane)
{
    if (lane->slots < 2 || lane->slots > P2PMOD_LANE_SLOTS_MAX || lane->slots & (lane->slots - 1))
        return -EINVAL;
    if (!lane->packets || lane->packets % LINE || !lane->replies || lane->replies % 16)
        return -EINVAL;
    if (lane->stride % LINE || (lane->stride && !lane->arguments))
        return -EINVAL;
    lane->sent = lane->taken = 0;
    lane->store = has_line_store() ? GD_LANE_LINE : GD_LANE_WORDS;
    return 0;
}

static uintptr_t packet_at(const struct gd_lane *lane, uint32_t sequence)
{
    return lane->packets + (uintptr_t)(sequence & (lane->slots - 1)) * LINE;
}

static const struct p2pmod_reply *reply_at(const struct gd_lane *lane, uint32_t sequence)
{
    return (const struct p2pmod_reply *)lane->replies + (sequence & (lane->slots - 1));
}

/* ---- naps ---- */

static inline uint32_t told(const struct gd_lane *lane, unsigned which)
{
    return __atomic_load_n((const uint32_t *)lane->told + which, __ATOMIC_ACQUIRE);
}

/* A round that has ended, as a wait has seen none yet. */
static inline uint32_t none_seen(const struct gd_lane *lane)
{
    return lane->told ? told(lane, P2PMOD_TOLD_ENDED) - 1 : 0;
}

void gd_park_ask(struct gd_park *park)
{
    uint32_t parked = GD_PARK_PARKED;

    if (!__atomic_compare_exchange_n(&park->state, &parked, GD_PARK_ASKED, 0, __ATOMIC_SEQ_CST,
                                     __ATOMIC_RELAXED))
        return;
    if (park->bell)
        gd_ring_bell((uint32_t *)park->bell);
}

/* If a round has ended since the last look, and nobody was left: start the next. */
static inline void wake_napping(const struct gd_lane *lane, uint32_t *seen)
{
    struct gd_park *park = (struct gd_park *)lane->park;
    uint32_t ended;

    if (park && __atomic_load_n(&park->state, __ATOMIC_ACQUIRE) == GD_PARK_PARKED)
        gd_park_ask(park);
    if (!lane->told || (ended = told(lane, P2PMOD_TOLD_ENDED)) == *seen)
        return;
    *seen = ended;
    if (told(lane, P2PMOD_TOLD_NAPPED) == ended && told(lane, P2PMOD_TOLD_BEGUN) == ended) {
        gd_store32(lane->wake, ended + 1, lane->flags);
        gd_fence();
    }
}

/* ---- sending ---- */

static inline int send_packet(struct gd_lane *lane, uint32_t function, const char *arguments, size_t size)
{
    uint32_t sequence = lane->sent + 1;
    struct p2pmod_packet packet __attribute__((aligned(LINE)));

    memset(&packet, 0, sizeof(packet));
    packet.sequence = sequence;
    packet.tag = function << 16 | (sequence & 0xffff);
    if (size <= P2PMOD_PACKET_ARGUMENTS) {
        memcpy(packet.words, arguments, size);
    } else {
        size_t offset = (size_t)(sequence & (lane->slots - 1)) * lane->stride;
        uint64_t there = lane->arguments_device + offset;
        int code = gd_write(lane->arguments + offset, arguments, size, GD_NO_FENCE | GD_ONE_THREAD);

        if (code)
            return code;
        memcpy(packet.words, &there, sizeof(there));
    }
    gd_fence(); /* what the function reads is on its way before the packet is */
    if (lane->store == GD_LANE_LINE)
        store_line(packet_at(lane, sequence), &packet);
    else
        store_words(packet_at(lane, sequence), &packet);
    lane->sent = sequence;
    if (lane->told) {
        uint32_t seen = none_seen(lane);

        wake_napping(lane, &seen);
    }
    return 0;
}

static int send_guarded(struct gd_lane *lane, uint32_t function, const char *arguments, size_t size)
{
    struct gd_guard on_packets, on_arguments;
    int code;

    if (gd_guard_enter(&on_packets, lane->packets, (size_t)lane->slots * LINE))
        return -EFAULT;
    if (gd_guard_enter(&on_arguments, lane->arguments, (size_t)lane->slots * lane->stride)) {
        gd_guard_leave(&on_packets);
        return -EFAULT;
    }
    code = send_packet(lane, function, arguments, size);
    gd_guard_leave(&on_arguments);
    gd_guard_leave(&on_packets);
    return code;
}

int gd_lane_send(struct gd_lane *lane, uint32_t function, const char *arguments, size_t size)
{
    if (size > P2PMOD_PACKET_ARGUMENTS && size > lane->stride)
        return -E2BIG;
    if (lane->flags & GD_GUARDED)
        return send_guarded(lane, function, arguments, size);
    return send_packet(lane, function, arguments, size);
}

/* ---- replies ---- */

/* The sequence is the last word of the 16 bytes; what stands before it is older or came with it. */
static inline int look(const struct p2pmod_reply *at, uint32_t sequence, struct p2pmod_reply *reply)
{
    if (__atomic_load_n(&at->sequence, __ATOMIC_ACQUIRE) != sequence)
        return -EAGAIN;
    reply->value = __atomic_load_n(&at->value, __ATOMIC_RELAXED);
    reply->status = __atomic_load_n(&at->status, __ATOMIC_RELAXED);
    reply->sequence = sequence;
    return 0;
}

int gd_lane_look(const struct gd_lane *lane, uint32_t sequence, struct p2pmod_reply *reply)
{
    return look(reply_at(lane, sequence), sequence, reply);
}

int gd_lane_wait(const struct gd_lane *lane, uint32_t sequence, int64_t timeout,
                 struct p2pmod_reply *reply)
{
    const struct p2pmod_reply *at = reply_at(lane, sequence);
    uint64_t start, spent = 0;
    uint32_t seen = none_seen(lane);

    if (!look(at, sequence, reply))
        return 0;
    if (timeout == 0)
        return -ETIMEDOUT;
    for (start = gd_now();;) {
        wake_napping(lane, &seen);
        for (int i = 0; i < LOOKS_A_CLOCK; i++) {
            if (!look(at, sequence, reply))
                return 0;
            if (spent > EAGER)
                gd_relax();
        }
        spent = gd_now() - start;
        if (timeout > 0 && spent >= (uint64_t)timeout)
            return -ETIMEDOUT;
    }
}

int gd_lane_submit(struct gd_lane *lane, uint32_t function, const char *arguments, size_t size)
{
    if (lane->sent - lane->taken >= lane->slots)
        return -EAGAIN;
    return gd_lane_send(lane, function, arguments, size);
}

int gd_lane_take(struct gd_lane *lane, int64_t timeout, struct p2pmod_reply *reply)
{
    int code;

    if (lane->taken == lane->sent)
        return -EAGAIN;
    code = gd_lane_wait(lane, lane->taken + 1, timeout, reply);
    if (!code)
        lane->taken++;
    return code;
}

int gd_lane_call(struct gd_lane *lane, uint32_t function, const char *arguments, size_t size,
                 int64_t timeout, struct p2pmod_reply *reply)
{
    int code;

    if (lane->taken != lane->sent)
        return -EBUSY;
    code = gd_lane_send(lane, function, arguments, size);
    return code ? code : gd_lane_take(lane, timeout, reply);
}

int gd_lane_wait_any(const struct gd_awaited *calls, int count, uintptr_t wake, uint32_t asleep,
                     int64_t spin, int64_t timeout)
{
    uint64_t start = gd_now(), spent = 0;

    for (;;) {
        for (int i = 0; i < count; i++) {
            const struct p2pmod_reply *at = (const struct p2pmod_reply *)calls[i].reply;
            const struct gd_lane *lane = (const struct gd_lane *)calls[i].lane;

            if (__atomic_load_n(&at->sequence, __ATOMIC_ACQUIRE) == calls[i].sequence)
                return i;
            if (lane) {
                uint32_t seen = none_seen(lane);

                wake_napping(lane, &seen);
            }
        }
        if (__atomic_load_n((const uint32_t *)wake, __ATOMIC_ACQUIRE) != asleep)
            return count;
        spent = gd_now() - start;
        if (timeout >= 0 && spent >= (uint64_t)timeout)
            return -ETIMEDOUT;
        if (spent >= (uint64_t)spin) {
            struct timespec nap = {0, 50000};

            nanosleep(&nap, NULL);
        } else {
            gd_relax();
        }
    }
}

const struct gd_lane_api *gd_lane_api(void)
{
    static struct gd_lane_api api = {gd_lane_send,     gd_lane_look, gd_lane_wait,
                                     gd_lane_wait_any, gd_now,       NULL};

    api.forks = gd_forks();
    return &api;
}
