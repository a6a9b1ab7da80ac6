/* SPDX-License-Identifier: MIT */
/* Exceptions, which Python methods of the service make, and compose the words of. */
#include "calls.h"

PyObject *invoke(Caller *self, const char *method, const char *format, ...)
{
    PyObject *function = PyObject_GetAttrString((PyObject *)self, method), *args, *result = NULL;
    struct visit visit;
    va_list list;

    if (!function)
        return NULL;
    va_start(list, format);
    args = Py_VaBuildValue(format, list);
    va_end(list);
    if (args) {
        visit_python(self, &visit);
        result = PyObject_Call(function, args, NULL);
        leave_python(self, &visit);
    }
    Py_XDECREF(args);
    Py_DECREF(function);
    return result;
}

void raise_made(PyObject *made)
{
    if (made) {
        PyErr_SetObject((PyObject *)Py_TYPE(made), made);
        Py_DECREF(made);
    }
}

int closed(Caller *self)
{
    PyObject *result;

    if (self->open && reachable(self))
        return 0;
    result = invoke(self, "_refuse", "()");
    if (result) {
        Py_DECREF(result);
        PyErr_SetString(PyExc_RuntimeError, "the service is not running");
    }
    return -1;
}

int closed_since(Caller *self, const Rings *rings)
{
    if (!rings->shut && reachable(self))
        return 0;
    if (!closed(self)) /* it has been started anew */
        PyErr_SetObject((PyObject *)Py_TYPE(rings->failure), rings->failure);
    return -1;
}

void leave_python(Caller *self, struct visit *visit)
{
    struct visit **at = &self->visits; /* threads take turns, so ours need not be the first */

    while (*at != visit)
        at = &(*at)->next;
    *at = visit->next;
}

PyObject *made_of_status(Caller *self, Function *function, const struct p2pmod_reply *reply)
{
    return invoke(self, "_call_error", "(OIK)", function->name, reply->status,
                  (unsigned long long)reply->value);
}

void raise_status(Caller *self, Function *function, const struct p2pmod_reply *reply)
{
    raise_made(made_of_status(self, function, reply));
}
