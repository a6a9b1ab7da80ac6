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
from ..devices.emulation.signature import plain_words, signature_header
from ..errors import ArgumentError

HERE = Path(__file__).resolve().parent
KERNEL = "gd_resident"
USER_FILE = "kernel.cu"
"""Under which name compilers report errors in the functions' source."""
TYPES_FILE = "gpudirect-functions"
"""The same of errors in the functions' names; the line is the function's number and one."""
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


_BEFORE = ("lane", "offered.cuh", "memory.cuh", "described.cuh", "teams.cuh",
           "ends.cuh", "polling.cuh")  # fmt: skip
_BEHIND = "entry.cuh"
_MACRO = re.compile(r"(-D|-U|--define-macro|--undefine-macro)=?(.*)", re.DOTALL)


@cache
def _part(name: str) -> str:
    if name == "lane":
        text = str(_native.ffi.string(_native.lib.gd_lane_source).decode())
    else:
        text = (HERE / name).read_text()
    return f'#line 1 "gpudirect-{name}"\n{text}'


def resident_source(
    source: str,
    functions: Mapping[str, str],
    options: Sequence[str] = (),
    likes: Mapping[str, str] | None = None,
) -> tuple[str, tuple[str, ...]]:
    """CUDA C++ of the resident kernel that serves ``functions`` of ``source``, and with which of
    the options it is to be compiled.

    likes: of functions that share their name with others, declarations of functions of the same
        type, which are named as ``like(name, functions)`` says.

    What is ours stands before the source, or behind it under names that begin with gd: whatever the
    source calls its functions and macros, ours stay as they are. For that macros given as options
    become part of the source.
    """
    if not isinstance(source, str) or not source.strip():
        raise ArgumentError("source is empty: give CUDA C++ text with __device__ functions")
    macros, rest = _macros(options)
    entries = " ".join(
        f"X({number}, ::{name}, {TEAMS.index(team)})"
        for number, (name, team) in enumerate(functions.items())
    )
    types = [
        f"{likes[name]} typedef decltype(&::{like(name, functions)}) gd_type_of_{number};"
        if likes and name in likes else f"typedef decltype(&::{name}) gd_type_of_{number};"
        for number, name in enumerate(functions)
    ]  # fmt: skip
    fails = bool(_FAILS.search(" ".join((source, *options))))
    text = "\n".join([
        f"#define GD_FAILS {int(fails)}", signature_header(), *map(_part, _BEFORE),
        '#line 1 "gpudirect-options"', *macros,
        f'#line 1 "{USER_FILE}"', source,
        plain_words(), f'#line 1 "{TYPES_FILE}"', *types, f"#define GD_FUNCTIONS(X) {entries}", _part(_BEHIND),
    ])  # fmt: skip
    return text, rest


def like(name: str, functions: Mapping[str, str]) -> str:
    """What a function of the same type as ``name`` is called, beside it."""
    outer, colons, _ = name.rpartition("::")
    return f"{outer}{colons}gd_like_{list(functions).index(name)}"


def _macros(options: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Options that define macros as lines of source, and the options that are left."""
    lines, rest = [], []
    remaining = iter(options)
    for option in remaining:
        found = _MACRO.fullmatch(option) if isinstance(option, str) else None
        if not found:
            rest.append(option)
            continue
        name, given, value = (found[2] or next(remaining, "")).partition("=")
        if found[1] in ("-U", "--undefine-macro"):
            lines.append(f"#undef {name}")
        else:
            lines.append(f"#define {name} {value if given else 1}")
    return lines, tuple(rest)


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
