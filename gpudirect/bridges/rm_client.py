"""The NVIDIA driver's own user-space interface, as far as the bridge ``rm`` needs it: a client of it.

The calls are published with NVIDIA's open kernel modules (MIT): ``nvos.h``, ``nv-ioctl-numbers.h``,
``ctrl0000unix.h``, ``cl0080.h``, ``cl2080.h``. They have one layout from driver 535 to 595; 530 and older
lack ``paramsSize`` in the allocation struct and are refused.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import itertools
import os
import re
import threading
from ctypes import c_int32, c_uint8, c_uint16, c_uint32, c_uint64
from pathlib import Path
from typing import Any

from .._descriptors import telling
from ..errors import ApertureError, BridgeError, BridgeUnavailableError

OLDEST_DRIVER = 535
CONTROL_NODE = "/dev/nvidiactl"
PROC = Path("/proc/driver/nvidia")

# -- the calls: (ioctl number, struct) -------------------------------------------------------

CLASS_ROOT, CLASS_DEVICE, CLASS_SUBDEVICE = 0x41, 0x80, 0x2080
EXPORTED_OBJECT_INFO, IMPORT_OBJECT = 0x3D08, 0x3D06
EXPORTED_TYPE_RM = 1

# Status words of nvstatuscodes.h that a user can meet here
STATUS = {
    0x1A: "NV_ERR_INSUFFICIENT_RESOURCES",
    0x1B: "NV_ERR_INSUFFICIENT_PERMISSIONS",
    0x1F: "NV_ERR_INVALID_ARGUMENT",
    0x51: "NV_ERR_NO_MEMORY",
    0x56: "NV_ERR_NOT_SUPPORTED",
    0x57: "NV_ERR_OBJECT_NOT_FOUND",
}
EXHAUSTED = {0x1A, 0x51}


class Allocate(ctypes.Structure):
    """NV_ESC_RM_ALLOC: make an object of a class under a parent."""

    number = 0x2B
    _fields_ = [
        ("root", c_uint32), ("parent", c_uint32), ("new", c_uint32), ("kind", c_uint32),
        ("params", c_uint64), ("params_size", c_uint32), ("status", c_uint32),
    ]  # fmt: skip


class Control(ctypes.Structure):
    """NV_ESC_RM_CONTROL: a numbered command on an object."""

    number = 0x2A
    _fields_ = [
        ("client", c_uint32), ("object", c_uint32), ("command", c_uint32), ("flags", c_uint32),
        ("params", c_uint64), ("params_size", c_uint32), ("status", c_uint32),
    ]  # fmt: skip


class MapMemory(ctypes.Structure):
    """NV_ESC_RM_MAP_MEMORY: prepare a device file for one mmap; ``linear`` is the bus address."""

    number = 0x4E
    _fields_ = [
        ("client", c_uint32), ("device", c_uint32), ("memory", c_uint32),
        ("offset", c_uint64), ("length", c_uint64), ("linear", c_uint64),
        ("status", c_uint32), ("flags", c_uint32), ("fd", c_int32),
    ]  # fmt: skip


class UnmapMemory(ctypes.Structure):
    """NV_ESC_RM_UNMAP_MEMORY."""

    number = 0x4F
    _fields_ = [
        ("client", c_uint32), ("device", c_uint32), ("memory", c_uint32), ("pad", c_uint32),
        ("linear", c_uint64), ("status", c_uint32), ("flags", c_uint32),
    ]  # fmt: skip


class Free(ctypes.Structure):
    """NV_ESC_RM_FREE."""

    number = 0x29
    _fields_ = [
        ("root", c_uint32), ("parent", c_uint32), ("object", c_uint32), ("status", c_uint32),
    ]  # fmt: skip


class RegisterFile(ctypes.Structure):
    """NV_ESC_REGISTER_FD: tie a device file to a control file."""

    number = 201
    _fields_ = [("control_fd", c_int32)]


class DeviceParams(ctypes.Structure):
    """NV0080_ALLOC_PARAMETERS."""

    _fields_ = [
        ("device_id", c_uint32), ("client_share", c_uint32), ("target_client", c_uint32),
        ("target_device", c_uint32), ("flags", c_uint32), ("va_space_size", c_uint64),
        ("va_start", c_uint64), ("va_limit", c_uint64), ("va_mode", c_uint32),
    ]  # fmt: skip


class SubdeviceParams(ctypes.Structure):
    """NV2080_ALLOC_PARAMETERS."""

    _fields_ = [("subdevice_id", c_uint32)]


class ObjectInfo(ctypes.Structure):
    """NV0000_CTRL_OS_UNIX_GET_EXPORT_OBJECT_INFO_PARAMS."""

    _fields_ = [
        ("fd", c_int32), ("device_instance", c_uint32), ("gpu_instance", c_uint32),
        ("max_objects", c_uint16), ("metadata", c_uint8 * 64),
    ]  # fmt: skip


class ImportObject(ctypes.Structure):
    """NV0000_CTRL_OS_UNIX_IMPORT_OBJECT_FROM_FD_PARAMS."""

    _fields_ = [
        ("fd", c_int32), ("type", c_uint32), ("device", c_uint32), ("parent", c_uint32),
        ("object", c_uint32),
    ]  # fmt: skip


def _ioctl(fd: int, call: Any, doing: str) -> None:
    """Issue a call; raises BridgeError when the system or the driver refuses it."""
    read_write = 3
    request = read_write << 30 | ctypes.sizeof(call) << 16 | ord("F") << 8 | call.number
    try:
        fcntl.ioctl(fd, request, call)
    except OSError as e:
        raise BridgeError(
            f"rm: {doing}: the driver refused the call ({e.strerror}); is this a driver of "
            f"{OLDEST_DRIVER} or newer, and may this process use /dev/nvidia*?",
            e.errno,
        ) from e
    status = getattr(call, "status", 0)
    if status:
        name = STATUS.get(status, "see nvstatuscodes.h")
        if status in EXHAUSTED:
            raise ApertureError(
                f"rm: {doing}: the driver is out of room (status {status:#x}, {name}). BAR1 is "
                "shared by every process on this GPU: close arrays, map smaller windows, or see "
                "`gpudirect info` for its size and use.",
                errno.ENOMEM,
            )
        raise BridgeError(f"rm: {doing} failed with driver status {status:#x} ({name})")


def driver_version() -> str | None:
    """The loaded NVIDIA kernel driver's version, "580.65.06"; None without one."""
    try:
        text = (PROC / "version").read_text()
    except OSError:
        return None
    found = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", text)
    return found[1] if found else None


