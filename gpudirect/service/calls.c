/* SPDX-License-Identifier: MIT */
/*
 * gpudirect.service._calls: Caller, the base of gpudirect.Service, and Call, the base of its futures.
 *
 * What happens in every call is done here: pack the arguments, choose a lane, send, spin for the
 * reply, make a Python object of it. Whatever is not the plain case goes to Python methods of the
 * subclass (_pack, _refuse, _check, _finished, and those that make exceptions), which also compose
 * the error messages.
 *
 * Lanes and slots change under the GIL only. It is given up while a reply takes its time.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <math.h>
#include <structmember.h>

#include "../_native/lane.h"

#define SPIN 20000          /* ns that a reply is awaited with the GIL held: longer than most take */
#define CHUNK 5000000       /* ns between looks for signals, and whether the service is alive */
#define EAGER 1000000       /* ns after which a waiting thread sleeps between looks */
#define ARGUMENTS_MAX 4096  /* bytes; the Python side refuses longer lists */

static const struct gd_lane_api *api; /* NULL in a child process, whose mappings are gone */
static PyObject *s_piece, *s_device, *s_ptr, *s_dtype; /* names of attributes */

/* ---- Function: how arguments are packed, and results unpacked ---- */

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

static int Function_init(Function *self, PyObject *args, PyObject *kwargs)
{
    PyObject *name, *mapped, *fields;
    int result_kind;

    (void)kwargs;
    if (!PyArg_ParseTuple(args, "UOIICIO!:Function", &name, &mapped, &self->number, &self->size,
                          &result_kind, &self->result_size, &PyTuple_Type, &fields))
        return -1;
    if (self->size > ARGUMENTS_MAX || self->fields) {
        PyErr_SetString(PyExc_ValueError, "Function: too many bytes, or initialised twice");
        return -1;
    }
    self->result_kind = (char)result_kind;
    self->name = Py_NewRef(name);
    self->mapped = Py_NewRef(mapped);
    self->fields = PyMem_Calloc((size_t)PyTuple_GET_SIZE(fields) + 1, sizeof(struct field));
    if (!self->fields) {
        PyErr_NoMemory();
        return -1;
    }
    self->count = PyTuple_GET_SIZE(fields);
    for (Py_ssize_t i = 0; i < self->count; i++) {
        struct field *f = &self->fields[i];
        int kind;

        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(fields, i), "CII", &kind, &f->size, &f->offset))
            return -1;
        f->kind = (char)kind;
        if ((uint64_t)f->offset + f->size > self->size) {
            PyErr_SetString(PyExc_ValueError, "Function: a parameter behind the end");
            return -1;
        }
    }
    return 0;
}

static void Function_dealloc(Function *self)
{
    for (Py_ssize_t i = 0; self->fields && i < self->count; i++)
        Py_XDECREF(self->fields[i].dtype);
    PyMem_Free(self->fields);
    Py_XDECREF(self->name);
    Py_XDECREF(self->mapped);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyTypeObject FunctionType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "gpudirect.service._calls.Function",
    .tp_basicsize = sizeof(Function),
    .tp_init = (initproc)Function_init,
    .tp_new = PyType_GenericNew,
    .tp_dealloc = (destructor)Function_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Function(name, array type, number, bytes, result kind, result size, parameters)",
};

static int pack_integer(const struct field *f, PyObject *value, char *to)
{
    int overflow;
    long long n = PyLong_AsLongLongAndOverflow(value, &overflow);
    int bits = (int)f->size * 8;

    if (overflow > 0 && f->kind == 'u' && f->size == 8) {
        unsigned long long u = PyLong_AsUnsignedLongLong(value);

        if (PyErr_Occurred())
            return -1;
        memcpy(to, &u, 8);
        return 0;
    }
    if (overflow || (n == -1 && PyErr_Occurred()))
        return -1;
    if (f->kind == 'u') {
        if (n < 0 || (bits < 64 && n >> bits))
            return -1;
    } else if (bits < 64 && (n >> (bits - 1)) != 0 && (n >> (bits - 1)) != -1) {
        return -1;
    }
    memcpy(to, &n, f->size); /* little-endian, as every machine that has a GPU for us */
    return 0;
}

static int pack_float(const struct field *f, PyObject *value, char *to)
{
    double d = PyFloat_CheckExact(value) ? PyFloat_AS_DOUBLE(value) : PyFloat_AsDouble(value);
    float single = (float)d;

    if (d == -1.0 && PyErr_Occurred())
        return -1;
    if (f->size == 8) {
        memcpy(to, &d, 8);
        return 0;
    }
    if (f->size != 4 || (isinf(single) && !isinf(d)))
        return -1;
    memcpy(to, &single, 4);
    return 0;
}

