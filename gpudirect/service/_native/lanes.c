/* SPDX-License-Identifier: MIT */
/*
 * Who owns the slots of a lane's rings: sends calls, waits for replies, takes them.
 */
#include "calls.h"

#include <errno.h>

#define SPIN 20000     /* ns that a reply is awaited with the GIL held: longer than most take */
#define CHUNK 5000000  /* ns between looks for signals, and whether the service is alive */
#define EAGER 1000000  /* ns after which a waiting thread sleeps between looks */

/*
 * If the reply to the call in a slot is there and no thread waits for it: take it, free the slot.
 * Callbacks may run then: other threads as well, and all of this anew.
 */
int settle(Lane *lane, struct slot *slot)
{
    struct p2pmod_reply reply;
    enum owner owner = slot->owner;
    PyObject *keep;

    if (owner == NOBODY)
        return 1;
    if (owner == WAITER || api->look(&lane->ring, slot->sequence, &reply))
        return 0;
    keep = slot->keep;
    slot->keep = NULL;
    slot->owner = NOBODY;
    if (owner == FUTURE) {
        ((Call *)keep)->reply = reply;
        finish((Call *)keep, ANSWERED);
    }
    Py_XDECREF(keep);
    return 1;
}

/* Settle all that can be. 0, or -1 with an exception: of a signal's handler, from where calls were told. */
int sweep(Lane *lane)
{
    uint32_t before = lane->swept;

    while (lane->swept != lane->ring.sent) {
        uint32_t next = lane->swept + 1;

        if (!settle(lane, slot_of(lane, next)))
            break;
        if (lane->swept + 1 == next) /* or a callback, or a thread beside it, has done so */
            lane->swept = next;
    }
    return lane->swept != before && PyErr_Occurred() ? -1 : 0;
}

/* -- waiting -- */

/*
 * Wait for the reply to call `sequence`. 0 when it is there, or when another thread has taken it and
 * the slot is that of a later call; -ETIMEDOUT; or with an exception -EINTR, when a signal came, or -1,
 * when the service is no more.
 */
int await_reply(Caller *self, Rings *rings, Lane *lane, uint32_t sequence, int64_t timeout,
                struct p2pmod_reply *reply)
{
    int64_t first = timeout >= 0 && timeout < SPIN ? timeout : SPIN;
    const struct slot *slot = slot_of(lane, sequence);
    struct gd_awaited one = {
        lane->ring.replies + (uintptr_t)(slot - lane->slots) * P2PMOD_REPLY_BYTES,
        (uintptr_t)&lane->ring, sequence};
    uint64_t start;
    int code = api->wait(&lane->ring, sequence, first, reply);

    if (!code)
        return 0;
    if (first == timeout)
        return -ETIMEDOUT;
    for (start = api->now();;) {
        int64_t spent = (int64_t)(api->now() - start);
        int64_t left = timeout < 0 ? CHUNK : timeout - SPIN - spent;
        PyObject *alive;
        struct visit visit;
        int raised;

        if (left <= 0)
            return -ETIMEDOUT;
        if (left > CHUNK)
            left = CHUNK;
        Py_BEGIN_ALLOW_THREADS
        code = api->wait_any(&one, 1, (uintptr_t)&slot->sequence, sequence,
                             spent < EAGER ? EAGER : 0, left);
        Py_END_ALLOW_THREADS
        if (code >= 0) {
            api->look(&lane->ring, sequence, reply);
            return 0;
        }
        visit_python(self, &visit);
        raised = PyErr_CheckSignals();
        leave_python(self, &visit);
        if (raised)
            return -EINTR;
        if (closed_since(self, rings))
            return -1;
        alive = invoke(self, "_check", "()");
        if (!alive)
            return -1;
        Py_DECREF(alive);
    }
}

/*
 * A lane whose next slot is free: an idle one, else the one with the fewest calls open, else wait.
 * NULL with an exception.
 */
