/* SPDX-License-Identifier: MIT */
/* Call, the base of futures: one call that was sent, and what became of it. */
#include "calls.h"

#include <errno.h>

void finish(Call *call, enum state state)
{
    PyObject *type, *value, *trace, *result;
    struct visit visit;

    call->state = state;
    if (!call->holds && !call->watched)
        return;
    PyErr_Fetch(&type, &value, &trace); /* a signal's, perhaps */
    Py_CLEAR(call->holds);
    if (call->watched) {
        visit_python(call->caller, &visit);
        result = PyObject_CallMethod((PyObject *)call, "_finished", NULL);
        leave_python(call->caller, &visit);
        if (!result)
            PyErr_WriteUnraisable((PyObject *)call);
        Py_XDECREF(result);
    }
    PyErr_Restore(type, value, trace);
}

/* Look for the reply; whether the call is over. */
static int over(Call *self)
{
    Rings *rings = self->rings;

    if (self->state == PENDING && reachable(self->caller)) {
        Lane *lane = &rings->lanes[self->lane];

        enter(rings);
        settle(lane, slot_of(lane, self->sequence));
        leave(self->caller, rings);
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
    Py_ssize_t given = nargs + (kwnames ? PyTuple_Size(kwnames) : 0);
    int64_t timeout = -1;

    if (given > 1 || (kwnames && PyTuple_Size(kwnames) &&
                      PyUnicode_CompareWithASCIIString(PyTuple_GetItem(kwnames, 0), "timeout"))) {
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
        Rings *rings = self->rings;
        int code;

        if (closed_since(caller, rings))
            return NULL;
        enter(rings);
        code = await_reply(caller, rings, &rings->lanes[self->lane], self->sequence, timeout,
                           &ignored);
        leave(caller, rings);
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
    if (self->state != PENDING)
        Py_RETURN_NONE;
    const struct gd_lane *ring = &self->rings->lanes[self->lane].ring;

    return Py_BuildValue(
        "KKI",
        (unsigned long long)ring->replies +
            (unsigned long long)(self->sequence & (ring->slots - 1)) * P2PMOD_REPLY_BYTES,
        (unsigned long long)(uintptr_t)ring, self->sequence);
}

static PyObject *Call_get_name(Call *self, void *ignored)
{
    (void)ignored;
    return self->function ? Py_NewRef(self->function->name) : Py_NewRef(Py_None);
}

static int Call_traverse(Call *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->caller);
    Py_VISIT(self->holds);
    Py_VISIT(self->failure);
    return 0;
}

static int Call_clear(Call *self)
{
    Py_CLEAR(self->holds);
    Py_CLEAR(self->failure);
    return 0; /* the caller stays: result() wants it */
}

static void Call_dealloc(Call *self)
{
    PyObject_GC_UnTrack(self);
    if (self->weakrefs)
        PyObject_ClearWeakRefs((PyObject *)self);
    Call_clear(self);
    drop_rings(self->rings);
    Py_XDECREF((PyObject *)self->caller);
    Py_XDECREF((PyObject *)self->function);
    gd_free((PyObject *)self, 1);
}

static PyMethodDef Call_methods[] = {
    {"done", (PyCFunction)Call_done, METH_NOARGS,
     "done()\n--\n\nWhether the reply is there, or the call has failed. Never waits."},
    {"result", (PyCFunction)(void (*)(void))Call_result, METH_FASTCALL | METH_KEYWORDS,
     "result(timeout=None)\n--\n\nWait for the result, at most ``timeout`` seconds; 0 looks once.\n\n"
     "Raises what the call raised, or CallTimeoutError; it can be asked again then."},
    {"_watch", (PyCFunction)Call_watch, METH_NOARGS, "Have _finished() called when it is over."},
    {"_awaited", (PyCFunction)Call_awaited, METH_NOARGS, "(address of the reply, of its lane, sequence)"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef Call_members[] = {
    {"function", (getter)Call_get_name, NULL, "Name of the function called.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef Call_fields[] = {
    {"_service", T_OBJECT, offsetof(Call, caller), READONLY, "Whose call it is."},
    {"lane", T_INT, offsetof(Call, lane), READONLY, "Number of the lane that it went through."},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Call, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot Call_slots[] = {
    {Py_tp_doc, "A call that was sent."},
    {Py_tp_dealloc, Call_dealloc},
    {Py_tp_traverse, Call_traverse},
    {Py_tp_clear, Call_clear},
    {Py_tp_methods, Call_methods},
    {Py_tp_getset, Call_members},
    {Py_tp_members, Call_fields},
    {0, NULL},
};

PyType_Spec Call_spec = {
    .name = "gpudirect.service._native._calls.Call",
    .basicsize = sizeof(Call),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Call_slots,
};