/* An open array of this device whose elements were found fit before. */
static int pack_array(const struct field *f, PyObject *value, PyObject *device, char *to)
{
    PyObject *piece, *found;
    unsigned long long address;
    int same;

    found = PyObject_GetAttr(value, s_dtype);
    same = found && found == f->dtype;
    Py_XDECREF(found);
    if (!same)
        return -1;
    piece = PyObject_GetAttr(value, s_piece);
    if (!piece || piece == Py_None) {
        Py_XDECREF(piece);
        return -1;
    }
    found = PyObject_GetAttr(piece, s_device);
    Py_DECREF(piece);
    same = found && found == device;
    Py_XDECREF(found);
    if (!same)
        return -1;
    found = PyObject_GetAttr(value, s_ptr);
    if (!found)
        return -1;
    address = PyLong_AsUnsignedLongLong(found);
    Py_DECREF(found);
    if (PyErr_Occurred())
        return -1;
    memcpy(to, &address, 8);
    return 0;
}

/* 0, or -1 where the plain way does not do (whether or not an exception is set). */
static int pack_one(const Function *function, const struct field *f, PyObject *value,
                    PyObject *device, char *to)
{
    switch (f->kind) {
    case 'i':
    case 'u':
        return PyLong_CheckExact(value) ? pack_integer(f, value, to) : -1;
    case 'f':
        return PyFloat_Check(value) || PyLong_CheckExact(value) ? pack_float(f, value, to) : -1;
    case 'b':
        if (!PyBool_Check(value))
            return -1;
        *to = value == Py_True;
        return 0;
    case 'p':
        if (value == Py_None) {
            memset(to, 0, 8);
            return 0;
        }
        if (f->dtype && PyObject_TypeCheck(value, (PyTypeObject *)function->mapped))
            return pack_array(f, value, device, to);
        return -1;
    case 's':
        if (!PyBytes_CheckExact(value) || PyBytes_GET_SIZE(value) != (Py_ssize_t)f->size)
            return -1;
        memcpy(to, PyBytes_AS_STRING(value), f->size);
        return 0;
    }
    return -1;
}

static PyObject *unpack(const Function *function, uint64_t value)
{
    union {
        uint64_t bits;
        int8_t i1;
        int16_t i2;
        int32_t i4;
        int64_t i8;
        float f4;
        double f8;
    } v = {.bits = value};

    switch (function->result_kind) {
    case 'v':
        Py_RETURN_NONE;
    case 'b':
        return PyBool_FromLong((long)(value & 0xff));
    case 'f':
        if (function->result_size == 4)
            return PyFloat_FromDouble((double)v.f4);
        return PyFloat_FromDouble(v.f8);
    case 'i':
        switch (function->result_size) {
        case 1: return PyLong_FromLong(v.i1);
        case 2: return PyLong_FromLong(v.i2);
        case 4: return PyLong_FromLong(v.i4);
        }
        return PyLong_FromLongLong(v.i8);
    case 's':
        return PyBytes_FromStringAndSize((const char *)&v.bits, function->result_size);
    }
    if (function->result_size < 8)
        value &= (1ull << function->result_size * 8) - 1;
    return PyLong_FromUnsignedLongLong(value);
}

/* ---- Caller and Call ---- */

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

static PyTypeObject CallerType, CallType;

/* -- exceptions that the subclass makes -- */

static PyObject *invoke(Caller *self, const char *method, const char *format, ...)
{
    PyObject *function = PyObject_GetAttrString((PyObject *)self, method), *args, *result = NULL;
    va_list list;

    if (!function)
        return NULL;
    va_start(list, format);
    args = Py_VaBuildValue(format, list);
    va_end(list);
    if (args)
        result = PyObject_Call(function, args, NULL);
    Py_XDECREF(args);
    Py_DECREF(function);
    return result;
}

static void raise_made(PyObject *made)
{
    if (made) {
        PyErr_SetObject((PyObject *)Py_TYPE(made), made);
        Py_DECREF(made);
    }
}

/* -- slots -- */

static struct slot *slot_of(const Lane *lane, uint32_t sequence)
{
    return &lane->slots[sequence & (lane->ring.slots - 1)];
}

