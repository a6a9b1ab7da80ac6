/* SPDX-License-Identifier: MIT */
/*
 * CPython, for every file that makes objects: each includes this by name, and so is none of _cffi's and in
 * no test of plain C. Built with its limited API where that has the buffer protocol (3.11 and later): one
 * build serves every later Python. So types are made from a specification, their objects hold them, and what
 * the limited API lacks is here.
 */
#ifndef GPUDIRECT_OBJECTS_H
#define GPUDIRECT_OBJECTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

/* Put an object, whose reference is taken, where another one was, which may be NULL. */
static inline void gd_replace(PyObject **place, PyObject *with)
{
    PyObject *old = *place;

    *place = with;
    Py_XDECREF(old);
}

/*
 * Put back what was put aside by PyErr_Fetch while other code ran, which may have raised as well. The first
 * stays, but what is no Exception (Ctrl-C) goes before what is one; the other is told as coming from `where`.
 */
static inline void gd_restore(PyObject *type, PyObject *value, PyObject *trace, PyObject *where)
{
    PyObject *later, *its_value, *its_trace;

    if (!type)
        return; /* what was raised since, if anything, stays */
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_Exception) &&
            PyErr_GivenExceptionMatches(type, PyExc_Exception)) {
            PyErr_Fetch(&later, &its_value, &its_trace);
            PyErr_Restore(type, value, trace);
            type = later;
            value = its_value;
            trace = its_trace;
        }
        PyErr_WriteUnraisable(where);
    }
    PyErr_Restore(type, value, trace);
}

/*
 * What was tried did not do, and something else is done instead: forget what it raised. 0, or -1 where that
 * is no Exception: a signal's handler raised it (Ctrl-C) while Python code ran, so it stays, to be returned.
 */
static inline int gd_forget(void)
{
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_Exception))
        return -1;
    PyErr_Clear();
    return 0;
}

/* The end of every tp_dealloc: objects of a heap type hold it. `collected`: of a type with a traverse. */
static inline void gd_free(PyObject *self, int collected)
{
    PyTypeObject *type = Py_TYPE(self);

    if (collected)
        PyObject_GC_Del(self);
    else
        PyObject_Free(self);
    Py_DECREF(type);
}

/* A type that Python code cannot change, and its name in the module if that is not NULL. NULL: failed. */
static inline PyTypeObject *gd_type(PyObject *module, PyType_Spec *spec, const char *name)
{
    PyObject *type;

    spec->flags |= Py_TPFLAGS_IMMUTABLETYPE;
    type = PyType_FromSpec(spec);
    if (type && name && PyModule_AddObjectRef(module, name, type))
        Py_CLEAR(type);
    return (PyTypeObject *)type;
}

/* Call with arguments as a METH_FASTCALL function gets them. A new reference, or NULL. */
static inline PyObject *gd_forward(PyObject *function, PyObject *const *args, Py_ssize_t nargs,
                                   PyObject *kwnames)
{
    PyObject *plain, *named = NULL, *result = NULL;
    Py_ssize_t names = kwnames ? PyTuple_Size(kwnames) : 0;

    if (nargs == 0 && names == 0)
        return PyObject_CallNoArgs(function);
    plain = PyTuple_New(nargs);
    if (names)
        named = PyDict_New();
    if (!plain || (names && !named))
        goto out;
    for (Py_ssize_t i = 0; i < nargs; i++)
        PyTuple_SetItem(plain, i, Py_NewRef(args[i]));
    for (Py_ssize_t i = 0; i < names; i++)
        if (PyDict_SetItem(named, PyTuple_GetItem(kwnames, i), args[nargs + i]))
            goto out;
    result = PyObject_Call(function, plain, named);
out:
    Py_XDECREF(plain);
    Py_XDECREF(named);
    return result;
}

#endif
