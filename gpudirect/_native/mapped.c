/* SPDX-License-Identifier: MIT */
/*
 * gpudirect._native._mapped: the type Mapped, the base of gpudirect.Array.
 *
 * It holds an address range of a mapping and the object that keeps it alive, and does in C what
 * happens in hot loops: write(), read(), flush(), and the buffer protocol. Whatever is not the
 * plain case goes to the Python methods _write_slow, _read_slow, _flush_slow and _buffer_slow of
 * the subclass, which compose the error messages; C never does.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include "native.h"

#define KEEP_GIL_BELOW 4096 /* bytes: a copy of a few hundred ns is shorter than giving it up */

static const struct gd_api *api;

typedef struct {
    PyObject_HEAD
    uintptr_t address; /* 0: detached, or not plainly mapped */
    unsigned forks;    /* gd_forks() when it was attached */
    Py_ssize_t nbytes;
    uint64_t device; /* address of the same bytes on the device */
    const struct gd_paths *paths; /* which way is faster; NULL: always through the mapping */
    unsigned flags;        /* GD_GUARDED or 0 */
    char format;           /* struct format character of an element; 0: only bytes fit */
    PyObject *owner;       /* keeps the mapping alive */
    const struct gd_work *work; /* what a read must wait for first; NULL: nothing */
    PyObject *weakrefs;
} Mapped;

/* ---- what a buffer consumer holds: the owner of the memory, not the array ---- */

typedef struct {
    PyObject_HEAD
    char *start;
    Py_ssize_t nbytes;
    PyObject *owner;
} Export;

static int Export_getbuffer(Export *self, Py_buffer *view, int flags)
{
    return PyBuffer_FillInfo(view, (PyObject *)self, self->start, self->nbytes, 0, flags);
}

static void Export_dealloc(Export *self)
{
    Py_XDECREF(self->owner);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyBufferProcs Export_buffer = {(getbufferproc)Export_getbuffer, NULL};

static PyTypeObject ExportType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "gpudirect._native._mapped.Export",
    .tp_basicsize = sizeof(Export),
    .tp_dealloc = (destructor)Export_dealloc,
    .tp_as_buffer = &Export_buffer,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Mapped bytes lent to a buffer consumer; keeps their owner alive.",
};

/* ---- Mapped ---- */

/* Whether there is a plain mapping, in this process: a child of fork() has none of its parent's. */
static inline int reachable(const Mapped *self)
{
    return self->address && self->forks == *api->forks;
}

static PyObject *Mapped_attach(Mapped *self, PyObject *args)
{
    unsigned long long address, device, paths, work;
    PyObject *owner;
    Py_ssize_t nbytes;
    const char *format;
    unsigned flags;

    if (!PyArg_ParseTuple(args, "KnOzIKKK:_attach", &address, &nbytes, &owner, &format, &flags,
                          &device, &paths, &work))
        return NULL;
    if (nbytes < 0) {
        PyErr_SetString(PyExc_ValueError, "_attach: nbytes must not be negative");
        return NULL;
    }
    self->address = (uintptr_t)address;
    self->forks = *api->forks;
    self->nbytes = nbytes;
    self->device = device;
    self->paths = (const struct gd_paths *)(uintptr_t)paths;
    self->work = (const struct gd_work *)(uintptr_t)work;
    self->flags = flags;
    self->format = format && format[0] && !format[1] ? format[0] : 0;
    Py_INCREF(owner);
    Py_XSETREF(self->owner, owner);
    Py_RETURN_NONE;
}

static PyObject *Mapped_detach(Mapped *self, PyObject *ignored)
{
    (void)ignored;
    self->address = 0;
    self->nbytes = 0;
    Py_CLEAR(self->owner);
    Py_RETURN_NONE;
}

/* Whether the elements of a buffer are bytes, or what the array holds. */
static int fits(const Py_buffer *data, char own)
{
    const char *format = data->format;

    if (!format)
        return 1;
    if (*format == '<' || *format == '=' || *format == '@')
        format++;
    if (!format[0] || format[1])
        return 0;
    return format[0] == own || format[0] == 'B' || format[0] == 'b' || format[0] == 'c';
}

/* A source inside the array itself must be fetched before it is overwritten. */
static int overlaps(const Mapped *self, const Py_buffer *data)
{
    uintptr_t start = (uintptr_t)data->buf;

    return start < self->address + (size_t)self->nbytes &&
           self->address < start + (size_t)data->len;
}

static PyObject *slow(Mapped *self, const char *method, PyObject *const *args, Py_ssize_t nargs,
                      PyObject *kwnames)
{
    PyObject *function = PyObject_GetAttrString((PyObject *)self, method);
    PyObject *result;

    if (!function)
        return NULL;
    result = PyObject_Vectorcall(function, args, nargs, kwnames);
    Py_DECREF(function);
    return result;
}

