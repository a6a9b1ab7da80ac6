"""Compiling CUDA C++ with NVRTC, CUDA's run-time compiler, kept on disk between processes.

NVRTC needs no GPU, so the emulated device has it judge every source as well: what it refuses, both
devices refuse, in the same words. It is called through cuda.bindings and not as cuda.core.Program:
so every option goes to NVRTC as it was written, headers can be handed over as text, and a program that
finds its kernels in the cache loads neither.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from .. import _cache
from ..errors import ArgumentError, CompileError, KernelNotFoundError
from . import _headers, _options, _source
from .base import Parameter
from .emulation.signature import FILE, parse_signature, signature_header, signature_source

SOURCE = "kernel.cu"
"""The file name under which NVRTC reports errors in the user's source."""

_WHEELS = ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")
_LANGUAGE = "-std=c++17"
_NAME_MAP = "__nv_name_map"  # where NVRTC finds fault with a name expression


@dataclass(frozen=True)
class Compiled:
    """A kernel for one architecture."""

    code: bytes
    symbol: str
    parameters: tuple[Parameter, ...]


class NvrtcMissingError(CompileError):
    """NVRTC is not there, or cannot be loaded."""


# -- NVRTC itself -------------------------------------------------------------------------------


@cache
def _load() -> tuple[Any, str] | str:
    """(cuda.bindings.nvrtc, NVRTC's version), or why there is none."""
    try:
        from cuda.bindings import nvrtc

        code, major, minor = nvrtc.nvrtcVersion()
        if int(code):
            raise RuntimeError(f"nvrtcVersion() gives {code.name}")
    except Exception as e:
        return " ".join(str(e).split()) or type(e).__name__
    return nvrtc, f"{major}.{minor}"


def version() -> str | None:
    """NVRTC's version, "13.0"; None where it cannot be loaded."""
    found = _load()
    return None if isinstance(found, str) else found[1]


def reason() -> str | None:
    """Why there is no NVRTC, and what to do; None where it can be used."""
    found = _load()
    if not isinstance(found, str):
        return None
    return (
        f"NVRTC, CUDA's run-time compiler, cannot be used: {found}. pip install gpudirect[cu13] (or "
        "[cu12]), or install the CUDA toolkit."
    )


@cache
def _identity() -> str:
    """What tells one NVRTC from another. A wheel is known without loading it.

    Raises NvrtcMissingError.
    """
    from importlib import metadata

    for wheel in _WHEELS:
        try:
            return f"{wheel} {metadata.version(wheel)}"
        except metadata.PackageNotFoundError:
            continue
    found = version()
    if found is None:
        raise NvrtcMissingError(reason() or "")
    return f"NVRTC {found}"


# -- compiling ----------------------------------------------------------------------------------


def compile_kernel(
    source: str, name: str, capability: tuple[int, int], options: Sequence[str] = ()
) -> Compiled:
    """The kernel ``name`` of ``source``, for a compute capability (major, minor).

    options: NVRTC's own, but for the architecture.
    Raises CompileError with NVRTC's log, KernelNotFoundError, ArgumentError, NvrtcMissingError.
    """
    options = _options.checked(options)
    arch = f"-arch=sm_{capability[0]}{capability[1]}"
    whole = f'{signature_header()}#line 1 "{SOURCE}"\n{source}{signature_source(name)}'
    _text(whole)
    fingerprint = _headers.fingerprint(*_options.reaching(whole, options))
    file = _cache.key(whole, name, arch, _identity(), fingerprint, *options) + ".cubin"
    if (found := _cache.find("cuda", file)) and (known := _unpack(found[1])):
        return known
    code, symbol = _compile(whole, name, (arch, *options))
    content = symbol.encode() + b"\n" + code
    with contextlib.suppress(OSError):  # it is there, if not for the next time
        _cache.place("cuda", file, content)
    return Compiled(code, symbol, parse_signature(code))


def _unpack(content: bytes) -> Compiled | None:
    symbol, _, code = content.partition(b"\n")
    try:
        return Compiled(code, symbol.decode(), parse_signature(code))
    except ValueError:  # kept by a version of gpudirect that was wrong
        return None


