"""Resident kernels of a GPU that are launched again and again, by a thread in C."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ... import _native
from ...errors import Error
from ..relayed import Launch, Relayed

if TYPE_CHECKING:
    from .device import CudaDevice


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
            "arguments_size": len(launch.arguments), "turn_at": launch.turn_at,
            "round_at": launch.round_at, "slice_at": launch.slice_at,
            "slice": int(launch.slice * 1e9), "told": launch.told,
            "wake": launch.wake[0], "wake_device": launch.wake[1],
            "pace": int(launch.pace * 1e9), "park_after": int(launch.park_after * 1e9),
        })  # fmt: skip
        self._thread = device.relay_thread()
        self._launch = launch  # keeps the function and the stream

    @property
    def slices(self) -> int:
        return int(self._state.turns)

    @property
    def late(self) -> int:
        return int(self._state.late)

    def failure(self) -> Error | None:
        code = self._state.failure
        return self._device.error(code, f"relaying {self._launch.function.name}") if code else None

    def start(self) -> None:
        code = _native.lib.gd_relay_add(self._thread, self._state)
        if code:
            raise self._device.error(code, "starting a resident kernel")

    def hold(self) -> None:
        _native.lib.gd_relay_remove(self._thread, self._state)

    def wake(self) -> None:
        _native.lib.gd_relay_wake(self._thread)

    @property
    def naps(self) -> bool:
        return bool(_native.lib.gd_relay_naps(self._thread))

    @property
    def parked(self) -> bool:
        return bool(self._state.away == _native.lib.GD_PARKED)

    @property
    def parks(self) -> int:
        return int(self._state.park.times)

    @property
    def napped(self) -> float:
        return float(self._state.napped * 1e-9)

    @property
    def park(self) -> int:
        return int(_native.ffi.cast("uintptr_t", _native.ffi.addressof(self._state, "park")))

    def stay(self) -> None:
        _native.lib.gd_relay_stay(self._thread, self._state)
