/* SPDX-License-Identifier: MIT */
/*
 * gpudirect._native._dlpack: DLPack capsules (https://dmlc.github.io/dlpack/latest/c_api.html).
 *
 * A capsule is consumed and its tensor deleted wherever the consumer likes: on a thread that never
 * ran Python, while an exception is on its way, or after the interpreter is gone. So the deleter is
 * C, takes the GIL by itself, leaves the present exception alone, and at exit leaves the memory to
 * the system.
 */
#include "objects.h"

#include <stdint.h>
#include <stdlib.h>

#define MOST_DIMS 64
#define MAJOR 1
#define MINOR 1 /* the first that knows floats of 8 bits and less */

struct tensor {
    void *data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides; /* strides in elements */
    uint64_t byte_offset;
};

struct plain {
    struct tensor tensor;
    void *context;
    void (*deleter)(struct plain *);
};

struct versioned {
    uint32_t major, minor;
    void *context;
    void (*deleter)(struct versioned *);
    uint64_t flags;
    struct tensor tensor;
};

static const char PLAIN[] = "dltensor", VERSIONED[] = "dltensor_versioned";
static const char USED_PLAIN[] = "used_dltensor", USED_VERSIONED[] = "used_dltensor_versioned";

/* ---- what we lend ---- */

struct export {
    union {
        struct plain plain;
        struct versioned versioned;
    };
    PyObject *keep;
    int64_t extents[2 * MOST_DIMS];
};

/* Consumers call it in the middle of anything. What finalizers raise, here as anywhere, Python tells. */
static void let_go(struct export *export)
{
    PyObject *type, *value, *trace;
    PyGILState_STATE state;

    if (!Py_IsInitialized())
        return; /* at exit the system takes everything back */
    state = PyGILState_Ensure();
    PyErr_Fetch(&type, &value, &trace);
    Py_CLEAR(export->keep);
    PyErr_Restore(type, value, trace);
    PyGILState_Release(state);
    free(export);
}

static void delete_plain(struct plain *managed)
{
    let_go(managed->context);
}

static void delete_versioned(struct versioned *managed)
{
    let_go(managed->context);
}

/* A capsule that nobody consumed (a consumer renames it) gives its tensor back itself. */
static void abandoned(PyObject *capsule)
{
    PyObject *type, *value, *trace;

    PyErr_Fetch(&type, &value, &trace);
    if (PyCapsule_IsValid(capsule, PLAIN)) {
        struct plain *managed = PyCapsule_GetPointer(capsule, PLAIN);

        managed->deleter(managed);
    } else if (PyCapsule_IsValid(capsule, VERSIONED)) {
        struct versioned *managed = PyCapsule_GetPointer(capsule, VERSIONED);

        managed->deleter(managed);
    }
    PyErr_Restore(type, value, trace);
}

static PyObject *lend(PyObject *module, PyObject *args)
{
    PyObject *keep, *shape, *strides, *capsule;
    unsigned long long address, flags;
    int device, id, code, bits, versioned;
    struct export *export;
    struct tensor *tensor;
    Py_ssize_t ndim;

    (void)module;
    if (!PyArg_ParseTuple(args, "OKO!O!(ii)iipK:lend", &keep, &address, &PyTuple_Type, &shape,
                          &PyTuple_Type, &strides, &code, &bits, &device, &id, &versioned, &flags))
        return NULL;
    ndim = PyTuple_Size(shape);
    if (ndim > MOST_DIMS || PyTuple_Size(strides) != ndim) {
        PyErr_SetString(PyExc_ValueError, "lend: shape and strides of at most 64 dimensions");
        return NULL;
    }
    export = calloc(1, sizeof(*export));
    if (!export)
        return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < ndim; i++) {
        export->extents[i] = PyLong_AsLongLong(PyTuple_GetItem(shape, i));
        export->extents[ndim + i] = PyLong_AsLongLong(PyTuple_GetItem(strides, i));
        if (PyErr_Occurred()) {
            free(export);
            return NULL;
        }
    }
    tensor = versioned ? &export->versioned.tensor : &export->plain.tensor;
    *tensor = (struct tensor){
        .data = (void *)(uintptr_t)address, .device_type = device, .device_id = id,
        .ndim = (int32_t)ndim, .code = (uint8_t)code, .bits = (uint8_t)bits, .lanes = 1,
        .shape = export->extents, .strides = export->extents + ndim,
    };
    if (versioned) {
        export->versioned.major = MAJOR;
        export->versioned.minor = MINOR;
        export->versioned.context = export;
        export->versioned.deleter = delete_versioned;
        export->versioned.flags = flags;
    } else {
        export->plain.context = export;
        export->plain.deleter = delete_plain;
    }
    export->keep = Py_NewRef(keep);
    capsule = PyCapsule_New(export, versioned ? VERSIONED : PLAIN, abandoned);
    if (!capsule)
        let_go(export);
    return capsule;
}

