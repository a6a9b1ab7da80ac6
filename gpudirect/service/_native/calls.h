/* SPDX-License-Identifier: MIT */
/*
 * gpudirect.service._native._calls: Caller, the base of gpudirect.Service, and Call, the base of its
 * futures.
 *
 * What happens in every call is done here: pack the arguments (function.c), choose a lane, send, spin
 * for the reply (lanes.c), make a Python object of it. Whatever is not the plain case goes to Python
 * methods of the subclass (_pack, _refuse, _check, _finished, and those that make exceptions), which
 * also compose the error messages.
 *
 * Lanes and slots change under the GIL only. It is given up while a reply takes its time.
 */
#ifndef GPUDIRECT_SERVICE_CALLS_H
#define GPUDIRECT_SERVICE_CALLS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../../_native/lane.h"

#define ARGUMENTS_MAX 4096 /* bytes; the Python side refuses longer lists */

struct field {
    char kind;        /* as Parameter.kind */
    uint32_t size;
    uint32_t offset;
    PyObject *dtype;  /* of arrays that were found fit, or NULL */
};

typedef struct {
    PyObject_HEAD
    PyObject *name;
    PyObject *mapped;  /* the type of arrays */
    uint32_t number;
    uint32_t size;     /* bytes of arguments */
    Py_ssize_t count;
    struct field *fields;
    char result_kind;
    uint32_t result_size;
} Function;

/* Who takes the reply of the call in a slot. */
enum owner { NOBODY, WAITER, FUTURE, ABANDONED };

struct slot {
    PyObject *keep; /* the Call of a future; of an abandoned call its arguments */
    uint32_t sequence;
    enum owner owner;
};

typedef struct {
    struct gd_lane ring;
    struct slot *slots;
    uint32_t swept; /* up to this call nobody awaits a reply any more */
    int lent;       /* to C code that sends calls of its own */
} Lane;

typedef struct {
    PyObject_HEAD
    Lane *lanes;
    int lane_count;
    int open;
    unsigned forks;       /* gd_forks() when it was opened */
    int waiting;          /* threads inside call(), submit() or result(): rings must stay */
    PyObject *functions;  /* name -> Function */
    PyObject *device;
    PyObject *call_type;
    PyObject *weakrefs;
} Caller;

enum state { PENDING, ANSWERED, FAILED };

typedef struct {
    PyObject_HEAD
    Caller *caller;
    Function *function;
    PyObject *arguments; /* until the call is over: arrays must not go */
    int lane;
    uint32_t sequence;
    int watched;         /* call _finished() when it is over */
    enum state state;
    struct p2pmod_reply reply;
    PyObject *failure;   /* an exception, of a FAILED one */
    PyObject *weakrefs;
} Call;

extern PyTypeObject FunctionType, CallerType, CallType;
extern const struct gd_lane_api *api;

/* Whether the rings are those of this process: a child of fork() has none of its parent's. */
static inline int reachable(const Caller *self)
{
    return self->forks == *api->forks;
}

/* -- function.c -- */

extern PyObject *s_piece, *s_device, *s_ptr, *s_dtype; /* names of attributes */

/* The arguments as bytes of the packet, `to` having room for them. 0, or -1 with an exception. */
int pack(Caller *self, Function *function, PyObject *const *args, Py_ssize_t count, char *to);
PyObject *unpack(const Function *function, uint64_t value);

/* -- errors.c -- */

/* Call a method of the subclass. A new reference, or NULL with an exception. */
PyObject *invoke(Caller *self, const char *method, const char *format, ...);
/* Raise the exception that a method made; takes the reference, which may be NULL. */
void raise_made(PyObject *made);
/* A status as an exception. */
void raise_status(Caller *self, Function *function, const struct p2pmod_reply *reply);
/* 0, or -1 with an exception that says why no calls are taken. */
int closed(Caller *self);

/* -- lanes.c -- */

static inline struct slot *slot_of(const Lane *lane, uint32_t sequence)
{
    return &lane->slots[sequence & (lane->ring.slots - 1)];
}

int settle(Lane *lane, struct slot *slot);
void sweep(Lane *lane);
int await_reply(Caller *self, Lane *lane, uint32_t sequence, int64_t timeout,
                struct p2pmod_reply *reply);
Lane *take_slot(Caller *self, Function *function, int wanted, int64_t timeout);
int send(Caller *self, Lane *lane, const Function *function, const char *block);
void drop_lanes(Caller *self);

/* -- call.c -- */

/* A call is over: let its arguments go, and tell whoever asked for it. */
void finish(Call *call, enum state state);

#endif
