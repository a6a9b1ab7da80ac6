/* SPDX-License-Identifier: MIT */
/* Call, the base of futures: one call that was sent, and what became of it. */
#include "calls.h"

#include <errno.h>

#define TRIES 100 /* how often one that must be told is: each failure was a signal of its own */

/*
 * Tell those that wait, in turn. What a callback raises is logged, if it is an Exception: it is its own.
 * Anything else is a signal's, so the others are told first; then it is raised. One that must be told is
 * told again: if it raises, its call was interrupted anywhere, at its very beginning too.
 */
static void tell(Call *self)
{
    PyObject *type, *value, *trace;
    struct visit visit;

    PyErr_Fetch(&type, &value, &trace); /* a signal's, perhaps */
    visit_python(self->caller, &visit);
    while (self->callbacks && PyList_Size(self->callbacks)) {
        /* taken out without a bytecode, so that it is neither lost nor told twice */
        PyObject *entry = Py_NewRef(PyList_GetItem(self->callbacks, 0));
        PyObject *callback = PyTuple_GetItem(entry, 0);
        int again = PyTuple_GetItem(entry, 1) == Py_True;
        int tries = PyList_SetSlice(self->callbacks, 0, 1, NULL) ? 0 : again ? TRIES : 1;

        for (; tries; tries--) {
            PyObject *done = PyObject_CallFunctionObjArgs(callback, (PyObject *)self, NULL);

            if (!done && !again && PyErr_ExceptionMatches(PyExc_Exception)) {
                PyObject *its_type, *its_value, *its_trace;

                PyErr_Fetch(&its_type, &its_value, &its_trace);
                PyErr_NormalizeException(&its_type, &its_value, &its_trace);
                if (its_trace)
                    PyException_SetTraceback(its_value, its_trace);
                done = PyObject_CallMethod((PyObject *)self, "_log", "O", its_value);
                Py_XDECREF(its_type);
                Py_XDECREF(its_value);
                Py_XDECREF(its_trace);
            }
            if (done) {
                Py_DECREF(done);
                break;
            }
            gd_restore(type, value, trace, (PyObject *)self);
            PyErr_Fetch(&type, &value, &trace);
        }
        Py_DECREF(entry);
    }
    leave_python(self->caller, &visit);
    PyErr_Restore(type, value, trace);
}

void finish(Call *call, enum state state)
{
    PyObject *type, *value, *trace;

    call->state = state;
    if (call->holds) {
        PyErr_Fetch(&type, &value, &trace);
        Py_CLEAR(call->holds);
        PyErr_Restore(type, value, trace);
    }
    if (call->callbacks)
        tell(call);
}

/* Look for the reply; whether the call is over. An exception may be set: of a signal's handler. */
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

/* Seconds as nanoseconds; -1: for ever. */
static int64_t nanoseconds(double seconds)
{
    return !(seconds > 0) ? 0 : seconds > 9e9 ? -1 : (int64_t)(seconds * 1e9);
}

/* The one argument of result() and exception(), -1 without. 0, or -1 with an exception. */
static int given_timeout(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames, int64_t *timeout)
{
    Py_ssize_t named = kwnames ? PyTuple_Size(kwnames) : 0;

    *timeout = -1;
    if (nargs + named > 1 ||
        (named && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(kwnames, 0), "timeout"))) {
        PyErr_SetString(PyExc_TypeError, "result() and exception() take timeout only");
        return -1;
    }
    if (nargs + named && args[0] != Py_None) {
        double seconds = PyFloat_AsDouble(args[0]);

        if (seconds == -1.0 && PyErr_Occurred())
            return -1;
        *timeout = nanoseconds(seconds);
    }
    return 0;
}

/* Wait until the call is over. 1: it is; 0: not in time; -1 with an exception, and it can be asked again. */
static int await_over(Call *self, int64_t timeout)
{
    while (!over(self)) {
        struct p2pmod_reply ignored;
        Caller *caller = self->caller;
        Rings *rings = self->rings;
        int code;

        if (PyErr_Occurred() || closed_since(caller, rings))
            return -1;
        enter(rings);
        code = await_reply(caller, rings, &rings->lanes[self->lane], self->sequence, timeout,
                           &ignored);
        if (leave(caller, rings))
            return -1;
        if (code == -ETIMEDOUT && !over(self))
            return PyErr_Occurred() ? -1 : 0;
        if (code && code != -ETIMEDOUT) {
            if (code == -EINTR || !over(self) || !self->failure ||
                !PyErr_ExceptionMatches(error_type))
                return -1;
            PyErr_Clear(); /* it has failed for the same reason; an Error is no signal's */
        }
    }
    return PyErr_Occurred() ? -1 : 1;
}