def _text(source: str) -> bytes:
    try:
        raw = source.encode()
    except UnicodeEncodeError as e:
        raise ArgumentError(f"the source is no text: {e}") from None
    if b"\0" in raw:
        raise ArgumentError(
            f"the source holds a NUL character (at {raw.index(0)}), where a compiler stops reading"
        )
    return raw


def _compile(source: str, name: str, options: tuple[str, ...]) -> tuple[bytes, str]:
    """(cubin, the kernel's name in it)."""
    found = _load()
    if isinstance(found, str):
        raise NvrtcMissingError(reason() or "")
    nvrtc, _ = found
    given = [*options, *(f"-I{folder}" for folder in _usable_headers())]
    if not any(re.match(r"--?std(=|$)", option) for option in options):
        given.append(_LANGUAGE)
    wanted = f"(gd_kernel_pointer)&{name}".encode()  # of several functions of the name that which can be it
    names = [n.encode() for n in _headers.STANDARD]
    texts = [t.encode() for t in _headers.STANDARD.values()]
    _, program = nvrtc.nvrtcCreateProgram(_text(source), SOURCE.encode(), len(names), texts, names)
    try:
        nvrtc.nvrtcAddNameExpression(program, wanted)
        (code,) = nvrtc.nvrtcCompileProgram(program, len(given), [o.encode() for o in given])
        if int(code):
            raise _refusal(source, name, code.name, _log(nvrtc, program))
        code, size = nvrtc.nvrtcGetCUBINSize(program)
        cubin = bytearray(size)
        if int(code) or not size or int(nvrtc.nvrtcGetCUBIN(program, cubin)[0]):
            raise CompileError(
                f"NVRTC made no code for the GPU of kernel {name!r} ({code.name}): leave out options "
                "that ask for something else, as -dlto does"
            )
        code, symbol = nvrtc.nvrtcGetLoweredName(program, wanted)
        return bytes(cubin), symbol.decode() if not int(code) else name
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _log(nvrtc: Any, program: Any) -> str:
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    text = bytearray(size)
    nvrtc.nvrtcGetProgramLog(program, text)
    return bytes(text).decode(errors="replace").strip("\0\n ")


def _usable_headers() -> tuple[Any, ...]:
    """The folders of CUDA's headers, if they are of the same CUDA as NVRTC."""
    there, own = _headers.version(), version()
    if there and own and there[0] != int(own.split(".")[0]):
        return ()
    return _headers.folders()


def _refusal(source: str, name: str, code: str, log: str) -> Exception:
    """What NVRTC's log means."""
    if code == "NVRTC_ERROR_INVALID_OPTION":
        return ArgumentError(f"NVRTC does not take these compiler options: {log}")
    errors = [line for line in log.splitlines() if re.search(r"\berror\b.*:", line)]
    if errors and all(line.startswith((FILE, _NAME_MAP)) for line in errors):
        # only the question for the name is wrong
        return KernelNotFoundError(
            f"the source has no kernel {name!r}: a `__global__ void` of that name is needed (of a "
            'template give an instance, as in "scale<float>"). Its kernels: '
            f"{_source.kernels(_source.mask(source))}\n{log}"
        )
    lines = [f"kernel {name!r} does not compile:", log or code]
    if missing := re.search(r"(?:cannot|could not) open source file \"([^\"]+)\"", log):
        lines.append(_hint(missing[1]))
    return CompileError("\n".join(lines), log)


def _hint(header: str) -> str:
    """What to do about a header that NVRTC did not find."""
    there, own = _headers.version(), version() or ""
    major = own.split(".")[0]
    if there and str(there[0]) != major:
        return (
            f"CUDA's headers were found, but they are of CUDA {there[0]}.{there[1]} and NVRTC is {own}: "
            f"pip install gpudirect[cu{major}]"
        )
    if not _headers.folders() or not there:
        return (
            f"CUDA's headers were not found on this machine: pip install gpudirect[cu{major}], or set "
            "CUDA_HOME to a toolkit"
        )
    return (
        f"{header} is in none of the folders searched: those of -I, "
        f"{', '.join(map(str, _headers.folders()))}. There is no C++ library on a GPU; of the standard "
        f"headers there are {', '.join(sorted(_headers.STANDARD))}, and libcu++ (<cuda/std/...>)"
    )