/* ---- what others lend us ---- */

typedef struct {
    PyObject_HEAD
    struct plain *plain;
    struct versioned *versioned;
} Borrowed;

static void Borrowed_dealloc(Borrowed *self)
{
    PyObject *type, *value, *trace;

    PyErr_Fetch(&type, &value, &trace);
    if (self->plain && self->plain->deleter)
        self->plain->deleter(self->plain);
    if (self->versioned && self->versioned->deleter)
        self->versioned->deleter(self->versioned);
    PyErr_Restore(type, value, trace);
    gd_free((PyObject *)self, 0);
}

static PyType_Slot Borrowed_slots[] = {
    {Py_tp_doc, "A tensor of somebody else; given back with the last reference."},
    {Py_tp_dealloc, Borrowed_dealloc},
    {0, NULL},
};

static PyType_Spec Borrowed_spec = {
    .name = "gpudirect._native._dlpack.Borrowed",
    .basicsize = sizeof(Borrowed),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Borrowed_slots,
};

static PyTypeObject *borrowed_type;

static PyObject *extents(const int64_t *from, int32_t n)
{
    PyObject *tuple = from ? PyTuple_New(n) : Py_NewRef(Py_None);

    for (int32_t i = 0; tuple && from && i < n; i++) {
        PyObject *number = PyLong_FromLongLong(from[i]);

        if (!number)
            Py_CLEAR(tuple);
        else
            PyTuple_SetItem(tuple, i, number);
    }
    return tuple;
}

static PyObject *borrow(PyObject *module, PyObject *capsule)
{
    int versioned = PyCapsule_IsValid(capsule, VERSIONED);
    unsigned long long flags = 0;
    const struct tensor *tensor;
    PyObject *shape, *strides;
    Borrowed *self;

    (void)module;
    if (!versioned && !PyCapsule_IsValid(capsule, PLAIN)) {
        PyErr_SetString(PyExc_ValueError, "no DLPack capsule, or one that was consumed");
        return NULL;
    }
    self = PyObject_New(Borrowed, borrowed_type);
    if (!self)
        return NULL;
    self->plain = versioned ? NULL : PyCapsule_GetPointer(capsule, PLAIN);
    self->versioned = versioned ? PyCapsule_GetPointer(capsule, VERSIONED) : NULL;
    if (PyCapsule_SetName(capsule, versioned ? USED_VERSIONED : USED_PLAIN)) {
        self->plain = NULL;
        self->versioned = NULL;
        Py_DECREF(self);
        return NULL;
    }
    if (versioned && self->versioned->major != MAJOR) {
        PyErr_Format(PyExc_ValueError, "a DLPack tensor of version %u, not of %u",
                     (unsigned)self->versioned->major, MAJOR);
        Py_DECREF(self);
        return NULL;
    }
    tensor = versioned ? &self->versioned->tensor : &self->plain->tensor;
    flags = versioned ? self->versioned->flags : 0;
    shape = extents(tensor->shape, tensor->ndim);
    strides = extents(tensor->strides, tensor->ndim);
    if (!shape || !strides) {
        Py_XDECREF(shape);
        Py_XDECREF(strides);
        Py_DECREF(self);
        return NULL;
    }
    return Py_BuildValue("NKNN(iii)(ii)K", self,
                         (unsigned long long)(uintptr_t)tensor->data + tensor->byte_offset, shape,
                         strides, tensor->code, tensor->bits, tensor->lanes, tensor->device_type,
                         tensor->device_id, flags);
}

static PyMethodDef methods[] = {
    {"lend", lend, METH_VARARGS,
     "lend(keep, address, shape, strides, (code, bits), device type, device number, versioned, flags)\n"
     "A capsule; `keep` lives until its consumer lets go. strides: in elements."},
    {"borrow", borrow, METH_O,
     "borrow(capsule) -> (keeper, address, shape, strides in elements or None, (code, bits, lanes),\n"
     "(device type, device number), flags)\n"
     "Consumes the capsule. The tensor lives as long as the keeper. Raises ValueError."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "gpudirect._native._dlpack",
    .m_doc = "DLPack capsules.",
    .m_size = -1,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__dlpack(void)
{
    PyObject *m = PyModule_Create(&module);

    if (m && !(borrowed_type = gd_type(m, &Borrowed_spec, NULL)))
        Py_CLEAR(m);
    return m;
}
