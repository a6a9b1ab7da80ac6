/* SPDX-License-Identifier: MIT */
/*
 * gpudirect._native._lease: Lease and Yard, for what must never be lost and never be given twice.
 *
 * A Lease is one reference to something that exists once: a piece of memory, an event, a stream.
 * When nobody refers to it any more it does not die: it goes home, to its Yard or to a callable.
 * That happens in C, without a bytecode, so neither a signal handler that raises nor a garbage
 * collection can come in between; and a lease that an exception drops half way from one list to
 * another is neither lost nor in two places.
 */
#include "objects.h"

typedef struct Lease {
    PyObject_HEAD
    struct Lease *next; /* in a yard, which owns it then */
    PyObject *home;     /* Yard, callable, or NULL: it dies */
    PyObject *of;
    unsigned long long ptr, host;
    Py_ssize_t nbytes, weight;
    char exported;
} Lease;

typedef struct {
    PyObject_HEAD
    Lease *first;
    Py_ssize_t count, weight, limit;
    PyObject *bell;
} Yard;

static PyTypeObject *lease_type, *yard_type;

/*
 * Nobody is there to raise anything to. So bells and homes are single calls in C that only queue
 * (Keeper.post), in the middle of which no signal's handler runs: Ctrl-C is not lost here.
 */
static void ring(PyObject *bell, PyObject *argument)
{
    PyObject *result = PyObject_CallFunctionObjArgs(bell, argument, NULL);

    if (!result)
        PyErr_WriteUnraisable(bell);
    Py_XDECREF(result);
}

/* ---- Yard ---- */

static void yard_take_in(Yard *yard, Lease *lease)
{
    int was_over = yard->weight > yard->limit;

    lease->next = yard->first;
    yard->first = (Lease *)Py_NewRef((PyObject *)lease);
    yard->count++;
    yard->weight += lease->weight;
    if (yard->weight > yard->limit && !was_over && yard->bell)
        ring(yard->bell, NULL);
}

static PyObject *Yard_take(Yard *self, PyObject *ignored)
{
    PyObject *all = PyList_New(self->count);
    Py_ssize_t i;

    (void)ignored;
    /* the list's making may have collected garbage, and so brought more here */
    if (all && PyList_Size(all) != self->count) {
        Py_DECREF(all);
        return Yard_take(self, NULL);
    }
    for (i = 0; all && self->first; i++) {
        Lease *lease = self->first;

        self->first = lease->next;
        lease->next = NULL;
        PyList_SetItem(all, i, (PyObject *)lease);
    }
    if (all)
        self->count = self->weight = 0;
    return all;
}

static Py_ssize_t Yard_length(Yard *self)
{
    return self->count;
}

static int Yard_init(Yard *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"bell", "limit", NULL};
    PyObject *bell = Py_None;
    Py_ssize_t limit = PY_SSIZE_T_MAX;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|On:Yard", names, &bell, &limit))
        return -1;
    gd_replace(&self->bell, bell == Py_None ? NULL : Py_NewRef(bell));
    self->limit = limit;
    return 0;
}

static void Yard_dealloc(Yard *self)
{
    while (self->first) {
        Lease *lease = self->first;

        self->first = lease->next;
        lease->next = NULL;
        Py_CLEAR(lease->home);
        Py_DECREF(lease);
    }
    Py_CLEAR(self->bell);
    gd_free((PyObject *)self, 0);
}

