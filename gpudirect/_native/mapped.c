/* SPDX-License-Identifier: MIT */
/*
 * gpudirect._native._mapped: the type Mapped, the base of gpudirect.Array.
 *
 * It holds an address range of a mapping and the object that keeps it alive, and does in C what
 * happens in hot loops: write(), read() and flush(), and gather() and scatter() (elements.c). What it
 * is (shape, dtype, ptr) can be read from Python and not changed. Whatever is not the plain case goes
 * to the Python methods _write_slow, _read_slow, _gather_slow, _scatter_slow, _flush_slow and
 * _buffer_slow of the subclass, which compose the error messages; C never does. It exports no buffer
 * of its own: NumPy would take it for an array of bytes.
 */
#include "mapped.h"
#include "objects.h"

#define KEEP_GIL_BELOW 4096 /* bytes: a copy of a few hundred ns is shorter than giving it up */

const struct gd_api *gd_mapped_api;
#define api gd_mapped_api

static PyTypeObject *mapped_type, *export_type;
static PyObject *late; /* called with the address of a struct gd_left, until that is over */

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
    gd_free((PyObject *)self, 0);
}

static PyType_Slot Export_slots[] = {
    {Py_tp_doc, "Mapped bytes lent to a buffer consumer; keeps their owner alive."},
    {Py_tp_dealloc, Export_dealloc},
    {Py_bf_getbuffer, Export_getbuffer},
    {0, NULL},
};

static PyType_Spec Export_spec = {
    .name = "gpudirect._native._mapped.Export",
    .basicsize = sizeof(Export),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Export_slots,
};

/* ---- Mapped ---- */

