/* SPDX-License-Identifier: MIT */
/*
 * The benchmarks' stopwatch for what the runtime does in C. This is a shared object of its own, which
 * users do not load: what it times it calls through pointers, which gd_bench_bind() is given once.
 */
#ifndef GPUDIRECT_BENCH_TIMING_H
#define GPUDIRECT_BENCH_TIMING_H

#include <stddef.h>
#include <stdint.h>

struct gd_lane;
struct p2pmod_reply;

/* Functions of gpudirect._native under their own names, less the "gd_". */
struct gd_bench_runtime {
    int (*write)(uintptr_t, const char *, size_t, unsigned);
    int (*read)(char *, uintptr_t, size_t, unsigned);
    int (*load32)(uintptr_t, uint32_t *, unsigned);
    int (*store32)(uintptr_t, uint32_t, unsigned);
    int (*wait32)(uintptr_t, uint32_t, int64_t);
    void (*fence)(void);
    uint64_t (*now)(void);
    int (*lane_submit)(struct gd_lane *, uint32_t, const char *, size_t);
    int (*lane_look)(const struct gd_lane *, uint32_t, struct p2pmod_reply *);
    int (*lane_take)(struct gd_lane *, int64_t, struct p2pmod_reply *);
    int (*lane_call)(struct gd_lane *, uint32_t, const char *, size_t, int64_t, struct p2pmod_reply *);
};
void gd_bench_bind(const struct gd_bench_runtime *runtime);

/* ---- measuring: ns of each round in ns[], the number of rounds done or -errno ---- */
int gd_lane_time_calls(struct gd_lane *lane, uint32_t function, const char *arguments, size_t size,
                       int rounds, double *ns, int64_t timeout);
/*
 * `rounds` calls with at most `depth` open, replies checked to come in order with status 0; the ns
 * of all of them in *ns.
 */
int gd_lane_time_pipeline(struct gd_lane *lane, uint32_t function, const char *arguments,
                          size_t size, int rounds, int depth, double *ns, int64_t timeout);
/* A 4-byte load each. */
int gd_time_loads(uintptr_t address, int rounds, double *ns);
/*
 * A number stored at `bell`, fenced, and waited for at `answer`, for at most `timeout` ns (< 0: for
 * ever): first, first + 1, ...
 */
int gd_time_pingpong(uintptr_t bell, uintptr_t answer, uint32_t first, int rounds, double *ns,
                     int64_t timeout);
/* C functions called one after the other, up to 11 whole-number arguments each; 0 is success. */
struct gd_step {
    uintptr_t function;
    uint64_t arguments[11];
};
int gd_time_steps(const struct gd_step *steps, int count, int rounds, double *ns);

#endif
