"""The wake word of a device: a word of mapped device memory that says which round may begin.

All services of the device share it (_native/relay.h); it goes with the last of them.
"""

from __future__ import annotations

import threading
import weakref

from ..arrays import Array, zeros
from ..devices import Device

_lock = threading.RLock()
_words: weakref.WeakKeyDictionary[Device, weakref.ref[Array]] = weakref.WeakKeyDictionary()


def wake_word(device: Device, bridge: str | None) -> Array:
    """The word. Whoever waits for it or stores it keeps the array."""
    with _lock:
        known = _words.get(device)
        word = known() if known is not None else None
        if word is None:
            word = zeros(1, "u4", device=device, bridge=bridge, mapped=True, shareable=True)
            _words[device] = weakref.ref(word)
        return word
