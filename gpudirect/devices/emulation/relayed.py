"""Resident kernels of the emulated device that are launched again and again, by a thread of Python."""

from __future__ import annotations

import ctypes
import threading
import time
from typing import TYPE_CHECKING

from ... import _native
from ...errors import Error
from ..relayed import Launch, Relayed

if TYPE_CHECKING:
    from ..base import Device

AHEAD = 2  # launches queued at most, as relay.h has it


class EmulatedRelayed(Relayed):
    """The same for the emulated device."""

    def __init__(self, thread: EmulatedRelayThread, launch: Launch) -> None:
        self.launch = launch
        self._thread = thread
        self.turns = 0
        self.delayed = 0
        self.round = 0
        self.joined = False
        self.error: Error | None = None
        self.state = _native.ffi.new("struct gd_park *")
        self.away: int = _native.lib.GD_RIDES
        self.stays = False
        self.slept = 0.0
        self.begin(0)

    def begin(self, called: int) -> None:
        """It is added to the relay."""
        self.joined, self.error = False, None
        self.away = _native.lib.GD_RIDES
        self.state.state = _native.lib.GD_PARK_NO
        self.called = called
        self.called_at = self.looked = time.monotonic()

    def told(self, which: int) -> int:
        """One of the words that the kernel writes."""
        return _word(self.launch.told + 4 * which)

    @property
    def open(self) -> int:
        """Rounds queued that have not ended."""
        return self.round - self.told(_native.lib.P2PMOD_TOLD_ENDED)

    @property
    def runs(self) -> bool:
        """Whether there is anything left to launch."""
        return self.error is None and not self.told(_native.lib.P2PMOD_TOLD_OVER)

    @property
    def naps(self) -> bool:
        return self.launch.wake[0] != 0

    @property
    def slices(self) -> int:
        return self.turns

    @property
    def late(self) -> int:
        return self.delayed

    @property
    def parked(self) -> bool:
        return self.away == _native.lib.GD_PARKED

    @property
    def parks(self) -> int:
        return int(self.state.times)

    @property
    def napped(self) -> float:
        return self.slept

    @property
    def park(self) -> int:
        return int(_native.ffi.cast("uintptr_t", self.state))

    def stay(self) -> None:
        self.stays = True

    @property
    def rides(self) -> bool:
        """Whether it is launched once a round."""
        return self.away < _native.lib.GD_LAST

    @property
    def rests(self) -> bool:
        """Whether nothing of it is resident, for want of calls."""
        lib = _native.lib
        ended = self.told(lib.P2PMOD_TOLD_ENDED)
        return (self.naps and self.joined and ended == self.told(lib.P2PMOD_TOLD_NAPPED)
                == self.told(lib.P2PMOD_TOLD_BEGUN))  # fmt: skip

    def look_for_calls(self) -> None:
        """Park it if it has had none for long; call it back if there are any. As park() of relay.c."""
        lib, now = _native.lib, time.monotonic()
        called = self.told(lib.P2PMOD_TOLD_CALLED)
        asked = self.stays or self.state.state == lib.GD_PARK_ASKED
        if self.rides and called != self.called:
            self.called, self.called_at = called, now
        if not self.parked and self.rests:
            self.slept += now - self.looked
        self.looked = now
        if self.away == lib.GD_RIDES:
            after = self.launch.park_after
            if after and not asked and self.rests and now - self.called_at > after:
                self.state.state = lib.GD_PARK_PARKED
                if lib.gd_fence_all():
                    self._ride_again()
                else:
                    self.away = lib.GD_LEAVING
        elif self.away == lib.GD_LEAVING:
            if asked or self.called_at == now:
                self._ride_again()
        elif self.away == lib.GD_LAST:
            if self.open == 0:
                if asked or called != self.called:
                    self._ride_again()
                else:
                    self.state.times += 1
                    self.away = lib.GD_PARKED
        elif asked:
            self._ride_again()

    def _ride_again(self) -> None:
        lib = _native.lib
        if not self.rides:
            self.joined = False
        self.away = lib.GD_RIDES
        self.state.state = lib.GD_PARK_NO
        self.called_at = time.monotonic()

    def failure(self) -> Error | None:
        if self.error is None:
            try:
                self.launch.stream.device.ensure_usable()
            except Error as e:
                self.error = e
        return self.error

    def queue(self, round: int, slice: float) -> None:
        """Launch it once more."""
        launch = self.launch
        if not self.joined:  # nothing of it is queued: it has ended all rounds before
            _set_word(launch.told + 4 * _native.lib.P2PMOD_TOLD_BEGUN, round - 1)
            _set_word(launch.told + 4 * _native.lib.P2PMOD_TOLD_ENDED, round - 1)
            self.joined, self.round = True, round - 1
        elif self.open == 0:
            self.delayed += 1
        arguments = bytearray(launch.arguments)
        for at, size, number in ((launch.turn_at, 4, self.turns + 1), (launch.round_at, 4, round),
                                 (launch.slice_at, 8, int(slice * 1e9))):  # fmt: skip
            arguments[at : at + size] = number.to_bytes(size, "little")
        try:
            launch.function.launch(
                (launch.grid, 1, 1), (launch.threads, 1, 1), 0, launch.stream, bytes(arguments),
                cooperative=launch.cooperative,
            )  # fmt: skip
            self.turns += 1
            self.round = round
        except Error as e:
            self.error = e

    def start(self) -> None:
        self._thread.add(self)

    def hold(self) -> None:
        self._thread.remove(self)

    def wake(self) -> None:
        """Nothing is queued before it may begin."""


