"""What the system says when it gives no further descriptor, told with the limit and what to do."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import DeviceError, Error


def told(e: OSError, doing: str, kind: Callable[[str, int], Error] = DeviceError) -> Error:
    """An error of the system as one of ours. ``kind`` takes the sentence and the system's number."""
    number = e.errno or errno.EIO
    why = os.strerror(number)
    if number == errno.EMFILE:
        most, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
        why = (
            f"this process has as many descriptors open as it may have, {most}. Close some (files, streams, "
            f"large arrays), or raise the limit: ulimit -n {highest if highest > most else '(as root)'}"
        )
    elif number == errno.ENFILE:
        why = "the whole system has no descriptor left: see /proc/sys/fs/file-nr, and ulimit -n of others"
    return kind(f"{doing}: {why}", number)


@contextmanager
def telling(doing: str, kind: Callable[[str, int], Error] = DeviceError) -> Iterator[None]:
    """Errors of the system that a block meets become ours."""
    try:
        yield
    except OSError as e:
        if isinstance(e, Error):
            raise
        raise told(e, doing, kind) from e


def none_left() -> OSError | None:
    """The system's error, where this process can have no further descriptor now: for libraries that do
    not say why they failed."""
    try:
        os.close(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as e:
        return e if e.errno in (errno.EMFILE, errno.ENFILE) else None
    return None
