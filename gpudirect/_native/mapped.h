/* SPDX-License-Identifier: MIT */
/* The type Mapped, for the files that have its methods: mapped.c, elements.c. */
#ifndef GPUDIRECT_MAPPED_H
#define GPUDIRECT_MAPPED_H

#include "courier.h"
#include "native.h"
#include "objects.h"

typedef struct {
    PyObject_HEAD
    uintptr_t address; /* 0: detached, or not plainly mapped */
    unsigned forks;    /* gd_forks() when it was attached */
    Py_ssize_t nbytes;
    Py_ssize_t itemsize; /* bytes of an element, >= 1 */
    unsigned long long device; /* address of the same bytes on the device */
    const struct gd_paths *paths; /* which way is faster; NULL: always through the mapping */
    unsigned flags;        /* GD_GUARDED or 0 */
    char format;           /* struct format character of an element; 0: only bytes fit */
    PyObject *shape;       /* tuple */
    PyObject *dtype;
    PyObject *owner;       /* keeps the mapping alive */
    const struct gd_work *work; /* what a read must wait for first; NULL: nothing */
    PyObject *weakrefs;
} Mapped;

extern const struct gd_api *gd_mapped_api;

/* Whether there is a plain mapping, in this process: a child of fork() has none of its parent's. */
static inline int reachable(const Mapped *self)
{
    return self->address && self->forks == *gd_mapped_api->forks;
}

/* gd_work_open(), without a call into the other shared object: it costs what a short read does. */
static inline int is_open(const struct gd_work *work)
{
    uint64_t settled = __atomic_load_n(&work->settled, __ATOMIC_ACQUIRE);

    return settled != __atomic_load_n(&work->begun, __ATOMIC_ACQUIRE);
}

/* What is not the plain case, by the method of the subclass that is named. */
PyObject *gd_mapped_slow(Mapped *self, const char *method, PyObject *const *args,
                         Py_ssize_t nargs, PyObject *kwnames);

/*
 * Whether a buffer holds what the array does: elements of its own kind, or bytes without a dtype
 * (bytes, bytearray, a memoryview of bytes) that are a whole number of elements. Bytes of anything
 * else, NumPy's among them, may be meant as numbers: Python decides.
 */
int gd_mapped_fits(const Mapped *self, PyObject *from, const Py_buffer *data);

enum { ANY = -1, MAP, DMA, COURIER, OTHER };
/* Which of them the argument via= asks for. */
int gd_mapped_way(PyObject *value);

/* A new array of NumPy's, of the array's dtype. NULL: failed. */
PyObject *gd_mapped_fresh(const Mapped *self, PyObject *shape);

#define LATE 1 /* a courier is still at it */
/*
 * The rest of an errand, by a function of Python's that looks for signals and whether the device lives.
 * What a signal's handler raises waits until it is over, as the device may store to the destination.
 * 0, or -1 and what was raised.
 */
int gd_mapped_await(struct gd_left *left);

/* ---- elements.c ---- */
PyObject *gd_mapped_gather(Mapped *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *gd_mapped_scatter(Mapped *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
extern const char gd_mapped_gather_doc[], gd_mapped_scatter_doc[];

#endif
