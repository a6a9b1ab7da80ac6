"""Compiles CUDA C++ kernels for the emulated GPU.

NVRTC judges every source first, where it can be loaded, so that nothing compiles here that a GPU's
compiler refuses. What runs is made by the host's C++ compiler: a shared object in the cache, linked
against the runtime's shared object that lies beside it. Both are made at first use.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ... import _cache
from ...errors import CompileError, KernelNotFoundError
from .. import _headers, _nvrtc, _options, _source
from ..base import Parameter
from .signature import FILE, block_size, parse_signature, signature_header, signature_source

SHARED_MEMORY = 227 << 10
"""Bytes of dynamic shared memory that a block may have: what an H100 gives."""

CAPABILITY = (9, 0)
"""For which GPU NVRTC judges the sources: an H100, too."""

SOURCE = _nvrtc.SOURCE
"""The file name under which compilers report errors in the user's source."""

_HERE = Path(__file__).parent
_KIND = "emulated"  # the folder in the cache
_FLAGS = [
    "-std=c++17", "-O2", "-fPIC", "-shared", "-pthread", "-fno-exceptions", "-fno-strict-aliasing",
]  # fmt: skip
# Every basic block calls the runtime, which can so give other threads their turn.
# Large frames touch every page of theirs, so that a stack that runs over meets its guard.
_KERNEL_FLAGS = [
    "-fsanitize-coverage=trace-pc", "-fstack-clash-protection", "-fvisibility=hidden",
    "-fno-finite-loops", "-Wl,-z,defs",
]  # fmt: skip
_RUNTIME_FLAGS = ["-ftls-model=initial-exec", "-U_FORTIFY_SOURCE"]
# Headers of the toolkit that are not needed here, and those that offer what is not.
_EMPTY_HEADERS = ["cuda_runtime.h", "cuda_runtime_api.h", "device_launch_parameters.h", "cuda.h",
                  "device_functions.h", "vector_types.h", "vector_functions.h", "assert.h",
                  "cassert"]  # fmt: skip