static void finish(Call *call, enum state state)
{
    call->state = state;
    Py_CLEAR(call->arguments);
    if (call->watched) {
        PyObject *result = PyObject_CallMethod((PyObject *)call, "_finished", NULL);

        if (!result)
            PyErr_WriteUnraisable((PyObject *)call);
        Py_XDECREF(result);
    }
}

/*
 * If the reply to the call in a slot is there and no thread waits for it: take it, free the slot.
 * Callbacks may run then: other threads as well, and all of this anew.
 */
static int settle(Lane *lane, struct slot *slot)
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

static void sweep(Lane *lane)
{
    while (lane->swept != lane->ring.sent) {
        uint32_t next = lane->swept + 1;

        if (!settle(lane, slot_of(lane, next)))
            break;
        if (lane->swept + 1 == next) /* or a callback, or a thread beside it, has done so */
            lane->swept = next;
    }
}

/* -- waiting -- */

/*
 * Wait for the reply to call `sequence`. 0 when it is there, or when another thread has taken it and
 * the slot is that of a later call; -ETIMEDOUT; or -1 with an exception, when a signal came or the
 * service is no more.
 */
static int await_reply(Caller *self, Lane *lane, uint32_t sequence, int64_t timeout,
                       struct p2pmod_reply *reply)
{
    int64_t first = timeout >= 0 && timeout < SPIN ? timeout : SPIN;
    const struct slot *slot = slot_of(lane, sequence);
    struct gd_awaited one = {
        lane->ring.replies + (uintptr_t)(slot - lane->slots) * P2PMOD_REPLY_BYTES, sequence};
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
        if (PyErr_CheckSignals())
            return -1;
        alive = invoke(self, "_check", "()");
        if (!alive)
            return -1;
        Py_DECREF(alive);
    }
}

/* -- sending -- */

static int closed(Caller *self)
{
    PyObject *result;

    if (api && self->open)
        return 0;
    result = invoke(self, "_refuse", "()");
    if (result) {
        Py_DECREF(result);
        PyErr_SetString(PyExc_RuntimeError, "the service is not running");
    }
    return -1;
}

/*
 * A lane whose next slot is free: an idle one, else the one with the fewest calls open, else wait.
 * NULL with an exception.
 */
