"""``distribute``: one buffer of ordinary memory to arrays of several GPUs at the same time."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from ._transfer import paths
from ._transfer.copies import check_via
from .arguments import as_source
from .arrays import Array
from .devices import Device
from .errors import ArgumentError, DTypeError

ALONE = 1 << 20
"""Bytes below which one thread is done sooner than others are woken."""


def distribute(data: Any, arrays: Sequence[Array], *, via: str | None = None) -> None:
    """Split a buffer over arrays: the first elements go to the first one, and so on, in the order of
    the flattened array. The devices are written at the same time, each by threads on the CPUs near it.

    data: what ``Array.write`` takes, with as many elements as the arrays have together.
    arrays: contiguous, of one dtype, on any devices; none twice.
    via: as for ``write``. Returns when all of it is there, as after ``write``.
    Raises ArgumentError, DTypeError, ClosedError: nothing was written then; and what ``write`` raises
    of a device: the other devices have their parts then.
    """
    if via is not None:
        check_via(via)
    given = _checked(arrays)
    source = np.ascontiguousarray(as_source(data, given[0].dtype)).reshape(-1)
    total = sum(a.size for a in given)
    if source.size != total:
        raise ArgumentError(f"data has {source.size} elements, and the {len(given)} arrays have {total} "
                            "together")  # fmt: skip
    parts: dict[Device, list[tuple[Array, np.ndarray[Any, Any]]]] = {}
    start = 0
    for array in given:
        parts.setdefault(array.device, []).append((array, source[start : start + array.size]))
        start += array.size
    if len(parts) == 1 or source.nbytes < ALONE:
        for each in parts.values():
            _write(each, via)
        return
    _all([_worker(device).submit(_write, each, via) for device, each in parts.items()])


def _checked(arrays: Any) -> list[Array]:
    """The arrays, in their order. Raises what is wrong with them."""
    if isinstance(arrays, Array) or not isinstance(arrays, Sequence) or not arrays:
        raise ArgumentError("arrays is no list of arrays: give one for each part, as in [a, b]")
    for i, array in enumerate(arrays):
        if not isinstance(array, Array):
            raise DTypeError(f"arrays[{i}] is {type(array).__name__}: give arrays of gpudirect's")
        array._open()
        if not array.contiguous:
            raise ArgumentError(f"arrays[{i}] is non-contiguous: give whole arrays, or slices of rows")
        if array.dtype != arrays[0].dtype:
            raise DTypeError(f"arrays[{i}] has dtype {array.dtype}, and arrays[0] {arrays[0].dtype}: give "
                             "arrays of one dtype")  # fmt: skip
    order = sorted((a.device.id, a.ptr, a.nbytes, i) for i, a in enumerate(arrays) if a.nbytes)
    for (device, ptr, nbytes, i), (other, at, _, k) in itertools.pairwise(order):
        if device == other and at < ptr + nbytes:
            raise ArgumentError(f"arrays[{min(i, k)}] and arrays[{max(i, k)}] share memory: which part would "
                                "stay there is not told")  # fmt: skip
    return list(arrays)


def _write(parts: list[tuple[Array, np.ndarray[Any, Any]]], via: str | None) -> None:
    for array, part in parts:
        array.write(part, via=via)


def _all(writes: list[Future[None]]) -> None:
    """Wait until each is over, also when one fails or a signal comes: they read the caller's memory."""
    interrupted: BaseException | None = None
    while True:
        try:
            wait(writes)
            break
        except BaseException as e:  # Ctrl-C
            interrupted = e
    if interrupted is not None:
        raise interrupted
    failed = [e for e in (w.exception() for w in writes) if e is not None]
    if failed:
        for other in failed[1:]:
            failed[0].add_note(f"and {type(other).__name__}: {other}")
        raise failed[0]


_workers: dict[Device, ThreadPoolExecutor] = {}


def _worker(device: Device) -> ThreadPoolExecutor:
    """The thread that writes to a device, on the CPUs near it."""
    found = _workers.get(device)
    if found is None:
        made = ThreadPoolExecutor(1, f"gpudirect to {device.id}", _settle, (paths.near(device.near_cpus()),))
        found = _workers.setdefault(device, made)
    return found


def _settle(cpus: list[int]) -> None:
    if cpus:
        with contextlib.suppress(OSError):  # of a cpuset that changed since: then anywhere
            os.sched_setaffinity(0, cpus)


os.register_at_fork(after_in_child=_workers.clear)

__all__ = ["distribute"]
