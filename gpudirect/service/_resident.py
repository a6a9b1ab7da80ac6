"""The resident kernel of a service that runs: its memory, its stream, and how it is told to end."""

from __future__ import annotations

import contextlib
import ctypes
import time

from ..arrays import empty
from ..devices import Marker
from ..errors import Error, RevokedError
from ..kernels import Kernel
from ._layout import RELAY_ANSWERED, WORD, Layout, Ring
from ._options import Options

GO_ON, STOP, PAUSE = 0, 1, 2  # what the control word says: after.cuh
_LOOK = 50e-6  # seconds between looks whether it has ended


class Resident:
    """Memory and a stream for the kernel, and from ``launch()`` on the kernel itself."""

    def __init__(
        self, kernel: Kernel, layout: Layout, options: Options, bridge: str | None = None
    ) -> None:
        self._kernel, self.layout, self._options = kernel, layout, options
        device = kernel.device
        with contextlib.ExitStack() as undo:
            self.memory = empty(layout.device_bytes, "u1", device=device, bridge=bridge, mapped=True)
            undo.callback(self.memory.close)
            self.host = device.host_allocate(layout.host_bytes)
            undo.callback(self.host.free)
            self.memory.host[:] = 0
            self.memory.flush()
            ctypes.memset(self.host.ptr, 0, self.host.size)
            self.stream = device.stream()
            self.stream.resident = True
            undo.pop_all()
        self._marker: Marker | None = None

    def packets(self) -> tuple[int, int]:
        """Where the rings of packets are: for the device, and for the CPU."""
        offset = self.layout.packets
        return self.memory.ptr + offset, self.memory.host_ptr + offset

    def ring(self, lane: int) -> Ring:
        """The addresses of a lane, for the CPU."""
        return self.layout.ring(
            lane, self.packets()[1], self.host.ptr, self.memory.host_ptr, self.memory.ptr
        )

    def launch(self) -> None:
        """Start the kernel; it goes on behind the last call that was answered."""
        options, layout = self._options, self.layout
        self._kernel.launch(
            options.all_blocks, options.threads,
            self.packets()[0], self.host.ptr, self.memory.ptr, self.memory.ptr + layout.relays,
            layout.relay, options.slots, options.blocks, int(options.idle_sleep * 1e9),
            int(options.idle_after * 1e9), int((options.lifetime or 0) * 1e9),
            stream=self.stream, cooperative=options.blocks > 1,
        )  # fmt: skip
        self._marker = self.stream.marker()

    def relaunch(self) -> None:
        """Start it again after it was paused."""
        memory, layout = self.memory, self.layout
        for n in range(layout.lanes):
            at = layout.relays + n * layout.relay
            answered = memory.read(offset=at + RELAY_ANSWERED, nbytes=WORD, synchronize=False)
            memory.write(bytes(layout.relay), at)
            memory.write(answered.tobytes(), at + RELAY_ANSWERED)
        self.tell(GO_ON)
        self.launch()

    def tell(self, what: int) -> None:
        """Say in the control word what to do between two calls: GO_ON, STOP or PAUSE."""
        with contextlib.suppress(RevokedError):
            self.memory.write(what.to_bytes(WORD, "little"))

    @property
    def launched(self) -> bool:
        """Whether it was launched, and not parked since."""
        return self._marker is not None

    def ended(self) -> bool:
        """Whether it was launched and has ended."""
        return self._marker is not None and self._marker.done()

    def await_end(self, timeout: float) -> bool:
        """Whether it has ended within so many seconds, or was not launched."""
        end = time.monotonic() + timeout
        while self._marker is not None and not self._marker.done():
            if time.monotonic() > end:
                return False
            time.sleep(_LOOK)
        return True

    def park(self) -> None:
        """It has ended, and will be launched again: whoever checks meanwhile sees no end."""
        self._marker = None

    def give_back(self) -> None:
        """Its memory and its stream. The kernel has ended, and nobody looks at the rings."""
        with contextlib.suppress(Error):  # a fault of the kernel has been told
            self.stream.close()
        self.host.free()
        self.memory.close()
