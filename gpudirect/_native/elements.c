/* SPDX-License-Identifier: MIT */
/*
 * gather() and scatter() of Mapped: single elements, by one call into C. The plain case is made of
 * arrays in ordinary memory; all else, and every error, is _gather_slow's and _scatter_slow's.
 */
#include <string.h>

#include "mapped.h"
#include "objects.h"

#define api gd_mapped_api
#define FEW 512 /* indices of another type that are widened without an allocation */

/* ---- what was given ---- */

struct asked {
    PyObject *indices, *other; /* other: `out`, or `items`; NULL: not given */
    int way;
};

/* Two arguments, of which the second is called `second`, and via=. 0: anything else. */
static int understood(struct asked *asked, PyObject *const *args, Py_ssize_t nargs,
                      PyObject *kwnames, const char *second)
{
    Py_ssize_t names = kwnames ? PyTuple_Size(kwnames) : 0;

    if (nargs < 1 || nargs > 2)
        return 0;
    asked->indices = args[0];
    asked->other = nargs == 2 ? args[1] : NULL;
    asked->way = ANY;
    for (Py_ssize_t i = 0; i < names; i++) {
        PyObject *name = PyTuple_GetItem(kwnames, i);

        if (!PyUnicode_CompareWithASCIIString(name, "via"))
            asked->way = gd_mapped_way(args[nargs + i]);
        else if (!asked->other && !PyUnicode_CompareWithASCIIString(name, second))
            asked->other = args[nargs + i];
        else
            return 0;
    }
    if (asked->other == Py_None)
        asked->other = NULL;
    return asked->way != OTHER;
}

/*
 * Whether an array lies in ordinary memory, and not in a mapping. NumPy's do where nobody lent it to
 * them; `locked` are those that gpudirect.pinned made.
 */
static int ordinary(PyObject *array, const Py_buffer *its, uint64_t owner, int *locked)
{
    static PyObject *base;
    PyObject *lender = Py_NewRef(array);

    *locked = its->len && api->locked(its->buf, (size_t)its->len, owner);
    if (!base && !(base = PyUnicode_InternFromString("base")))
        PyErr_Clear(); /* no memory; no Python code ran */
    while (!*locked && base && lender != Py_None) {
        PyObject *next = PyObject_GetAttr(lender, base);

        Py_DECREF(lender);
        if (!next) {
            (void)gd_forget(); /* what stays, gd_mapped_slow() returns */
            return 0;
        }
        lender = next;
    }
    Py_DECREF(lender);
    return base != NULL;
}

static int plain_buffer(PyObject *from, Py_buffer *its, int flags)
{
    if (!PyObject_GetBuffer(from, its, flags | PyBUF_FORMAT | PyBUF_ND))
        return 1;
    (void)gd_forget();
    return 0;
}

static size_t count_of(const Py_buffer *its)
{
    return (size_t)(its->len / its->itemsize);
}

static int overlapping(const Py_buffer *one, const Py_buffer *other)
{
    const char *a = one->buf, *b = other->buf;

    return a < b + other->len && b < a + one->len;
}

static int alike_in_shape(const Py_buffer *one, const Py_buffer *other)
{
    if (one->ndim != other->ndim)
        return 0;
    for (int i = 0; i < one->ndim; i++)
        if (one->shape[i] != other->shape[i])
            return 0;
    return 1;
}

/* ---- indices ---- */

struct indices {
    Py_buffer given;
    const int64_t *at; /* where they lie, or in `few` or `many` */
    size_t count;
    int64_t few[FEW];
    int64_t *many;
};

#define WIDEN(type)                                                                               \
    do {                                                                                          \
        for (size_t i = 0; i < x->count; i++)                                                     \
            to[i] = (int64_t)((const type *)x->given.buf)[i];                                     \
    } while (0)

/* Indices of another type. 0: they are no whole numbers, or too large, or there is no memory. */
static int widened(struct indices *x, char kind)
{
    int64_t *to = x->few, all = 0;
    int size = (int)x->given.itemsize;

    if (!memchr("bBhHiIlLqQnN", kind, 12))
        return 0;
    if (x->count > FEW && !(to = x->many = PyMem_Malloc(x->count * sizeof(*to))))
        return 0;
    if (memchr("bhilqn", kind, 6)) {
        if (size == 1)
            WIDEN(int8_t);
        else if (size == 2)
            WIDEN(int16_t);
        else if (size == 4)
            WIDEN(int32_t);
        else
            WIDEN(int64_t);
    } else if (size == 1) {
        WIDEN(uint8_t);
    } else if (size == 2) {
        WIDEN(uint16_t);
    } else if (size == 4) {
        WIDEN(uint32_t);
    } else {
        WIDEN(uint64_t);
        for (size_t i = 0; i < x->count; i++)
            all |= to[i];
        if (all < 0)
            return 0;
    }
    x->at = to;
    return 1;
}

static void let_go(struct indices *x)
{
    PyMem_Free(x->many);
    PyBuffer_Release(&x->given);
}

