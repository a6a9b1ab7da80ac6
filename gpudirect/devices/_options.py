"""Options for the compiler, written as for NVRTC, and what the host's compiler makes of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from ..errors import ArgumentError

_LONG = {"define-macro": "-D", "undefine-macro": "-U", "include-path": "-I", "std": "-std=",
         "pre-include": "-include"}  # fmt: skip
_FOLLOWED = re.compile(r"--?(define-macro|undefine-macro|include-path|std|pre-include)(?:=(.*))?$", re.DOTALL)
_SHORT = re.compile(r"-(include|[DUI])(.*)$", re.DOTALL)
_ARCHITECTURE = re.compile(r"--?(gpu-architecture|arch)(=|$)")
_ABOUT_GPU_CODE = re.compile(
    r"--?(use_fast_math|ptxas-options=.*|Xptxas=.*|lineinfo|generate-line-info|G|device-debug|w|"
    r"disable-warnings|dopt=.*|minimal|(maxrregcount|fmad|ftz|prec-sqrt|prec-div|split-compile|Ofast-compile|"
    r"extra-device-vectorization|default-device|device-as-default-execution-space|no-cache|"
    r"relocatable-device-code|rdc|diag-\w+|display-error-number|no-display-error-number|"
    r"optimization-info|opt-info)(=.*)?)$"
)


def checked(options: object) -> tuple[str, ...]:
    """A sequence of strings, without the one thing that the device decides. Raises ArgumentError."""
    if isinstance(options, (str, bytes)) or not isinstance(options, Sequence):
        raise ArgumentError(
            f'options is {options!r}: give a list of compiler options, as in ["-DN=3"]'
        )
    for option in options:
        if not isinstance(option, str) or "\0" in option:
            raise ArgumentError(f"compiler option {option!r} is no text: write it as in \"-DN=3\"")
        if _ARCHITECTURE.match(option):
            raise ArgumentError(
                f"compiler option {option!r}: kernels are compiled for the device that runs them; "
                "leave it out"
            )
    return tuple(options)


def followed(options: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(how the host's compiler calls it, its value) of those that change what a source means.

    Those about GPU code only are passed over. Raises ArgumentError for all others.
    """
    rest = iter(options)
    for option in rest:
        if long := _FOLLOWED.match(option):
            yield _LONG[long[1]], long[2] if long[2] is not None else next(rest, "")
        elif short := _SHORT.match(option):
            yield f"-{short[1]}", short[2] or next(rest, "")
        elif not _ABOUT_GPU_CODE.match(option):
            raise ArgumentError(
                f"the emulated device does not know the compiler option {option!r}: it follows -D, "
                "-U, -I, --pre-include and -std, and ignores NVRTC's options about GPU code"
            )


def reaching(source: str, options: Sequence[str]) -> tuple[str, list[str]]:
    """(the source with what --pre-include puts before it, the folders where its headers may lie):
    those that -I names, and the current one, where a quoted name is found."""
    folders, before = [], ""
    for i, option in enumerate(options):
        if m := re.match(r"(?:-I|--?include-path=?)(.*)$", option, re.DOTALL):
            folders.append(m[1] or "".join(options[i + 1 : i + 2]))
        elif m := re.match(r"(?:-include|--?pre-include=?)(.*)$", option, re.DOTALL):
            before += f'#include "{m[1] or "".join(options[i + 1 : i + 2])}"\n'
    return before + source, [os.path.abspath(folder) for folder in (*folders, ".")]
