/* SPDX-License-Identifier: MIT */
/*
 * Caller, the base of gpudirect.Service: finds the function and a lane, sends, waits for the reply,
 * makes a Python object of it.
 */
#include "calls.h"

#include <errno.h>

struct request {
    Function *function;
    int64_t timeout; /* ns; < 0: none */
    int lane;        /* < 0: any */
    char block[ARGUMENTS_MAX] __attribute__((aligned(16)));
};

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
    return pack(self, r->function, args + 1, nargs - 1, r->block);
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
    if (!lane || send(self, lane, r.function, r.block))
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
    if (!lane || send(self, lane, r.function, r.block))
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
        unsigned long long packets, replies, arguments, arguments_device, told, wake;
        struct gd_lane *ring = &self->lanes[i].ring;

        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(lanes, i), "KKKKIKK", &packets, &replies,
                              &arguments, &arguments_device, &ring->stride, &told, &wake))
            goto failed;
        ring->packets = (uintptr_t)packets;
        ring->replies = (uintptr_t)replies;
        ring->arguments = (uintptr_t)arguments;
        ring->arguments_device = arguments_device;
        ring->told = (uintptr_t)told;
        ring->wake = (uintptr_t)wake;
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
    self->forks = *api->forks;
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

        if (reachable(self))
            sweep(lane);
        for (uint32_t s = 0; s < lane->ring.slots; s++) {
            struct slot *slot = &lane->slots[s];
            PyObject *keep;

            if (slot->owner == NOBODY || slot->owner == WAITER || (reachable(self) && settle(lane, slot)))
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

        if (self->open && reachable(self))
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

PyTypeObject CallerType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "gpudirect.service._native._calls.Caller",
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