enum { ANY = -1, MAP, DMA, OTHER };

/* The argument via= of a call that has no other keyword. */
static int asked_path(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *value;

    if (!kwnames || PyTuple_GET_SIZE(kwnames) == 0)
        return ANY;
    if (PyTuple_GET_SIZE(kwnames) != 1 ||
        PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), "via"))
        return OTHER;
    value = args[nargs];
    if (value == Py_None)
        return ANY;
    if (!PyUnicode_CheckExact(value))
        return OTHER;
    return !PyUnicode_CompareWithASCIIString(value, "map")   ? MAP
           : !PyUnicode_CompareWithASCIIString(value, "dma") ? DMA
                                                             : OTHER;
}

/* Copy, with the GIL given up where that pays. 0, or why the slow way must do it and tell. */
static int copy(Mapped *self, int write, char *ordinary, size_t n, size_t offset, int way)
{
    const struct gd_paths *paths = self->paths;
    uintptr_t mapped = self->address + offset;
    uint64_t device = self->device + offset;
    unsigned flags = self->flags;
    PyObject *owner = self->owner; /* another thread may close the array meanwhile */
    int code;

    if (write && n < KEEP_GIL_BELOW && way == MAP)
        return api->write(mapped, ordinary, n, flags);
    Py_INCREF(owner);
    Py_BEGIN_ALLOW_THREADS
    if (way == ANY)
        way = paths ? api->path(paths, write, ordinary, n) : MAP;
    if (way == MAP)
        code = write ? api->write(mapped, ordinary, n, flags)
                     : api->read(ordinary, mapped, n, flags);
    else if (!paths || flags & GD_GUARDED)
        code = -1; /* DMA does not notice a revocation */
    else
        code = write ? api->dma_in(paths, device, ordinary, n)
                     : api->dma_out(paths, ordinary, device, n);
    Py_END_ALLOW_THREADS
    Py_DECREF(owner);
    return code;
}

static PyObject *Mapped_write(Mapped *self, PyObject *const *args, Py_ssize_t nargs,
                              PyObject *kwnames)
{
    int way = asked_path(args, nargs, kwnames);
    Py_ssize_t offset = 0;
    Py_buffer data;
    int code = -1;

    if (!reachable(self) || way == OTHER || nargs < 1 || nargs > 2)
        return slow(self, "_write_slow", args, nargs, kwnames);
    if (nargs == 2) {
        if (!PyLong_CheckExact(args[1]))
            return slow(self, "_write_slow", args, nargs, kwnames);
        offset = PyLong_AsSsize_t(args[1]);
        if (offset < 0) {
            PyErr_Clear();
            return slow(self, "_write_slow", args, nargs, kwnames);
        }
    }
    if (PyObject_GetBuffer(args[0], &data, PyBUF_FORMAT | PyBUF_ND)) {
        PyErr_Clear();
        return slow(self, "_write_slow", args, nargs, kwnames);
    }
    if (offset <= self->nbytes - data.len && fits(&data, self->format) && !overlaps(self, &data)) {
        if (way == ANY && data.len < KEEP_GIL_BELOW)
            way = MAP; /* 0.3 us, where starting a DMA takes 5 */
        code = data.len ? copy(self, 1, data.buf, (size_t)data.len, (size_t)offset, way) : 0;
    }
    PyBuffer_Release(&data);
    if (code)
        return slow(self, "_write_slow", args, nargs, kwnames);
    Py_RETURN_NONE;
}

static PyObject *Mapped_read(Mapped *self, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames)
{
    int way = asked_path(args, nargs, kwnames);
    Py_buffer out;
    int code = -1;

    if (!reachable(self) || way == OTHER || nargs != 1 ||
        (self->work && api->open(self->work)))
        return slow(self, "_read_slow", args, nargs, kwnames);
    if (PyObject_GetBuffer(args[0], &out, PyBUF_WRITABLE | PyBUF_ND)) {
        PyErr_Clear();
        return slow(self, "_read_slow", args, nargs, kwnames);
    }
    if (out.len == self->nbytes && !overlaps(self, &out))
        code = out.len ? copy(self, 0, out.buf, (size_t)out.len, 0, way) : 0;
    PyBuffer_Release(&out);
    if (code)
        return slow(self, "_read_slow", args, nargs, kwnames);
    return Py_NewRef(args[0]);
}

static PyObject *Mapped_flush(Mapped *self, PyObject *ignored)
{
    (void)ignored;
    if (!reachable(self))
        return slow(self, "_flush_slow", NULL, 0, NULL);
    api->fence();
    Py_RETURN_NONE;
}

