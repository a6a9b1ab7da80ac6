"""In a guest of the lab: a Service's functions, called from inside the Linux kernel.

The resident kernel runs on the emulated device, whose memory is the stand-in driver's; the test module
p2pmod_caller attaches to one of its lanes through /dev/p2pmod, and checks every reply.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import threading
import time
from pathlib import Path

import cffi
import pytest

import gpudirect as gd
from gpudirect import _native

ROOT = Path(__file__).resolve().parents[3]
HEADER = (ROOT / "p2pmod/test/caller.h").read_text()
CONTEXTS = ("process", "timer", "tasklet", "interrupt")
SLOTS = 64

ffi = cffi.FFI()
STRUCTS = "\n".join(re.findall(r"^struct \w+ \{.*?^\};", HEADER, re.MULTILINE | re.DOTALL))
ffi.cdef(re.sub(r"\b__u(\d+)\b", r"uint\1_t", STRUCTS))

SOURCE = """
struct words { unsigned n, w[13]; };
__device__ unsigned long long fold(words a)
{
    unsigned long long value = 0xcbf29ce484222325ull;
    value = (value ^ a.n) * 0x100000001b3ull;
    for (unsigned i = 0; i < a.n && i < 13; i++)
        value = (value ^ a.w[i]) * 0x100000001b3ull;
    return value;
}
__device__ void refuse() { gd_require(false); }
__device__ void rest() {}
__device__ void store(unsigned *at, unsigned value) { *at = value; }
"""


def number(command: str) -> int:
    """An ioctl's number, from the header."""
    nr, name = re.search(rf"#define {command} _IOWR\(CALLER_MAGIC, (\w+), (struct \w+)\)", HEADER).groups()
    return 3 << 30 | ffi.sizeof(name) << 16 | ord("c") << 8 | int(nr, 0)


class Caller:
    """The test module, seen from here."""

    def __init__(self) -> None:
        self.fd = os.open("/proc/p2pmod_caller", os.O_RDWR)
        self.p2pmod = os.open("/dev/p2pmod", os.O_RDWR)

    def __call__(self, command: str, **fields: int):
        argument = ffi.new(f"struct caller_{command} *", fields)
        fcntl.ioctl(self.fd, number(f"CALLER_{command.upper()}"), ffi.buffer(argument), True)
        return argument

    def pin(self, ptr: int, length: int) -> int:
        pin = _native.ffi.new("struct p2pmod_pin *")
        pin.size = _native.ffi.sizeof("struct p2pmod_pin")
        pin.address, pin.length = ptr, length
        fcntl.ioctl(self.p2pmod, _native.lib.P2PMOD_PIN, _native.ffi.buffer(pin), True)
        return pin.handle

    def attach(self, service: gd.Service, lane: int) -> int:
        """The lane's number at the module. The service itself has made one call on each."""
        resident, ring = service._resident, service._resident.ring(lane)
        handle = self.pin(resident.packets()[0] + lane * SLOTS * 64, SLOTS * 64)
        naps = {}
        if service.info.nap_after is not None:
            word = resident._word
            naps = {"told": ring.told, "wake_handle": self.pin(word.ptr, word.nbytes), "wake": 0}
        return self("attach", fd=self.p2pmod, handle=handle, replies=ring.replies, slots=SLOTS, first=2,
                    **naps).lane  # fmt: skip

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.p2pmod)


@pytest.fixture
def caller():
    gd.use(device="emulated", bridge="p2pmod")
    caller = Caller()
    yield caller
    caller.close()
    gd.use()


def service(lanes: int, **options: float | None) -> gd.Service:
    given = {"lanes": lanes, "slots": SLOTS, "nap_after": None, **options}
    return gd.Service(SOURCE, ["fold", "refuse", "rest", "store"], **given)


def test_the_kernel_calls_a_services_functions_in_every_context(caller):
    with service(1) as svc:
        lane = caller.attach(svc, 0)
        for i, name in enumerate(CONTEXTS):
            run = caller("run", lane=lane, context=i, calls=300, ahead=32, seed=i, timeout_ms=120_000)
            assert (run.answered, run.wrong) == (300, 0), name