static Lane *take_slot(Caller *self, Function *function, int wanted, int64_t timeout)
{
    uint64_t start = 0;

    for (;;) {
        Lane *best = NULL;
        struct p2pmod_reply ignored;
        struct slot *slot;
        int64_t left = -1;
        int code;

        if (closed(self))
            return NULL;
        for (int i = 0; i < self->lane_count; i++) {
            Lane *lane = &self->lanes[i];

            if (lane->lent || (wanted >= 0 && i != wanted))
                continue;
            sweep(lane);
            if (!best || lane->ring.sent - lane->swept < best->ring.sent - best->swept)
                best = lane;
            if (best->ring.sent == best->swept)
                break;
        }
        if (!best) {
            raise_made(invoke(self, "_lane_wrong", "(li)", (long)wanted, 1));
            return NULL;
        }
        slot = slot_of(best, best->ring.sent + 1);
        if (slot->owner == NOBODY)
            return best;
        if (settle(best, slot))
            continue; /* a callback may have let another thread take it: look again */
        if (!start)
            start = api->now();
        if (timeout >= 0)
            left = timeout - (int64_t)(api->now() - start);
        code = left == 0 || (timeout >= 0 && left < 0)
                   ? -ETIMEDOUT
                   : await_reply(self, best, slot->sequence, left, &ignored);
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

struct request {
    Function *function;
    int64_t timeout; /* ns; < 0: none */
    int lane;        /* < 0: any */
    char block[ARGUMENTS_MAX] __attribute__((aligned(16)));
};

/* Fetched: a positional argument list without keywords. */
static int pack(Caller *self, struct request *r, PyObject *const *args, Py_ssize_t count)
{
    Function *function = r->function;
    PyObject *list, *block;
    Py_ssize_t i;

    if (count == function->count) {
        memset(r->block, 0, function->size);
        for (i = 0; i < count; i++) {
            const struct field *f = &function->fields[i];

            if (pack_one(function, f, args[i], self->device, r->block + f->offset))
                break;
        }
        if (i == count)
            return 0;
        PyErr_Clear();
    }
    list = PyTuple_New(count);
    if (!list)
        return -1;
    for (i = 0; i < count; i++)
        PyTuple_SET_ITEM(list, i, Py_NewRef(args[i]));
    block = invoke(self, "_pack", "(OO)", function->name, list);
    Py_DECREF(list);
    if (!block)
        return -1;
    if (!PyBytes_CheckExact(block) || PyBytes_GET_SIZE(block) != (Py_ssize_t)function->size) {
        PyErr_SetString(PyExc_RuntimeError, "_pack: not the arguments of this function");
        Py_DECREF(block);
        return -1;
    }
    memcpy(r->block, PyBytes_AS_STRING(block), function->size);
    Py_DECREF(block);
    /* what was found fit the long way goes the short way from now on */
    for (i = 0; i < count; i++) {
        struct field *f = &function->fields[i];

        if (f->kind == 'p' && PyObject_TypeCheck(args[i], (PyTypeObject *)function->mapped)) {
            PyObject *dtype = PyObject_GetAttr(args[i], s_dtype);

            if (!dtype)
                return -1;
            Py_XSETREF(f->dtype, dtype);
        }
    }
    return 0;
}

static int parse(Caller *self, struct request *r, PyObject *const *args, Py_ssize_t nargs,
                 PyObject *kwnames)
{
    PyObject *found;

    r->timeout = -1;
    r->lane = -1;
    if (closed(self))
        return -1;
    for (Py_ssize_t i = 0; kwnames && i < PyTuple_GET_SIZE(kwnames); i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i), *value = args[nargs + i];

        if (PyUnicode_CompareWithASCIIString(name, "timeout") == 0) {
            double seconds;

            if (value == Py_None)
                continue;
            seconds = PyFloat_AsDouble(value);
            if (seconds == -1.0)
                PyErr_Clear(); /* what is no number is refused like one that is too small */
            if (!(seconds >= 0)) {
                raise_made(invoke(self, "_timeout_wrong", "(O)", value));
                return -1;
            }
            r->timeout = seconds > 9e9 ? -1 : (int64_t)(seconds * 1e9);
        } else if (PyUnicode_CompareWithASCIIString(name, "lane") == 0) {
            long lane;

            if (value == Py_None)
                continue;
            lane = PyLong_AsLong(value);
            if (lane == -1 && PyErr_Occurred())
                return -1;
            if (lane < 0 || lane >= self->lane_count) {
                raise_made(invoke(self, "_lane_wrong", "(li)", lane, 0));
                return -1;
            }
            r->lane = (int)lane;
        } else {
            PyErr_Format(PyExc_TypeError, "no keyword %R here: there are timeout and lane", name);
            return -1;
        }
    }
    if (nargs < 1) {
        PyErr_SetString(PyExc_TypeError, "give the function's name, then its arguments");
        return -1;
    }
    found = PyDict_GetItemWithError(self->functions, args[0]);
    if (!found) {
        if (!PyErr_Occurred()) {
            found = invoke(self, "_unknown", "(O)", args[0]);
            raise_made(found);
        }
        return -1;
    }
    r->function = (Function *)found;
    return pack(self, r, args + 1, nargs - 1);
}

/* The slot's call was sent; 0, or -1 with an exception. */
static int send(Caller *self, Lane *lane, const struct request *r)
{
    int code = api->send(&lane->ring, r->function->number, r->block, r->function->size);

    if (!code)
        return 0;
    raise_made(invoke(self, "_send_error", "(Oi)", r->function->name, -code));
    return -1;
}

/* A status as an exception. */
static void raise_status(Caller *self, Function *function, const struct p2pmod_reply *reply)
{
    raise_made(invoke(self, "_call_error", "(OIK)", function->name, reply->status,
                      (unsigned long long)reply->value));
}

static PyObject *call(Caller *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    struct request r;
    struct p2pmod_reply reply;
    struct slot *slot;
    uint32_t sequence;
    Lane *lane;
    int code;

    if (parse(self, &r, args, nargs, kwnames))
        return NULL;
    lane = take_slot(self, r.function, r.lane, r.timeout);
    if (!lane || send(self, lane, &r))
        return NULL;
    sequence = lane->ring.sent;
    slot = slot_of(lane, sequence);
    slot->sequence = sequence;
    slot->owner = WAITER;
    code = await_reply(self, lane, sequence, r.timeout, &reply);
    if (code) { /* the function may still use its arguments */
        PyObject *type, *value, *trace;

        PyErr_Fetch(&type, &value, &trace);
        if (self->lanes) {
            slot->keep = PyTuple_New(nargs);
            for (Py_ssize_t i = 0; slot->keep && i < nargs; i++)
                PyTuple_SET_ITEM(slot->keep, i, Py_NewRef(args[i]));
            slot->owner = ABANDONED;
        }
        PyErr_Restore(type, value, trace);
        if (code == -ETIMEDOUT)
            raise_made(invoke(self, "_timeout_error", "(Odi)", r.function->name, r.timeout / 1e9,
                              0));
        return NULL;
    }
    slot->owner = NOBODY;
    if (lane->swept + 1 == sequence)
        lane->swept = sequence;
    if (reply.status) {
        raise_status(self, r.function, &reply);
        return NULL;
    }
    return unpack(r.function, reply.value);
}

static PyObject *Caller_call(Caller *self, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames)
{
    PyObject *result;

    self->waiting++;
    result = call(self, args, nargs, kwnames);
    self->waiting--;
    return result;
}

static PyObject *submit(Caller *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyTypeObject *type = (PyTypeObject *)self->call_type;
    struct request r;
    struct slot *slot;
    Lane *lane;
    Call *call;

    if (parse(self, &r, args, nargs, kwnames))
        return NULL;
    call = (Call *)type->tp_alloc(type, 0);
    if (!call)
        return NULL;
    call->caller = (Caller *)Py_NewRef(self);
    call->function = (Function *)Py_NewRef(r.function);
    call->arguments = PyTuple_New(nargs);
    if (!call->arguments)
        goto failed;
    for (Py_ssize_t i = 0; i < nargs; i++)
        PyTuple_SET_ITEM(call->arguments, i, Py_NewRef(args[i]));
    lane = take_slot(self, r.function, r.lane, r.timeout);
    if (!lane || send(self, lane, &r))
        goto failed;
    call->lane = (int)(lane - self->lanes);
    call->sequence = lane->ring.sent;
    slot = slot_of(lane, call->sequence);
    slot->sequence = call->sequence;
    slot->owner = FUTURE;
    slot->keep = Py_NewRef(call);
    return (PyObject *)call;

failed:
    call->state = FAILED;
    Py_DECREF(call);
    return NULL;
}

static PyObject *Caller_submit(Caller *self, PyObject *const *args, Py_ssize_t nargs,
                               PyObject *kwnames)
{
    PyObject *result;

    self->waiting++;
    result = submit(self, args, nargs, kwnames);
    self->waiting--;
    return result;
}

static void drop_lanes(Caller *self)
{
    Lane *lanes = self->lanes;
    int count = self->lane_count;

    self->lanes = NULL;
    self->lane_count = 0;
    for (int i = 0; i < count; i++) {
        for (uint32_t s = 0; lanes[i].slots && s < lanes[i].ring.slots; s++)
            Py_CLEAR(lanes[i].slots[s].keep);
        PyMem_Free(lanes[i].slots);
    }
    PyMem_Free(lanes);
}

static PyObject *Caller_open(Caller *self, PyObject *args)
{
    PyObject *lanes, *functions, *device, *call_type;
    unsigned slots, flags, store;
    int count;

    if (!PyArg_ParseTuple(args, "O!IIIO!OO:_open", &PyTuple_Type, &lanes, &slots, &flags, &store,
                          &PyDict_Type, &functions, &device, &call_type))
        return NULL;
    if (self->open || self->waiting || !PyType_Check(call_type) ||
        !PyType_IsSubtype((PyTypeObject *)call_type, &CallType) || slots & (slots - 1)) {
        PyErr_SetString(PyExc_ValueError, "_open: already open, or not what it wants");
        return NULL;
    }
    drop_lanes(self);
    count = (int)PyTuple_GET_SIZE(lanes);
    self->lanes = PyMem_Calloc((size_t)count, sizeof(Lane));
    if (!self->lanes)
        return PyErr_NoMemory();
    self->lane_count = count;
    for (int i = 0; i < count; i++) {
        unsigned long long packets, replies, arguments, arguments_device;
        struct gd_lane *ring = &self->lanes[i].ring;

        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(lanes, i), "KKKKI", &packets, &replies, &arguments,
                              &arguments_device, &ring->stride))
            goto failed;
        ring->packets = (uintptr_t)packets;
        ring->replies = (uintptr_t)replies;
        ring->arguments = (uintptr_t)arguments;
        ring->arguments_device = arguments_device;
        ring->slots = slots;
        ring->flags = flags;
        ring->store = store;
        self->lanes[i].slots = PyMem_Calloc(slots, sizeof(struct slot));
        if (!self->lanes[i].slots) {
            PyErr_NoMemory();
            goto failed;
        }
    }
    Py_XSETREF(self->functions, Py_NewRef(functions));
    Py_XSETREF(self->device, Py_NewRef(device));
    Py_XSETREF(self->call_type, Py_NewRef(call_type));
    self->open = 1;
    Py_RETURN_NONE;

