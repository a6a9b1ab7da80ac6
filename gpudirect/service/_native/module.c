/* SPDX-License-Identifier: MIT */
/* The module gpudirect.service._native._calls. */
#include "calls.h"

const struct gd_lane_api *api;
PyTypeObject *call_type;
PyObject *error_type;

static PyObject *bind(PyObject *module, PyObject *args)
{
    PyObject *address, *error;

    (void)module;
    if (!PyArg_ParseTuple(args, "OO:bind", &address, &error))
        return NULL;
    api = PyLong_AsVoidPtr(address);
    if (PyErr_Occurred())
        return NULL;
    gd_replace(&error_type, Py_NewRef(error));
    Py_RETURN_NONE;
}

static PyMethodDef module_methods[] = {
    {"bind", bind, METH_VARARGS,
     "bind(address of struct gd_lane_api, gpudirect.Error): where lanes are done."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "gpudirect.service._native._calls",
    .m_doc = "The quick part of services.",
    .m_size = -1,
    .m_methods = module_methods,
};

PyMODINIT_FUNC PyInit__calls(void)
{
    PyObject *m;

    s_piece = PyUnicode_InternFromString("_piece");
    s_device = PyUnicode_InternFromString("device");
    s_ptr = PyUnicode_InternFromString("ptr");
    s_dtype = PyUnicode_InternFromString("dtype");
    if (!s_piece || !s_device || !s_ptr || !s_dtype)
        return NULL;
    m = PyModule_Create(&module);
    if (m && (!gd_type(m, &Function_spec, "Function") || !gd_type(m, &Caller_spec, "Caller") ||
              !(call_type = gd_type(m, &Call_spec, "Call")) ||
              PyModule_AddIntConstant(m, "ARGUMENTS_MAX", ARGUMENTS_MAX)))
        Py_CLEAR(m);
    return m;
}