static PyObject *Mapped_attach(Mapped *self, PyObject *args)
{
    unsigned long long address, device, paths, work;
    PyObject *owner, *shape, *dtype;
    Py_ssize_t nbytes, itemsize;
    const char *format;
    unsigned flags;

    if (!PyArg_ParseTuple(args, "KnOzIKKKO!On:_attach", &address, &nbytes, &owner, &format, &flags,
                          &device, &paths, &work, &PyTuple_Type, &shape, &dtype, &itemsize))
        return NULL;
    if (nbytes < 0 || itemsize < 1) {
        PyErr_SetString(PyExc_ValueError,
                        "_attach: nbytes must not be negative, and itemsize at least 1");
        return NULL;
    }
    self->address = (uintptr_t)address;
    self->forks = *api->forks;
    self->nbytes = nbytes;
    self->itemsize = itemsize;
    self->device = device;
    self->paths = (const struct gd_paths *)(uintptr_t)paths;
    self->work = (const struct gd_work *)(uintptr_t)work;
    self->flags = flags;
    self->format = format && format[0] && !format[1] ? format[0] : 0;
    gd_replace(&self->shape, Py_NewRef(shape));
    gd_replace(&self->dtype, Py_NewRef(dtype));
    gd_replace(&self->owner, Py_NewRef(owner));
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

/* The one struct format character of a buffer's elements, in this machine's byte order, or 0. */
static char element(const Py_buffer *data)
{
    const char *format = data->format;

    if (!format)
        return 'B';
    if (*format == '<' || *format == '=' || *format == '@')
        format++;
    return format[0] && !format[1] ? format[0] : 0;
}

/*
 * Whether an array of a dtype that no letter stands for (structs, strings) is of the very same. Its format
 * says so too, and takes microseconds to be read in Python.
 */
static int same_dtype(const Mapped *self, PyObject *from)
{
    PyObject *dtype = PyObject_GetAttrString(from, "dtype");
    int same = dtype ? dtype == self->dtype : 0;

    if (dtype && !same)
        same = PyObject_RichCompareBool(dtype, self->dtype, Py_EQ);
    Py_XDECREF(dtype);
    (void)gd_forget(); /* what stays, gd_mapped_slow() returns */
    return same == 1;
}

int gd_mapped_fits(const Mapped *self, PyObject *from, const Py_buffer *data)
{
    char kind = element(data);

    if (kind && kind == self->format)
        return 1;
    if (!self->format && !kind)
        return same_dtype(self, from);
    return (kind == 'B' || kind == 'c') && (PyByteArray_Check(from) || PyMemoryView_Check(from)) &&
           (self->itemsize == 1 || data->len % self->itemsize == 0);
}

/* Whether a buffer that fits has the array's shape, or is flat. */
static int shaped(const Mapped *self, const Py_buffer *out)
{
    if (out->len != self->nbytes)
        return 0;
    if (out->ndim <= 1 || element(out) != self->format)
        return 1;
    if (out->ndim != PyTuple_Size(self->shape))
        return 0;
    for (int i = 0; i < out->ndim; i++)
        if (PyLong_AsSsize_t(PyTuple_GetItem(self->shape, i)) != out->shape[i])
            return 0;
    return 1;
}

/* A source inside the array itself must be fetched before it is overwritten. */
static int overlaps(const Mapped *self, const void *data, Py_ssize_t n)
{
    uintptr_t start = (uintptr_t)data;

    return start < self->address + (size_t)self->nbytes && self->address < start + (size_t)n;
}

PyObject *gd_mapped_slow(Mapped *self, const char *method, PyObject *const *args,
                         Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *function, *result;

    if (PyErr_Occurred())
        return NULL; /* Ctrl-C while the quick way was tried: gd_forget() */
    function = PyObject_GetAttrString((PyObject *)self, method);
    if (!function)
        return NULL;
    result = gd_forward(function, args, nargs, kwnames);
    Py_DECREF(function);
    return result;
}

int gd_mapped_way(PyObject *value)
{
    if (value == Py_None)
        return ANY;
    if (!PyUnicode_CheckExact(value))
        return OTHER;
    return !PyUnicode_CompareWithASCIIString(value, "map")   ? MAP
           : !PyUnicode_CompareWithASCIIString(value, "dma") ? DMA
           : !PyUnicode_CompareWithASCIIString(value, "courier") ? COURIER
                                                                 : OTHER;
}

/* The argument via= of a call that has no other keyword. */
static int asked_path(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    if (!kwnames || PyTuple_Size(kwnames) == 0)
        return ANY;
    if (PyTuple_Size(kwnames) != 1 ||
        PyUnicode_CompareWithASCIIString(PyTuple_GetItem(kwnames, 0), "via"))
        return OTHER;
    return gd_mapped_way(args[nargs]);
}

int gd_mapped_await(struct gd_left *left)
{
    PyObject *type = NULL, *value = NULL, *trace = NULL;

    while (left->seat) {
        PyObject *over = PyObject_CallFunction(late, "K", (unsigned long long)(uintptr_t)left);

        Py_XDECREF(over);
        if (!over && (!type || gd_forget())) { /* waited for all the same: the device may store there */
            gd_restore(type, value, trace, late);
            PyErr_Fetch(&type, &value, &trace);
        }
    }
    if (!type)
        return 0;
    PyErr_Restore(type, value, trace);
    return -1;
}

/*
 * Copy, with the GIL given up where that pays. 0, or why the slow way must do it and tell. LATE: only
 * the rest of it, from `left`.
 */
static int copy(Mapped *self, int write, char *ordinary, size_t n, size_t offset, int way,
                struct gd_left *left)
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
    if (left && paths && paths->courier && !(flags & GD_GUARDED) && way != MAP && way != DMA) {
        int how = api->path_courier(paths, ordinary, n, way == COURIER);

        code = how < 0 ? -1 : api->courier_read(paths->courier, ordinary, device, n,
                                                (unsigned)how, left);
        if (!code || left->seat || way == COURIER)
            goto done;
    }
    if (way == ANY)
        way = paths ? api->path(paths, write, ordinary, n) : MAP;
    if (way == MAP)
        code = write ? api->write(mapped, ordinary, n, flags)
                     : api->read(ordinary, mapped, n, flags);
    else if (way == COURIER || !paths || flags & GD_GUARDED)
        code = -1; /* DMA does not notice a revocation */
    else
        code = write ? api->dma_in(paths, device, ordinary, n)
                     : api->dma_out(paths, ordinary, device, n);
done:
    Py_END_ALLOW_THREADS
    if (left && left->seat)
        return LATE; /* who asked lets go of the owner when it is over */
    Py_DECREF(owner);
    return code;
}

/* Bytes that fit, from element `start` on. 0, or why the slow way must do it and tell. */
static int store(Mapped *self, const char *data, Py_ssize_t n, Py_ssize_t start, int way)
{
    Py_ssize_t offset;

    /* what was asked for the buffer may have closed the array */
    if (!reachable(self) || __builtin_mul_overflow(start, self->itemsize, &offset) ||
        offset > self->nbytes - n || overlaps(self, data, n))
        return -1;
    if (way == ANY && n < KEEP_GIL_BELOW)
        way = MAP; /* 0.3 us, where starting a DMA takes 5 */
    return n ? copy(self, 1, (char *)data, (size_t)n, (size_t)offset, way, NULL) : 0;
}

