/* SPDX-License-Identifier: MIT */
/*
 * The CPU's end of a lane (p2pmod-lane.h says what a lane is). cffi reads this file too, so
 * it holds declarations and nothing else.
 *
 * Nothing here locks or allocates: one thread at a time owns a lane's sending side. Replies may be
 * looked at by any thread.
 */
#ifndef GPUDIRECT_LANE_H
#define GPUDIRECT_LANE_H

#include <stddef.h>
#include <stdint.h>

#include "p2pmod-lane.h"

struct gd_lane {
    uintptr_t packets;          /* CPU address of the ring of packets, in the mapping */
    uintptr_t replies;          /* of the ring of replies, in page-locked host memory */
    uintptr_t arguments;        /* long argument lists, in the mapping: `stride` bytes a slot */
    uint64_t arguments_device;  /* the same at the device's address */
    uint32_t stride;            /* bytes, a multiple of 64; 0: no long lists */
    uint32_t slots;             /* of both rings: a power of two from 2 to P2PMOD_LANE_SLOTS_MAX */
    uint32_t sent;              /* number of the last call sent */
    uint32_t taken;             /* every reply up to this number was taken */
    uint32_t flags;             /* GD_GUARDED or 0 */
    uint32_t store;             /* how packets are stored; gd_lane_init() finds it */
    uintptr_t told;             /* P2PMOD_TOLD_WORDS words of host memory; 0: the kernel never naps */
    uintptr_t wake;             /* CPU address of the wake word */
    uintptr_t park;             /* the runtime's own; 0 in a lane that is lent, whose kernel is never parked */
};

#define GD_LANE_LINE 1  /* MOVDIR64B: a packet is one store */
#define GD_LANE_WORDS 2 /* words, a fence, then the first and the last */

/* Find how packets are best stored, and start counting at 1. -EINVAL: what is filled in is wrong. */
int gd_lane_init(struct gd_lane *lane);

/*
 * Send call number lane->sent + 1, whatever is in its slot. All earlier stores of this thread are
 * fenced first. More than 56 bytes of arguments go by reference.
 * -E2BIG: more than `stride` bytes; -EFAULT: the mapping was revoked. Nothing was sent then.
 */
int gd_lane_send(struct gd_lane *lane, uint32_t function, const char *arguments, size_t size);

/* Is the reply to call `sequence` there? 0 and the reply, or -EAGAIN. */
int gd_lane_look(const struct gd_lane *lane, uint32_t sequence, struct p2pmod_reply *reply);

/* Spin for it, at most `timeout` ns (< 0: for ever; 0: look once). -ETIMEDOUT. */
int gd_lane_wait(const struct gd_lane *lane, uint32_t sequence, int64_t timeout,
                 struct p2pmod_reply *reply);

/* ---- the plain use: replies are taken in order ---- */
/* As gd_lane_send; -EAGAIN while the ring is full of calls whose replies were not taken. */
int gd_lane_submit(struct gd_lane *lane, uint32_t function, const char *arguments, size_t size);
/* The next reply in order. -EAGAIN when no call is open, else as gd_lane_wait. */
int gd_lane_take(struct gd_lane *lane, int64_t timeout, struct p2pmod_reply *reply);
/* Submit, and wait for the reply. Open calls before it must have been taken: -EBUSY. */
int gd_lane_call(struct gd_lane *lane, uint32_t function, const char *arguments, size_t size,
                 int64_t timeout, struct p2pmod_reply *reply);

/*
 * Wait until one of `count` replies is there, or *wake is no longer `asleep`. Spins for `spin` ns,
 * then sleeps between looks. Returns its index, `count` when woken, or -ETIMEDOUT.
 */
struct gd_awaited {
    uintptr_t reply;   /* CPU address of the slot's reply */
    uintptr_t lane;    /* const struct gd_lane *, to be woken if it naps; 0: not looked after */
    uint32_t sequence; /* of the call */
};
int gd_lane_wait_any(const struct gd_awaited *calls, int count, uintptr_t wake, uint32_t asleep,
                     int64_t spin, int64_t timeout);

#endif
