"""The source of a service's resident kernel, and what its compiler tells of the functions in it."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .. import _native
from ..devices import Parameter
from ..errors import ArgumentError

HERE = Path(__file__).resolve().parent
KERNEL = "gd_resident"
USER_FILE = "kernel.cu"
"""Under which name compilers report errors in the functions' source."""
TEAMS = ("thread", "warp", "block", "grid")

_MAGIC = b"gd-fun01"
_HEAD = struct.Struct("<II")
_ENTRY = struct.Struct("<IIIII")
_FAILS = re.compile(r"\bgd_(assert|require|status)\b|#\s*include\b")
"""What a source holds whose functions may fail; without it a call need not look whether one did."""
_NAME = re.compile(r"[A-Za-z_]\w*(::[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class Signature:
    """A function of a service, as its compiler laid it out."""

    name: str
    number: int
    """By which packets name it."""
    team: str
    """Who runs it: "thread", "warp", "block" or "grid"."""
    result: Parameter
    """``kind`` 'v' where it returns nothing."""
    parameters: tuple[Parameter, ...]

    @property
    def size(self) -> int:
        """Bytes of its arguments."""
        last = self.parameters[-1] if self.parameters else None
        return last.offset + last.size if last else 0


def declared(functions: str | Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """{name: team} of what a user declares. Raises ArgumentError saying how to declare it."""
    if isinstance(functions, str):
        functions = [functions]
    try:
        found = dict(functions) if isinstance(functions, Mapping) else dict.fromkeys(functions, "thread")
    except TypeError:
        raise ArgumentError(
            f"functions is {functions!r}: give names, [\"scale\"], or names with their teams, "
            '{"scale": "thread", "sum": "block"}'
        ) from None
    if not found:
        raise ArgumentError("functions is empty: name the __device__ functions of the service")
    for name, team in found.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ArgumentError(
                f"{name!r} is no function's name: give it as in the source; to offer an instance of "
                "a template, wrap it in a function"
            )
        if team not in TEAMS:
            raise ArgumentError(f"{name} is declared {team!r}; the teams are {', '.join(TEAMS)}")
    if len(found) > 0xFF00:
        raise ArgumentError(f"{len(found)} functions; a service has at most {0xFF00}")
    return found


@cache
def _part(name: str) -> str:
    if name == "lane":
        return str(_native.ffi.string(_native.lib.gd_lane_source).decode())
    if name == "signature.h":
        return (HERE.parent / "devices" / "emulation" / name).read_text()
    return (HERE / name).read_text()


def resident_source(
    source: str, functions: Mapping[str, str], options: Sequence[str] = ()
) -> str:
    """CUDA C++ of the resident kernel that serves ``functions`` of ``source``.

    options: those that it will be compiled with, which may bring in what the source does not show.
    """
    if not isinstance(source, str) or not source.strip():
        raise ArgumentError("source is empty: give CUDA C++ text with __device__ functions")
    entries = " ".join(
        f"X({number}, {name}, {team.upper()})" for number, (name, team) in enumerate(functions.items())
    )
    return "\n".join([
        _part("lane"), _part("before.cuh"),
        f'#line 1 "{USER_FILE}"', source,
        '#line 1 "gpudirect-signature.h"', _part("signature.h"),
        f"#define GD_FUNCTIONS(X) {entries}",
        f"#define GD_FAILS {int(bool(_FAILS.search(' '.join((source, *options)))))}",
        '#line 1 "gpudirect-service.cuh"', _part("after.cuh"),
    ])  # fmt: skip


def signatures(image: bytes, functions: Mapping[str, str]) -> dict[str, Signature]:
    """What the compiled resident kernel tells of its functions."""
    names = list(functions)
    found: dict[str, Signature] = {}
    at = image.find(_MAGIC)
    while at >= 0:
        start = at + len(_MAGIC)
        number, count = _HEAD.unpack_from(image, start)
        if number < len(names) and count < 4096:
            entries = [
                _ENTRY.unpack_from(image, start + _HEAD.size + i * _ENTRY.size)
                for i in range(count + 1)
            ]
            offset, parameters = 0, []
            for kind, size, alignment, pointee_kind, pointee_size in entries[1:]:
                offset = -(-offset // alignment) * alignment
                pointee = f"{chr(pointee_kind)}{pointee_size}" if pointee_kind else ""
                parameters.append(Parameter(chr(kind), size, offset, pointee))
                offset += size
            kind, size, *_ = entries[0]
            name = names[number]
            found[name] = Signature(
                name, number, functions[name], Parameter(chr(kind), size, 0), tuple(parameters)
            )
        at = image.find(_MAGIC, start)
    assert len(found) == len(names), f"the image tells {sorted(found)} of {names}"
    return {name: found[name] for name in names}