static int Mapped_getbuffer(Mapped *self, Py_buffer *view, int flags)
{
    Export *export;
    int code;

    view->obj = NULL;
    if (!reachable(self)) {
        PyObject *result = slow(self, "_buffer_slow", NULL, 0, NULL);

        if (result) {
            Py_DECREF(result);
            PyErr_SetString(PyExc_BufferError, "the memory is not mapped");
        }
        return -1;
    }
    export = PyObject_New(Export, &ExportType);
    if (!export)
        return -1;
    export->start = (char *)self->address;
    export->nbytes = self->nbytes;
    export->owner = Py_NewRef(self->owner);
    code = PyBuffer_FillInfo(view, (PyObject *)export, export->start, export->nbytes, 0, flags);
    Py_DECREF(export); /* the view holds it now, or nobody does */
    return code;
}

static int Mapped_traverse(Mapped *self, visitproc visit, void *arg)
{
    Py_VISIT(self->owner);
    return 0;
}

static int Mapped_clear(Mapped *self)
{
    self->address = 0;
    Py_CLEAR(self->owner);
    return 0;
}

static void Mapped_dealloc(Mapped *self)
{
    PyObject_GC_UnTrack(self);
    if (self->weakrefs)
        PyObject_ClearWeakRefs((PyObject *)self);
    Mapped_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef Mapped_methods[] = {
    {"_attach", (PyCFunction)Mapped_attach, METH_VARARGS,
     "_attach(address, nbytes, owner, format, flags, device, paths, work): take up a mapping.\n\n"
     "device: address of the same bytes on the device. paths: address of a struct gd_paths that\n"
     "lives on, or 0. work: address of a struct gd_work that lives on, or 0; while some of it is\n"
     "open, reads go the slow way."},
    {"_detach", (PyCFunction)Mapped_detach, METH_NOARGS, "_detach(): let go of the mapping."},
    {"write", (PyCFunction)(void (*)(void))Mapped_write, METH_FASTCALL | METH_KEYWORDS,
     "write(data, offset=0, /, *, via=None)\n--\n\n"
     "Store bytes-like ``data`` from byte ``offset`` on, and fence.\n\n"
     "Returns when the stores have left for the device. Any size, any alignment. Data of another\n"
     "dtype than the array's is refused unless it is plain bytes.\n"
     "via: \"map\" (CPU stores), \"dma\", or None for the faster one.\n"
     "Raises RangeError, DTypeError, ClosedError, RevokedError."},
    {"read", (PyCFunction)(void (*)(void))Mapped_read, METH_FASTCALL | METH_KEYWORDS,
     "read(out=None, /, *, offset=0, nbytes=None, via=None, synchronize=True)\n--\n\n"
     "A copy in ordinary memory, after everything queued on the device is done.\n\n"
     "out: where to put it (C-contiguous, writable, as many bytes); otherwise a new array.\n"
     "offset, nbytes: read only these bytes, as uint8; any alignment.\n"
     "via: \"map\" (loads from the mapping), \"dma\", or None for the faster one.\n"
     "synchronize: False reads at once, whatever kernels are doing.\n"
     "Raises RangeError, ClosedError, RevokedError, ArgumentError."},
    {"flush", (PyCFunction)Mapped_flush, METH_NOARGS,
     "flush()\n--\n\nMake all stores of this thread leave for the device (a store fence)."},
    {NULL, NULL, 0, NULL},
};

static PyBufferProcs Mapped_buffer = {(getbufferproc)Mapped_getbuffer, NULL};

static PyTypeObject MappedType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "gpudirect._native.Mapped",
    .tp_basicsize = sizeof(Mapped),
    .tp_dealloc = (destructor)Mapped_dealloc,
    .tp_as_buffer = &Mapped_buffer,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_doc = "An address range of a mapping, writable through C.",
    .tp_traverse = (traverseproc)Mapped_traverse,
    .tp_clear = (inquiry)Mapped_clear,
    .tp_weaklistoffset = offsetof(Mapped, weakrefs),
    .tp_methods = Mapped_methods,
    .tp_new = PyType_GenericNew,
};

static PyObject *bind(PyObject *module, PyObject *address)
{
    (void)module;
    api = PyLong_AsVoidPtr(address);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef module_methods[] = {
    {"bind", bind, METH_O, "bind(address of struct gd_api): where the copy engine is."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "gpudirect._native._mapped",
    .m_doc = "The base type of gpudirect.Array.",
    .m_size = -1,
    .m_methods = module_methods,
};

PyMODINIT_FUNC PyInit__mapped(void)
{
    PyObject *m;

    if (PyType_Ready(&MappedType) || PyType_Ready(&ExportType))
        return NULL;
    m = PyModule_Create(&module);
    if (m && PyModule_AddObjectRef(m, "Mapped", (PyObject *)&MappedType)) {
        Py_DECREF(m);
        return NULL;
    }
    return m;
}
