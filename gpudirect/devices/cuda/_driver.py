"""The driver through cuda-python: opened once, never in a child of a process that had opened it, and
its error codes as exceptions. NVML beside it."""

from __future__ import annotations

import functools
import os
from typing import Any

from ...errors import DeviceError, DeviceLostError, DeviceNotFoundError, ForkError, OutOfMemoryError

# Errors after which every call in this context fails (CUDA programming guide, "sticky" errors)
STICKY = {700, 702, 704, 709, 710, 714, 715, 716, 717, 718, 719}
OUT_OF_MEMORY, NOT_INITIALIZED, NOT_READY = 2, 3, 600


_inherited = False
"""Whether the process that forked this one had initialised CUDA."""


@functools.cache
def driver() -> Any:
    """cuda.bindings.driver, initialised. Raises DeviceNotFoundError with the reason, or ForkError."""
    if _inherited:
        raise _cuda_is_the_parents()
    try:
        from cuda.bindings import driver as bindings
    except ImportError as e:
        raise DeviceNotFoundError(f"cuda-bindings is not installed ({e}): pip install cuda-bindings") from e
    try:
        (code,) = bindings.cuInit(0)
    except Exception as e:  # the bindings raise types of their own when libcuda is absent
        raise DeviceNotFoundError(f"no NVIDIA driver library (libcuda.so.1): {e}") from e
    if int(code) == NOT_INITIALIZED:  # CUDA's answer where a parent had initialised it, by whatever way
        raise _cuda_is_the_parents()
    if code:
        raise DeviceNotFoundError(f"cuInit failed: {code.name} ({int(code)})", int(code))
    return bindings


def _cuda_is_the_parents() -> ForkError:
    return ForkError(
        "CUDA was initialised by the process that forked this one, and cannot be used in a child of "
        "fork(): use multiprocessing's 'spawn' start method, or use the GPU only after the fork. "
        "device='emulated' works here."
    )


def _after_fork_in_child() -> None:
    global _inherited
    _inherited = _inherited or bool(driver.cache_info().currsize)
    driver.cache_clear()
    nvml.cache_clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def check(result: tuple[Any, ...], doing: str) -> Any:
    """The value of a driver call; raises the exception that fits its error code."""
    code = int(result[0])
    if code == 0:
        return result[1] if len(result) == 2 else result[1:]
    _, words = driver().cuGetErrorString(result[0])
    text = words.decode() if words else "no description"
    message = f"{doing}: {result[0].name} ({code}): {text}"
    if code == OUT_OF_MEMORY:
        raise OutOfMemoryError(
            f"{message}. Close arrays (or call gpudirect.trim()), or see `gpudirect info`.", code
        )
    if code in STICKY:
        raise DeviceLostError(
            f"{message}. A kernel's fault ended the CUDA context; only a new process can go on. "
            "compute-sanitizer shows the kernel and the line.", code,
        )  # fmt: skip
    raise DeviceError(message, code)


@functools.cache
def nvml() -> Any:
    """pynvml, initialised, or None where NVML does not work."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return None
    return pynvml


def count() -> int:
    """How many GPUs CUDA sees. Raises DeviceNotFoundError with the reason when there is none."""
    found = int(check(driver().cuDeviceGetCount(), "counting GPUs"))
    if not found:
        raise DeviceNotFoundError("CUDA sees no GPU (look at CUDA_VISIBLE_DEVICES)")
    return found
