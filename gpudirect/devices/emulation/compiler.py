"""Compiles CUDA C++ kernels for the emulated GPU, with the host's C++ compiler.

A compiled kernel is a shared object in the cache, linked against the runtime's shared object
that lies beside it. Both are made at first use.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ...errors import ArgumentError, CompileError, KernelNotFoundError
from ..base import Parameter
from .signature import FILE, block_size, parse_signature, signature_header, signature_source

SHARED_MEMORY = 227 << 10
"""Bytes of dynamic shared memory that a block may have: what an H100 gives."""

SOURCE = "kernel.cu"
"""The file name under which the compiler reports errors in the user's source."""

_HERE = Path(__file__).parent
_FLAGS = [
    "-std=c++17", "-O2", "-fPIC", "-shared", "-pthread", "-fno-exceptions", "-fno-strict-aliasing",
]  # fmt: skip
# Every basic block calls the runtime, which can so give other threads their turn.
# Large frames touch every page of theirs, so that a stack that runs over meets its guard.
_KERNEL_FLAGS = [
    "-fsanitize-coverage=trace-pc", "-fstack-clash-protection", "-fvisibility=hidden",
    "-fno-finite-loops", "-Wl,-z,defs", "-Wl,--no-as-needed",
]  # fmt: skip
_RUNTIME_FLAGS = ["-ftls-model=initial-exec", "-U_FORTIFY_SOURCE"]
_IGNORED_OPTION = re.compile(
    r"--?(use_fast_math|ptxas-options=.*|lineinfo|generate-line-info|G|device-debug|w|disable-warnings|dopt|"
    r"(gpu-architecture|arch|maxrregcount|fmad|ftz|prec-sqrt|prec-div|extra-device-vectorization|"
    r"default-device|device-as-default-execution-space|relocatable-device-code|rdc)(=.*)?)$"
)
# Headers of the toolkit that are not needed here, and those that offer what is not.
_EMPTY_HEADERS = ["cuda_runtime.h", "cuda_runtime_api.h", "device_launch_parameters.h", "cuda.h",
                  "device_functions.h", "vector_types.h", "assert.h", "cassert"]  # fmt: skip