/* Whole numbers in an array in ordinary memory. 1: let_go() of them. */
static int take(struct indices *x, PyObject *from)
{
    const char *format;
    int locked;

    if (!plain_buffer(from, &x->given, 0))
        return 0;
    x->many = NULL;
    x->count = x->given.itemsize ? count_of(&x->given) : 0;
    format = x->given.format ? x->given.format : "B";
    if (*format == '<' || *format == '=' || *format == '@')
        format++;
    if (format[0] && !format[1] && x->given.itemsize &&
        (uintptr_t)x->given.buf % (size_t)x->given.itemsize == 0 &&
        ordinary(from, &x->given, 0, &locked)) {
        if (x->given.itemsize == 8 && memchr("lqn", format[0], 3)) {
            x->at = x->given.buf;
            return 1;
        }
        if (widened(x, format[0]))
            return 1;
    }
    let_go(x);
    return 0;
}

/* ---- gather ---- */

const char gd_mapped_gather_doc[] =
    "gather(indices, out=None, *, via=None, synchronize=True, stream=None)\n--\n\n"
    "Single elements of the flattened array: what NumPy's ``flat[indices]`` is for one array of\n"
    "whole numbers, in its shape.\n\n"
    "indices: whole numbers of any shape; negative ones count from the end.\n"
    "out: where to put them: an array of that shape (or a flat one) and of the array's dtype, or a\n"
    "writable buffer of bytes, in ordinary or page-locked memory. Without it a new array.\n"
    "via: \"map\" (a load for each, up to 1 us), \"dma\" (all from the first to the last, then NumPy),\n"
    "\"courier\" (one that runs: ``gpudirect.Courier``), or None for the fastest one.\n"
    "synchronize: as for ``read``, which this is ordered like.\n"
    "stream: waits for what is queued on it, and for nothing else.\n"
    "Raises RangeError where an index is outside (nothing was read then), DTypeError, ArgumentError,\n"
    "RevokedError, ClosedError.";

/* Whether a load for each is faster than DMA of all from the first to the last. */
static int few_enough(const struct gd_paths *paths, const struct indices *x, size_t size,
                      size_t itemsize)
{
    int64_t low, high;

    if (!paths || x->count <= paths->gather_words)
        return 1;
    if (api->indices_check(x->at, x->count, size, &low, &high) >= 0)
        return 0;
    return x->count <=
           paths->gather_words + (size_t)(high - low + 1) * itemsize / paths->gather_span;
}

/* 0, or why the slow way must do it and tell. LATE: only the rest of it. */
static int bring(Mapped *self, char *to, int locked, const struct indices *x, int way,
                 struct gd_left *left)
{
    const struct gd_paths *paths = self->paths;
    struct gd_courier *courier = paths ? paths->courier : NULL;
    size_t itemsize = (size_t)self->itemsize, size = (size_t)self->nbytes / itemsize;
    uintptr_t mapped = self->address;
    uint64_t device = self->device;
    int code = -1;

    Py_BEGIN_ALLOW_THREADS
    if (courier && (way == COURIER || (way == ANY && x->count >= paths->courier_gather))) {
        unsigned how = (way == COURIER ? GD_COURIER_FORCED : 0) | (locked ? GD_COURIER_DIRECT : 0);

        code = api->courier_gather(courier, to, device, size, x->at, x->count, itemsize, how, left);
        if (!code || left->seat)
            goto done;
    }
    code = -1;
    if (way == MAP || (way == ANY && few_enough(paths, x, size, itemsize)))
        code = api->gather(to, mapped, size, x->at, x->count, itemsize, 0);
done:
    Py_END_ALLOW_THREADS
    return left->seat ? LATE : code;
}

/* A new array of the indices' shape. NULL: failed. */
static PyObject *fresh(const Mapped *self, const Py_buffer *like)
{
    PyObject *shape = PyTuple_New(like->ndim), *found = NULL;

    for (int i = 0; shape && i < like->ndim; i++) {
        PyObject *n = PyLong_FromSsize_t(like->shape[i]);

        if (!n || PyTuple_SetItem(shape, i, n))
            Py_CLEAR(shape);
    }
    if (shape)
        found = gd_mapped_fresh(self, shape);
    Py_XDECREF(shape);
    return found;
}

/* As gd_mapped_gather() returns, or NULL without an exception: the slow way must do it. */
static PyObject *gather_into(Mapped *self, PyObject *out, const struct indices *x, int way)
{
    const struct gd_paths *paths = self->paths;
    struct gd_left left = {NULL, 0};
    PyObject *owner = NULL;
    Py_buffer to;
    int code = -1, locked;

    if (plain_buffer(out, &to, PyBUF_WRITABLE)) {
        if ((size_t)(to.len / self->itemsize) == x->count && to.len % self->itemsize == 0 &&
            (to.ndim == 1 || alike_in_shape(&to, &x->given)) && gd_mapped_fits(self, out, &to) &&
            ordinary(out, &to, paths && paths->courier ? paths->courier->owner : 0, &locked) &&
            !overlapping(&to, &x->given) && reachable(self)) {
            owner = Py_NewRef(self->owner); /* another thread may close the array meanwhile */
            code = x->count ? bring(self, to.buf, locked, x, way, &left) : 0;
        }
        if (code == LATE) /* `out` and the indices stay exported until it is done */
            code = gd_mapped_await(&left) ? -1 : left.code;
        PyBuffer_Release(&to);
    }
    Py_XDECREF(owner);
    return code ? NULL : Py_NewRef(out);
}