def test_the_kernel_and_the_process_call_side_by_side(caller):
    counted = gd.zeros(1, "u4")
    with service(2) as svc:
        lane = caller.attach(svc, 1)
        runs = []
        threads = [
            threading.Thread(target=lambda i=i: runs.append(
                caller("run", lane=lane, context=i, calls=200, ahead=8, seed=9, timeout_ms=120_000)))
            for i in range(4)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for i in range(100):
            svc.call("store", counted, i, lane=0)
        for thread in threads:
            thread.join()
        assert [(r.answered, r.wrong) for r in runs] == [(200, 0)] * 4
    assert counted.read()[0] == 99


def test_a_stopped_service_is_enodev_to_the_kernel(caller):
    svc = service(1).start()
    lane = caller.attach(svc, 0)
    assert caller("run", lane=lane, calls=20, ahead=4, timeout_ms=60_000).answered == 20
    svc.stop()
    gd.trim()  # the memory of the rings goes back to the driver
    for context in range(4):
        end = time.monotonic() + 60
        with pytest.raises(OSError) as raised:
            while time.monotonic() < end:
                caller("submit", lane=lane, context=context, unasked=1)
        assert raised.value.errno == errno.ENODEV


# -- naps --------------------------------------------------------------------------------------

SLICE = 60.0  # seconds until somebody else would wake the kernel on the GPU


def napping(svc: gd.Service) -> None:
    end = time.monotonic() + SLICE
    while svc.info.state != "napping":
        assert time.monotonic() < end, f"{svc.info}"
        time.sleep(1e-3)


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_call_from_the_kernel_ends_a_nap(caller, context):
    with service(1, slice=SLICE, nap_after=0.01) as svc:
        svc.lend(0)  # the kernel's from now on: so it is never parked
        lane = caller.attach(svc, 0)
        for i in range(5):
            napping(svc)
            start = time.monotonic()
            run = caller("run", lane=lane, context=CONTEXTS.index(context), calls=1 + i, ahead=8, seed=i,
                         timeout_ms=int(SLICE / 2 * 1e3))  # fmt: skip
            assert (run.answered, run.wrong) == (1 + i, 0)
            assert time.monotonic() - start < SLICE / 2, "it was not this call that ended the nap"


def test_calls_that_the_kernel_asks_nothing_of_end_a_nap(caller):
    with service(1, slice=SLICE, nap_after=0.01) as svc:
        svc.lend(0)
        lane = caller.attach(svc, 0)
        answered = svc._resident.ring(0).replies + 12
        for i in range(5):
            napping(svc)
            caller("submit", lane=lane, function=svc.functions["rest"].number, unasked=1)
            end = time.monotonic() + SLICE / 2
            number = 2 + i
            at = _native.ffi.cast("volatile uint32_t *", answered + number % SLOTS * 16)
            while at[0] != number:
                assert time.monotonic() < end, "it was not this call that ended the nap"
                time.sleep(1e-3)


def test_the_kernel_calls_at_random_while_naps_begin(caller):
    """Packets that come just as the kernel on the GPU decides to leave: each is answered, soon."""
    import random

    draw = random.Random(3)
    with service(1, slice=SLICE, nap_after=0.005) as svc:
        svc.lend(0)
        lane = caller.attach(svc, 0)
        for i in range(30):  # seconds each, under software emulation
            time.sleep(draw.uniform(0.003, 0.009))
            run = caller("run", lane=lane, context=i % 4, calls=1, ahead=1, seed=i,
                         timeout_ms=int(SLICE / 2 * 1e3))  # fmt: skip
            assert (run.answered, run.wrong) == (1, 0)


@pytest.mark.parametrize("wrong, code", [
    ({"told": 2}, errno.EINVAL), ({"wake": 2}, errno.EINVAL), ({"wake_handle": 0}, errno.EINVAL),
    ({"wake": 1 << 20}, errno.ERANGE), ({"wake_handle": 999}, errno.ENOENT), ({"told": 4}, errno.EFAULT),
])  # fmt: skip
def test_wrong_words_of_naps_are_refused(caller, wrong, code):
    with service(1, slice=SLICE, nap_after=1.0) as svc:
        ring, word = svc._resident.ring(0), svc._resident._word
        right = {
            "fd": caller.p2pmod, "handle": caller.pin(svc._resident.packets()[0], SLOTS * 64),
            "slots": SLOTS, "first": 2, "replies": ring.replies, "told": ring.told, "wake": 0,
            "wake_handle": caller.pin(word.ptr, word.nbytes),
        }  # fmt: skip
        with pytest.raises(OSError) as raised:
            caller("attach", **{**right, **wrong})
        assert raised.value.errno == code
        caller("attach", **right)