_ABSENT_HEADERS = {
    "cooperative_groups.h": "cooperative groups",
    "cuda_fp16.h": "half precision",
    "cuda_bf16.h": "bfloat16",
    "cuda_fp8.h": "8-bit floating point",
    "mma.h": "tensor cores",
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
    (re.compile(r"\b(cooperative_groups|this_thread_block|this_grid|tiled_partition)\b"),
     "cooperative groups"),
    (re.compile(r"\b(thrust|cub)(::|/)"), "Thrust and CUB"),
    (re.compile(r"\bcuda(::|/)\w+|\bnvcuda::"), "libcu++"),
    (re.compile(r"\b(__half2?|half2?|__nv_bfloat162?)\b"), "half precision"),
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
    ``options`` are NVRTC's: -D, -U, -I and -std are followed; those about GPU code are ignored.

    Raises CompileError (``log`` is the compiler's), KernelNotFoundError, ArgumentError.
    """
    flags = _translate(options)
    folder = _folder()
    runtime = _runtime(folder)
    path = folder / f"kernel-{_hash(runtime.name, source, name, *flags)}.so"
    if not path.exists():
        _build_kernel(source, name, flags, runtime, path)
    return CompiledKernel(name, path, parse_signature(path.read_bytes()))


def _translate(options: Sequence[str]) -> list[str]:
    """NVRTC's options as the host compiler has them."""
    flags = []
    rest = iter(options)
    for option in rest:
        long = re.match(r"--(define-macro|undefine-macro|include-path|std)(?:=(.*))?$", option)
        short = re.match(r"-([DUI])(.*)$", option)
        if long:
            letter = {"define-macro": "-D", "undefine-macro": "-U", "include-path": "-I",
                      "std": "-std="}[long[1]]  # fmt: skip
            flags.append(letter + (long[2] or next(rest, "")))
        elif short:
            flags.append(f"-{short[1]}{short[2] or next(rest, '')}")
        elif option.startswith("-std="):
            flags.append(option)
        elif not _IGNORED_OPTION.match(option):
            raise ArgumentError(
                f"the emulated device does not know the compiler option {option!r}: it follows "
                "-D, -U, -I and -std, and ignores NVRTC's options about GPU code"
            )
    return flags


def _build_kernel(source: str, name: str, flags: list[str], runtime: Path, path: Path) -> None:
    masked = _mask(source)
    text, dynamic = _rewrite_dynamic_shared(source, masked)
    own = [f"-DGD_DYNAMIC_SHARED={SHARED_MEMORY}"] if dynamic else []
    with _workspace(path) as work:
        _write_headers(work / "include")
        (work / SOURCE).write_text(text)
        # macros only where the source begins: the shim's own names are not the user's to replace
        macros = "".join(_macro(f) for f in flags if f[:2] in ("-D", "-U"))
        flags = [f for f in flags if f[:2] not in ("-D", "-U")]
        entry = signature_source(name) + f'#line 1 "{FILE}"\nGD_KERNEL((gd_kernel_pointer)&{name})\n'
        whole = f'{signature_header()}{macros}#include "{SOURCE}"\n{entry}'
        (work / "entry.cc").write_text(whole)
        log = _run(
            [*_FLAGS, *_KERNEL_FLAGS, *own, *flags, "-I", "include", "-I", str(_HERE), "-include",
             "cuda_shim.h", "entry.cc", str(runtime), "-Wl,-rpath,$ORIGIN", "-o", "out.so"],
            work,
        )  # fmt: skip
        if log is None:
            os.replace(work / "out.so", path)
            return
    errors = [line for line in log.splitlines() if " error: " in line]
    if errors and all(FILE in line for line in errors):
        kernels = ", ".join(re.findall(r"(\w+)\s*\(", _launch_free(masked))) or "none"
        raise KernelNotFoundError(
            f"the source has no kernel {name!r} that can be launched (a __global__ void function; "
            f"of a template all arguments must be given). Its kernels: {kernels}"
        )
    hints = _absent(_written(source, masked))
    first = errors[0] if errors else (log.strip().splitlines() or ["no message"])[0]
    raise CompileError("\n".join([f"kernel {name!r} does not compile: {first}", *hints]), log)


def _macro(option: str) -> str:
    """A -D or -U option as a line of source."""
    name, _, value = option[2:].partition("=")
    if option.startswith("-U"):
        return f"#undef {name}\n"
    return f"#define {name} {value if '=' in option else 1}\n"


def _launch_free(masked: str) -> str:
    """The heads of the kernels in a source, without their attributes."""
    heads = re.findall(r"__global__\b(.*?\))\s*[{;]", masked, re.DOTALL)
    return "\n".join(
        re.sub(r"\(.*", "(", re.sub(r"__launch_bounds__\s*\([^)]*\)", "", head), flags=re.DOTALL)
        for head in heads
    )


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


def _mask(source: str) -> str:
    """The source with comments and literals blanked out, every character at its place."""
    literal = re.compile(
        r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])'", re.DOTALL
    )
    return literal.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), source)


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


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]


@cache
def _version() -> str:
    """Names everything but the source that a compiled kernel is made from."""
    names = ("runtime.cpp", "runtime.h", "cuda_shim.h", "signature.h", "compiler.py")
    files = [(_HERE / name).read_text() for name in names]
    command, version = _compiler()
    return _hash(*files, *command, version)


def _folder() -> Path:
    """Where compiled objects are kept."""
    root = os.environ.get("GPUDIRECT_CACHE") or Path.home() / ".cache" / "gpudirect"
    folder = Path(root) / "emulated"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder.resolve()
    except OSError:
        pass
    return _temporary_folder()


@cache
def _temporary_folder() -> Path:
    """Instead of a cache that cannot be written: gone when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="gpudirect-emulated-"))
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


@contextmanager
def _workspace(path: Path) -> Iterator[Path]:
    """A folder to build in, on the same file system as the result."""
    with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as work:
        yield Path(work)


def _runtime(folder: Path) -> Path:
    """The runtime's shared object."""
    path = folder / f"runtime-{_version()}.so"
    if not path.exists():
        with _workspace(path) as work:
            log = _run(
                [*_FLAGS, *_RUNTIME_FLAGS, str(_HERE / "runtime.cpp"), f"-Wl,-soname,{path.name}",
                 "-o", "out.so"],
                work,
            )  # fmt: skip
            if log is not None:
                raise CompileError(
                    f"the runtime of the emulated device does not compile with "
                    f"{shlex.join(_compiler()[0])}: gcc 10 or clang 12 or later is needed",
                    log,
                )
            os.replace(work / "out.so", path)
    return path