failed:
    drop_lanes(self);
    return NULL;
}

/*
 * No more calls. Futures whose reply is not there fail with the exception; waiting threads notice.
 * The arguments of such calls go to the list `kept`: a function may still run on them.
 */
static PyObject *Caller_shut(Caller *self, PyObject *args)
{
    PyObject *failure, *kept;

    if (!PyArg_ParseTuple(args, "OO!:_shut", &failure, &PyList_Type, &kept))
        return NULL;
    self->open = 0;
    self->waiting++;
    for (int i = 0; i < self->lane_count; i++) {
        Lane *lane = &self->lanes[i];

        if (api)
            sweep(lane);
        for (uint32_t s = 0; s < lane->ring.slots; s++) {
            struct slot *slot = &lane->slots[s];
            PyObject *keep;

            if (slot->owner == NOBODY || slot->owner == WAITER || (api && settle(lane, slot)))
                continue;
            keep = slot->keep;
            slot->keep = NULL;
            if (slot->owner == ABANDONED && keep && PyList_Append(kept, keep))
                PyErr_Clear(); /* without memory for a list no harm can be kept off */
            if (slot->owner == FUTURE) {
                Call *call = (Call *)keep;

                if (call->arguments && PyList_Append(kept, call->arguments))
                    PyErr_Clear();
                call->failure = Py_NewRef(failure);
                slot->owner = NOBODY;
                finish(call, FAILED);
            }
            slot->owner = NOBODY;
            Py_XDECREF(keep);
        }
    }
    self->waiting--;
    Py_RETURN_NONE;
}

