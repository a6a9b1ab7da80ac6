"""From a service's source to its resident kernel, and to what the compiler tells of its functions."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .. import kernels
from ..devices import Device
from ..errors import ArgumentError, CompileError, KernelNotFoundError
from ._native import ARGUMENTS_MAX
from ._overloads import declared_like
from ._source import KERNEL, TYPES_FILE, Signature, like, resident_source, signatures

_CACHING = "--ptxas-options=-dlcm=cg"
"""Loads bypass the L1 cache, where the CPU's stores do not arrive."""


def compiled(
    source: str, teams: Mapping[str, str], device: Device, options: tuple[str, ...]
) -> tuple[kernels.Kernel, dict[str, Signature]]:
    """The resident kernel that serves the functions {name: team} of a source, and their signatures.

    Raises CompileError, KernelNotFoundError, ArgumentError.
    """
    likes: dict[str, str] = {}
    first: CompileError | None = None
    while True:  # on the emulated device two compilers speak, each with overloads of its own
        try:
            kernel = _resident(source, teams, device, options, likes)
            break
        except CompileError as e:
            new = {
                name: like_
                for name in _overloaded(e, teams)
                if name not in likes
                and (like_ := declared_like(source, name, like(name, teams).rpartition("::")[2]))
            }
            first = first or e
            if not new:
                told = e if _overloaded(e, teams).keys() - likes else first
                raise _told(told, teams) from None
            likes |= new
    kernel._function.unload_when_dropped()
    found = signatures(kernel._function.image(), teams)
    for s in found.values():
        if s.size > ARGUMENTS_MAX:
            raise ArgumentError(
                f"{s.name} takes {s.size} bytes of arguments; {ARGUMENTS_MAX} is the most. Give "
                "it an array."
            )
    return kernel, found


def _resident(
    source: str, teams: Mapping[str, str], device: Device, options: tuple[str, ...],
    likes: Mapping[str, str],
) -> kernels.Kernel:  # fmt: skip
    text, rest = resident_source(source, teams, options, likes)
    return kernels.kernel(text, KERNEL, device=device, options=(*rest, _CACHING))


def _at_fault(error: CompileError, teams: Mapping[str, str]) -> dict[str, str]:
    """Functions that the compiler could not find by their names, each with what it says."""
    names = list(teams)
    return {
        names[int(found[1]) - 1]: found[2]
        for found in re.finditer(rf"{TYPES_FILE}[:(](\d+)\b.*?error: (.*)", error.log)
        if 1 <= int(found[1]) <= len(names)
    }


def _overloaded(error: CompileError, teams: Mapping[str, str]) -> dict[str, str]:
    """Those of them whose name is that of several functions, or of a template."""
    return {n: words for n, words in _at_fault(error, teams).items()
            if re.search("overloaded|template|which instance", words)}  # fmt: skip


def _told(error: CompileError, teams: Mapping[str, str]) -> CompileError | KernelNotFoundError:
    """The compiler's error in words of the user's source, not of the resident kernel."""
    for name in _overloaded(error, teams):
        return CompileError(
            f"{name!r} is a template, or the name of several functions: offer the one that is meant "
            f"through a function with a name of its own\n{error.log}", error.log
        )  # fmt: skip
    for name in _at_fault(error, teams):
        return KernelNotFoundError(
            f"the source has no function {name!r}: a `__device__` function of that name "
            f"is needed\n{error.log}"
        )
    message = str(error).replace(f"the source of kernel {KERNEL!r}", "the source", 1)
    return CompileError(message.replace(f"kernel {KERNEL!r}", "the source", 1), error.log)
