/* SPDX-License-Identifier: MIT */
/*
 * Counting work, so that a wait forgets what it waited for and nothing else.
 *
 * Between "about to queue" and "queued" another thread may wait for the stream. What it then finds
 * finished says nothing of the work that comes, so a wait settles only if everything begun was
 * queued when the wait began.
 */
#include "native.h"

#define LOAD(field) __atomic_load_n(&(field), __ATOMIC_ACQUIRE)
#define ADD(field, n) __atomic_fetch_add(&(field), n, __ATOMIC_ACQ_REL)

void gd_work_begin(struct gd_work *work)
{
    if (work->device)
        ADD(work->device->begun, 1);
    ADD(work->begun, 1);
}

void gd_work_queued(struct gd_work *work)
{
    ADD(work->queued, 1);
}

int gd_work_open(const struct gd_work *work)
{
    uint64_t settled = LOAD(work->settled); /* first: what begins meanwhile counts as open */

    return settled != LOAD(work->begun);
}

uint64_t gd_work_mark(const struct gd_work *work)
{
    uint64_t queued = LOAD(work->queued); /* first: then nothing is between the two if they agree */

    return queued == LOAD(work->begun) ? queued : 0;
}

void gd_work_settle(struct gd_work *work, uint64_t mark)
{
    uint64_t settled = LOAD(work->settled);

    while (settled < mark)
        if (__atomic_compare_exchange_n(&work->settled, &settled, mark, 0, __ATOMIC_ACQ_REL,
                                        __ATOMIC_ACQUIRE)) {
            if (work->device)
                ADD(work->device->settled, mark - settled);
            return;
        }
}
