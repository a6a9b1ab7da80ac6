"""Litmus tests of the memory model (docs/memory-model.md): who sees which store, and when.

    gpudirect litmus --rounds 1000000

Each test plays one small pattern of stores and loads between the CPU and the device many times
and counts the rounds in which the other side saw something out of order. A promised order must
never be violated. One that is not promised may be; where that was seen, the count shows it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import gpudirect as gd

from .. import _cache, _native
from ..devices import Device

HERE = Path(__file__).resolve().parent
LINE = 64
PAYLOAD_LINES = 4
RING = 256  # rounds between two synchronisations where a launch is a round
FENCED, BARE, FLAG_LINE_OPEN = 0, 1, 2  # driver.c

PROMISED = "promised"
RELIED_ON = "relied on"
"""No specification says so; doorbells use it, and it must hold in every run."""
NOT_PROMISED = "not promised"


@dataclass(frozen=True)
class Outcome:
    """What a litmus test saw."""

    name: str
    standing: str
    rounds: int
    violations: int
    seconds: float
    device: str
    emulated: bool

    @property
    def fine(self) -> bool:
        """Whether nothing happened that must not."""
        return self.standing == NOT_PROMISED or self.violations == 0


@dataclass(frozen=True)
class Litmus:
    """One pattern. ``play(device, rounds)`` counts the rounds that went out of order."""

    name: str
    standing: str
    says: str
    play: Callable[[Device, int], int]
    at_most: int = 1 << 62
    """Rounds, however many are asked for: it shows what it shows at once, and each takes long."""
    holds_emulated: bool = True
    """The emulated device keeps it too (it has no vector loads of a whole warp)."""
    offered: Callable[[Device], bool] = lambda device: True
    """Whether the device says that it keeps it (its ordering attributes)."""

    def run(self, rounds: int, device: Device | str | None = None) -> Outcome:
        """Play it. Raises what the device raises, or Error if it does not answer."""
        on = gd.devices.get(device)
        rounds = min(rounds, self.at_most)
        start = time.perf_counter()
        violations = self.play(on, rounds)
        return Outcome(self.name, self.standing, rounds, violations, time.perf_counter() - start,
                       on.id, on.emulated)  # fmt: skip


ALL: dict[str, Litmus] = {}


def _always(device: Device) -> bool:
    return True


def _litmus(standing: str, says: str, *, at_most: int = 1 << 62, holds_emulated: bool = True,
            offered: Callable[[Device], bool] = _always) -> Callable[..., Any]:
    def add(play: Callable[[Device, int], int]) -> Callable[[Device, int], int]:
        name = play.__name__.strip("_").replace("_", "-")
        ALL[name] = Litmus(name, standing, says, play, at_most, holds_emulated, offered)
        return play

    return add


# -- the two sides ---------------------------------------------------------------------------


SABOTAGE: list[str] = []
"""["-DSABOTAGE"] has both sides break what is promised: a litmus test that then counts nothing
could not fail (tests/unit/test_memory_model.py)."""


def _driver() -> Any:
    """driver.c, compiled on first use. Raises CompileError without a C compiler."""
    return _built(tuple(SABOTAGE))


@cache
def _built(options: tuple[str, ...]) -> Any:
    source = (HERE / "driver.c").read_bytes()
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise gd.CompileError("the litmus tests need a C compiler: install gcc, or set CC")
    name = f"driver-{_cache.key(source, compiler, *options)}.so"
    found = _cache.find("litmus", name)
    if found is None:
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "driver.so"
            run = subprocess.run(
                [*compiler.split(), *options, "-O2", "-Wall", "-fPIC", "-shared", "-o", str(out),
                 str(HERE / "driver.c")],
                capture_output=True, text=True,
            )  # fmt: skip
            if run.returncode:
                raise gd.CompileError(f"{compiler} does not compile {HERE / 'driver.c'}", run.stderr)
            made = _cache.place("litmus", name, out.read_bytes())
    else:
        made, _ = found
    library = ctypes.CDLL(str(made))
    p, i, u = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32
    library.send_messages.argtypes = [p, i, i, p, p, u, i, i]
    library.send_packets.argtypes = [p, p, i, p, u, i]
    library.take_replies.argtypes = [p, p, i, i, p, u, i]
    library.scribble.argtypes = [p, p, p, u, ctypes.c_uint64, i]
    return library


def _store() -> int:
    """Address of the copy engine's gd_write, for driver.c."""
    return int(_native.ffi.cast("uintptr_t", _native.lib.gd_api().write))