/* await_over(), where a call that is not over in time raises CallTimeoutError: 0, or -1 with an exception. */
static int demand_over(Call *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    int64_t timeout;
    int is_over;

    if (given_timeout(args, nargs, kwnames, &timeout))
        return -1;
    is_over = await_over(self, timeout);
    if (!is_over)
        raise_made(invoke(self->caller, "_timeout_error", "(Odi)", self->function->name,
                          timeout / 1e9, 0));
    return is_over > 0 ? 0 : -1;
}

static PyObject *Call_done(Call *self, PyObject *ignored)
{
    int is_over = over(self);

    (void)ignored;
    return PyErr_Occurred() ? NULL : PyBool_FromLong(is_over);
}

static PyObject *Call_result(Call *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    if (demand_over(self, args, nargs, kwnames))
        return NULL;
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

/* What result() raises; it is not caught for that, since a signal's handler may raise there as well. */
static PyObject *Call_exception(Call *self, PyObject *const *args, Py_ssize_t nargs,
                                PyObject *kwnames)
{
    if (demand_over(self, args, nargs, kwnames))
        return NULL;
    if (self->state == FAILED)
        return Py_NewRef(self->failure);
    if (self->reply.status)
        return made_of_status(self->caller, self->function, &self->reply);
    Py_RETURN_NONE;
}

static PyObject *Call_wait(Call *self, PyObject *value)
{
    double seconds = PyFloat_AsDouble(value);
    int is_over;

    if (seconds == -1.0 && PyErr_Occurred())
        return NULL;
    is_over = await_over(self, nanoseconds(seconds));
    return is_over < 0 ? NULL : PyBool_FromLong(is_over);
}

static PyObject *Call_failed(Call *self, PyObject *ignored)
{
    (void)ignored;
    return PyBool_FromLong(self->state == FAILED ||
                           (self->state == ANSWERED && self->reply.status));
}

/* If an exception comes out of it, the callback was told already, or will not be. */
static PyObject *Call_watch(Call *self, PyObject *args)
{
    PyObject *callback, *again, *entry;
    int is_over, failed;

    if (!PyArg_ParseTuple(args, "OO!:_watch", &callback, &PyBool_Type, &again))
        return NULL;
    is_over = over(self);
    if (PyErr_Occurred())
        return NULL;
    entry = PyTuple_Pack(2, callback, again);
    if (!entry || (!self->callbacks && !(self->callbacks = PyList_New(0)))) {
        Py_XDECREF(entry);
        return NULL;
    }
    failed = PyList_Append(self->callbacks, entry);
    Py_DECREF(entry);
    if (failed)
        return NULL;
    if (!is_over)
        Py_RETURN_TRUE;
    tell(self);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_FALSE;
}

static PyObject *Call_forget(Call *self, PyObject *callback)
{
    Py_ssize_t i = self->callbacks ? PyList_Size(self->callbacks) : 0;

    while (i--)
        if (PyTuple_GetItem(PyList_GetItem(self->callbacks, i), 0) == callback) {
            if (PyList_SetSlice(self->callbacks, i, i + 1, NULL))
                return NULL;
            break;
        }
    Py_RETURN_NONE;
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
    Py_VISIT(self->callbacks);
    Py_VISIT(self->failure);
    return 0;
}

static int Call_clear(Call *self)
{
    Py_CLEAR(self->holds);
    Py_CLEAR(self->callbacks);
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
    {"exception", (PyCFunction)(void (*)(void))Call_exception, METH_FASTCALL | METH_KEYWORDS,
     "exception(timeout=None)\n--\n\n"
     "What the call raised, or None. Waits as result() does; raises CallTimeoutError."},
    {"_wait", (PyCFunction)Call_wait, METH_O,
     "_wait(seconds): whether it is over by then. Raises nothing of the call's."},
    {"_failed", (PyCFunction)Call_failed, METH_NOARGS, "Whether it is over, and result() raises."},
    {"_watch", (PyCFunction)Call_watch, METH_VARARGS,
     "_watch(callback, again): have callback(self) called when it is over, at once if it is.\n\n"
     "True: not yet, so somebody must look. again: it must get to its end, and may be called again\n"
     "where a signal's handler raised in it; it raises nothing of its own."},
    {"_forget", (PyCFunction)Call_forget, METH_O, "_forget(callback): it is not called any more."},
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
