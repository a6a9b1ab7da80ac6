/* SPDX-License-Identifier: MIT */
#include <errno.h>

#include "../../_native/lane.h"
#include "../../_native/native.h"
#include "runtime.h"

struct gd_bench_runtime gd_runtime;

void gd_bench_bind(const struct gd_bench_runtime *runtime)
{
    gd_runtime = *runtime;
}

int gd_lane_time_calls(struct gd_lane *lane, uint32_t function, const char *arguments, size_t size,
                       int rounds, double *ns, int64_t timeout)
{
    struct p2pmod_reply reply;

    for (int i = 0; i < rounds; i++) {
        uint64_t start = gd_runtime.now();
        int code = gd_runtime.lane_call(lane, function, arguments, size, timeout, &reply);

        if (code)
            return code;
        ns[i] = (double)(gd_runtime.now() - start);
        if (reply.status)
            return -EREMOTEIO;
    }
    return rounds;
}

int gd_lane_time_pipeline(struct gd_lane *lane, uint32_t function, const char *arguments,
                          size_t size, int rounds, int depth, double *ns, int64_t timeout)
{
    struct p2pmod_reply reply;
    uint64_t start = gd_runtime.now();
    int sent = 0, taken = 0;

    if (lane->taken != lane->sent)
        return -EBUSY;
    if (depth < 1 || (uint32_t)depth > lane->slots)
        return -EINVAL;
    while (taken < rounds) {
        int code;

        while (sent < rounds && sent - taken < depth) {
            code = gd_runtime.lane_submit(lane, function, arguments, size);
            if (code)
                return code;
            sent++;
            if (gd_runtime.lane_look(lane, lane->taken + 1, &reply) == 0)
                break;
        }
        code = gd_runtime.lane_take(lane, timeout, &reply);
        if (code)
            return code;
        if (reply.status)
            return -EREMOTEIO;
        taken++;
        while (gd_runtime.lane_take(lane, 0, &reply) == 0) {
            if (reply.status)
                return -EREMOTEIO;
            taken++;
        }
    }
    *ns = (double)(gd_runtime.now() - start);
    return rounds;
}

int gd_time_loads(uintptr_t address, int rounds, double *ns)
{
    uint32_t word;

    for (int i = 0; i < rounds; i++) {
        uint64_t start = gd_runtime.now();
        /* reading the clock waits for it: the vDSO orders the counter behind earlier loads */
        int code = gd_runtime.load32(address, &word, 0);

        if (code)
            return code;
        ns[i] = (double)(gd_runtime.now() - start);
    }
    return rounds;
}

int gd_time_pingpong(uintptr_t bell, uintptr_t answer, uint32_t first, int rounds, double *ns,
                     int64_t timeout)
{
    for (int i = 0; i < rounds; i++) {
        uint32_t number = first + (uint32_t)i;
        uint64_t start = gd_runtime.now();
        int code = gd_runtime.store32(bell, number, GD_GUARDED);

        if (!code)
            code = gd_runtime.wait32(answer, number, timeout);
        if (code)
            return code;
        ns[i] = (double)(gd_runtime.now() - start);
    }
    return rounds;
}

int gd_time_steps(const struct gd_step *steps, int count, int rounds, double *ns)
{
    typedef uint64_t u;
    typedef int function(u, u, u, u, u, u, u, u, u, u, u);

    for (int i = 0; i < rounds; i++) {
        uint64_t start = gd_runtime.now();

        for (int s = 0; s < count; s++) {
            const uint64_t *a = steps[s].arguments;
            int code = ((function *)steps[s].function)(a[0], a[1], a[2], a[3], a[4], a[5], a[6],
                                                       a[7], a[8], a[9], a[10]);
            if (code)
                return -EREMOTEIO;
        }
        ns[i] = (double)(gd_runtime.now() - start);
    }
    return rounds;
}
