/* SPDX-License-Identifier: MIT */
/*
 * Caller, the base of gpudirect.Service: finds the function and a lane, sends, waits for the reply,
 * makes a Python object of it.
 */
#include "calls.h"

#include <errno.h>

struct request {
    Function *function;
    PyObject *holds; /* what keeps the memory that the arguments point to, or NULL */
    int64_t timeout; /* ns; < 0: none */
    int lane;        /* < 0: any */
    char block[ARGUMENTS_MAX] __attribute__((aligned(16)));
};

/* The number of a lane, or -1 with an exception. */
static int lane_number(Caller *self, PyObject *value)
{
    long lane = PyLong_AsLong(value);

    if (lane == -1 && gd_forget()) /* what is no number is refused like one that is too small */
        return -1;
    if (lane >= 0 && self->rings && lane < self->rings->lane_count)
        return (int)lane;
    raise_made(invoke(self, "_lane_wrong", "(Oi)", value, 0));
    return -1;
}

static int parse(Caller *self, struct request *r, PyObject *const *args, Py_ssize_t nargs,
                 PyObject *kwnames)
{
    PyObject *found;

    r->timeout = -1;
    r->lane = -1;
    r->holds = NULL;
    for (Py_ssize_t i = 0; kwnames && i < PyTuple_Size(kwnames); i++) {
        PyObject *name = PyTuple_GetItem(kwnames, i), *value = args[nargs + i];

        if (PyUnicode_CompareWithASCIIString(name, "timeout") == 0) {
            double seconds;

            if (value == Py_None)
                continue;
            seconds = PyFloat_AsDouble(value);
            if (seconds == -1.0 && gd_forget()) /* as above */
                return -1;
            if (!(seconds >= 0)) {
                raise_made(invoke(self, "_timeout_wrong", "(O)", value));
                return -1;
            }
            r->timeout = seconds > 9e9 ? -1 : (int64_t)(seconds * 1e9);
        } else if (PyUnicode_CompareWithASCIIString(name, "lane") == 0) {
            if (value == Py_None)
                continue;
            r->lane = lane_number(self, value);
            if (r->lane < 0)
                return -1;
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
    if (pack(self, r->function, args + 1, nargs - 1, r->block, &r->holds)) {
        Py_CLEAR(r->holds);
        return -1;
    }
    return 0;
}

/* What holds memory that a function of shut lanes may still use. Keeps an exception that is set. */
static void keep_for_good(const Rings *rings, PyObject *holds)
{
    PyObject *type, *value, *trace;

    if (!holds || !rings->kept)
        return;
    PyErr_Fetch(&type, &value, &trace);
    if (PyList_Append(rings->kept, holds))
        PyErr_Clear(); /* no memory for a list, so no harm can be kept off; no Python code ran */
    PyErr_Restore(type, value, trace);
}

/* A waiting thread gives up, with an exception or -ETIMEDOUT: the function may still run. */
static void abandon(Rings *rings, struct slot *slot)
{
    if (!rings->shut) {
        slot->owner = ABANDONED;
        return;
    }
    keep_for_good(rings, slot->keep);
    slot->owner = NOBODY;
    Py_CLEAR(slot->keep);
}

static PyObject *call(Caller *self, Rings *rings, PyObject *const *args, Py_ssize_t nargs,
                      PyObject *kwnames)
{
    struct request r;
    struct p2pmod_reply reply;
    struct slot *slot;
    uint32_t sequence;
    Lane *lane;
    int code;

    if (parse(self, &r, args, nargs, kwnames))
        return NULL;
    lane = take_slot(self, rings, r.function, r.lane, r.timeout);
    if (!lane || send(self, lane, r.function, r.block)) {
        Py_XDECREF(r.holds);
        return NULL;
    }
    sequence = lane->ring.sent;
    slot = slot_of(lane, sequence);
    slot->sequence = sequence;
    slot->owner = WAITER;
    slot->keep = r.holds;
    code = await_reply(self, rings, lane, sequence, r.timeout, &reply);
    if (code) {
        abandon(rings, slot);
        if (code == -ETIMEDOUT)
            raise_made(invoke(self, "_timeout_error", "(Odi)", r.function->name, r.timeout / 1e9,
                              0));
        return NULL;
    }
    slot->owner = NOBODY;
    if (lane->swept + 1 == sequence)
        lane->swept = sequence;
    Py_CLEAR(slot->keep);
    if (reply.status) {
        raise_status(self, r.function, &reply);
        return NULL;
    }
    return unpack(r.function, reply.value);
}

static PyObject *submit(Caller *self, Rings *rings, PyObject *const *args, Py_ssize_t nargs,
                        PyObject *kwnames)
{
    PyTypeObject *type = (PyTypeObject *)self->call_type;
    struct request r;
    struct slot *slot;
    Lane *lane;
    Call *call;

    if (parse(self, &r, args, nargs, kwnames))
        return NULL;
    call = (Call *)PyType_GenericAlloc(type, 0);
    if (!call) {
        Py_XDECREF(r.holds);
        return NULL;
    }
    call->caller = (Caller *)Py_NewRef((PyObject *)self);
    call->function = (Function *)Py_NewRef((PyObject *)r.function);
    call->rings = rings;
    rings->references++;
    call->holds = r.holds;
    lane = take_slot(self, rings, r.function, r.lane, r.timeout);
    if (!lane || send(self, lane, r.function, r.block)) {
        call->state = FAILED;
        Py_DECREF(call);
        return NULL;
    }
    call->lane = (int)(lane - rings->lanes);
    call->sequence = lane->ring.sent;
    slot = slot_of(lane, call->sequence);
    slot->sequence = call->sequence;
    slot->owner = FUTURE;
    slot->keep = Py_NewRef((PyObject *)call);
    return (PyObject *)call;
}

typedef PyObject *way(Caller *, Rings *, PyObject *const *, Py_ssize_t, PyObject *);

static inline PyObject *inside(way *what, Caller *self, PyObject *const *args, Py_ssize_t nargs,
                               PyObject *kwnames)
{
    Rings *rings = self->rings;
    PyObject *result;

    if (closed(self))
        return NULL;
    enter(rings);
    result = what(self, rings, args, nargs, kwnames);
    if (leave(self, rings))
        Py_CLEAR(result);
    return result;
}

static PyObject *Caller_call(Caller *self, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames)
{
    return inside(call, self, args, nargs, kwnames);
}

static PyObject *Caller_submit(Caller *self, PyObject *const *args, Py_ssize_t nargs,
                               PyObject *kwnames)
{
    return inside(submit, self, args, nargs, kwnames);
}

static PyObject *Caller_open(Caller *self, PyObject *args)
{
    PyObject *lanes, *functions, *device, *future;
    unsigned slots, flags, store;
    Rings *rings;

    if (!PyArg_ParseTuple(args, "O!IIIO!OO:_open", &PyTuple_Type, &lanes, &slots, &flags, &store,
                          &PyDict_Type, &functions, &device, &future))
        return NULL;
    if (self->open || !PyType_Check(future) ||
        !PyType_IsSubtype((PyTypeObject *)future, call_type) || slots & (slots - 1)) {
        PyErr_SetString(PyExc_ValueError, "_open: already open, or not what it wants");
        return NULL;
    }
    rings = new_rings((int)PyTuple_Size(lanes));
    if (!rings)
        return NULL;
    for (int i = 0; i < rings->lane_count; i++) {
        unsigned long long packets, replies, arguments, arguments_device, told, wake, park;
        struct gd_lane *ring = &rings->lanes[i].ring;

        if (!PyArg_ParseTuple(PyTuple_GetItem(lanes, i), "KKKKIKKK|I", &packets, &replies,
                              &arguments, &arguments_device, &ring->stride, &told, &wake, &park,
                              &ring->sent))
            goto failed;
        rings->lanes[i].swept = ring->taken = ring->sent;
        ring->packets = (uintptr_t)packets;
        ring->replies = (uintptr_t)replies;
        ring->arguments = (uintptr_t)arguments;
        ring->arguments_device = arguments_device;
        ring->told = (uintptr_t)told;
        ring->wake = (uintptr_t)wake;
        ring->park = (uintptr_t)park;
        ring->slots = slots;
        ring->flags = flags;
        ring->store = store;
        rings->lanes[i].slots = PyMem_Calloc(slots, sizeof(struct slot));
        if (!rings->lanes[i].slots) {
            PyErr_NoMemory();
            goto failed;
        }
    }
    gd_replace(&self->functions, Py_NewRef(functions));
    gd_replace(&self->device, Py_NewRef(device));
    gd_replace(&self->call_type, Py_NewRef(future));
    drop_rings(self->rings);
    self->rings = rings;
    self->forks = *api->forks;
    self->open = 1;
    Py_RETURN_NONE;

failed:
    drop_rings(rings);
    return NULL;
}

/*
 * No more calls. Futures whose reply is not there fail with the exception; waiting threads notice.
 * What held the memory of such calls goes to the list `kept`, if there is one: their functions may
 * still run.
 */
static PyObject *Caller_shut(Caller *self, PyObject *args)
{
    Rings *rings = self->rings;
    PyObject *failure, *kept;

    if (!PyArg_ParseTuple(args, "OO:_shut", &failure, &kept))
        return NULL;
    self->open = 0;
    if (!rings || rings->shut)
        Py_RETURN_NONE;
    enter(rings);
    rings->shut = 1;
    rings->failure = Py_NewRef(failure);
    rings->kept = PyList_Check(kept) ? Py_NewRef(kept) : NULL;
    for (int i = 0; i < rings->lane_count; i++) {
        Lane *lane = &rings->lanes[i];

        if (reachable(self))
            (void)sweep(lane); /* what it raised is raised at the end */
        for (uint32_t s = 0; s < lane->ring.slots; s++) {
            struct slot *slot = &lane->slots[s];
            PyObject *keep;

            if (slot->owner == NOBODY || slot->owner == WAITER ||
                (reachable(self) && settle(lane, slot)))
                continue;
            keep = slot->keep;
            slot->keep = NULL;
            keep_for_good(rings, slot->owner == FUTURE ? ((Call *)keep)->holds : keep);
            if (slot->owner == FUTURE) {
                slot->owner = NOBODY;
                ((Call *)keep)->failure = Py_NewRef(failure);
                finish((Call *)keep, FAILED);
            }
            slot->owner = NOBODY;
            Py_XDECREF(keep);
        }
    }
    leave(self, rings);
    if (PyErr_Occurred())
        return NULL; /* they are shut all the same, and all are told */
    Py_RETURN_NONE;
}

/* Call it when nobody is inside the shut lanes any more, which may be at once. */
static PyObject *Caller_when_left(Caller *self, PyObject *then)
{
    Rings *rings = self->rings;

    if (!rings || !rings->inside)
        return PyObject_CallNoArgs(then);
    gd_replace(&rings->when_left, Py_NewRef(then));
    Py_RETURN_NONE;
}

static PyObject *Caller_lend(Caller *self, PyObject *number)
{
    Rings *rings;
    Lane *lane;
    int i, code;

    if (closed(self))
        return NULL;
    i = lane_number(self, number);
    if (i < 0)
        return NULL;
    rings = self->rings;
    enter(rings);
    code = sweep(&rings->lanes[i]);
    if (leave(self, rings) || code || closed(self))
        return NULL;
    lane = &self->rings->lanes[i]; /* a callback may have started the service anew */
    if (lane->lent || lane->swept != lane->ring.sent) {
        raise_made(invoke(self, "_lane_wrong", "(ii)", i, lane->lent ? 1 : 2));
        return NULL;
    }
    lane->lent = 1;
    return PyLong_FromUnsignedLong(lane->ring.sent);
}

/* Threads inside the lanes that are open, or were last, without those that asked from inside. */
static PyObject *Caller_get_waiting(Caller *self, void *ignored)
{
    unsigned long me = PyThread_get_thread_ident();
    int others = self->rings ? self->rings->inside : 0;

    (void)ignored;
    for (const struct visit *v = self->visits; v; v = v->next)
        others -= v->thread == me;
    return PyLong_FromLong(others > 0 ? others : 0);
}

static PyObject *Caller_get_open(Caller *self, void *ignored)
{
    (void)ignored;
    return PyBool_FromLong(self->open);
}

/* Calls sent whose replies nobody has taken, of each lane. */
static PyObject *Caller_get_pending(Caller *self, void *ignored)
{
    Rings *rings = self->rings;
    PyObject *list = PyTuple_New(rings ? rings->lane_count : 0);

    (void)ignored;
    if (!rings || !list)
        return list;
    enter(rings);
    for (int i = 0; i < rings->lane_count; i++) {
        Lane *lane = &rings->lanes[i];
        PyObject *count;

        if (!rings->shut && reachable(self) && sweep(lane)) {
            Py_CLEAR(list);
            break;
        }
        count = PyLong_FromUnsignedLong(lane->ring.sent - lane->swept);
        if (!count) {
            Py_CLEAR(list);
            break;
        }
        PyTuple_SetItem(list, i, count);
    }
    if (leave(self, rings))
        Py_CLEAR(list);
    return list;
}

static int Caller_traverse(Caller *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->functions);
    Py_VISIT(self->device);
    Py_VISIT(self->call_type);
    for (int i = 0; self->rings && i < self->rings->lane_count; i++) {
        const Lane *lane = &self->rings->lanes[i];

        for (uint32_t s = 0; lane->slots && s < lane->ring.slots; s++)
            Py_VISIT(lane->slots[s].keep);
    }
    if (self->rings) { /* calls refer to the rings as well, but they refer to us */
        Py_VISIT(self->rings->failure); /* whose traceback leads back to us */
        Py_VISIT(self->rings->kept);
        Py_VISIT(self->rings->when_left);
    }
    return 0;
}

static int Caller_clear(Caller *self)
{
    Rings *rings = self->rings;

    self->open = 0;
    self->rings = NULL;
    if (rings)
        rings->shut = 1;
    for (int i = 0; rings && i < rings->lane_count; i++)
        for (uint32_t s = 0; rings->lanes[i].slots && s < rings->lanes[i].ring.slots; s++) {
            rings->lanes[i].slots[s].owner = NOBODY;
            Py_CLEAR(rings->lanes[i].slots[s].keep); /* futures, which refer to the rings */
        }
    drop_rings(rings);
    Py_CLEAR(self->functions);
    Py_CLEAR(self->device);
    Py_CLEAR(self->call_type);
    return 0;
}

static void Caller_dealloc(Caller *self)
{
    PyObject_GC_UnTrack(self);
    if (self->weakrefs)
        PyObject_ClearWeakRefs((PyObject *)self);
    Caller_clear(self);
    gd_free((PyObject *)self, 1);
}

static PyMethodDef Caller_methods[] = {
    {"call", (PyCFunction)(void (*)(void))Caller_call, METH_FASTCALL | METH_KEYWORDS,
     "call(function, /, *arguments, timeout=None, lane=None)\n--\n\n"
     "Call a function of the service, and return its result.\n\n"
     "timeout: seconds to wait for room in the lane, and then for the reply; 0 looks once.\n"
     "lane: which one; by default one with nothing to do, else the one with the fewest calls.\n"
     "Of another library's array, what its current stream has queued is waited for first; the timeout\n"
     "counts from then on. Arrays are taken as they are.\n"
     "Raises what the function's status says, ArgumentError, DTypeError, CallTimeoutError,\n"
     "ServiceError."},
    {"submit", (PyCFunction)(void (*)(void))Caller_submit, METH_FASTCALL | METH_KEYWORDS,
     "submit(function, /, *arguments, timeout=None, lane=None)\n--\n\n"
     "Send a call and return its Future at once, or when the lane has room for it.\n\n"
     "timeout: seconds to wait for room; 0 does not wait. Otherwise as call()."},
    {"_open", (PyCFunction)Caller_open, METH_VARARGS,
     "_open(lanes, slots, flags, store, functions, device, call type); of each lane its addresses, and\n"
     "the number of the last call sent through it."},
    {"_lend", (PyCFunction)Caller_lend, METH_O,
     "_lend(lane): send no more calls through it; the number of the last one."},
    {"_shut", (PyCFunction)Caller_shut, METH_VARARGS,
     "_shut(exception of calls that are still open, list for what holds their memory or None)"},
    {"_when_left", (PyCFunction)Caller_when_left, METH_O,
     "_when_left(callable): called when no thread is inside the shut lanes any more."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef Caller_members[] = {
    {"_waiting", (getter)Caller_get_waiting, NULL, "Other threads that look at rings.", NULL},
    {"_opened", (getter)Caller_get_open, NULL, "Whether calls are taken.", NULL},
    {"pending", (getter)Caller_get_pending, NULL,
     "Calls sent and not yet answered, of each lane.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef Caller_fields[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Caller, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot Caller_slots[] = {
    {Py_tp_doc, "Lanes, and calls through them."},
    {Py_tp_dealloc, Caller_dealloc},
    {Py_tp_traverse, Caller_traverse},
    {Py_tp_clear, Caller_clear},
    {Py_tp_methods, Caller_methods},
    {Py_tp_getset, Caller_members},
    {Py_tp_members, Caller_fields},
    {Py_tp_new, PyType_GenericNew},
    {0, NULL},
};

PyType_Spec Caller_spec = {
    .name = "gpudirect.service._native._calls.Caller",
    .basicsize = sizeof(Caller),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = Caller_slots,
};
