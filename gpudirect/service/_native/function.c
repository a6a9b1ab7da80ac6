/* SPDX-License-Identifier: MIT */
/*
 * Function: how the arguments of a call are packed, and its result made a Python object.
 *
 * Plain cases are done here. Whatever else there is goes to Python: Service._pack.
 */
#include "calls.h"

#include <math.h>
#include <string.h>

PyObject *s_piece, *s_device, *s_ptr, *s_dtype; /* names of attributes */

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
    self->fields = PyMem_Calloc((size_t)PyTuple_Size(fields) + 1, sizeof(struct field));
    if (!self->fields) {
        PyErr_NoMemory();
        return -1;
    }
    self->count = PyTuple_Size(fields);
    for (Py_ssize_t i = 0; i < self->count; i++) {
        struct field *f = &self->fields[i];
        int kind;

        if (!PyArg_ParseTuple(PyTuple_GetItem(fields, i), "CII", &kind, &f->size, &f->offset))
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
    gd_free((PyObject *)self, 0);
}

static PyType_Slot Function_slots[] = {
    {Py_tp_doc, "Function(name, array type, number, bytes, result kind, result size, parameters)"},
    {Py_tp_init, Function_init},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, Function_dealloc},
    {0, NULL},
};

PyType_Spec Function_spec = {
    .name = "gpudirect.service._native._calls.Function",
    .basicsize = sizeof(Function),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = Function_slots,
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
    double d = PyFloat_AsDouble(value);
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

/* Add one to what holds memory; takes the reference. 0, or -1. */
static int hold(PyObject **holds, PyObject *owner)
{
    int code;

    if (!*holds) {
        *holds = owner;
        return 0;
    }
    if (!PyList_CheckExact(*holds)) {
        PyObject *list = PyList_New(1);

        if (!list) {
            Py_DECREF(owner);
            return -1;
        }
        PyList_SetItem(list, 0, *holds);
        *holds = list;
    }
    code = PyList_Append(*holds, owner);
    Py_DECREF(owner);
    return code;
}

/*
 * An open array of this device whose elements were found fit before. What is held is the memory, not
 * the array, which may be closed while the function still runs.
 */
static int pack_array(const struct field *f, PyObject *value, PyObject *device, char *to,
                      PyObject **holds)
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
    if (hold(holds, piece))
        return -1;
    found = PyObject_GetAttr(piece, s_device);
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
                    PyObject *device, char *to, PyObject **holds)
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
            return pack_array(f, value, device, to, holds);
        return -1;
    case 's':
        if (!PyBytes_CheckExact(value) || PyBytes_Size(value) != (Py_ssize_t)f->size)
            return -1;
        memcpy(to, PyBytes_AsString(value), f->size);
        return 0;
    }
    return -1;
}

PyObject *unpack(const Function *function, uint64_t value)
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

/* What was found fit the long way goes the short way from now on. 0, or -1 with an exception. */
static int learn(Function *function, PyObject *const *args, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        struct field *f = &function->fields[i];

        if (f->kind == 'p' && PyObject_TypeCheck(args[i], (PyTypeObject *)function->mapped)) {
            PyObject *dtype = PyObject_GetAttr(args[i], s_dtype);

            if (!dtype)
                return -1;
            gd_replace(&f->dtype, dtype);
        }
    }
    return 0;
}

int pack(Caller *self, Function *function, PyObject *const *args, Py_ssize_t count, char *to,
         PyObject **holds)
{
    PyObject *list, *block, *owners;
    Py_ssize_t i;

    if (count == function->count) {
        memset(to, 0, function->size);
        for (i = 0; i < count; i++) {
            const struct field *f = &function->fields[i];

            if (pack_one(function, f, args[i], self->device, to + f->offset, holds))
                break;
        }
        if (i == count)
            return 0;
        Py_CLEAR(*holds);
        if (gd_forget()) /* attributes of arrays may be Python code */
            return -1;
    }
    list = PyTuple_New(count);
    if (!list)
        return -1;
    for (i = 0; i < count; i++)
        PyTuple_SetItem(list, i, Py_NewRef(args[i]));
    list = invoke(self, "_pack", "(ON)", function->name, list);
    if (!list)
        return -1;
    if (!PyArg_ParseTuple(list, "SO!:_pack", &block, &PyTuple_Type, &owners) ||
        PyBytes_Size(block) != (Py_ssize_t)function->size) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "_pack: not the arguments of this function");
        Py_DECREF(list);
        return -1;
    }
    memcpy(to, PyBytes_AsString(block), function->size);
    if (PyTuple_Size(owners))
        *holds = Py_NewRef(owners);
    Py_DECREF(list);
    return learn(function, args, count);
}
