"""Builds gpudirect._native._cffi: the C files of this folder, declared by their own headers.

cffi reads no preprocessor, so a header is stripped here: conditionals and includes go, and every
``#define NAME value`` becomes a constant whose value the C compiler tells (an integer, or
``char *`` where the value is a string). Nothing is declared twice: p2pmod's user ABI
(``p2pmod/p2pmod.h``) is read in the same way.
"""

from __future__ import annotations

import re
from pathlib import Path

import cffi

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# headers of ours, and the ABI of modules that the runtime talks to
LANE = ROOT / "p2pmod" / "p2pmod-lane.h"
PUBLIC = ROOT / "gpudirect" / "include"
SHARED_HEADERS = (PUBLIC / "gpudirect" / "copy.h", PUBLIC / "gpudirect" / "lane.h")
PUBLIC_HEADERS = (*SHARED_HEADERS, PUBLIC / "gpudirect" / "attach.h")
HEADERS = (*SHARED_HEADERS, HERE / "native.h", HERE / "allocator.h", HERE / "inputs.h", HERE / "lane.h",
           HERE / "relay.h", HERE / "courier.h")  # fmt: skip
ABI_HEADERS = (ROOT / "p2pmod" / "p2pmod.h", LANE, ROOT / "tests" / "vm" / "standin" / "standin.h")
# libgpudirect for C programs: the functions that the public headers declare, and what they stand on
LIBRARY_ALONE = ("attach", "rm", "said")  # the runtime has sharing/ and bridges/rm.py
LIBRARY_SOURCES = (*LIBRARY_ALONE, "bell", "copy", "doorbell", "engine_neon", "engine_x86", "engines",
                   "gather", "guard", "lane", "mappings", "process", "strided", "threads")  # fmt: skip
# gcc refuses these from 14 on; so does each older compiler that we build with
STRICT = [f"-Werror={what}" for what in ("implicit-function-declaration", "implicit-int",
                                        "incompatible-pointer-types", "int-conversion")]  # fmt: skip
C_OPTIONS = ["-O3", "-fno-strict-aliasing",
             # a loop of stores to a mapping must not become a call of memcpy
             "-fno-tree-loop-distribute-patterns",
             "-Wall", "-Wextra", "-Wno-unused-parameter", *STRICT]  # fmt: skip
# as linux/types.h has them: cffi's own checks compare pointers to them
KERNEL_TYPES = """
typedef unsigned char __u8; typedef unsigned short __u16; typedef unsigned int __u32;
typedef unsigned long long __u64; typedef int __s32; typedef long long __s64;
"""


def declarations(header: Path) -> str:
    """The header as cffi wants it."""
    source = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.DOTALL)
    source = re.sub(r"//.*", "", source).replace("\\\n", " ").replace("__aligned_u64", "__u64")
    lines = []
    for line in source.splitlines():
        if found := re.match(r"\s*#\s*define\s+(\w+)[ \t]+(\S)", line):
            text = found[2] == '"'
            lines.append(f"static char *const {found[1]};" if text else f"#define {found[1]} ...")
        elif not line.lstrip().startswith("#"):
            lines.append(line)
    return "\n".join(lines)


def exported() -> list[str]:
    """The functions of libgpudirect: those that the public headers declare."""
    text = "\n".join(declarations(header) for header in PUBLIC_HEADERS)
    return sorted(re.findall(r"^\w[\w ]*[ *](gd_\w+)\(", text, re.MULTILINE))


def builder() -> cffi.FFI:
    """The extension, ready to compile."""
    ffi = cffi.FFI()
    ffi.cdef(KERNEL_TYPES)
    headers = [h for h in (*ABI_HEADERS, *HEADERS) if h.exists()]
    for header in headers:
        ffi.cdef(declarations(header))
    includes = "\n".join(f'#include "{h.name}"' for h in headers if h not in SHARED_HEADERS)
    # the resident kernel of a service is compiled from the very same text
    ffi.cdef("static char *const gd_lane_source;")
    text = LANE.read_text().translate({ord("\n"): "\\n", ord('"'): '\\"', ord("\\"): "\\\\"})
    ffi.set_source(
        "gpudirect._native._cffi",
        f"#include <linux/types.h>\n#include <sys/ioctl.h>\n{includes}\n"
        f'static char *const gd_lane_source = "{text}";',
        sources=sorted(str(f.relative_to(ROOT)) for f in HERE.glob("*.c")
                       if f.stem not in ("_cffi", *LIBRARY_ALONE)
                       and '#include "objects.h"' not in f.read_text()),
        include_dirs=sorted({str(h.parent.relative_to(ROOT)) for h in headers}),
        depends=sorted(str(f.relative_to(ROOT)) for f in (*HERE.glob("*.h"), *headers)),
        extra_compile_args=[*C_OPTIONS, "-fvisibility=hidden"],  # calls inside are direct, and inlined
        libraries=["pthread"],
    )  # fmt: skip
    return ffi


ffibuilder = builder()

if __name__ == "__main__":
    ffibuilder.compile(tmpdir=str(ROOT), verbose=True)
