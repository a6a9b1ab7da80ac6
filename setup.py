"""The C parts. Everything else is in pyproject.toml."""

import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

# The first Python whose limited API has the buffer protocol: one build serves it and all later ones.
# An older one, and one without a global lock, get a build of their own.
ABI3 = (3, 11)
LIMITED = sys.version_info >= ABI3 and not sysconfig.get_config_var("Py_GIL_DISABLED")

if LIMITED:  # what an older checkout built here for this Python alone would be imported instead
    for left in Path("gpudirect").glob(f"**/_native/*.{sysconfig.get_config_var('SOABI')}.so"):
        left.unlink()


def extension(name: str, sources: list[str], *options: str, depends: tuple[str, ...] = ()) -> Extension:
    return Extension(
        name,
        sources,
        depends=["gpudirect/_native/objects.h", *depends],
        extra_compile_args=["-O2", "-Wall", "-Wextra", *options],
        define_macros=[("Py_LIMITED_API", "0x{:02x}{:02x}0000".format(*ABI3))] if LIMITED else [],
        py_limited_api=LIMITED,
    )


setup(
    cffi_modules=["gpudirect/_native/build.py:ffibuilder", "gpudirect/bench/_native/build.py:ffibuilder"],
    ext_modules=[
        extension("gpudirect._native._dlpack", ["gpudirect/_native/dlpack.c"]),
        extension("gpudirect._native._lease", ["gpudirect/_native/lease.c"]),
        extension("gpudirect._native._mapped", ["gpudirect/_native/mapped.c"],
                  depends=("gpudirect/_native/native.h",)),
        extension("gpudirect.service._native._calls",
                  [f"gpudirect/service/_native/{name}.c"
                   for name in ("call", "caller", "errors", "function", "lanes", "module")],
                  "-fvisibility=hidden",
                  depends=("gpudirect/service/_native/calls.h", "gpudirect/_native/lane.h",
                           "p2pmod/p2pmod-lane.h")),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp{}{}".format(*ABI3)}} if LIMITED else {},
)  # fmt: skip
