"""The C parts. Everything else is in pyproject.toml."""

from setuptools import Extension, setup

setup(
    cffi_modules=["gpudirect/_native/build.py:ffibuilder"],
    ext_modules=[
        Extension(
            "gpudirect._native._mapped",
            ["gpudirect/_native/mapped.c"],
            depends=["gpudirect/_native/native.h"],
            extra_compile_args=["-O2", "-Wall", "-Wextra"],
        ),
        Extension(
            "gpudirect.service._calls",
            ["gpudirect/service/calls.c"],
            depends=["gpudirect/_native/lane.h", "p2pmod/p2pmod-lane.h"],
            extra_compile_args=["-O2", "-Wall", "-Wextra"],
        ),
    ],
)
