"""What tests wait for, and for how long: only a hang takes LONG."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time

LONG = 60.0  # seconds

# For kernels: waits for a word, and not for ever. A test that fails leaves the word as it is, and the suite
# is to say so and go on. (The emulated device's clock counts nanoseconds.)
HOLD = """
__device__ void hold(volatile unsigned *go)
{
    long long end = clock64() + 100000000000;
    while (!*go && clock64() < end) ;
}
"""


def until(condition, what="it did not come about in a minute"):
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(1e-4)


def inside(function):
    """A condition: the main thread is in a Python function of this name."""

    def condition():
        frame = sys._current_frames()[threading.main_thread().ident]
        while frame is not None and frame.f_code.co_name != function:
            frame = frame.f_back
        return frame is not None

    return condition


@contextlib.contextmanager
def signalled(handler, begun):
    """A signal comes within, a little after something is seen to have begun, or not any more."""
    over = threading.Event()

    def send():
        while not begun():
            if over.wait(1e-4):
                return
        if not over.wait(0.02):
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        over.set()
        sender.join()
        signal.signal(signal.SIGUSR1, before)
