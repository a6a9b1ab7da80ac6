/* SPDX-License-Identifier: MIT */
/* Lanes, as C programs have them (include/gpudirect/lane.h), and what is the runtime's own. */
#ifndef GPUDIRECT_NATIVE_LANE_H
#define GPUDIRECT_NATIVE_LANE_H

#include "../include/gpudirect/lane.h"

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