@functools.cache
def device_minor(pci_address: str) -> int:
    """N of the /dev/nvidiaN that belongs to a PCI address ("0000:01:00.0")."""
    for folder in (PROC / "gpus").glob("*"):
        if folder.name.lower() != pci_address.lower():
            continue
        with telling(f"rm: cannot read {folder / 'information'}", BridgeError):
            found = re.search(r"Device Minor:\s*(\d+)", (folder / "information").read_text())
        if found:
            return int(found[1])
    raise BridgeUnavailableError(
        f"rm: {PROC}/gpus knows no GPU at {pci_address}, so its /dev/nvidiaN is unknown. "
        "In a container, pass the driver's /proc and /dev files through."
    )


class Client:
    """A client of the driver: one control file, and a device object for each GPU in use."""

    def __init__(self) -> None:
        with telling(f"rm: cannot open {CONTROL_NODE}", BridgeError):
            self.fd = os.open(CONTROL_NODE, os.O_RDWR | os.O_CLOEXEC)
        self._handles = itertools.count(0x6D000001)
        self._devices: dict[int, tuple[int, int]] = {}  # device instance -> device, subdevice
        self._half: dict[int, int] = {}  # device instance -> device; the subdevice may have been refused
        self._files: dict[int, int] = {}  # minor -> the file that keeps the GPU open
        self._lock = threading.RLock()
        try:
            root = Allocate(kind=CLASS_ROOT)
            _ioctl(self.fd, root, "making a client")
            self.root = root.new
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Close every file; the driver frees the client and all its objects."""
        for fd in (*self._files.values(), self.fd):
            with contextlib.suppress(OSError):
                os.close(fd)

    def _allocate(self, parent: int, kind: int, params: ctypes.Structure, doing: str) -> int:
        call = Allocate(
            root=self.root, parent=parent, new=next(self._handles), kind=kind,
            params=ctypes.addressof(params), params_size=ctypes.sizeof(params),
        )  # fmt: skip
        _ioctl(self.fd, call, doing)
        return call.new

    def _control(self, command: int, params: ctypes.Structure, doing: str) -> None:
        call = Control(
            client=self.root, object=self.root, command=command,
            params=ctypes.addressof(params), params_size=ctypes.sizeof(params),
        )  # fmt: skip
        _ioctl(self.fd, call, doing)

    def open_device_file(self, minor: int) -> int:
        """A fresh /dev/nvidiaN, tied to this client's control file."""
        path = f"/dev/nvidia{minor}"
        with telling(f"rm: cannot open {path}, which every mapping does once", BridgeError):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            _ioctl(fd, RegisterFile(control_fd=self.fd), f"tying {path} to {CONTROL_NODE}")
        except BaseException:
            os.close(fd)
            raise
        return fd

    def device(self, instance: int, minor: int) -> tuple[int, int]:
        """(device, subdevice) handles of a GPU, made on first use."""
        with self._lock:
            if instance not in self._devices:
                if minor not in self._files:
                    self._files[minor] = self.open_device_file(minor)
                device = self._half.get(instance)
                if device is None:
                    device = self._half[instance] = self._allocate(
                        self.root, CLASS_DEVICE, DeviceParams(device_id=instance), "opening the GPU"
                    )
                subdevice = self._allocate(
                    device, CLASS_SUBDEVICE, SubdeviceParams(), "opening the GPU's subdevice"
                )
                self._devices[instance] = device, subdevice
            return self._devices[instance]

    def instance_of(self, exported: int) -> int:
        """Which GPU an exported block lives on, in the driver's own numbering."""
        info = ObjectInfo(fd=exported)
        self._control(EXPORTED_OBJECT_INFO, info, "asking about an exported block")
        return int(info.device_instance)

    def import_memory(self, exported: int, device: int) -> int:
        """A handle of our own on an exported block."""
        call = ImportObject(
            fd=exported, type=EXPORTED_TYPE_RM, device=device, parent=device,
            object=next(self._handles),
        )  # fmt: skip
        self._control(IMPORT_OBJECT, call, "importing an exported block")
        return int(call.object)

    def map(self, subdevice: int, memory: int, offset: int, length: int, fd: int) -> int:
        """Give a page-aligned part of the block room in BAR1; its bus address."""
        call = MapMemory(
            client=self.root, device=subdevice, memory=memory, offset=offset, length=length, fd=fd
        )
        _ioctl(self.fd, call, f"mapping {length} bytes through BAR1")
        return int(call.linear)

    def unmap(self, subdevice: int, memory: int, bus_address: int) -> None:
        call = UnmapMemory(
            client=self.root, device=subdevice, memory=memory, linear=bus_address
        )
        _ioctl(self.fd, call, "unmapping")

    def free(self, parent: int, handle: int) -> None:
        """Drop an imported reference."""
        _ioctl(self.fd, Free(root=self.root, parent=parent, object=handle), "freeing a reference")
