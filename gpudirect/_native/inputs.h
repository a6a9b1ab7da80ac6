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

/*
 * Store what differs between n bytes at `now` and what a slot holds, then the step's number, and fence.
 * A slot with a number must be free: once *told, which the device counts up, has reached `least`.
 * Returns the bytes stored; -EAGAIN if the slot is not free after `patience` ns, and nothing is stored;
 * -EFAULT as gd_write (GD_GUARDED).
 */
int64_t gd_inputs_commit(const struct gd_slot *slot, const char *now, size_t n, uint64_t step,
                         const uint64_t *told, uint64_t least, int64_t patience, unsigned flags);

#endif
