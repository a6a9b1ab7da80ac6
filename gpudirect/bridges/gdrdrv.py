"""Bridge ``gdrdrv``: an installed GDRCopy (its kernel module and libgdrapi), through cffi.

The declarations are those of GDRCopy's public header gdrapi.h, version 2.
"""

from __future__ import annotations

import errno
import os
import threading
from functools import cache
from typing import Any

import cffi

from ..errors import ApertureError, BridgeError, NotMappableError
from .base import (
    Bridge,
    Facts,
    Mapping,
    PageRun,
    Source,
    Standing,
    check_span,
)

GPU_PAGE = 64 << 10
LIBRARIES = ("libgdrapi.so.2", "libgdrapi.so")
NODE = "/dev/gdrdrv"

DECLARATIONS = """
typedef struct gdr *gdr_t;
typedef struct gdr_mh_s { unsigned long h; } gdr_mh_t;
gdr_t gdr_open(void);
int gdr_close(gdr_t g);
int gdr_pin_buffer(gdr_t g, unsigned long addr, size_t size, uint64_t p2p_token,
                   uint32_t va_space, gdr_mh_t *handle);
int gdr_unpin_buffer(gdr_t g, gdr_mh_t handle);
int gdr_map(gdr_t g, gdr_mh_t handle, void **va, size_t size);
int gdr_unmap(gdr_t g, gdr_mh_t handle, void *va, size_t size);
void gdr_runtime_get_version(int *major, int *minor);
"""


@cache
def _library() -> tuple[Any, Any] | str:
    """(ffi, library), or why there is none."""
    ffi = cffi.FFI()
    ffi.cdef(DECLARATIONS)
    why = ""
    for name in LIBRARIES:
        try:
            return ffi, ffi.dlopen(name)
        except OSError as e:
            why = why or str(e)
    return f"GDRCopy's library is not installed ({why})"


class GdrMapping(Mapping):
    """A range pinned and mapped by GDRCopy: one mapping a pin, whole GPU pages of 64 KiB."""

    caching = "wc"
    revocable = True

    def __init__(self, bridge: GdrdrvBridge, source: Source, offset: int, length: int) -> None:
        self.bridge: GdrdrvBridge = bridge
        self.length = length
        ffi, lib = bridge.library()
        session = bridge.session()
        first = (source.ptr + offset) & ~(GPU_PAGE - 1)
        end = (source.ptr + offset + length + GPU_PAGE - 1) & ~(GPU_PAGE - 1)
        self._size = end - first
        source.prepare_pinning()
        handle = ffi.new("gdr_mh_t *")
        code = lib.gdr_pin_buffer(session, first, self._size, 0, 0, handle)
        if code:
            self._refuse(code, f"pinning {self._size} bytes at {first:#x}")
        self._handle = handle[0]
        address = ffi.new("void **")
        code = lib.gdr_map(session, self._handle, address, self._size)
        if code:
            lib.gdr_unpin_buffer(session, self._handle)
            self._refuse(code, f"mapping {self._size} bytes at {first:#x}")
        self._va = address[0]
        self._device_address = first
        self.address = int(ffi.cast("uintptr_t", self._va)) + (source.ptr + offset - first)
        self._gone = 0  # steps of giving it back that are done

    @staticmethod
    def _refuse(code: int, doing: str) -> None:
        code = abs(code)
        if code in (errno.ENOMEM, errno.ENOSPC):
            raise ApertureError(
                f"gdrdrv: {doing} failed: BAR1 or memory is exhausted (errno {code}); close arrays "
                "or map smaller windows", code,
            )  # fmt: skip
        raise NotMappableError(f"gdrdrv: {doing} failed: {os.strerror(code)} (errno {code})", code)

    def pages(self) -> list[PageRun]:
        return [PageRun(self._device_address, None, self._size)]

    def close(self) -> None:
        session = self.bridge._session
        if session is None:
            return
        _, lib = self.bridge.library()
        for step, *arguments in ((lib.gdr_unmap, self._va, self._size), (lib.gdr_unpin_buffer,))[self._gone :]:
            code = abs(step(session, self._handle, *arguments))
            if code:
                what = f"giving back {self._size} bytes at {self._device_address:#x}"
                raise BridgeError(f"gdrdrv: {what} failed: {os.strerror(code)} (errno {code})", code)
            self._gone += 1


class GdrdrvBridge(Bridge):
    """Maps through GDRCopy."""

    name = "gdrdrv"
    maps_foreign = True
    places = False  # its driver knows one mapping a buffer and forgets one that was moved

    def __init__(self) -> None:
        self._session: Any = None
        self._lock = threading.RLock()

    @staticmethod
    def library() -> tuple[Any, Any]:
        """(ffi, library). Raises BridgeError when it is not installed."""
        found = _library()
        if isinstance(found, str):
            raise BridgeError(f"gdrdrv: {found}")
        return found

    def session(self) -> Any:
        """The open GDRCopy session, made on first use."""
        ffi, lib = self.library()
        with self._lock:
            if self._session is None:
                session = lib.gdr_open()
                if session == ffi.NULL:
                    raise BridgeError(
                        f"gdrdrv: gdr_open failed; is {NODE} there and open to this user?"
                    )
                self._session = session
            return self._session

    def standing(self, device: Facts) -> Standing:
        if device.kind != "cuda":
            return Standing(False, f"maps NVIDIA GPUs only, and {device.name} is {device.kind}")
        found = _library()
        if isinstance(found, str):
            return Standing(False, found)
        if not os.access(NODE, os.R_OK | os.W_OK):
            return Standing(False, f"libgdrapi is installed, but {NODE} cannot be opened: load its "
                                   "module (modprobe gdrdrv)")  # fmt: skip
        ffi, lib = found
        major, minor = ffi.new("int *"), ffi.new("int *")
        lib.gdr_runtime_get_version(major, minor)
        return Standing(True, f"GDRCopy {major[0]}.{minor[0]}, {NODE}")

    def map(
        self, source: Source, offset: int, length: int, *, at: int | None = None, caching: str = "wc"
    ) -> Mapping:
        check_span("gdrdrv", source, offset, length, caching, ("wc",))
        if at is not None:
            raise NotMappableError("gdrdrv: GDRCopy chooses the address of its mappings itself")
        return GdrMapping(self, source, offset, length)

    def after_fork(self) -> None:
        self._session = None  # libgdrapi opens its node close-on-exec and maps DONTFORK
        self._lock = threading.RLock()
