/* SPDX-License-Identifier: MIT */
/*
 * The relay: resident kernels that end by themselves after a slice, between two calls, each with
 * its successor queued behind it. So whatever waits for the device waits for a slice and not for
 * ever. cffi reads this file too: declarations and nothing else.
 *
 * One thread a device queues the launches. It holds no lock of Python's, so a busy interpreter or
 * library delays nothing but, at worst, the thread itself; calls sent meanwhile wait and are
 * answered. All residents of a device go in rounds, numbered 1, 2, 3, ... (modulo 2^32): each is
 * launched once a round, they end together, and no launch of a round starts before all of the round
 * before have ended. Without that, residents of several services would overlap, the device would
 * never be idle, and who waits for that would starve.
 *
 * Naps: every launch stands behind a wait of its stream for the device's wake word, in mapped device
 * memory, to reach the number of its round. A resident that still has calls sets it to the next
 * round when it ends; one without leaves it, and nothing is resident until somebody else sets it:
 * a caller (lane.c), or the waker, a second thread, once a slice. For a stream that waits makes
 * whoever waits for the device wait, too. The waker makes no call of the driver: the launching thread
 * can be stuck in one, behind somebody who waits for the very nap that it would have to end.
 *
 * Parking: a resident that napped for long is launched no more, and nothing of it is queued. Whoever sends
 * sees that (struct gd_park) and asks for it. So that no call is lost in between, it is said to be parked
 * first, then every thread fences, then it is launched a last time: a call whose sender had seen nothing of
 * parking is there by then. If that launch finds calls, or somebody has asked, it goes on in the rounds.
 */
#ifndef GPUDIRECT_RELAY_H
#define GPUDIRECT_RELAY_H

#include <stdint.h>

#include "lane.h"
#include "native.h"

#define GD_RIDES 0   /* it is launched once a round */
#define GD_LEAVING 1 /* once more */
#define GD_LAST 2    /* no more; what is queued has not ended yet */
#define GD_PARKED 3
#define GD_RELAY_AHEAD 2 /* launches queued at most: the one that runs, and its successor */

struct gd_resident {
    /* what is launched */
    uint64_t function, stream;   /* the driver's handles */
    struct gd_grid grid;
    uint32_t cooperative;        /* all blocks at once */
    uint32_t parameters;         /* of the kernel */
    uintptr_t offsets;           /* of each in the arguments: uint32_t[parameters] */
    uintptr_t arguments;         /* the argument block, changed for each launch in two places: */
    uint32_t arguments_size;
    uint32_t turn_at;            /* uint32_t: which launch of this kernel it is, from 1 on */
    uint32_t round_at;           /* uint32_t: which round */
    uint32_t slice_at;           /* uint64_t: ns of a slice, the shortest of the device's residents */
    uint64_t slice;              /* ns asked for */
    uint64_t pace;               /* ns after which it may have ended: the slice, or the time to a nap */
    uintptr_t wake;              /* the wake word of the device, for the CPU; 0: no naps */
    uint64_t wake_device;        /* the same for the device; one word for all that run at once */
    uintptr_t told;              /* P2PMOD_TOLD_WORDS page-locked words, written by the kernel */
    uint64_t park_after;         /* ns without calls after which it is parked; 0: never */
    struct gd_park park;         /* for its callers */
    /* what became of it, written by the relay */
    uint32_t turns;              /* launches queued so far */
    uint32_t round;              /* of the last one */
    uint32_t late;               /* launches that were queued after all before had ended */
    int32_t failure;             /* the driver's error that ended it, 0 */
    uint64_t napped;             /* ns that it napped, to within a slice each time */
    /* the relay's own */
    uint64_t event;
    uint32_t joined;             /* it was launched since it was added, or since it was parked */
    uint32_t stays;              /* it is parked no more */
    uint32_t away;               /* how far it is on the way to be parked: */
    uint32_t called;             /* the last round with calls, as it was seen last */
    uint64_t called_at, looked;  /* when that was, and when it was looked at */
    struct gd_resident *next;
};

struct gd_relay;

/* A relay for a device, with its threads. NULL where no thread can be had. */
struct gd_relay *gd_relay_new(const struct gd_driver *driver);
/* Whether launches wait for the wake word: the driver may not know how. */
int gd_relay_naps(const struct gd_relay *relay);
/* Launch a resident again and again, until it is over or removed. The struct must stay where it is. */
int gd_relay_add(struct gd_relay *relay, struct gd_resident *resident);
/* Launch it no more. When this returns, the relay has forgotten it; what is queued still runs. */
void gd_relay_remove(struct gd_relay *relay, struct gd_resident *resident);
/* Have it parked no more: others than this process's threads may send calls from now on. */
void gd_relay_stay(struct gd_relay *relay, struct gd_resident *resident);
/* Let every launch that is queued begin. */
void gd_relay_wake(struct gd_relay *relay);

#endif