static PyObject *Mapped_write(Mapped *self, PyObject *const *args, Py_ssize_t nargs,
                              PyObject *kwnames)
{
    int way = asked_path(args, nargs, kwnames);
    Py_ssize_t start = 0;
    Py_buffer data;
    int code = -1;

    if (!reachable(self) || way == OTHER || nargs < 1 || nargs > 2)
        return gd_mapped_slow(self, "_write_slow", args, nargs, kwnames);
    if (nargs == 2) {
        if (!PyLong_CheckExact(args[1]))
            return gd_mapped_slow(self, "_write_slow", args, nargs, kwnames);
        start = PyLong_AsSsize_t(args[1]);
        if (start < 0) {
            PyErr_Clear(); /* of a plain int: an OverflowError, no signal's */
            return gd_mapped_slow(self, "_write_slow", args, nargs, kwnames);
        }
    }
    if (PyBytes_CheckExact(args[0])) {
        Py_ssize_t n;
        char *bytes;

        if (!PyBytes_AsStringAndSize(args[0], &bytes, &n) &&
            (self->itemsize == 1 || n % self->itemsize == 0))
            code = store(self, bytes, n, start, way);
    } else {
        if (PyObject_GetBuffer(args[0], &data, PyBUF_FORMAT | PyBUF_ND)) {
            (void)gd_forget();
            return gd_mapped_slow(self, "_write_slow", args, nargs, kwnames);
        }
        if (gd_mapped_fits(self, args[0], &data))
            code = store(self, data.buf, data.len, start, way);
        PyBuffer_Release(&data);
    }
    if (code)
        return gd_mapped_slow(self, "_write_slow", args, nargs, kwnames);
    Py_RETURN_NONE;
}

/* Which elements are asked for, in one dimension; count -1: all, in the array's shape. */
struct part {
    Py_ssize_t start, count;
    int way;
};

/* The keywords of read() that are understood here. 0: anything else. */
static int understood(struct part *part, PyObject *const *values, PyObject *kwnames)
{
    Py_ssize_t names = kwnames ? PyTuple_Size(kwnames) : 0;

    part->start = 0;
    part->count = -1;
    part->way = ANY;
    for (Py_ssize_t i = 0; i < names; i++) {
        PyObject *name = PyTuple_GetItem(kwnames, i), *value = values[i];
        int start = !PyUnicode_CompareWithASCIIString(name, "start");

        if (!PyUnicode_CompareWithASCIIString(name, "via")) {
            part->way = gd_mapped_way(value);
        } else if (start || !PyUnicode_CompareWithASCIIString(name, "count")) {
            Py_ssize_t n = PyLong_CheckExact(value) ? PyLong_AsSsize_t(value) : -1;

            if (n < 0) {
                PyErr_Clear(); /* as above */
                return 0;
            }
            *(start ? &part->start : &part->count) = n;
        } else {
            return 0;
        }
    }
    return part->way != OTHER;
}

/* Whether the part is inside, which is counted then. */
static int inside(const Mapped *self, struct part *part)
{
    Py_ssize_t size = self->nbytes / self->itemsize;

    if (part->start > size)
        return 0;
    if (part->count < 0 && part->start)
        part->count = size - part->start;
    return part->count <= size - part->start;
}

/* Whether a buffer takes the part: of all, one of the array's shape, too. */
static int takes(const Mapped *self, const Py_buffer *out, const struct part *part)
{
    if (part->count < 0)
        return shaped(self, out);
    return out->ndim <= 1 && out->len / self->itemsize == part->count &&
           out->len % self->itemsize == 0;
}

/* `out`, filled; or NULL, and without an exception: the slow way must do it. */
static PyObject *read_into(Mapped *self, PyObject *out, const struct part *part)
{
    struct gd_left left = {NULL, 0};
    PyObject *owner = NULL;
    Py_buffer to;
    int code = -1;

    if (PyObject_GetBuffer(out, &to, PyBUF_WRITABLE | PyBUF_FORMAT | PyBUF_ND)) {
        (void)gd_forget();
        return NULL;
    }
    if (gd_mapped_fits(self, out, &to) && takes(self, &to, part) && reachable(self) &&
        !overlaps(self, to.buf, to.len)) {
        owner = self->owner;
        code = to.len ? copy(self, 0, to.buf, (size_t)to.len, (size_t)(part->start * self->itemsize),
                             part->way, &left)
                      : 0;
    }
    if (code == LATE) { /* `out` stays exported until it is done */
        code = gd_mapped_await(&left) ? -1 : left.code;
        Py_DECREF(owner);
    }
    PyBuffer_Release(&to);
    return code ? NULL : Py_NewRef(out);
}

