"""The resident kernel of a service that runs: its memory, its stream, and how it is told to end."""

from __future__ import annotations

import contextlib
import ctypes
import time

from .. import _native
from ..arrays import Array, empty
from ..devices import Launch, Marker, Relayed
from ..errors import Error, RevokedError
from ..kernels import Kernel
from ..sharing._owner import Share
from ._layout import WORD, Layout, Ring
from ._options import Options
from ._wake import wake_word

GO_ON, STOP, PAUSE = 0, 1, 2  # what the control word says: polling.cuh
_LOOK = 50e-6  # seconds between looks whether it has ended


class Resident:
    """Memory and a stream for the kernel, and from ``launch()`` on the kernel itself.

    With a slice the kernel ends by itself after each, and the device launches it again.
    """

    def __init__(
        self, kernel: Kernel, layout: Layout, options: Options, bridge: str | None = None
    ) -> None:
        self._kernel, self.layout, self._options = kernel, layout, options
        device = kernel.device
        with contextlib.ExitStack() as undo:
            self.memory = empty(layout.device_bytes, "u1", device=device, bridge=bridge, mapped=True,
                                shareable=True)  # with a process that a lane is shared with
            undo.callback(self.memory.close)
            self.host = device.host_allocate(layout.host_bytes, shared=True)
            undo.callback(self.host.free)
            self.memory.host[:] = 0
            self.memory.flush()
            ctypes.memset(self.host.ptr, 0, self.host.size)
            self.stream = device.stream()
            self.stream.resident = True
            undo.pop_all()
        self._launches = 0  # of a kernel that is not relayed
        self._marker: Marker | None = None
        self._relayed: Relayed | None = None
        self._up = False
        self.shared: dict[int, Share] = {}
        """Lanes that another process may call through."""
        self._word: Array | None = None
        self._wake = 0, 0
        if options.slice is not None:
            self._word = wake_word(device, bridge)
            self._wake = self._word.host_ptr, self._word.ptr
            self._relayed = self._relay(options.slice)

    def _arguments(self, turn: int, slice: float) -> tuple[object, ...]:
        options, layout, memory = self._options, self.layout, self.memory.ptr
        return (
            self.packets()[0], self.host.ptr, memory, memory + layout.ends, memory + layout.boards,
            layout.board, options.slots, options.blocks, int(options.idle_sleep * 1e9),
            int(options.idle_after * 1e9), int((options.lifetime or 0) * 1e9),
            self.host.ptr + layout.told, self._wake[1], int((options.nap_after or 0) * 1e9),
            turn, 0, int(slice * 1e9),
        )  # fmt: skip

    def _relay(self, slice: float) -> Relayed:
        options = self._options
        turn, round, length = self._kernel.parameters[-3:]
        return self._kernel.device.relay(Launch(
            function=self._kernel._function, stream=self.stream, grid=options.all_blocks,
            threads=options.threads, cooperative=options.blocks > 1,
            arguments=self._kernel.pack(self._arguments(0, slice)), turn_at=turn.offset,
            round_at=round.offset, slice_at=length.offset, slice=slice,
            told=self.host.ptr + self.layout.told, wake=self._wake, nap_after=options.nap_after or 0,
            park_after=options.park_after or 0,
        ))  # fmt: skip

    @property
    def wake_word(self) -> Array | None:
        """Which callers store to; None where it never naps."""
        return self._word

    def packets(self) -> tuple[int, int]:
        """Where the rings of packets are: for the device, and for the CPU."""
        offset = self.layout.packets
        return self.memory.ptr + offset, self.memory.host_ptr + offset

    def ring(self, lane: int) -> Ring:
        """The addresses of a lane, for the CPU."""
        return self.layout.ring(
            lane, self.packets()[1], self.host.ptr, self.memory.host_ptr, self.memory.ptr, self._wake[0],
            self._relayed.park if self._relayed else 0,
        )  # fmt: skip

    @property
    def slices(self) -> int:
        """Launches so far."""
        return self._relayed.slices if self._relayed else self._launches

    @property
    def late(self) -> int:
        """Launches that were queued too late to follow the one before at once."""
        return self._relayed.late if self._relayed else 0

    def _told(self, which: int) -> int:
        address = self.host.ptr + self.layout.told + which * WORD
        return ctypes.c_uint32.from_address(address).value

    @property
    def state(self) -> str:
        """"awake", "napping", "parked" or "paused"."""
        lib = _native.lib
        if not self._up:
            return "paused"
        if self._relayed and self._relayed.parked:
            return "parked"
        ended = self._told(lib.P2PMOD_TOLD_ENDED)
        naps = ended == self._told(lib.P2PMOD_TOLD_NAPPED) == self._told(lib.P2PMOD_TOLD_BEGUN)
        return "napping" if self._relayed and self._relayed.naps and naps else "awake"

    @property
    def napped(self) -> float:
        """Seconds that it napped."""
        return self._relayed.napped if self._relayed else 0.0

    @property
    def parks(self) -> int:
        """How often it was parked."""
        return self._relayed.parks if self._relayed else 0

    def stay(self) -> None:
        """It is parked no more."""
        if self._relayed:
            self._relayed.stay()

    def launch(self) -> None:
        """Start the kernel; it goes on behind the last call that was answered."""
        self._up, self._marker = True, None  # first: what is interrupted here may have been launched
        if self._relayed:
            self._relayed.start()
        else:
            self._launches += 1
            self._kernel.launch(
                self._options.all_blocks, self._options.threads, *self._arguments(self._launches, 0),
                stream=self.stream, cooperative=self._options.blocks > 1,
            )  # fmt: skip
            self._marker = self.stream.marker()

    def relaunch(self) -> None:
        """Start it again after it was paused."""
        self._tell(GO_ON)
        self.launch()

    def end(self, what: int) -> None:
        """Tell the kernel to end between two calls: STOP, for good, or PAUSE."""
        if self._relayed:
            self._relayed.hold()
        self._tell(what)

    def carry_on(self) -> None:
        """It shall not end after all."""
        self._tell(GO_ON)
        if self._relayed:
            self._relayed.start()

    def _tell(self, what: int) -> None:
        with contextlib.suppress(RevokedError):
            self.memory.write(what.to_bytes(WORD, "little"))

    @property
    def launched(self) -> bool:
        """Whether it was launched, and has not made way since."""
        return self._up

    def ended(self) -> bool:
        """Whether it was launched and has ended, or failed."""
        if not self._up:
            return False
        if self._relayed:
            over = self._told(_native.lib.P2PMOD_TOLD_OVER)
            return self._relayed.failure() is not None or bool(over and self.stream.idle())
        return self._marker.done() if self._marker is not None else self.stream.idle()

    def failure(self) -> Error | None:
        """What went wrong in a kernel that has ended."""
        try:
            self.stream.synchronize()
        except Error as e:
            return e
        return self._relayed.failure() if self._relayed else None

    def await_end(self, timeout: float) -> bool:
        """Whether a kernel that was told to end has done so within so many seconds."""
        end = time.monotonic() + timeout
        while self._up and not (self.stream.idle() if self._relayed else self.ended()):
            if time.monotonic() > end:
                return False
            if self._relayed:
                self._relayed.wake()  # what is queued behind a nap ends as well
            time.sleep(_LOOK)
        return True

    def make_way(self) -> None:
        """It has ended, and will be launched again: whoever checks meanwhile sees no end."""
        self._up = False

    def give_back(self) -> None:
        """Its memory and its stream. The kernel has ended, and nobody looks at the rings."""
        with contextlib.suppress(Error):  # a fault of the kernel has been told
            self.stream.close()
        self.host.free()
        self.memory.close()
