"""What tests wait for, and for how long: only a hang takes LONG."""

from __future__ import annotations

import time

LONG = 60.0  # seconds


def until(condition, what="it did not come about in a minute"):
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(1e-4)
