"""A kernel's parameters, as its compiler laid them out. The same for NVRTC and the host's compiler.

``signature_header()`` goes before the kernel's source and ``signature_source(name)`` behind it; the
compiled image (a cubin, a shared object, or the bytes of the global ``gd_signature``) then tells the
parameters.
"""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

from ..base import Parameter

FILE = "gpudirect-signature"
"""The file name under which compilers report errors in the name of the kernel."""

_MAGIC = b"gd-sig01"
_COUNT = struct.Struct("<I")
_PARAMETER = struct.Struct("<IIIII")


WORDS = ("alignas alignof auto bool case char class const constexpr decltype default else enum extern "
         "float if inline int long namespace return short signed sizeof static static_assert struct "
         "switch template typedef typename union unsigned using void volatile device global "
         "host shared constant")  # fmt: skip
"""Of the language, and those of which NVRTC makes ``__device__`` and the like."""


@cache
def signature_header() -> str:
    """CUDA C++ to put before a source, where its macros do not reach it. Lines are counted anew."""
    text = (Path(__file__).parent / "signature.h").read_text()
    return f'#line 1 "{FILE}.h"\n{text}\n'


@cache
def plain_words() -> str:
    """CUDA C++ to put behind a source: its macros named like words of the language are no more."""
    return "\n" + "".join(f"#undef {word}\n" for word in WORDS.split())


def signature_source(name: str) -> str:
    """CUDA C++ to put behind a source: makes it tell the parameters of its kernel ``name``.

    A name expression as NVRTC takes them: ``scale``, ``filters::scale<float, 3>``.
    """
    return f'{plain_words()}#line 1 "{FILE}"\nGD_SIGNATURE({name})\n'


def parse_signature(image: bytes) -> tuple[Parameter, ...]:
    """The kernel's parameters, out of an image compiled with ``signature_source``.

    Raises ValueError when the image holds no signature.
    """
    start = image.find(_MAGIC)
    if start < 0:
        raise ValueError(f"no kernel signature in these {len(image)} bytes")
    start += len(_MAGIC)
    (count,) = _COUNT.unpack_from(image, start)
    parameters = []
    offset = 0
    for i in range(count):
        at = start + _COUNT.size + i * _PARAMETER.size
        kind, size, alignment, pointee_kind, pointee_size = _PARAMETER.unpack_from(image, at)
        offset = -(-offset // alignment) * alignment
        pointee = f"{chr(pointee_kind)}{pointee_size}" if pointee_kind else ""
        parameters.append(Parameter(chr(kind), size, offset, pointee))
        offset += size
    return tuple(parameters)


def block_size(parameters: tuple[Parameter, ...]) -> int:
    """Bytes of the argument block: to the end of the last parameter."""
    return max((p.offset + p.size for p in parameters), default=0)
