"""Resident kernels that end by themselves after a slice, each with its successor queued behind it.

What waits until nothing runs on a device, in any library of the process, waits for a slice then,
and not for ever. ``Device.relay`` starts one; _native/relay.h tells how launches follow one another.
"""

from __future__ import annotations

import ctypes
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import _native
from ..errors import Error

if TYPE_CHECKING:
    from .base import Device, Function
    from .cuda import CudaDevice
    from .streams import Stream


@dataclass(frozen=True)
class Launch:
    """How a resident kernel is launched, again and again."""

    function: Function
    stream: Stream
    grid: int
    """Blocks."""
    threads: int
    """Of a block."""
    cooperative: bool
    """All blocks must be resident at once."""
    arguments: bytes
    """The argument block, of which each launch has two numbers of its own:"""
    number_at: int
    """Offset of the launch's number, 4 bytes, counting from 1."""
    slice_at: int
    """Offset of its slice in ns, 8 bytes: the shortest of the device's resident kernels."""
    slice: float
    """Seconds that it asks for."""
    ended: int
    """CPU address of a word, 4 bytes: where the kernel says which launch has ended last."""
    over: int
    """CPU address of a word where it says, with any other number than 0, that all is done."""


class Relayed(ABC):
    """A resident kernel that is launched again and again."""

    @property
    @abstractmethod
    def slices(self) -> int:
        """Launches that were queued so far."""

    @property
    @abstractmethod
    def late(self) -> int:
        """Launches that were queued when the one before had ended: calls waited meanwhile."""

    @abstractmethod
    def failure(self) -> Error | None:
        """What ended it, of its own or of the whole device."""

    @abstractmethod
    def start(self) -> None:
        """Go on launching. Raises DeviceError."""

    @abstractmethod
    def hold(self) -> None:
        """Launch it no more. What is queued still runs, and ends when the kernel is told to."""


class CudaRelayed(Relayed):
    """Launched by the device's relay thread in C."""

    def __init__(self, device: CudaDevice, launch: Launch) -> None:
        ffi = _native.ffi
        self._device = device
        parameters = launch.function.parameters
        self._arguments = ffi.new("char[]", launch.arguments)
        self._offsets = ffi.new("uint32_t[]", [p.offset for p in parameters])
        self._state = ffi.new("struct gd_resident *", {
            "function": launch.function.handle, "stream": launch.stream.handle,
            "grid": ((launch.grid, 1, 1), (launch.threads, 1, 1), 0),
            "cooperative": launch.cooperative, "parameters": len(parameters),
            "offsets": int(ffi.cast("uintptr_t", self._offsets)),
            "arguments": int(ffi.cast("uintptr_t", self._arguments)),
            "arguments_size": len(launch.arguments), "number_at": launch.number_at,
            "slice_at": launch.slice_at, "slice": int(launch.slice * 1e9),
            "ended": launch.ended, "over": launch.over,
        })  # fmt: skip
        self._launch = launch  # keeps the function and the stream

    @property
    def slices(self) -> int:
        return int(self._state.launched)

    @property
    def late(self) -> int:
        return int(self._state.late)

    def failure(self) -> Error | None:
        code = self._state.failure
        return self._device.error(code, f"relaying {self._launch.function.name}") if code else None

    def start(self) -> None:
        code = _native.lib.gd_relay_add(self._device.relay_thread(), self._state)
        if code:
            raise self._device.error(code, "starting a resident kernel")

    def hold(self) -> None:
        _native.lib.gd_relay_remove(self._device.relay_thread(), self._state)


AHEAD = 2  # launches queued at most, as relay.h has it


class EmulatedRelayed(Relayed):
    """The same for the emulated device."""

    def __init__(self, thread: EmulatedRelayThread, launch: Launch) -> None:
        self.launch = launch
        self._thread = thread
        self.queued = 0
        self.delayed = 0
        self.error: Error | None = None

    def _word(self, address: int) -> int:
        return ctypes.c_uint32.from_address(address).value

    @property
    def open(self) -> int:
        """Launches queued that have not ended."""
        return self.queued - self._word(self.launch.ended)

    @property
    def runs(self) -> bool:
        """Whether there is anything left to launch."""
        return self.error is None and not self._word(self.launch.over)

    @property
    def slices(self) -> int:
        return self.queued

    @property
    def late(self) -> int:
        return self.delayed

    def failure(self) -> Error | None:
        if self.error is None:
            try:
                self.launch.stream.device.ensure_usable()
            except Error as e:
                self.error = e
        return self.error

    def queue(self, slice: float) -> None:
        """Launch it once more."""
        launch = self.launch
        arguments = bytearray(launch.arguments)
        number, ns = self.queued + 1, int(slice * 1e9)
        arguments[launch.number_at : launch.number_at + 4] = number.to_bytes(4, "little")
        arguments[launch.slice_at : launch.slice_at + 8] = ns.to_bytes(8, "little")
        self.delayed += self.queued > 0 and self.open == 0
        try:
            launch.function.launch(
                (launch.grid, 1, 1), (launch.threads, 1, 1), 0, launch.stream, bytes(arguments),
                cooperative=launch.cooperative,
            )  # fmt: skip
            self.queued = number
        except Error as e:
            self.error = e

    def start(self) -> None:
        self._thread.add(self)

    def hold(self) -> None:
        self._thread.remove(self)


class EmulatedRelayThread:
    """Queues the launches of all residents of an emulated device, in rounds."""

    def __init__(self, device: Device) -> None:
        self._name = f"{device.id} relay"
        self._changed = threading.Condition()
        self._members: list[EmulatedRelayed] = []
        self._thread: threading.Thread | None = None

    def add(self, member: EmulatedRelayed) -> None:
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                thread.start()
                self._thread = thread
            self._members.append(member)
            self._changed.notify()

    def remove(self, member: EmulatedRelayed) -> None:
        with self._changed:
            if member in self._members:
                self._members.remove(member)

    def _run(self) -> None:
        with self._changed:
            while True:
                running = [m for m in self._members if m.runs]
                if not running:
                    self._changed.wait()
                    continue
                # emulated streams cannot wait for one another: several residents are queued
                # when all have ended, one alone is queued ahead
                ahead = AHEAD if len(running) == 1 else 1
                slice = min(m.launch.slice for m in running)
                if all(m.open < ahead for m in running):
                    for member in running:
                        member.queue(slice)
                    continue
                self._changed.wait(max(slice / 4, 1e-4))


__all__ = ["CudaRelayed", "EmulatedRelayThread", "EmulatedRelayed", "Launch", "Relayed"]
