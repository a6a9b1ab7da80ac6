"""From a service's source to its resident kernel, and to what the compiler tells of its functions."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .. import kernels
from ..devices import Device
from ..errors import ArgumentError, CompileError, KernelNotFoundError
from ._native import ARGUMENTS_MAX
from ._source import KERNEL, Signature, resident_source, signatures

_CACHING = "--ptxas-options=-dlcm=cg"
"""Loads bypass the L1 cache, where the CPU's stores do not arrive."""


def compiled(
    source: str, teams: Mapping[str, str], device: Device, options: tuple[str, ...]
) -> tuple[kernels.Kernel, dict[str, Signature]]:
    """The resident kernel that serves the functions {name: team} of a source, and their signatures.

    Raises CompileError, KernelNotFoundError, ArgumentError.
    """
    text = resident_source(source, teams, options)
    try:
        kernel = kernels.kernel(text, KERNEL, device=device, options=(*options, _CACHING))
    except CompileError as e:
        raise _told(e, teams) from None
    found = signatures(kernel._function.image(), teams)
    for s in found.values():
        if s.size > ARGUMENTS_MAX:
            raise ArgumentError(
                f"{s.name} takes {s.size} bytes of arguments; {ARGUMENTS_MAX} is the most. Give "
                "it an array."
            )
    return kernel, found


def _told(error: CompileError, teams: Mapping[str, str]) -> CompileError | KernelNotFoundError:
    """The compiler's error in words of the user's source, not of the resident kernel."""
    for name in teams:
        plain = re.escape(name.rpartition("::")[2])
        missing = rf"[\"']{plain}[\"'].*(undefined|not declared|not a member)|no member \"{plain}\""
        if re.search(missing, error.log):
            return KernelNotFoundError(
                f"the source has no function {name!r}: a `__device__` function of that name "
                f"is needed\n{error.log}"
            )
    message = str(error).replace(f"the source of kernel {KERNEL!r}", "the source", 1)
    return CompileError(message.replace(f"kernel {KERNEL!r}", "the source", 1), error.log)
