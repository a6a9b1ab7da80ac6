"""Bridge ``rm``: the NVIDIA driver's own user-space interface. No module, no privileges.

The block is exported as a file descriptor by the device (``cuMemExportToShareableHandle``),
imported into a driver client of our own, and mapped through BAR1. The import works in a process
that never loaded CUDA, and the imported reference keeps the memory alive by itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial

from ..errors import BridgeError
from .base import (
    Bridge,
    Facts,
    Mapping,
    PageRun,
    Source,
    Standing,
    check_span,
    map_file,
    page_span,
    unmap,
)
from .rm_client import CONTROL_NODE, OLDEST_DRIVER, PROC, Client, device_minor, driver_version


class Import:
    """Our reference to one physical block, shared by all its mappings."""

    def __init__(self, client: Client, source: Source) -> None:
        exported = source.export_fd()
        try:
            instance = client.instance_of(exported)
            self.minor = device_minor(source.pci_address)
            self.device, self.subdevice = client.device(instance, self.minor)
            self.memory = client.import_memory(exported, self.device)
        finally:
            os.close(exported)
        self.uses = 0


class RmMapping(Mapping):
    """A mapping made by the driver. It keeps the block alive on its own."""

    caching = "wc"

    def __init__(self, bridge: RmBridge, source: Source, offset: int, length: int,
                 at: int | None, writable: bool) -> None:
        self.bridge: RmBridge = bridge
        self.length = length
        self._start, self._size, lead = page_span(offset, length)
        self._device_address = source.ptr + self._start
        self._reserved = at is not None
        self._imported = bridge._acquire(source)
        client = bridge._client_now()
        try:
            fd = client.open_device_file(self._imported.minor)
            try:
                self._bus = client.map(
                    self._imported.subdevice, self._imported.memory, self._start, self._size, fd
                )
                try:
                    base = map_file("rm", fd, 0, self._size, at - lead if at else None, writable)
                except BaseException:
                    client.unmap(self._imported.subdevice, self._imported.memory, self._bus)
                    raise
            finally:
                os.close(fd)  # the mapping itself keeps the file open
        except BaseException:
            bridge._release(source)
            raise
        self._source = source
        self.address = base + lead
        self._steps: list[Callable[[], object]] = [  # of giving it back, as far as they are not done
            partial(unmap, base, self._size, self._reserved), self._unmap, self._forget,
        ]  # fmt: skip

    def pages(self) -> list[PageRun]:
        return [PageRun(self._device_address, self._bus, self._size)]

    def close(self) -> None:
        while self._steps:
            self._steps[0]()
            self._steps.pop(0)

    def _unmap(self) -> None:
        client = self.bridge._client
        if client is not None:  # after a fork, or at exit, the descriptors are gone
            client.unmap(self._imported.subdevice, self._imported.memory, self._bus)

    def _forget(self) -> None:
        if self.bridge._client is not None:
            self.bridge._release(self._source)


class HeldImport:
    """An import kept without a mapping: making one takes a millisecond, most of it the export."""

    def __init__(self, bridge: RmBridge, source: Source) -> None:
        self._bridge = bridge
        self._client = bridge._client_now()
        bridge._acquire(source)
        self._source: Source | None = source

    def close(self) -> None:
        if self._source is not None and self._bridge._client is self._client:  # not after a fork
            self._bridge._release(self._source)
        self._source = None


class RmBridge(Bridge):
    """Maps any block that can be exported as a file descriptor."""

    name = "rm"
    maps_foreign = False  # cudaMalloc'd memory cannot be exported
    bus_addresses = True

    def __init__(self) -> None:
        self._client: Client | None = None
        self._imports: dict[Source, Import] = {}  # while a mapping of the block is open
        # Held where memory is allocated, and so where a collection may begin: whatever runs then
        # on the same thread may come here again
        self._lock = threading.RLock()

    def standing(self, device: Facts) -> Standing:
        if device.kind != "cuda":
            return Standing(False, f"maps NVIDIA GPUs only, and {device.name} is {device.kind}")
        version = driver_version()
        if version is None:
            return Standing(False, f"no NVIDIA kernel driver is loaded ({PROC}/version is absent)")
        if int(version.split(".")[0]) < OLDEST_DRIVER:
            return Standing(
                False,
                f"driver {version} is too old: the interface has its present layout from "
                f"{OLDEST_DRIVER} on. Update the driver, or load p2pmod.",
            )
        if not os.access(CONTROL_NODE, os.R_OK | os.W_OK):
            return Standing(False, f"{CONTROL_NODE} cannot be opened for reading and writing")
        try:
            node = f"/dev/nvidia{device_minor(device.pci_address)}"
        except BridgeError as e:
            return Standing(False, str(e).removeprefix("rm: "))
        if not os.access(node, os.R_OK | os.W_OK):
            return Standing(False, f"{node} cannot be opened for reading and writing")
        return Standing(True, f"driver {version}, {node}; needs no module and no privileges")

    def _client_now(self) -> Client:
        if self._client is None:
            self._client = Client()
        return self._client

    def _acquire(self, source: Source) -> Import:
        with self._lock:
            imported = self._imports.get(source)
            if imported is None:
                made = Import(self._client_now(), source)
                imported = self._imports.setdefault(source, made)
                if imported is not made:  # a collection meanwhile brought somebody who wanted it too
                    self._client_now().free(made.device, made.memory)
            imported.uses += 1
            return imported

    def _release(self, source: Source) -> None:
        with self._lock:
            imported = self._imports[source]
            if imported.uses == 1:
                self._client_now().free(imported.device, imported.memory)
                del self._imports[source]
            imported.uses -= 1

    def map(
        self, source: Source, offset: int, length: int, *, at: int | None = None, caching: str = "wc",
        writable: bool = True,
    ) -> RmMapping:
        check_span("rm", source, offset, length, caching, ("wc",))
        return RmMapping(self, source, offset, length, at, writable)

    def hold(self, source: Source) -> HeldImport:
        return HeldImport(self, source)

    def after_fork(self) -> None:
        client, self._client = self._client, None
        self._imports = {}
        self._lock = threading.RLock()
        if client is not None:
            client.close()

