"""Headers for NVRTC, which brings none: CUDA's, wherever they are installed, and the standard ones.

CUDA's are looked for with cuda-pathfinder: wheels first, then conda, $CUDA_HOME, the system's toolkit.
The standard ones are CUDA's own (libcu++, ``cuda/std/``) under the names that everybody writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include(?:_next)?[ \t]*([<"])([^>"\n]+)[>"]', re.MULTILINE)

_LIBRARIES = ("cudart", "cccl", "nvcc", "curand")
"""As cuda-pathfinder names them: half precision and cooperative groups; libcu++; crt/; cuRAND."""

_STD = """
namespace cuda { namespace std {} }
namespace std { using namespace ::cuda::std; }
"""
_FLOAT = """
#ifndef FLT_MAX
#define FLT_RADIX 2
#define FLT_MANT_DIG 24
#define DBL_MANT_DIG 53
#define FLT_DIG 6
#define DBL_DIG 15
#define FLT_MIN_EXP (-125)
#define DBL_MIN_EXP (-1021)
#define FLT_MAX_EXP 128
#define DBL_MAX_EXP 1024
#define FLT_MAX 3.402823466385288598e+38f
#define DBL_MAX 1.7976931348623157081e+308
#define FLT_MIN 1.175494350822287507e-38f
#define DBL_MIN 2.2250738585072013831e-308
#define FLT_EPSILON 1.1920928955078125e-7f
#define DBL_EPSILON 2.2204460492503130808e-16
#endif
"""
_MATH = """
#ifndef NAN
#define NAN __int_as_float(0x7fffffff)
#define INFINITY __int_as_float(0x7f800000)
#endif
#ifndef M_PI
#define M_E 2.7182818284590452354
#define M_LOG2E 1.4426950408889634074
#define M_LOG10E 0.43429448190325182765
#define M_LN2 0.69314718055994530942
#define M_LN10 2.30258509299404568402
#define M_PI 3.14159265358979323846
#define M_PI_2 1.57079632679489661923
#define M_PI_4 0.78539816339744830962
#define M_1_PI 0.31830988618379067154
#define M_2_PI 0.63661977236758134308
#define M_2_SQRTPI 1.12837916709551257390
#define M_SQRT2 1.41421356237309504880
#define M_SQRT1_2 0.70710678118654752440
#endif
"""
_C = {"stdint.h": "cstdint", "stddef.h": "cstddef", "limits.h": "climits"}
_CPP = ("cstdint", "cstddef", "climits", "cmath", "limits", "type_traits", "utility", "array",
        "tuple", "initializer_list")  # fmt: skip

STANDARD: dict[str, str] = {
    **{name: f"#include <cuda/std/{name}>\n{_STD}" for name in _CPP},
    **{name: f"#include <cuda/std/{cpp}>\n" for name, cpp in _C.items()},
    # what they declare NVRTC knows by itself: assert, printf, memcpy and memset, the functions
    **dict.fromkeys(("assert.h", "cassert", "stdio.h", "cstdio", "string.h"), ""),
    **dict.fromkeys(("float.h", "cfloat"), _FLOAT),
    "cstring": f"#if __has_include(<cuda/std/cstring>)\n#include <cuda/std/cstring>\n{_STD}#endif\n",
    "math.h": _MATH,
}
STANDARD["cmath"] += _MATH
"""Name -> text of the standard headers that kernels may include on every device."""


@cache
def folders() -> tuple[Path, ...]:
    """Where CUDA's headers are, to be searched in this order; empty when there are none."""
    try:
        from cuda.pathfinder import find_nvidia_header_directory
    except ImportError:
        return ()
    found: dict[Path, None] = {}
    for library in _LIBRARIES:
        try:
            place = find_nvidia_header_directory(library)
        except Exception:  # of a library that this version of cuda-pathfinder does not know
            place = None
        if place:
            found[Path(place)] = None
    return tuple(found)


@cache
def version() -> tuple[int, int] | None:
    """(major, minor) of CUDA's headers; None when there are none."""
    for folder in folders():
        try:
            text = (folder / "cuda_runtime_api.h").read_text(errors="replace")
        except OSError:
            continue
        if found := re.search(r"^#define\s+CUDART_VERSION\s+(\d+)", text, re.MULTILINE):
            return int(found[1]) // 1000, int(found[1]) % 1000 // 10
    return None


def fingerprint(source: str, own: Sequence[str]) -> str:
    """What a compilation takes from files: changes when any of them does.

    own: the user's include folders, whose headers are read; of CUDA's the place and version count.
    """
    if not INCLUDE.search(source):
        return ""
    places = [f"{folder} {folder.stat().st_mtime_ns}" for folder in folders() if folder.exists()]
    return "\n".join([*places, str(version()), *_included(source, [Path(f) for f in own])])


def _included(source: str, own: Sequence[Path]) -> Iterable[str]:
    """Path and text of every header in the folders ``own`` that the source reaches."""
    seen: dict[Path, str] = {}
    todo = [(source, Path())]
    while todo:
        text, place = todo.pop()
        for quote, name in INCLUDE.findall(text):
            beside = [place] if quote == '"' and place != Path() else []
            for folder in (*beside, *own):
                path = folder / name
                if path in seen:
                    break
                try:
                    seen[path] = path.read_text(errors="replace")
                except OSError:
                    continue
                todo.append((seen[path], path.parent))
                break
    return [f"{path}\n{seen[path]}" for path in sorted(seen)]
