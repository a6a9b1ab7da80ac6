"""The wake word of a device: a word of mapped device memory that says which round may begin.

All services of the device share it (_native/relay.h). It is made for the first and stays.
"""

from __future__ import annotations

import threading

from ..arrays import Array, zeros
from ..devices import Device

_lock = threading.Lock()
_words: dict[int, tuple[Device, Array]] = {}


def wake_word(device: Device, bridge: str | None) -> tuple[int, int]:
    """Its address for the CPU, and for the device."""
    with _lock:
        found = _words.get(id(device))
        if found is None:
            found = _words[id(device)] = device, zeros(16, "u4", device=device, bridge=bridge, mapped=True)
        return found[1].host_ptr, found[1].ptr
