"""Compiling CUDA C++ with NVRTC (through cuda.core), kept on disk between processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..config import cache_folder
from ..errors import CompileError, KernelNotFoundError
from .base import Parameter
from .emulation.signature import FILE, parse_signature, signature_header, signature_source

SOURCE = "kernel.cu"
_SYMBOL = b"gd-name:"  # in the cache, before the image: the kernel's name in it


@dataclass(frozen=True)
class Compiled:
    """A kernel for one architecture."""

    code: bytes
    symbol: str
    parameters: tuple[Parameter, ...]


@cache
def _compiler() -> tuple[Any, str]:
    """(cuda.core, NVRTC's version). Raises CompileError when there is none."""
    try:
        import cuda.core as core

        if not hasattr(core, "Program"):  # cuda.core before 1.0
            import cuda.core.experimental as core
        from cuda.bindings import nvrtc

        _, major, minor = nvrtc.nvrtcVersion()
    except Exception as e:
        raise CompileError(
            f"NVRTC, CUDA's run-time compiler, cannot be used: {e}. pip install "
            "gpudirect[cu13] (or [cu12]), or install the CUDA toolkit."
        ) from e
    return core, f"{major}.{minor}"


def _store(path: Path, content: bytes) -> None:
    """Write atomically; a cache that cannot be written is done without."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(content)
            os.replace(name, path)
        except OSError:
            os.unlink(name)


def compile_kernel(
    source: str, name: str, capability: tuple[int, int], options: tuple[str, ...] = ()
) -> Compiled:
    """The kernel ``name`` of ``source``, for a compute capability (major, minor).

    Raises CompileError with NVRTC's log, KernelNotFoundError.
    """
    core, version = _compiler()
    arch = f"sm_{capability[0]}{capability[1]}"
    whole = f'{signature_header()}#line 1 "{SOURCE}"\n{source}{signature_source(name)}'
    kernel = f"(gd_kernel_pointer)&{name}"  # of several functions of the name the one that it can be
    key = hashlib.sha256("\0".join((whole, name, arch, version, *options)).encode()).hexdigest()
    path = cache_folder() / "cuda" / f"{key}.cubin"
    with contextlib.suppress(OSError, ValueError):
        content = path.read_bytes()
        head, _, code = content.partition(b"\n")
        if head.startswith(_SYMBOL) and code:
            return Compiled(code, head[len(_SYMBOL) :].decode(), parse_signature(code))

    try:
        program = core.Program(
            whole, "c++", core.ProgramOptions(arch=arch, name=SOURCE, std="c++17",
                                              **_options(options)),
        )  # fmt: skip
        object_code = program.compile("cubin", name_expressions=(kernel,))
    except Exception as e:
        log = str(e)
        if FILE in log and f"{SOURCE}(" not in log:  # only the question for the name is wrong
            raise KernelNotFoundError(
                f"the source has no kernel {name!r}: a `__global__ void` of that name is needed "
                f"(of a template give an instance, as in \"scale<float>\")\n{log}"
            ) from None
        raise CompileError(f"the source of kernel {name!r} does not compile:\n{log}", log) from None
    code = bytes(object_code.code)
    mapping = object_code.symbol_mapping
    found = mapping.get(kernel) or mapping.get(kernel.encode()) or name
    symbol = found.decode() if isinstance(found, bytes) else found
    _store(path, _SYMBOL + symbol.encode() + b"\n" + code)
    return Compiled(code, symbol, parse_signature(code))


def _options(options: tuple[str, ...]) -> dict[str, Any]:
    """NVRTC's command-line options as cuda.core takes them."""
    defines: list[Any] = []
    includes: list[str] = []
    assembler: list[str] = []
    result: dict[str, Any] = {}
    for option in options:
        if m := re.fullmatch(r"(?:-D|--define-macro=)([^=]+)(?:=(.*))?", option):
            defines.append((m[1], m[2]) if m[2] is not None else m[1])
        elif m := re.fullmatch(r"(?:-I|--include-path=)(.+)", option):
            includes.append(m[1])
        elif m := re.fullmatch(r"--ptxas-options=(.+)", option):
            assembler.append(m[1])
        elif option in ("--use_fast_math", "-use_fast_math"):
            result["use_fast_math"] = True
        elif m := re.fullmatch(r"(?:-std|--std)=(.+)", option):
            raise CompileError("the language is C++17; -std cannot be changed")
        else:
            raise CompileError(
                f"compiler option {option!r} is not offered; there are -DNAME[=VALUE], -IFOLDER, "
                "--use_fast_math and --ptxas-options=OPTION"
            )
    if defines:
        result["define_macro"] = defines
    if includes:
        result["include_path"] = includes
    if assembler:
        result["ptxas_options"] = assembler
    return result