static PyMethodDef Yard_methods[] = {
    {"take", (PyCFunction)Yard_take, METH_NOARGS,
     "take()\n--\n\nAll leases that came home, as a list; the last one first."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Yard_members[] = {
    {"limit", T_PYSSIZET, offsetof(Yard, limit), 0, "Weight above which the bell is called."},
    {"weight", T_PYSSIZET, offsetof(Yard, weight), READONLY, "Of all leases here."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot Yard_slots[] = {
    {Py_tp_doc, "Yard(bell=None, limit=...)\n--\n\nWhere leases come home to. ``bell()`` is called when "
                "their weight rises above the limit."},
    {Py_tp_dealloc, Yard_dealloc},
    {Py_tp_methods, Yard_methods},
    {Py_tp_members, Yard_members},
    {Py_sq_length, Yard_length},
    {Py_tp_init, Yard_init},
    {Py_tp_new, PyType_GenericNew},
    {0, NULL},
};

static PyType_Spec Yard_spec = {
    .name = "gpudirect._native._lease.Yard",
    .basicsize = sizeof(Yard),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = Yard_slots,
};

/* ---- Lease ---- */

static void go_home(Lease *self)
{
    PyObject *type, *value, *traceback;

    if (!self->home)
        return;
    PyErr_Fetch(&type, &value, &traceback);
    if (Py_TYPE(self->home) == yard_type)
        yard_take_in((Yard *)self->home, self);
    else {
        /* what this thread stored through a mapping leaves before another thread unmaps it */
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        ring(self->home, (PyObject *)self);
    }
    PyErr_Restore(type, value, traceback);
}

static void Lease_dealloc(PyObject *object)
{
    Lease *self = (Lease *)object;

    /* not tp_finalize: a lease goes home each time that nobody refers to it, not only once */
    Py_SET_REFCNT(object, 1); /* ours, while others may take theirs */
    go_home(self);
    Py_SET_REFCNT(object, Py_REFCNT(object) - 1);
    if (Py_REFCNT(object))
        return; /* it is home */
    Py_CLEAR(self->home);
    Py_CLEAR(self->of);
    gd_free(object, 0);
}

static int Lease_init(Lease *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"home", "of", "ptr", "nbytes", "host", "weight", NULL};
    PyObject *home = NULL, *of = Py_None;
    unsigned long long ptr = 0, host = 0;
    Py_ssize_t nbytes = 0, weight = 0;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|OKnKn:Lease", names, &home, &of, &ptr, &nbytes,
                                     &host, &weight))
        return -1;
    self->ptr = ptr;
    self->host = host;
    self->nbytes = nbytes;
    self->weight = weight;
    gd_replace(&self->of, Py_NewRef(of));
    gd_replace(&self->home, home == Py_None ? NULL : Py_NewRef(home));
    return 0;
}

static PyObject *Lease_end(Lease *self, PyObject *ignored)
{
    (void)ignored;
    Py_CLEAR(self->home);
    Py_RETURN_NONE;
}

static PyMethodDef Lease_methods[] = {
    {"end", (PyCFunction)Lease_end, METH_NOARGS,
     "end()\n--\n\nIt has no home any more: it dies when nobody refers to it."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Lease_members[] = {
    {"of", T_OBJECT, offsetof(Lease, of), READONLY, "What it stands for."},
    {"ptr", T_ULONGLONG, offsetof(Lease, ptr), READONLY, "Device address of the first byte."},
    {"host", T_ULONGLONG, offsetof(Lease, host), READONLY, "CPU address of it; 0: not mapped."},
    {"nbytes", T_PYSSIZET, offsetof(Lease, nbytes), 0, "Bytes asked for."},
    {"weight", T_PYSSIZET, offsetof(Lease, weight), READONLY, "What it counts for in a yard."},
    {"exported", T_BOOL, offsetof(Lease, exported), 0, "Another library may have queued work on it."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot Lease_slots[] = {
    {Py_tp_doc, "Lease(home, of=None, ptr=0, nbytes=0, host=0, weight=0)\n--\n\nGoes to ``home``, a Yard "
                "or a callable, when nobody refers to it any more."},
    {Py_tp_dealloc, Lease_dealloc},
    {Py_tp_methods, Lease_methods},
    {Py_tp_members, Lease_members},
    {Py_tp_init, Lease_init},
    {Py_tp_new, PyType_GenericNew},
    {0, NULL},
};

static PyType_Spec Lease_spec = {
    .name = "gpudirect._native._lease.Lease",
    .basicsize = sizeof(Lease),
    .flags = Py_TPFLAGS_DEFAULT, /* no base: what Python makes of it would be collected */
    .slots = Lease_slots,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "gpudirect._native._lease",
    .m_doc = "References that go home instead of dying.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__lease(void)
{
    PyObject *m = PyModule_Create(&module);

    if (m && (!(lease_type = gd_type(m, &Lease_spec, "Lease")) ||
              !(yard_type = gd_type(m, &Yard_spec, "Yard"))))
        Py_CLEAR(m);
    return m;
}