static PyObject *Caller_lend(Caller *self, PyObject *number)
{
    long i = PyLong_AsLong(number);
    Lane *lane;

    if (i == -1 && PyErr_Occurred())
        return NULL;
    if (closed(self))
        return NULL;
    if (i < 0 || i >= self->lane_count) {
        raise_made(invoke(self, "_lane_wrong", "(li)", i, 0));
        return NULL;
    }
    lane = &self->lanes[i];
    self->waiting++;
    sweep(lane);
    self->waiting--;
    if (lane->lent || lane->swept != lane->ring.sent) {
        raise_made(invoke(self, "_lane_wrong", "(li)", i, lane->lent ? 1 : 2));
        return NULL;
    }
    lane->lent = 1;
    return PyLong_FromUnsignedLong(lane->ring.sent);
}

static PyObject *Caller_get_waiting(Caller *self, void *ignored)
{
    (void)ignored;
    return PyLong_FromLong(self->waiting);
}

static PyObject *Caller_get_open(Caller *self, void *ignored)
{
    (void)ignored;
    return PyBool_FromLong(self->open);
}

/* Calls sent whose replies nobody has taken, of each lane. */
static PyObject *Caller_get_pending(Caller *self, void *ignored)
{
    PyObject *list = PyTuple_New(self->lane_count);

    (void)ignored;
    self->waiting++;
    for (int i = 0; list && i < self->lane_count; i++) {
        Lane *lane = &self->lanes[i];

        if (api && self->open)
            sweep(lane);
        PyTuple_SET_ITEM(list, i, PyLong_FromUnsignedLong(lane->ring.sent - lane->swept));
    }
    self->waiting--;
    return list;
}

static int Caller_traverse(Caller *self, visitproc visit, void *arg)
{
    Py_VISIT(self->functions);
    Py_VISIT(self->device);
    Py_VISIT(self->call_type);
    for (int i = 0; i < self->lane_count; i++)
        for (uint32_t s = 0; self->lanes[i].slots && s < self->lanes[i].ring.slots; s++)
            Py_VISIT(self->lanes[i].slots[s].keep);
    return 0;
}

static int Caller_clear(Caller *self)
{
    self->open = 0;
    drop_lanes(self);
    Py_CLEAR(self->functions);
    Py_CLEAR(self->device);
    Py_CLEAR(self->call_type);
    return 0;
}