# CUDA's own, and what they have for the GPU only.
_ADDED = {"cuda_fp16.h": "half.h", "cuda_bf16.h": "bfloat16.h"}
_ABSENT_HEADERS = {
    "mma.h": "tensor cores",
    "cooperative_groups/scan.h": "scans of groups",
    "cooperative_groups/memcpy_async.h": "asynchronous copies to shared memory",
    "cuda_pipeline.h": "asynchronous copies to shared memory",
    "curand_kernel.h": "cuRAND",
    "texture_fetch_functions.h": "textures",
}
# Looked for only when the compiler has failed: code for the GPU may stand behind #ifndef
# GPUDIRECT_EMULATED.
_ABSENT = [
    (re.compile(r"\b(asm|__asm__|__asm)\b\s*(volatile|__volatile__)?\s*\("), "inline PTX (asm)"),
    (re.compile(r"\b(cuda(Texture|Surface)Object_t|texture\s*<|tex[123]D\w*|surf[123]D\w*)"),
     "textures and surfaces"),
    (re.compile(r"<<<"), "dynamic parallelism (a launch from a kernel)"),
    (re.compile(r"\b(thrust|cub)(::|/)"), "Thrust and CUB"),
    (re.compile(r"\bnvcuda::"), "tensor cores"),
    (re.compile(r"\b(__cluster_\w+|__cvta_\w+|__pipeline_\w+|__viaddm\w+|__dp[24]a)\b"), "it"),
]  # fmt: skip


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel that the emulated GPU can load."""

    name: str
    path: Path
    """Shared object in the cache."""
    parameters: tuple[Parameter, ...]

    @property
    def argument_size(self) -> int:
        """Bytes of the argument block of a launch."""
        return block_size(self.parameters)

    def __repr__(self) -> str:
        kinds = ", ".join(f"{p.kind}{p.size}" for p in self.parameters)
        return f"<CompiledKernel {self.name}({kinds}), emulated>"


def compile_kernel(source: str, name: str, options: Sequence[str] = ()) -> CompiledKernel:
    """Compile the kernel ``name`` of the CUDA C++ ``source``, or take it from the cache.

    ``name`` is a name expression as for NVRTC: ``scale``, ``filters::scale<float, 3>``.
    ``options`` are NVRTC's: -D, -U, -I, --pre-include and -std are followed; those about GPU code
    are ignored.

    Raises CompileError (``log`` is the compiler's), KernelNotFoundError, ArgumentError.
    """
    options = _options.checked(options)
    with suppress(_nvrtc.NvrtcMissingError):  # then `info` says that sources are not judged
        _nvrtc.compile_kernel(source, name, CAPABILITY, options)
    flags = list(_options.followed(options))
    runtime = _runtime()
    fingerprint = _headers.fingerprint(*_options.reaching(source, options))
    made = f"kernel-{_cache.key(runtime.name, source, name, fingerprint, *map(repr, flags))}.so"
    path, image = _cache.find(_KIND, made) or _build_kernel(source, name, flags, runtime, made)
    return CompiledKernel(name, path, parse_signature(image))


def _build_kernel(
    source: str, name: str, flags: list[tuple[str, str]], runtime: Path, made: str
) -> tuple[Path, bytes]:
    """(where the shared object lies, its bytes)."""
    masked = _source.mask(source)
    text, dynamic = _rewrite_dynamic_shared(source, masked)
    own = [f"-DGD_DYNAMIC_SHARED={SHARED_MEMORY}"] if dynamic else []
    with _workspace() as work:
        _write_headers(work / "include")
        (work / SOURCE).write_text(text)
        # macros only where the source begins: the shim's own names are not the user's to replace
        before = "".join(_before(*flag) for flag in flags)
        folders = [f"-I{os.path.abspath(value)}" for letter, value in flags if letter == "-I"]
        language = [f"-std={value}" for letter, value in flags if letter == "-std="]
        cuda = [f"-isystem{folder}" for folder in _headers.folders()] if _headers.INCLUDE.search(source) else []
        entry = signature_source(name) + f'#line 1 "{FILE}"\nGD_KERNEL((gd_kernel_pointer)&{name})\n'
        (work / "entry.cc").write_text(f'{signature_header()}{before}#include "{SOURCE}"\n{entry}')
        log = _run(
            [*_FLAGS, *_KERNEL_FLAGS, *own, *language, "-I", "include", *folders, f"-iquote{os.getcwd()}",
             *cuda, "-include", str(_HERE / "cuda_shim.h"), "entry.cc", "-Wl,--no-as-needed", str(runtime),
             "-Wl,--as-needed",  # the C++ library takes the linker longer than all else
             f"-Wl,-rpath,$ORIGIN:{runtime.parent}", "-o", "out.so"],
            work,
        )  # fmt: skip
        if log is None:
            return _placed(made, work / "out.so")
    errors = [line for line in log.splitlines() if " error: " in line]
    if errors and all(FILE in line for line in errors):
        raise KernelNotFoundError(
            f"the source has no kernel {name!r} that can be launched (a __global__ void function; "
            f"of a template all arguments must be given). Its kernels: {_source.kernels(masked)}"
        )
    hints = _absent(_written(source, masked))
    first = errors[0] if errors else (log.strip().splitlines() or ["no message"])[0]
    judged = "" if _nvrtc.reason() else (
        f"\nNVRTC {_nvrtc.version()} takes it: on a GPU it compiles, and only the emulated device, which "
        "uses the host's C++ compiler, does not"
    )  # fmt: skip
    raise CompileError("\n".join([f"kernel {name!r} does not compile: {first}", *hints]) + judged, log)


def _before(letter: str, value: str) -> str:
    """What a -D, -U or --pre-include puts before the source."""
    name, _, text = value.partition("=")
    if letter == "-D":
        return f"#define {name} {text if '=' in value else 1}\n"
    if letter == "-U":
        return f"#undef {name}\n"
    return f'#include "{value}"\n' if letter == "-include" else ""


def _written(source: str, masked: str) -> str:
    """Of a source with ``#line`` in it, the part that somebody wrote: that of kernel.cu."""
    part = re.search(r'^#line 1 "kernel\.cu"\n(.*?)(?=^#line|\Z)', source, re.DOTALL | re.MULTILINE)
    return masked[part.start(1) : part.end(1)] if part else masked


def _absent(masked: str) -> list[str]:
    """What the source uses that only a GPU has, with its lines."""
    return [
        f"line {masked.count(chr(10), 0, match.start()) + 1}: the emulated device does not offer "
        f"{what if what != 'it' else match[0]}; it needs a GPU"
        for pattern, what in _ABSENT
        for match in [pattern.search(masked)]
        if match
    ]


_DYNAMIC = re.compile(
    r"(?:extern\s+__shared__|__shared__\s+extern)\s+([^;(){}\[\]]*(?:\([^;(){}]*\)[^;(){}\[\]]*)?)"
    r"\b(\w+)\s*\[\s*\]((?:\s*\[[^\]]*\])*)\s*;"
)


def _rewrite_dynamic_shared(source: str, masked: str) -> tuple[str, bool]:
    """Lead `extern __shared__ T name[];` to the shim's dynamic shared memory, lines kept."""
    parts = []
    end = 0
    for match in _DYNAMIC.finditer(masked):
        kind, name, rest = (source[slice(*match.span(i))].strip() for i in (1, 2, 3))
        if _in_function(source, masked, match.start()):
            text = f"{kind} (*const {name}){rest} = gd_dynamic_shared_pointer();"
        else:
            text = f'extern __thread {kind} {name}[]{rest} __asm__("gd_dynamic_shared");'
        parts += [source[end : match.start()], text, "\n" * match[0].count("\n")]
        end = match.end()
    return "".join([*parts, source[end:]]), bool(parts)


def _in_function(source: str, masked: str, position: int) -> bool:
    """Whether a place in the source is inside braces other than those of namespaces."""
    depth = []
    for brace in re.finditer(r"[{}]", masked[:position]):
        if brace[0] == "{":
            head = re.split(r"[;{}]", masked[: brace.start()])[-1]
            start = brace.start() - len(head)
            head = source[start : brace.start()]
            depth.append(not re.search(r'\bnamespace\b|\bextern\s*"C"\s*$', head))
        elif depth:
            depth.pop()
    return any(depth)


def _write_headers(folder: Path) -> None:
    folder.mkdir()
    for header in _EMPTY_HEADERS:
        (folder / header).touch()
    for header, own in _ADDED.items():
        (folder / header).write_text(f'#include_next <{header}>\n#include "{_HERE / own}"\n')
    (folder / "cooperative_groups").mkdir()
    for header in ("cooperative_groups.h", "cooperative_groups/reduce.h"):
        (folder / header).write_text(f'#include "{_HERE / "groups.h"}"\n')
    for header, what in _ABSENT_HEADERS.items():
        text = f"#error the emulated device does not offer {what}; it needs a GPU\n"
        (folder / header).write_text(text)


# ---- the compiler and its cache


@cache
def _compiler() -> tuple[list[str], str]:
    """The command of the host's C++ compiler, and its version."""
    wanted = os.environ.get("CXX")
    for command in [wanted] if wanted else ["c++", "g++", "clang++"]:
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            done = subprocess.run([*words, "--version"], capture_output=True, text=True)
            return words, done.stdout
    raise CompileError(
        f"no C++ compiler: {wanted or 'c++, g++, clang++'} not found. The emulated device compiles "
        "kernels with the host's compiler: install g++ (Debian, Ubuntu: apt install g++; Fedora: "
        "dnf install gcc-c++), or set CXX"
    )


def _run(arguments: list[str], work: Path) -> str | None:
    """Run the compiler in a folder; its messages when it failed."""
    command, _ = _compiler()
    done = subprocess.run(
        [*command, *arguments],
        cwd=work,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
    )
    return done.stdout + done.stderr if done.returncode else None


@cache
def _version() -> str:
    """Names everything but the source that a compiled kernel is made from."""
    files = [f.read_text() for f in sorted(_HERE.iterdir()) if f.suffix in (".cpp", ".h")]
    command, version = _compiler()
    return _cache.key(*files, Path(__file__).read_text(), *command, version)


@contextmanager
def _workspace() -> Iterator[Path]:
    """A folder to build in. Raises CompileError where there is no room for one."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="gpudirect-build-")
    except OSError as e:
        raise CompileError(f"there is no folder to compile in: {e}. Set TMPDIR to one") from e
    with folder as work:
        yield Path(work)


def _placed(made: str, out: Path) -> tuple[Path, bytes]:
    image = out.read_bytes()
    try:
        return _cache.place(_KIND, made, image), image
    except OSError as e:
        raise CompileError(f"what was compiled cannot be kept: {e}. Set GPUDIRECT_CACHE") from e


def _runtime() -> Path:
    """The runtime's shared object."""
    made = f"runtime-{_version()}.so"
    if found := _cache.find(_KIND, made):
        return found[0]
    with _workspace() as work:
        log = _run(
            [*_FLAGS, *_RUNTIME_FLAGS, str(_HERE / "runtime.cpp"), f"-Wl,-soname,{made}", "-o", "out.so"],
            work,
        )  # fmt: skip
        if log is not None:
            raise CompileError(
                f"the runtime of the emulated device does not compile with "
                f"{shlex.join(_compiler()[0])}: gcc 10 or clang 12 or later is needed",
                log,
            )
        return _placed(made, work / "out.so")[0]