def _kernel(name: str, device: Device) -> gd.Kernel:
    source = (HERE / "litmus.cu").read_text()
    return gd.kernel(source, name, device=device, options=SABOTAGE)


@contextmanager
def _resident(device: Device) -> Iterator[tuple[Any, gd.Array, int]]:
    """(stream, a page of mapped device memory, a page of host memory), zeroed, for a dialogue."""
    host = device.host_allocate(4096)
    stream = device.stream()
    try:
        with gd.zeros(4096, "u4", device=device, mapped=True) as memory:
            ctypes.memset(host.ptr, 0, 4096)
            yield stream, memory, host.ptr
    finally:
        stream.close()
        host.free()


def _finish(code: int, stream: Any, doing: str) -> int:
    stream.synchronize()
    if code < 0:
        raise gd.Error(f"{doing}: the device did not answer within 10 s")
    return code


def _messages(device: Device, rounds: int, how: int) -> int:
    step = LINE // 4
    with _resident(device) as (stream, memory, host), gd.zeros(1, "u4", device=device) as wrong:
        flag = memory[1024:]
        _kernel("receive", device)[1, 1, stream](
            memory, PAYLOAD_LINES, step, flag, host, 1, rounds, wrong
        )
        code = _driver().send_messages(
            memory.host_ptr, PAYLOAD_LINES, step, flag.host_ptr, host, 1, rounds, how
        )
        _finish(code, stream, "message passing")
        return int(wrong.read()[0])


def _packets(device: Device, rounds: int, kernel: str, size: int, threads: int) -> int:
    with _resident(device) as (stream, memory, host), gd.zeros(1, "u4", device=device) as wrong:
        packet = memory.ptr if kernel == "receive16" else memory
        _kernel(kernel, device)[1, threads, stream](packet, host, 1, rounds, wrong)
        code = _driver().send_packets(_store(), memory.host_ptr, size, host, 1, rounds)
        _finish(code, stream, f"packets of {size} bytes")
        return int(wrong.read()[0])


def _replies(device: Device, rounds: int, fenced: bool) -> int:
    step = LINE // 4
    with _resident(device) as (stream, memory, host):
        _kernel("reply", device)[1, 1, stream](
            memory, host, PAYLOAD_LINES, step, host + 2048, 1, rounds, int(fenced)
        )
        code = _driver().take_replies(
            memory.host_ptr, host, PAYLOAD_LINES, step, host + 2048, 1, rounds
        )
        return _finish(code, stream, "replies of a kernel")


# -- CPU to a kernel that runs ---------------------------------------------------------------


@_litmus(PROMISED, "payload, fence, flag: a running kernel that sees the flag sees the payload "
                   "(where device.ordering.scope is 'owner' or 'all devices')",
         offered=lambda device: device.ordering.scope != "none")  # fmt: skip
def message_passing(device: Device, rounds: int) -> int:
    return _messages(device, rounds, FENCED)


@_litmus(PROMISED, "payload, device.flush_writes(), flag: the same, whatever the scope",
         offered=lambda device: device.ordering.flush_by_host)  # fmt: skip