PyObject *gd_mapped_fresh(const Mapped *self, PyObject *shape)
{
    static PyObject *empty;

    if (!empty) {
        PyObject *numpy = PyImport_ImportModule("numpy");

        empty = numpy ? PyObject_GetAttrString(numpy, "empty") : NULL;
        Py_XDECREF(numpy);
        if (!empty)
            return NULL;
    }
    return PyObject_CallFunctionObjArgs(empty, shape, self->dtype, NULL);
}

/* A new array for the part. NULL: failed. */
static PyObject *fresh(const Mapped *self, const struct part *part)
{
    PyObject *shape = part->count < 0 ? Py_NewRef(self->shape) : PyLong_FromSsize_t(part->count);
    PyObject *found = shape ? gd_mapped_fresh(self, shape) : NULL;

    Py_XDECREF(shape);
    return found;
}

static PyObject *Mapped_read(Mapped *self, PyObject *const *args, Py_ssize_t nargs,
                             PyObject *kwnames)
{
    PyObject *out, *found;
    struct part part;

    if (!reachable(self) || nargs > 1 || !understood(&part, args + nargs, kwnames) ||
        !inside(self, &part) || (self->work && is_open(self->work)))
        return gd_mapped_slow(self, "_read_slow", args, nargs, kwnames);
    out = nargs && args[0] != Py_None ? Py_NewRef(args[0]) : fresh(self, &part);
    if (!out)
        return NULL;
    found = read_into(self, out, &part);
    Py_DECREF(out);
    if (found || PyErr_Occurred())
        return found;
    return gd_mapped_slow(self, "_read_slow", args, nargs, kwnames);
}

static PyObject *Mapped_flush(Mapped *self, PyObject *ignored)
{
    (void)ignored;
    if (!reachable(self))
        return gd_mapped_slow(self, "_flush_slow", NULL, 0, NULL);
    api->fence();
    Py_RETURN_NONE;
}

static PyObject *Mapped_get_buffer(Mapped *self, void *closure)
{
    PyObject *view;
    Export *export;

    (void)closure;
    if (!reachable(self))
        return gd_mapped_slow(self, "_buffer_slow", NULL, 0, NULL);
    export = PyObject_New(Export, export_type);
    if (!export)
        return NULL;
    export->start = (char *)self->address;
    export->nbytes = self->nbytes;
    export->owner = Py_NewRef(self->owner);
    view = PyMemoryView_FromObject((PyObject *)export);
    Py_DECREF(export); /* the view holds it now, or nobody does */
    return view;
}

static int Mapped_traverse(Mapped *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->owner);
    Py_VISIT(self->dtype);
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
    Py_CLEAR(self->shape);
    Py_CLEAR(self->dtype);
    gd_free((PyObject *)self, 1);
}