class EmulatedRelayThread:
    """Queues the launches of all residents of an emulated device, in rounds.

    Emulated streams wait neither for one another nor for a word: a round is queued when it may begin,
    and only one resident alone that does not nap is queued ahead.
    """

    def __init__(self, device: Device) -> None:
        self._name = f"{device.id} relay"
        # taken itself: where a signal's handler raises in the condition's own __enter__ it stays held
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._members: list[EmulatedRelayed] = []
        self._round = 0
        self._thread: threading.Thread | None = None
        _native.lib.gd_fence_all_ready()

    def add(self, member: EmulatedRelayed) -> None:
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                thread.start()
                self._thread = thread
            member.begin(member.told(_native.lib.P2PMOD_TOLD_CALLED))
            self._members.append(member)
            self._changed.notify_all()  # an interrupted one leaves somebody who is told in vain

    def remove(self, member: EmulatedRelayed) -> None:
        with self._lock:
            if member in self._members:
                self._members.remove(member)
                member.state.state = _native.lib.GD_PARK_NO

    def _run(self) -> None:
        woken = time.monotonic()
        with self._changed:
            while True:
                running = [m for m in self._members if m.runs]
                if not running:
                    self._changed.wait()
                    continue
                for member in running:
                    member.look_for_calls()
                running = [m for m in running if m.rides]
                if not running:  # nobody rings a bell here
                    self._changed.wait(1e-3)
                    continue
                slice = min(m.launch.slice for m in running)
                ahead = AHEAD if len(running) == 1 and not running[0].naps else 1
                if all(m.open < ahead for m in running if m.joined):
                    wake = running[0].launch.wake[0]
                    due = time.monotonic() - woken >= slice or any(not m.joined for m in running)
                    if wake and due:
                        _set_word(wake, self._round + 1)
                    if not wake or (_word(wake) - self._round - 1) & 0xFFFFFFFF < 1 << 31:
                        woken = time.monotonic()
                        self._round += 1
                        for member in running:
                            member.queue(self._round, slice)
                            if member.away == _native.lib.GD_LEAVING:
                                member.away = _native.lib.GD_LAST
                        continue
                self._changed.wait(max(min(m.launch.pace for m in running) / 8, 1e-4))


def _word(address: int) -> int:
    return ctypes.c_uint32.from_address(address).value


def _set_word(address: int, value: int) -> None:
    ctypes.c_uint32.from_address(address).value = value & 0xFFFFFFFF
