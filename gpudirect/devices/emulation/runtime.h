/* What compiled kernels and runtime.cpp share. */
#ifndef GPUDIRECT_EMULATION_RUNTIME_H
#define GPUDIRECT_EMULATION_RUNTIME_H

struct uint3 {
    unsigned int x, y, z;
};

struct dim3 {
    unsigned int x, y, z;
    constexpr dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return {x, y, z}; }
};

extern "C" {

typedef void (*gd_entry_t)(const void *arguments);

enum { GD_BARRIER_COUNT, GD_BARRIER_AND, GD_BARRIER_OR };
/* Waits for every thread of the block; how many of them gave a predicate, or whether all or any. */
unsigned long long gd_barrier(int operation, int predicate);

enum {
    GD_SHUFFLE,                           /* the value of the lane that `argument` names */
    GD_VOTE,                              /* low half: lanes with a value, high half: lanes here */
    GD_MATCH,                             /* low half: lanes with the same value, high: here */
    GD_REDUCE_ADD, GD_REDUCE_AND, GD_REDUCE_OR, GD_REDUCE_XOR,
    GD_REDUCE_MIN, GD_REDUCE_MAX, GD_REDUCE_UMIN, GD_REDUCE_UMAX,
};
/* Waits for every lane that the mask names and that has not ended. */
unsigned long long gd_warp(int operation, unsigned mask, unsigned long long value,
                           unsigned argument);

bool gd_cooperative(void);                /* every block of the launch is resident */
void gd_grid_barrier(void);               /* one thread of each block: waits for every block */

unsigned gd_lane(void);
void gd_relax(void);
void gd_sleep(unsigned nanoseconds);
unsigned long long gd_nanoseconds(void);
[[noreturn]] void gd_trap(void);
[[noreturn]] void gd_assert_failed(const char *what, const char *file, unsigned line,
                                   const char *function);
}

#endif
