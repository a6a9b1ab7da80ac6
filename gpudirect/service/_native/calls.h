/* SPDX-License-Identifier: MIT */
/*
 * gpudirect.service._native._calls: Caller, the base of gpudirect.Service, and Call, the base of its
 * futures.
 *
 * What happens in every call is done here: pack the arguments (function.c), choose a lane, send, spin
 * for the reply (lanes.c), make a Python object of it. Whatever is not the plain case goes to Python
 * methods of the subclass (_pack, _refuse, _check, and those that make exceptions), which also compose
 * the error messages.
 *
 * Lanes and slots change under the GIL only. It is given up while a reply takes its time.
 */
#ifndef GPUDIRECT_SERVICE_CALLS_H
#define GPUDIRECT_SERVICE_CALLS_H

#include "../../_native/lane.h"
#include "../../_native/objects.h"

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
    PyObject *keep; /* the Call of a future; else what holds the memory that the call may touch */
    uint32_t sequence;
    enum owner owner;
};

typedef struct {
    struct gd_lane ring;
    struct slot *slots;
    uint32_t swept; /* up to this call nobody awaits a reply any more */
    int lent;       /* to C code that sends calls of its own */
} Lane;

/*
 * The lanes of a service from one start to the next stop. They stay as long as a thread is inside, a
 * future refers to them, or the service has no others.
 */
typedef struct {
    Lane *lanes;
    int lane_count;
    int references;
    int inside;          /* threads inside call(), submit() or result(): the memory must stay */
    int shut;            /* no more calls; what is open fails */
    PyObject *failure;   /* with this exception */
    PyObject *kept;      /* a list, of what shut lanes still held */
    PyObject *when_left; /* called when they are shut, and nobody is inside any more */
} Rings;

/* Python code that runs below one of our functions: it may call any of them. On that one's stack. */
struct visit {
    unsigned long thread;
    struct visit *next;
};

typedef struct {
    PyObject_HEAD
    Rings *rings;         /* NULL before the first start */
    int open;
    unsigned forks;       /* gd_forks() when it was opened */
    struct visit *visits;
    PyObject *functions;  /* name -> Function */
    PyObject *device;
    PyObject *call_type;
    PyObject *weakrefs;
} Caller;

enum state { PENDING, ANSWERED, FAILED };

typedef struct {
    PyObject_HEAD
    Caller *caller;
    Rings *rings;
    Function *function;
    PyObject *holds;     /* the memory that the function may touch, until the call is over */
    int lane;
    uint32_t sequence;
    PyObject *callbacks; /* a list of those to be told when it is over, or NULL: watch() */
    enum state state;
    struct p2pmod_reply reply;
    PyObject *failure;   /* an exception, of a FAILED one */
    PyObject *weakrefs;
} Call;

extern PyType_Spec Function_spec, Caller_spec, Call_spec;
extern PyTypeObject *call_type; /* what Call_spec became */
extern PyObject *error_type;      /* gpudirect.Error */
extern const struct gd_lane_api *api;

/* Whether the rings are those of this process: a child of fork() has none of its parent's. */
static inline int reachable(const Caller *self)
{
    return self->forks == *api->forks;
}

/* -- function.c -- */

extern PyObject *s_piece, *s_device, *s_ptr, *s_dtype; /* names of attributes */

/*
 * The arguments as bytes of the packet, `to` having room for them, and in *holds, which is NULL before,
 * what keeps memory that they point to (NULL: nothing). 0, or -1 with an exception.
 */
int pack(Caller *self, Function *function, PyObject *const *args, Py_ssize_t count, char *to,
         PyObject **holds);
PyObject *unpack(const Function *function, uint64_t value);

/* -- errors.c -- */

/* Call a method of the subclass. A new reference, or NULL with an exception. */
PyObject *invoke(Caller *self, const char *method, const char *format, ...);
/* Raise the exception that a method made; takes the reference, which may be NULL. */
void raise_made(PyObject *made);
/* A status as an exception: a new reference, or NULL with another one. */
PyObject *made_of_status(Caller *self, Function *function, const struct p2pmod_reply *reply);
void raise_status(Caller *self, Function *function, const struct p2pmod_reply *reply);
/* 0, or -1 with an exception that says why no calls are taken. */
int closed(Caller *self);
/* The same for lanes that a thread has been inside of for a while. */
int closed_since(Caller *self, const Rings *rings);

/* Around whatever runs Python code that may come back to us. */
static inline void visit_python(Caller *self, struct visit *visit)
{
    visit->thread = PyThread_get_thread_ident();
    visit->next = self->visits;
    self->visits = visit;
}
void leave_python(Caller *self, struct visit *visit);

/* -- lanes.c -- */

static inline struct slot *slot_of(const Lane *lane, uint32_t sequence)
{
    return &lane->slots[sequence & (lane->ring.slots - 1)];
}

/* From here on the rings stay; they may be shut. */
static inline void enter(Rings *rings)
{
    rings->inside++;
    rings->references++;
}
/*
 * The last one to leave shut rings gives their memory back. 0, or -1 with an exception that a signal's
 * handler raised there; keeps an exception that is set.
 */
int leave(Caller *self, Rings *rings);
Rings *new_rings(int lanes);
void drop_rings(Rings *rings);

int settle(Lane *lane, struct slot *slot);
int sweep(Lane *lane);
int await_reply(Caller *self, Rings *rings, Lane *lane, uint32_t sequence, int64_t timeout,
                struct p2pmod_reply *reply);
Lane *take_slot(Caller *self, Rings *rings, Function *function, int wanted, int64_t timeout);
int send(Caller *self, Lane *lane, const Function *function, const char *block);

/* -- call.c -- */

/*
 * A call is over: let the memory go, and tell whoever asked for it. Keeps an exception that is set. What is
 * raised while they are told is set when all are: who called must look, where nothing is lost.
 */
void finish(Call *call, enum state state);

#endif
