/* SPDX-License-Identifier: MIT */
/* Lanes, as C programs have them (include/gpudirect/lane.h), and what is the runtime's own. */
#ifndef GPUDIRECT_NATIVE_LANE_H
#define GPUDIRECT_NATIVE_LANE_H

#include "../include/gpudirect/lane.h"

/*
 * Whether anything of the kernel is queued on the device (relay.h). After GD_PARK_PARKED was seen, a call
 * is run only if GD_PARK_ASKED is stored in its place and `bell` is rung.
 */
struct gd_park {
    uint32_t state;
    uint32_t times;  /* that it was parked */
    uintptr_t bell;  /* uint32_t *, counted up and woken as a futex is; 0: somebody polls */
};
#define GD_PARK_NO 0
#define GD_PARK_PARKED 1 /* or about to be */
#define GD_PARK_ASKED 2  /* there is a call for it */

/* Whoever finds a kernel parked has it queued again. */
void gd_park_ask(struct gd_park *park);

/* ---- for the CPython types in service/_native, which is another shared object ---- */
struct gd_lane_api {
    int (*send)(struct gd_lane *, uint32_t, const char *, size_t);
    int (*look)(const struct gd_lane *, uint32_t, struct p2pmod_reply *);
    int (*wait)(const struct gd_lane *, uint32_t, int64_t, struct p2pmod_reply *);
    int (*wait_any)(const struct gd_awaited *, int, uintptr_t, uint32_t, int64_t, int64_t);
    uint64_t (*now)(void);
    const unsigned *forks; /* of native.h */
};
const struct gd_lane_api *gd_lane_api(void);

#endif