Lane *take_slot(Caller *self, Rings *rings, Function *function, int wanted, int64_t timeout)
{
    uint64_t start = 0;

    for (;;) {
        Lane *best = NULL;
        struct p2pmod_reply ignored;
        struct slot *slot;
        int64_t left = -1;
        int code;

        if (closed_since(self, rings))
            return NULL;
        for (int i = 0; i < rings->lane_count; i++) {
            Lane *lane = &rings->lanes[i];

            if (lane->lent || (wanted >= 0 && i != wanted))
                continue;
            if (sweep(lane))
                return NULL; /* nothing was sent */
            if (!best || lane->ring.sent - lane->swept < best->ring.sent - best->swept)
                best = lane;
            if (best->ring.sent == best->swept)
                break;
        }
        if (!best) {
            raise_made(invoke(self, "_lane_wrong", "(ii)", wanted, 1));
            return NULL;
        }
        slot = slot_of(best, best->ring.sent + 1);
        if (slot->owner == NOBODY)
            return best;
        if (settle(best, slot)) {
            if (PyErr_Occurred())
                return NULL;
            continue; /* a callback may have let another thread take it: look again */
        }
        if (!start)
            start = api->now();
        if (timeout >= 0)
            left = timeout - (int64_t)(api->now() - start);
        code = left == 0 || (timeout >= 0 && left < 0)
                   ? -ETIMEDOUT
                   : await_reply(self, rings, best, slot->sequence, left, &ignored);
        if (code == -ETIMEDOUT) {
            raise_made(invoke(self, "_timeout_error", "(Odi)", function->name, timeout / 1e9, 1));
            return NULL;
        }
        if (code)
            return NULL;
        if (slot->owner == WAITER) { /* its thread is about to take it */
            Py_BEGIN_ALLOW_THREADS
            Py_END_ALLOW_THREADS
        }
    }
}

/* The slot's call was sent; 0, or -1 with an exception. */
int send(Caller *self, Lane *lane, const Function *function, const char *block)
{
    int code = api->send(&lane->ring, function->number, block, function->size);

    if (!code)
        return 0;
    raise_made(invoke(self, "_send_error", "(Oi)", function->name, -code));
    return -1;
}

Rings *new_rings(int lanes)
{
    Rings *rings = PyMem_Calloc(1, sizeof(Rings));

    if (rings) {
        rings->references = 1;
        rings->lane_count = lanes;
        rings->lanes = PyMem_Calloc((size_t)lanes + 1, sizeof(Lane));
    }
    if (!rings || !rings->lanes) {
        PyMem_Free(rings);
        PyErr_NoMemory();
        return NULL;
    }
    return rings;
}

void drop_rings(Rings *rings)
{
    if (!rings || --rings->references)
        return;
    for (int i = 0; i < rings->lane_count; i++) {
        Lane *lane = &rings->lanes[i];

        for (uint32_t s = 0; lane->slots && s < lane->ring.slots; s++)
            Py_CLEAR(lane->slots[s].keep);
        PyMem_Free(lane->slots);
    }
    PyMem_Free(rings->lanes);
    Py_XDECREF(rings->failure);
    Py_XDECREF(rings->kept);
    Py_XDECREF(rings->when_left);
    PyMem_Free(rings);
}

int leave(Caller *self, Rings *rings)
{
    PyObject *then = --rings->inside ? NULL : rings->when_left;
    int code = 0;

    if (then) {
        PyObject *type, *value, *trace, *result;
        struct visit visit;

        rings->when_left = NULL;
        PyErr_Fetch(&type, &value, &trace);
        visit_python(self, &visit);
        result = PyObject_CallNoArgs(then);
        leave_python(self, &visit);
        if (!result && PyErr_ExceptionMatches(error_type))
            PyErr_WriteUnraisable(then); /* that it cannot be given back concerns nobody who called */
        else if (!result)
            code = -1; /* the rest goes back with the last reference to it, as all that is dropped */
        Py_XDECREF(result);
        Py_DECREF(then);
        gd_restore(type, value, trace, NULL);
    }
    drop_rings(rings);
    return code;
}
