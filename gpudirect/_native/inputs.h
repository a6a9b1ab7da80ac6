/* SPDX-License-Identifier: MIT */
/* The inputs of a step that is replayed again and again: gpudirect/_inputs.py says how they work. */
#ifndef GPUDIRECT_INPUTS_H
#define GPUDIRECT_INPUTS_H

#include <stddef.h>
#include <stdint.h>

/* One slot: a copy of all inputs in device memory, and what the CPU knows to be there. */
struct gd_slot {
    uintptr_t data;   /* in the mapping */
    uintptr_t number; /* in the mapping: of the step that the slot is for; 0: there is none */
    char *there;      /* ordinary memory: what `data` holds */
};

struct gd_inputs {
    struct gd_slot *slots;
    uint64_t ahead; /* slots; 0: there is one, which has no number and is always free */
    uint64_t step;  /* steps replayed so far: the caller counts */
    const char *now; /* the values of the next step */
    size_t n;        /* bytes of them */
    const uint64_t *told; /* the last step whose values were taken: the device counts it up */
    unsigned flags;       /* GD_GUARDED */
};

/*
 * Give the next step its values: store what differs between them and what its slot holds, then the step's
 * number, and fence. The slot is free once the step `ahead` before has taken it.
 * Returns the bytes stored; -EAGAIN if it is not free after `patience` ns, and nothing is stored; -EFAULT
 * as gd_write.
 */
int64_t gd_inputs_commit(struct gd_inputs *inputs, int64_t patience);

#endif