def message_passing_flushed(device: Device, rounds: int) -> int:
    lib = _native.lib
    with _resident(device) as (stream, memory, host), gd.zeros(1, "u4", device=device) as wrong:
        flag, payload = memory[1024:], memory[: PAYLOAD_LINES * LINE // 4]
        _kernel("receive", device)[1, 1, stream](
            memory, PAYLOAD_LINES, LINE // 4, flag, host, 1, rounds, wrong
        )
        words, code = np.empty(payload.size, np.uint32), 0
        for v in range(1, rounds + 1):
            words[:] = v
            payload.write(words)
            device.flush_writes()
            lib.gd_store32(flag.host_ptr, v, 0)
            code = lib.gd_wait32(host, v, 10_000_000_000)
            if code:
                break
        _finish(code, stream, "message passing with a flush")
        return int(wrong.read()[0])


@_litmus(NOT_PROMISED, "payload, flag, without a fence: write-combining buffers leave in any order")
def message_passing_without_fence(device: Device, rounds: int) -> int:
    return _messages(device, rounds, BARE)


@_litmus(NOT_PROMISED, "the same, where the flag joins a buffer that is older than the payload's")
def message_passing_flag_line_open(device: Device, rounds: int) -> int:
    return _messages(device, rounds, FLAG_LINE_OPEN)


@_litmus(RELIED_ON, "16 aligned bytes stored at once are seen at once by one 16-byte load")
def packet_of_16(device: Device, rounds: int) -> int:
    return _packets(device, rounds, "receive16", 16, 1)


@_litmus(RELIED_ON, "64 aligned bytes stored at once are seen at once by one load of a warp",
         holds_emulated=False)  # fmt: skip
def packet_of_64(device: Device, rounds: int) -> int:
    return _packets(device, rounds, "receive64", 64, 32)


@_litmus(NOT_PROMISED, "a message of 4 lines in one store, flag first: lines arrive one by one")
def packet_of_several_lines(device: Device, rounds: int) -> int:
    with _resident(device) as (stream, memory, host), gd.zeros(1, "u4", device=device) as wrong:
        _kernel("receive", device)[1, 1, stream](
            memory[LINE // 4 - 1 :], PAYLOAD_LINES, LINE // 4, memory, host, 1, rounds, wrong
        )
        code = _driver().send_packets(
            _store(), memory.host_ptr, LINE * PAYLOAD_LINES, host, 1, rounds
        )
        _finish(code, stream, "packets of several lines")
        return int(wrong.read()[0])


# -- a kernel that runs to the CPU -----------------------------------------------------------


@_litmus(PROMISED, "a kernel stores a payload in host memory, __threadfence_system(), a flag: who "
                   "sees the flag sees the payload")  # fmt: skip
def reply(device: Device, rounds: int) -> int:
    return _replies(device, rounds, True)


@_litmus(NOT_PROMISED, "the same without __threadfence_system()")
def reply_without_fence(device: Device, rounds: int) -> int:
    return _replies(device, rounds, False)


@_litmus(NOT_PROMISED, "the same into device memory, polled and loaded through the mapping: loads "
                       "of write-combined memory may be speculative")  # fmt: skip
def reply_through_mapping(device: Device, rounds: int) -> int:
    step = LINE // 4
    with _resident(device) as (stream, memory, _):
        payload, flag = memory[1024:], memory[2048:]
        _kernel("reply", device)[1, 1, stream](
            memory, payload, PAYLOAD_LINES, step, flag, 1, rounds, 1
        )
        code = _driver().take_replies(
            memory.host_ptr, payload.host_ptr, PAYLOAD_LINES, step, flag.host_ptr, 1, rounds
        )
        return _finish(code, stream, "replies through the mapping")


# -- bytes -----------------------------------------------------------------------------------


@_litmus(PROMISED, "pieces of a line, one over the other: bytes beside them stay, the last store wins")
def partial_lines(device: Device, rounds: int) -> int:
    size, wrong, batch = 4096, 0, 1000
    shadow = np.zeros(size, np.uint8)
    with gd.zeros(size, "u1", device=device, mapped=True) as a:
        for start in range(0, rounds, batch):
            _driver().scribble(
                _store(), a.host_ptr, shadow.ctypes.data, size, start * 2 + 1,
                min(batch, rounds - start),
            )  # fmt: skip
            seen = a.read(via="dma")
            wrong += int(np.count_nonzero(seen != shadow))
            shadow[:] = seen
    return wrong


# -- launches, reads and DMA -----------------------------------------------------------------


@_litmus(PROMISED, "stores through .host, then a launch: the kernel sees them")
def launch_after_stores(device: Device, rounds: int) -> int:
    n = 33  # words: the last line is a part of one
    check = _kernel("check", device)[1, 32]
    with gd.zeros((RING, 64), "u4", device=device, mapped=True) as a, \
            gd.zeros(1, "u4", device=device) as wrong:  # fmt: skip
        rows = [(a[i], a[i].host) for i in range(RING)]
        for v in range(1, rounds + 1):
            row, view = rows[v % RING]
            view[:n] = v
            check(row, n, v, wrong)
            if v % RING == 0:
                gd.synchronize(device)
        gd.synchronize(device)
        return int(wrong.read()[0])


@_litmus(PROMISED, "a launch, then read(): by loads and by DMA in turn it shows what the kernel stored")
def read_after_launch(device: Device, rounds: int) -> int:
    n, wrong = 32, 0
    stamp = _kernel("stamp", device)[1, 32]
    with gd.zeros(n, "u4", device=device, mapped=True) as a:
        out = np.empty(n, np.uint32)
        for v in range(1, rounds + 1):
            stamp(a, n, v)
            a.read(out, via=("map", "dma")[v & 1])
            wrong += int(out.min() != v or out.max() != v)
    return wrong


@_litmus(NOT_PROMISED, "a launch, then a load without synchronising: the old value", at_most=1000)
def load_without_synchronising(device: Device, rounds: int) -> int:
    n, wrong = 32, 0
    late = _kernel("stamp_late", device)[1, 32]
    with gd.zeros(n, "u4", device=device, mapped=True) as a:
        for v in range(1, rounds + 1):
            late(a, n, v, 100_000)
            wrong += int(a.read(via="map", synchronize=False)[0] != v)
            gd.synchronize(device)
    return wrong


@_litmus(PROMISED, "write(via='dma') has returned: loads through the mapping see it")
def load_after_dma(device: Device, rounds: int) -> int:
    return _dma_dialogue(device, rounds, "dma", "map")


@_litmus(NOT_PROMISED, "DMA queued on a stream, then a load through the mapping: the old value",
         at_most=1000)  # fmt: skip
def load_after_queued_dma(device: Device, rounds: int) -> int:
    n, wrong = 1 << 20, 0
    source, stream = np.empty(n, np.uint8), device.stream()
    with gd.zeros(n, "u1", device=device, mapped=True) as a:
        for v in range(1, rounds + 1):
            source[:] = v & 255
            device.copy_in(a.ptr, source.ctypes.data, n, stream)
            seen = a[-4:].read(via="map", synchronize=False)
            wrong += int(seen[-1] != v & 255)
            stream.synchronize()
    stream.close()
    return wrong


@_litmus(PROMISED, "write() has returned: DMA out of the device sees it")
def dma_after_stores(device: Device, rounds: int) -> int:
    return _dma_dialogue(device, rounds, "map", "dma")


def _dma_dialogue(device: Device, rounds: int, into: str, out_of: str) -> int:
    wrong = 0
    source, out = np.empty(40, np.uint32), np.empty(40, np.uint32)
    with gd.zeros(40, "u4", device=device, mapped=True) as a:
        for v in range(1, rounds + 1):
            source[:] = v
            a.write(source, via=into)
            a.read(out, via=out_of)
            wrong += int(out[0] != v or out[39] != v or out.min() != v)
    return wrong


@_litmus(PROMISED, "write(via='dma'), then stores to the same bytes: the stores win")
def stores_after_dma(device: Device, rounds: int) -> int:
    wrong = 0
    source, out = np.empty(40, np.uint32), np.empty(40, np.uint32)
    with gd.zeros(40, "u4", device=device, mapped=True) as a:
        for v in range(1, rounds + 1):
            source[:] = ~np.uint32(v)
            a.write(source, via="dma")
            source[:] = v
            a.write(source[8:24], 8)
            a.read(out, via="dma")
            wrong += int((out[8:24] != v).any() or (out[:8] == v).any() or (out[24:] == v).any())
    return wrong


@_litmus(PROMISED, "write(stream=s) lies between the kernel queued on s before it and the one queued after")
def write_in_a_stream(device: Device, rounds: int) -> int:
    n = 33
    spoil, check = _kernel("stamp", device), _kernel("check", device)
    stream, source = device.stream(), np.empty(n, np.uint32)
    with gd.zeros((RING, 64), "u4", device=device, mapped=True) as a, \
            gd.zeros(1, "u4", device=device) as wrong:  # fmt: skip
        rows = [a[i, :n] for i in range(RING)]
        for v in range(1, rounds + 1):
            row = rows[v % RING]
            spoil[1, 32, stream](row, n, ~v & 0xFFFFFFFF)
            source[:] = v
            row.write(source, stream=stream)
            source[:] = 0  # a source is the caller's again
            check[1, 32, stream](row, n, v, wrong)
            if v % RING == 0:
                stream.synchronize()
        stream.synchronize()
        found = int(wrong.read()[0])
    stream.close()
    return found


@_litmus(PROMISED, "a launch on s, then read(stream=s): by loads and by DMA it shows what the kernel stored")
def read_in_a_stream(device: Device, rounds: int) -> int:
    n, wrong, stream = 32, 0, device.stream()
    stamp = _kernel("stamp", device)[1, 32, stream]
    with gd.zeros(n, "u4", device=device, mapped=True) as a:
        out = np.empty(n, np.uint32)
        for v in range(1, rounds + 1):
            stamp(a, n, v)
            a.read(out, via=("map", "dma")[v & 1], stream=stream)
            wrong += int(out.min() != v or out.max() != v)
    stream.close()
    return wrong


# -- couriers --------------------------------------------------------------------------------

_WORDS = 300  # of a whole errand, some lines of the list among them


def _ordered(device: Device) -> bool:
    return device.ordering.direct_writes and device.ordering.scope != "none"


@_litmus(PROMISED, "stores through .host, then a read, a gather or a strided read by a courier: it brings them",
         offered=_ordered)  # fmt: skip
def courier_after_stores(device: Device, rounds: int) -> int:
    wrong, places = 0, np.arange(0, _WORDS, 3)
    out = np.empty(_WORDS, np.uint32)
    with gd.Courier(device), gd.zeros(_WORDS, "u4", device=device, mapped=True) as a:
        view, strided, kinds = a.host, a[::3], (a.read, a.gather, a[::3].read)
        for v in range(1, rounds + 1):
            view[:] = v
            kind = kinds[v % 3]
            if kind == a.gather:
                seen = a.gather(places, out[: len(places)], via="courier")
            elif kind == a.read:
                seen = a.read(out, via="courier")
            else:
                seen = strided.read(via="courier")
            wrong += int(seen.min() != v or seen.max() != v)
    return wrong


@_litmus(PROMISED, "a launch, then a read by a courier: it brings what the kernel stored", offered=_ordered)
def courier_after_launch(device: Device, rounds: int) -> int:
    n, wrong = 32, 0
    stamp = _kernel("stamp", device)[1, 32]
    out, every = np.empty(n, np.uint32), np.arange(n)
    with gd.Courier(device), gd.zeros(n, "u4", device=device, mapped=True) as a:
        for v in range(1, rounds + 1):
            stamp(a, n, v)
            seen = a.read(out, via="courier") if v & 1 else a.gather(every, out, via="courier")
            wrong += int(seen.min() != v or seen.max() != v)
    return wrong


@_litmus(PROMISED, "scatter() by a courier, then a launch: the kernel sees all of it", offered=_ordered)
def courier_before_launch(device: Device, rounds: int) -> int:
    check = _kernel("check", device)[1, 32]
    places = np.random.default_rng(1).permutation(_WORDS)
    with gd.Courier(device), gd.zeros((RING, _WORDS), "u4", device=device, mapped=True) as a, \
            gd.zeros(1, "u4", device=device) as wrong:  # fmt: skip
        rows = [a[i] for i in range(RING)]
        for v in range(1, rounds + 1):
            row = rows[v % RING]
            row.scatter(places, np.uint32(v), via="courier")
            check(row, _WORDS, v, wrong)
            if v % RING == 0:
                gd.synchronize(device)
        gd.synchronize(device)
        return int(wrong.read()[0])


@_litmus(PROMISED, "scatter() by a courier, then stores to some of the places: the stores win there",
         offered=_ordered)  # fmt: skip
def stores_after_courier(device: Device, rounds: int) -> int:
    wrong, places = 0, np.arange(40)
    source, out = np.empty(40, np.uint32), np.empty(40, np.uint32)
    with gd.Courier(device), gd.zeros(40, "u4", device=device, mapped=True) as a:
        for v in range(1, rounds + 1):
            a.scatter(places, ~np.uint32(v), via="courier")
            source[:] = v
            a.write(source[8:24], 8)
            a.read(out, via=("map", "dma")[v & 1])
            out[8:24] ^= ~np.uint32(0)
            wrong += int((out != ~np.uint32(v)).any())
    return wrong
