"""The C parts. Everything else is in pyproject.toml."""

import runpy
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

# The first Python whose limited API has the buffer protocol: one build serves it and all later ones.
# An older one, and one without a global lock, get a build of their own.
ABI3 = (3, 11)
LIMITED = sys.version_info >= ABI3 and not sysconfig.get_config_var("Py_GIL_DISABLED")
SONAME = "libgpudirect.so.0"
ABI_HEADERS = ("p2pmod/p2pmod.h", "p2pmod/p2pmod-lane.h")

metadata = runpy.run_path("package/metadata.py", run_name="metadata")
native = runpy.run_path("gpudirect/_native/build.py", run_name="native")

if LIMITED:  # what an older checkout built here for this Python alone would be imported instead
    for left in Path("gpudirect").glob(f"**/_native/*.{sysconfig.get_config_var('SOABI')}.so"):
        left.unlink()


def extension(name: str, sources: list[str], *options: str, depends: tuple[str, ...] = ()) -> Extension:
    return Extension(
        name,
        sources,
        depends=["gpudirect/_native/objects.h", *depends],
        include_dirs=["p2pmod"],
        extra_compile_args=["-O2", "-Wall", "-Wextra", *native["STRICT"], *options],
        define_macros=[("Py_LIMITED_API", "0x{:02x}{:02x}0000".format(*ABI3))] if LIMITED else [],
        py_limited_api=LIMITED,
    )


class BuildWithLibrary(build_ext):
    """The extensions, and libgpudirect for C programs."""

    def run(self) -> None:
        super().run()
        if not self.extensions:
            return
        sources = [f"gpudirect/_native/{name}.c" for name in native["LIBRARY_SOURCES"]]
        folder = Path("." if self.inplace else self.build_lib, "gpudirect", "lib")
        library = folder / SONAME
        made_of = [*map(Path, sources), *native["PUBLIC_HEADERS"], *Path("gpudirect/_native").glob("*.h")]
        newest = max(f.stat().st_mtime for f in made_of)
        if library.exists() and library.stat().st_mtime > newest:
            return
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(self.build_temp, "library")
        temporary.mkdir(parents=True, exist_ok=True)
        script = temporary / "exported"
        script.write_text(f"{{ global: {'; '.join(native['exported']())}; local: *; }};\n")
        objects = self.compiler.compile(
            sources, output_dir=str(temporary), include_dirs=["gpudirect/include", "p2pmod"],
            extra_postargs=[*native["C_OPTIONS"], "-fPIC", "-fno-semantic-interposition"],
        )  # fmt: skip
        self.compiler.link_shared_object(
            objects, str(library), libraries=["pthread"],
            extra_postargs=[f"-Wl,-soname,{SONAME}", f"-Wl,--version-script={script}",
                            "-Wl,-Bsymbolic-functions", "-Wl,-z,defs"],
        )  # fmt: skip
        # what -lgpudirect finds; a wheel holds no links
        (folder / "libgpudirect.so").write_text(f"/* GNU ld script */\nINPUT({SONAME})\n")


class BuildWithHeaders(build_py):
    """The Python files, and the headers of p2pmod that the public ones include."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [m for m in found if (package.rpartition(".")[2], m[1]) != ("_native", "build")]

    def run(self) -> None:
        super().run()
        if not getattr(self, "editable_mode", False):
            for header in ABI_HEADERS:
                shutil.copy(header, Path(self.build_lib, "gpudirect", "include"))


setup(
    **metadata["arguments"](),
    cmdclass={"build_ext": BuildWithLibrary, "build_py": BuildWithHeaders},
    cffi_modules=["gpudirect/_native/build.py:ffibuilder", "gpudirect/bench/_native/build.py:ffibuilder"],
    ext_modules=[
        extension("gpudirect._native._dlpack", ["gpudirect/_native/dlpack.c"]),
        extension("gpudirect._native._lease", ["gpudirect/_native/lease.c"]),
        extension("gpudirect._native._mapped",
                  [f"gpudirect/_native/{name}.c" for name in ("mapped", "elements")],
                  "-fvisibility=hidden",
                  depends=("gpudirect/_native/mapped.h", "gpudirect/_native/courier.h",
                           "gpudirect/_native/native.h", "gpudirect/include/gpudirect/copy.h")),
        extension("gpudirect.service._native._calls",
                  [f"gpudirect/service/_native/{name}.c"
                   for name in ("call", "caller", "errors", "function", "lanes", "module")],
                  "-fvisibility=hidden",
                  depends=("gpudirect/service/_native/calls.h", "gpudirect/_native/lane.h",
                           "gpudirect/include/gpudirect/lane.h", "p2pmod/p2pmod-lane.h")),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp{}{}".format(*ABI3)}} if LIMITED else {},
)  # fmt: skip
