"""Bridge ``p2pmod``: our kernel module. Its place is kept here; see issue in standing()."""

from __future__ import annotations

import os

from ..errors import BridgeUnavailableError
from .base import Bridge, Facts, Mapping, Source, Standing

NODE = "/dev/p2pmod"


class P2pmodBridge(Bridge):
    """Maps through our kernel module."""

    name = "p2pmod"
    maps_foreign = True
    bus_addresses = True

    def standing(self, device: Facts) -> Standing:
        if not os.path.exists(NODE):
            return Standing(False, f"{NODE} is absent: the kernel module is not loaded")
        return Standing(False, "this version of the runtime does not speak to the module yet")

    def map(
        self, source: Source, offset: int, length: int, *, at: int | None = None, caching: str = "wc"
    ) -> Mapping:
        raise BridgeUnavailableError(f"p2pmod: {self.standing(source).reason}")  # type: ignore[arg-type]
