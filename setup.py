"""The C parts. Everything else is in pyproject.toml."""

from setuptools import Extension, setup

setup(
    cffi_modules=["gpudirect/_native/build.py:ffibuilder", "gpudirect/bench/_native/build.py:ffibuilder"],
    ext_modules=[
        Extension(
            "gpudirect._native._dlpack",
            ["gpudirect/_native/dlpack.c"],
            extra_compile_args=["-O2", "-Wall", "-Wextra"],
        ),
        Extension(
            "gpudirect._native._lease",
            ["gpudirect/_native/lease.c"],
            extra_compile_args=["-O2", "-Wall", "-Wextra"],
        ),
        Extension(
            "gpudirect._native._mapped",
            ["gpudirect/_native/mapped.c"],
            depends=["gpudirect/_native/native.h"],
            extra_compile_args=["-O2", "-Wall", "-Wextra"],
        ),
        Extension(
            "gpudirect.service._native._calls",
            [f"gpudirect/service/_native/{name}.c"
             for name in ("call", "caller", "errors", "function", "lanes", "module")],
            depends=["gpudirect/service/_native/calls.h", "gpudirect/_native/lane.h",
                     "p2pmod/p2pmod-lane.h"],
            extra_compile_args=["-O2", "-Wall", "-Wextra", "-fvisibility=hidden"],
        ),
    ],
)