static void Caller_dealloc(Caller *self)
{
    if (PyObject_CallFinalizerFromDealloc((PyObject *)self))
        return;
    PyObject_GC_UnTrack(self);
    if (self->weakrefs)
        PyObject_ClearWeakRefs((PyObject *)self);
    Caller_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef Caller_methods[] = {
    {"call", (PyCFunction)(void (*)(void))Caller_call, METH_FASTCALL | METH_KEYWORDS,
     "call(function, /, *arguments, timeout=None, lane=None)\n--\n\n"
     "Call a function of the service, and return its result.\n\n"
     "timeout: seconds to wait for room in the lane, and then for the reply; 0 looks once.\n"
     "lane: which one; by default one with nothing to do, else the one with the fewest calls.\n"
     "Raises what the function's status says, ArgumentError, DTypeError, CallTimeoutError,\n"
     "ServiceError."},
    {"submit", (PyCFunction)(void (*)(void))Caller_submit, METH_FASTCALL | METH_KEYWORDS,
     "submit(function, /, *arguments, timeout=None, lane=None)\n--\n\n"
     "Send a call and return its Future at once, or when the lane has room for it.\n\n"
     "timeout: seconds to wait for room; 0 does not wait. Otherwise as call()."},
    {"_open", (PyCFunction)Caller_open, METH_VARARGS,
     "_open(lanes, slots, flags, store, functions, device, call type)"},
    {"_lend", (PyCFunction)Caller_lend, METH_O,
     "_lend(lane): send no more calls through it; the number of the last one."},
    {"_shut", (PyCFunction)Caller_shut, METH_VARARGS,
     "_shut(exception of calls that are still open, list for their arguments)"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef Caller_members[] = {
    {"_waiting", (getter)Caller_get_waiting, NULL, "Threads that look at rings.", NULL},
    {"_opened", (getter)Caller_get_open, NULL, "Whether calls are taken.", NULL},
    {"pending", (getter)Caller_get_pending, NULL,
     "Calls sent and not yet answered, of each lane.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject CallerType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "gpudirect.service._calls.Caller",
    .tp_basicsize = sizeof(Caller),
    .tp_dealloc = (destructor)Caller_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_doc = "Lanes, and calls through them.",
    .tp_traverse = (traverseproc)Caller_traverse,
    .tp_clear = (inquiry)Caller_clear,
    .tp_weaklistoffset = offsetof(Caller, weakrefs),
    .tp_methods = Caller_methods,
    .tp_getset = Caller_members,
    .tp_new = PyType_GenericNew,
};

/* ---- Call ---- */

/* Look for the reply; whether the call is over. */
static int over(Call *self)
{
    if (self->state == PENDING && api && self->caller->lanes) {
        Lane *lane = &self->caller->lanes[self->lane];

        self->caller->waiting++;
        settle(lane, slot_of(lane, self->sequence));
        self->caller->waiting--;
    }
    return self->state != PENDING;
}

static PyObject *Call_done(Call *self, PyObject *ignored)
{
    (void)ignored;
    return PyBool_FromLong(over(self));
}

static PyObject *Call_result(Call *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    Py_ssize_t given = nargs + (kwnames ? PyTuple_GET_SIZE(kwnames) : 0);
    int64_t timeout = -1;

    if (given > 1 || (kwnames && PyTuple_GET_SIZE(kwnames) &&
                      PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), "timeout"))) {
        PyErr_SetString(PyExc_TypeError, "result() takes timeout only");
        return NULL;
    }
    if (given && args[0] != Py_None) {
        double seconds = PyFloat_AsDouble(args[0]);

        if (seconds == -1.0 && PyErr_Occurred())
            return NULL;
        timeout = !(seconds > 0) ? 0 : seconds > 9e9 ? -1 : (int64_t)(seconds * 1e9);
    }
    while (!over(self)) {
        struct p2pmod_reply ignored;
        Caller *caller = self->caller;
        int code;

        if (closed(caller))
            return NULL;
        caller->waiting++;
        code = await_reply(caller, &caller->lanes[self->lane], self->sequence, timeout, &ignored);
        caller->waiting--;
        if (code == -ETIMEDOUT && !over(self)) {
            raise_made(invoke(caller, "_timeout_error", "(Odi)", self->function->name,
                              timeout / 1e9, 0));
            return NULL;
        }
        if (code && code != -ETIMEDOUT) {
            if (!over(self) || !self->failure)
                return NULL;
            PyErr_Clear(); /* it has failed for the same reason */
        }
    }
    if (self->state == FAILED) {
        PyErr_SetObject((PyObject *)Py_TYPE(self->failure), self->failure);
        return NULL;
    }
    if (self->reply.status) {
        raise_status(self->caller, self->function, &self->reply);
        return NULL;
    }
    return unpack(self->function, self->reply.value);
}

/* Whether _finished() will be called: not if the call is over already. */
static PyObject *Call_watch(Call *self, PyObject *ignored)
{
    (void)ignored;
    if (over(self))
        Py_RETURN_FALSE;
    self->watched = 1;
    Py_RETURN_TRUE;
}

static PyObject *Call_awaited(Call *self, PyObject *ignored)
{
    (void)ignored;
    if (self->state != PENDING || !self->caller->lanes)
        Py_RETURN_NONE;
    const struct gd_lane *ring = &self->caller->lanes[self->lane].ring;

    return Py_BuildValue(
        "KI",
        (unsigned long long)ring->replies +
            (unsigned long long)(self->sequence & (ring->slots - 1)) * P2PMOD_REPLY_BYTES,
        self->sequence);
}

static PyObject *Call_get_name(Call *self, void *ignored)
{
    (void)ignored;
    return self->function ? Py_NewRef(self->function->name) : Py_NewRef(Py_None);
}

static int Call_traverse(Call *self, visitproc visit, void *arg)
{
    Py_VISIT(self->caller);
    Py_VISIT(self->arguments);
    Py_VISIT(self->failure);
    return 0;
}

static int Call_clear(Call *self)
{
    Py_CLEAR(self->arguments);
    Py_CLEAR(self->failure);
    return 0; /* the caller stays: result() wants it */
}

static void Call_dealloc(Call *self)
{
    PyObject_GC_UnTrack(self);
    if (self->weakrefs)
        PyObject_ClearWeakRefs((PyObject *)self);
    Call_clear(self);
    Py_XDECREF(self->caller);
    Py_XDECREF(self->function);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef Call_methods[] = {
    {"done", (PyCFunction)Call_done, METH_NOARGS,
     "done()\n--\n\nWhether the reply is there, or the call has failed. Never waits."},
    {"result", (PyCFunction)(void (*)(void))Call_result, METH_FASTCALL | METH_KEYWORDS,
     "result(timeout=None)\n--\n\nWait for the result, at most ``timeout`` seconds; 0 looks once.\n\n"
     "Raises what the call raised, or CallTimeoutError; it can be asked again then."},
    {"_watch", (PyCFunction)Call_watch, METH_NOARGS, "Have _finished() called when it is over."},
    {"_awaited", (PyCFunction)Call_awaited, METH_NOARGS, "(address of the reply, sequence)"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef Call_members[] = {
    {"function", (getter)Call_get_name, NULL, "Name of the function called.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef Call_fields[] = {
    {"_service", T_OBJECT, offsetof(Call, caller), READONLY, "Whose call it is."},
    {"lane", T_INT, offsetof(Call, lane), READONLY, "Number of the lane that it went through."},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject CallType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "gpudirect.service._calls.Call",
    .tp_basicsize = sizeof(Call),
    .tp_dealloc = (destructor)Call_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_doc = "A call that was sent.",
    .tp_traverse = (traverseproc)Call_traverse,
    .tp_clear = (inquiry)Call_clear,
    .tp_weaklistoffset = offsetof(Call, weakrefs),
    .tp_methods = Call_methods,
    .tp_getset = Call_members,
    .tp_members = Call_fields,
};

/* ---- the module ---- */

static PyObject *bind(PyObject *module, PyObject *address)
{
    (void)module;
    api = PyLong_AsVoidPtr(address);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef module_methods[] = {
    {"bind", bind, METH_O, "bind(address of struct gd_lane_api): where lanes are done."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "gpudirect.service._calls",
    .m_doc = "The quick part of services.",
    .m_size = -1,
    .m_methods = module_methods,
};

PyMODINIT_FUNC PyInit__calls(void)
{
    PyObject *m;

    s_piece = PyUnicode_InternFromString("_piece");
    s_device = PyUnicode_InternFromString("device");
    s_ptr = PyUnicode_InternFromString("ptr");
    s_dtype = PyUnicode_InternFromString("dtype");
    if (!s_piece || !s_device || !s_ptr || !s_dtype)
        return NULL;
    if (PyType_Ready(&FunctionType) || PyType_Ready(&CallerType) || PyType_Ready(&CallType))
        return NULL;
    m = PyModule_Create(&module);
    if (m && (PyModule_AddObjectRef(m, "Function", (PyObject *)&FunctionType) ||
              PyModule_AddObjectRef(m, "Caller", (PyObject *)&CallerType) ||
              PyModule_AddObjectRef(m, "Call", (PyObject *)&CallType) ||
              PyModule_AddIntConstant(m, "ARGUMENTS_MAX", ARGUMENTS_MAX))) {
        Py_DECREF(m);
        return NULL;
    }
    return m;
}
