/* SPDX-License-Identifier: MIT */
/* The inputs of a step: see inputs.h. */
#include <errno.h>
#include <string.h>

#include "native.h"

#include "inputs.h"
#include "relax.h"

#define LINE 64   /* what a write-combining buffer holds: less than that saves nothing */
#define AREA 1024 /* compared in one go; most of them are equal */

static size_t least_of(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Store the lines of an area that differ, each run of them in one go. Bytes, or -EFAULT. */
static int64_t store(const struct gd_slot *slot, const char *now, size_t from, size_t to, unsigned flags)
{
    int64_t stored = 0;

    while (from < to) {
        size_t end = from, part;

        for (; end < to; end += part) {
            part = least_of(LINE, to - end);
            if (!memcmp(now + end, slot->there + end, part))
                break;
        }
        if (end > from) {
            int code = gd_write(slot->data + from, now + from, end - from, flags | GD_NO_FENCE);

            if (code)
                return code;
            memcpy(slot->there + from, now + from, end - from);
            stored += end - from;
            from = end;
        } else
            from += least_of(LINE, to - from);
    }
    return stored;
}

/* The slot of the next step, once it is free; NULL if it is not in time. */
static const struct gd_slot *next_slot(struct gd_inputs *inputs, int64_t patience)
{
    const uint64_t *told = inputs->told;
    uint64_t step = inputs->step + 1, ahead = inputs->ahead, until = 0;

    if (!ahead)
        return inputs->slots;
    /* somebody replayed a graph by himself, and it took what was committed */
    if (__atomic_load_n(told, __ATOMIC_ACQUIRE) >= step) {
        inputs->step = __atomic_load_n(told, __ATOMIC_ACQUIRE);
        step = inputs->step + 1;
    }
    while (__atomic_load_n(told, __ATOMIC_ACQUIRE) + ahead < step) {
        if (!until)
            until = gd_now() + patience;
        if (gd_now() >= until)
            return NULL;
        gd_relax();
    }
    return &inputs->slots[step % ahead];
}

int64_t gd_inputs_commit(struct gd_inputs *inputs, int64_t patience)
{
    const struct gd_slot *slot = next_slot(inputs, patience);
    const char *now = inputs->now;
    size_t n = inputs->n;
    int64_t stored = 0;

    if (!slot)
        return -EAGAIN;
    for (size_t from = 0; from < n; from += AREA) {
        size_t to = least_of(from + AREA, n);
        int64_t done;

        if (!memcmp(now + from, slot->there + from, to - from))
            continue;
        done = store(slot, now, from, to, inputs->flags);
        if (done < 0)
            return done;
        stored += done;
    }
    gd_fence(); /* the data before the number: whoever finds the one finds the other */
    if (slot->number) {
        int code = gd_store64(slot->number, inputs->step + 1, inputs->flags);

        if (code)
            return code;
    }
    return stored;
}