PyObject *gd_mapped_gather(Mapped *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *out, *found = NULL;
    struct indices x;
    struct asked asked;

    if (!reachable(self) || self->flags & GD_GUARDED || (self->work && is_open(self->work)) ||
        !understood(&asked, args, nargs, kwnames, "out") || !take(&x, asked.indices))
        return gd_mapped_slow(self, "_gather_slow", args, nargs, kwnames);
    out = asked.other ? Py_NewRef(asked.other) : fresh(self, &x.given);
    if (out)
        found = gather_into(self, out, &x, asked.way);
    Py_XDECREF(out);
    let_go(&x);
    if (found || PyErr_Occurred())
        return found;
    return gd_mapped_slow(self, "_gather_slow", args, nargs, kwnames);
}

/* ---- scatter ---- */

const char gd_mapped_scatter_doc[] =
    "scatter(places, items=None, *, via=None, stream=None)\n--\n\n"
    "Store many small pieces at once, without a staging copy, and fence.\n\n"
    "scatter(indices, items): ``items[i]`` is stored from element ``indices[i]`` of the flattened\n"
    "array on. items: data of the array's dtype, one item (an element, or a row of them) for each\n"
    "index along its first dimension; or one value for all.\n"
    "scatter(pieces): pieces is a list of (index, data); lengths may differ.\n"
    "Pieces that overlap are stored in the order given.\n"
    "via: \"map\" (CPU stores), \"courier\" (indices and items only), or None for the faster one.\n"
    "stream: what is queued there is waited for first, and the stores come before what is queued\n"
    "next.\n"
    "Raises RangeError if one does not lie in the array (nothing is stored then), DTypeError,\n"
    "ArgumentError, RevokedError, ClosedError.";

/* The same as bring(), the other way; `each` is the bytes of an item. */
static int spread(Mapped *self, const struct indices *x, const char *items, size_t each, int way,
                  struct gd_left *left)
{
    const struct gd_paths *paths = self->paths;
    struct gd_courier *courier = paths ? paths->courier : NULL;
    size_t step = (size_t)self->itemsize, size = (size_t)self->nbytes;
    uintptr_t mapped = self->address;
    uint64_t device = self->device;
    int code = -1;

    Py_BEGIN_ALLOW_THREADS
    if (courier && (way == COURIER || (way == ANY && x->count >= paths->courier_scatter))) {
        code = api->courier_scatter(courier, device, size / step, step, x->at, x->count, items, each,
                                    way == COURIER ? GD_COURIER_FORCED : 0, left);
        if (!code || left->seat)
            goto done;
    }
    code = way == COURIER ? -1 : api->scatter(mapped, size, step, x->at, x->count, items, each, 0);
done:
    Py_END_ALLOW_THREADS
    return left->seat ? LATE : code;
}

/* As for gather_into(). */
static PyObject *scatter_from(Mapped *self, PyObject *items, const struct indices *x, int way)
{
    struct gd_left left = {NULL, 0};
    PyObject *owner = NULL;
    Py_buffer from;
    int code = -1, locked;

    if (plain_buffer(items, &from, 0)) {
        if (from.ndim >= 1 && (size_t)from.shape[0] == x->count && gd_mapped_fits(self, items, &from) &&
            ordinary(items, &from, 0, &locked) && reachable(self)) {
            owner = Py_NewRef(self->owner);
            code = from.len ? spread(self, x, from.buf, (size_t)from.len / x->count, way, &left) : 0;
        }
        if (code == LATE) /* both stay exported until it is done */
            code = gd_mapped_await(&left) ? -1 : left.code;
        PyBuffer_Release(&from);
    }
    Py_XDECREF(owner);
    return code ? NULL : Py_NewRef(Py_None);
}

PyObject *gd_mapped_scatter(Mapped *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *done;
    struct indices x;
    struct asked asked;

    if (!reachable(self) || self->flags & GD_GUARDED ||
        !understood(&asked, args, nargs, kwnames, "items") || !asked.other || asked.way == DMA ||
        !take(&x, asked.indices))
        return gd_mapped_slow(self, "_scatter_slow", args, nargs, kwnames);
    done = x.given.ndim == 1 ? scatter_from(self, asked.other, &x, asked.way) : NULL;
    let_go(&x);
    if (done || PyErr_Occurred())
        return done;
    return gd_mapped_slow(self, "_scatter_slow", args, nargs, kwnames);
}