static PyMethodDef Mapped_methods[] = {
    {"_attach", (PyCFunction)Mapped_attach, METH_VARARGS,
     "_attach(address, nbytes, owner, format, flags, device, paths, work, shape, dtype, itemsize):\n"
     "take up a mapping.\n\n"
     "address: 0 where the elements are not plainly mapped. device: address of the same bytes on\n"
     "the device. paths: address of a struct gd_paths that lives on, or 0. work: address of a struct\n"
     "gd_work that lives on, or 0; while some of it is open, reads go the slow way."},
    {"_detach", (PyCFunction)Mapped_detach, METH_NOARGS, "_detach(): let go of the mapping."},
    {"write", (PyCFunction)(void (*)(void))Mapped_write, METH_FASTCALL | METH_KEYWORDS,
     "write(data, start=0, /, *, via=None, stream=None)\n--\n\n"
     "Store ``data`` from element ``start`` of the flattened array on, and fence.\n\n"
     "Returns when the stores have left for the device. data: of the array's dtype (in either byte\n"
     "order), numbers, or bytes-like without a dtype that holds whole elements. Other dtypes are\n"
     "refused, never reinterpreted; ``a.view(\"u1\")`` takes bytes wherever they shall go.\n"
     "via: \"map\" (CPU stores), \"dma\", or None for the faster one; an array with strides: \"map\" or\n"
     "\"courier\" (gpudirect.Courier).\n"
     "stream: None stores at once, whatever is queued anywhere. With a stream (of gpudirect, or any\n"
     "with ``__cuda_stream__``, or a handle) the data gets there after what was queued on it and\n"
     "before what is queued next, perhaps later than this returns: a busy stream takes a copy along\n"
     "(of up to 4 MiB; it waits for more), and reads page-locked data itself, which must stay as it is\n"
     "until then.\n"
     "Raises RangeError, DTypeError, ClosedError, RevokedError, ArgumentError (no stream)."},
    {"read", (PyCFunction)(void (*)(void))Mapped_read, METH_FASTCALL | METH_KEYWORDS,
     "read(out=None, /, *, start=0, count=None, via=None, synchronize=True, stream=None)\n--\n\n"
     "A copy in ordinary memory, after everything queued on the device is done.\n\n"
     "out: where to put it: an array of the same shape (or a flat one) and dtype, or a writable\n"
     "buffer of bytes. Without it a new array.\n"
     "start, count: read only these elements of the flattened array, in one dimension.\n"
     "via: \"map\" (loads from the mapping), \"dma\", \"courier\" (gpudirect.Courier), or None for the\n"
     "fastest one.\n"
     "synchronize: False reads at once, whatever kernels are doing.\n"
     "stream: waits for what is queued on it, and for nothing else. With synchronize=False it does not\n"
     "wait: the device fills ``out``, page-locked memory (``gpudirect.pinned``; new where out is None),\n"
     "when the stream gets there.\n"
     "Raises RangeError, DTypeError, ClosedError, RevokedError, ArgumentError."},
    {"gather", (PyCFunction)(void (*)(void))gd_mapped_gather, METH_FASTCALL | METH_KEYWORDS,
     gd_mapped_gather_doc},
    {"scatter", (PyCFunction)(void (*)(void))gd_mapped_scatter, METH_FASTCALL | METH_KEYWORDS,
     gd_mapped_scatter_doc},
    {"flush", (PyCFunction)Mapped_flush, METH_NOARGS,
     "flush()\n--\n\nMake all stores of this thread leave for the device (a store fence)."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Mapped_members[] = {
    {"shape", T_OBJECT_EX, offsetof(Mapped, shape), READONLY, "Elements along each dimension."},
    {"dtype", T_OBJECT_EX, offsetof(Mapped, dtype), READONLY, "Type of an element."},
    {"ptr", T_ULONGLONG, offsetof(Mapped, device), READONLY, "Device address of the first element."},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Mapped, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef Mapped_getset[] = {
    {"buffer", (getter)Mapped_get_buffer, NULL,
     "The bytes of the mapping as a memoryview of format \"B\", writable: for ``readinto``,\n"
     "``recv_into``, MPI. It keeps the memory alive. Raises ArgumentError (a strided array),\n"
     "NotMappableError, ClosedError, ForkError.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot Mapped_slots[] = {
    {Py_tp_doc, "An address range of a mapping, writable through C."},
    {Py_tp_dealloc, Mapped_dealloc},
    {Py_tp_traverse, Mapped_traverse},
    {Py_tp_clear, Mapped_clear},
    {Py_tp_methods, Mapped_methods},
    {Py_tp_members, Mapped_members},
    {Py_tp_getset, Mapped_getset},
    {Py_tp_new, PyType_GenericNew},
    {0, NULL},
};

static PyType_Spec Mapped_spec = {
    .name = "gpudirect._native.Mapped",
    .basicsize = sizeof(Mapped),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = Mapped_slots,
};

static PyObject *bind(PyObject *module, PyObject *address)
{
    (void)module;
    api = PyLong_AsVoidPtr(address);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *await_with(PyObject *module, PyObject *function)
{
    (void)module;
    gd_replace(&late, Py_NewRef(function));
    Py_RETURN_NONE;
}

static PyMethodDef module_methods[] = {
    {"await_with", await_with, METH_O,
     "await_with(function): what is called with the address of a struct gd_left until that is over."},
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
    PyObject *m = PyModule_Create(&module);

    if (m && (!(mapped_type = gd_type(m, &Mapped_spec, "Mapped")) ||
              !(export_type = gd_type(m, &Export_spec, NULL))))
        Py_CLEAR(m);
    return m;
}
