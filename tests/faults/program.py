"""What tests/unit/test_faults.py runs, with feigned.c loaded before everything else: each thing that the
runtime can do is done again and again, and each time the next of its calls fails.

Says in JSON what came of each call: the error, what was held afterwards that was not held before, and
whether the same thing works the next time.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

import gpudirect as gd
from gpudirect import aperture, bridges, devices
from gpudirect._keeper import keeper, patient
from gpudirect.bridges import gdrdrv, p2pmod, rm, rm_client
from gpudirect.devices import _nvrtc
from gpudirect.devices.cuda import CudaDevice, _driver

DEVICE, BRIDGE, FOLDER = sys.argv[1], sys.argv[2], Path(sys.argv[3])  # "cuda:0", "emulated:0"
EMULATED = DEVICE.startswith("emulated")
KERNEL = "__global__ void one(float *p) { p[0] += 1; }"
ADD = "__device__ int add(int a, int b) { return a + b; }"
LARGE = 3 << 20
LATE = 5.0
"""Seconds after which what is still there is left over."""

library = ctypes.CDLL(None)
library.faults_disarm.restype = ctypes.c_long
library.faults_disarm.argtypes = [ctypes.POINTER(ctypes.c_char_p)]

loaded: list[object] = []
opened: list[str] = []  # devices that stay open to the program's end
raised: list[str] = []  # by what nobody waits for, and is none of our errors


def feign() -> None:
    """Files that the driver and the module would make."""
    gpu = FOLDER / "proc/gpus/0000:01:00.0"
    gpu.mkdir(parents=True, exist_ok=True)
    (gpu / "information").write_text("Device Minor: \t 0\n")
    (FOLDER / "proc/version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  x\n")
    rm.PROC = rm_client.PROC = FOLDER / "proc"
    # NVRTC's own calls are not ours: it crashes when they fail
    compiled = functools.cache(_nvrtc.compile_kernel)
    _nvrtc.compile_kernel = lambda source, name, arch, options=(): compiled(source, name, arch, tuple(options))
    compile = CudaDevice.compile

    def counted(*arguments: object) -> object:
        function = compile(*arguments)
        loaded.append(None)
        return function

    CudaDevice.compile = counted
    p2pmod.NODE, gdrdrv.NODE = str(FOLDER / "p2pmod"), "/dev/null"


class Calls:
    """While it is entered, calls are counted, and the n-th fails."""

    def __init__(self, n: int, kind: int) -> None:
        self.n, self.kind = n, kind

    def __enter__(self) -> Calls:
        library.faults_arm(ctypes.c_long(self.n), self.kind)
        return self

    def __exit__(self, *exc: object) -> None:
        what = ctypes.c_char_p()
        self.made = library.faults_disarm(what)
        self.failed = what.value.decode() if what.value else None


def held() -> dict[str, int]:
    """All that is not given back, when everything that was dropped went home."""
    while opened:
        if opened.pop().startswith("cuda"):
            library.cuDevicePrimaryCtxRelease(0)
    gc.collect()
    gd.trim()
    patient.settle()
    keeper.settle()
    words = ctypes.create_string_buffer(400)
    library.faults_held(words, ctypes.c_size_t(400))
    found = {name: int(n) for name, _, n in (part.rpartition(" ") for part in words.value.decode().split(", "))}
    if not EMULATED:  # events are kept to be used again
        found["modules"] -= len(loaded)  # a kernel's code stays, as its handle may have been given to others
        events = devices.get(DEVICE).events
        found["events"] -= sum(len(events._free[t]) + len(events._yards[t]) for t in (False, True))
    found["descriptors"] = len(os.listdir("/proc/self/fd"))
    found["mapped files"] = sum("memfd:" in line for line in Path("/proc/self/maps").read_text().splitlines())
    device = devices.get(DEVICE)
    found["device memory"] = -device.memory()[0]
    found["aperture"] = aperture.account(device).use().total
    found["blocks"] = sum(heap.blocks for heap in gd.statistics())
    return found


# -- what is done ------------------------------------------------------------------------------


def device() -> None:
    before = devices._opened.pop(DEVICE)
    _driver.driver.cache_clear()
    try:
        devices.get(DEVICE)
        opened.append(DEVICE)
    finally:
        devices._opened[DEVICE] = before


def bridge() -> None:
    """One that was not used before."""
    rm_client.device_minor.cache_clear()
    fresh, there = type(bridges.get(BRIDGE))(), devices.get(DEVICE)
    memory = there.allocate(LARGE)
    mapping = None
    try:
        standing = fresh.standing(there)
        if not standing.usable:
            raise gd.BridgeUnavailableError(standing.reason)
        mapping = fresh.map(memory, 4096, 10000)
        ctypes.memset(mapping.address, 1, 10000)
    finally:
        for used in filter(None, (mapping and mapping.close, memory.free)):
            keeper.run(keeper.give_back, used)
        keeper.settle()
        fresh.after_fork()


def array() -> None:
    a = gd.zeros(1000, pool=False)
    a.host[7] = 5
    a.flush()
    assert a.read()[7] == 5


def pooled() -> None:
    a, b = gd.zeros(100), gd.empty(LARGE, "u1")
    a.write(np.ones(100, "f4"))
    b.write(bytes([7]) * 100, 5)
    assert a.read().sum() == 100 and b.read(start=5, count=1)[0] == 7


def pages() -> None:
    assert gd.zeros(1000, pool=False).pages


def dma() -> None:
    a = gd.zeros(LARGE, "u1", pool=False)
    a.write(bytes([3]) * LARGE, via="dma")
    assert a.read(via="dma")[-1] == 3


def on_demand() -> None:
    a = gd.zeros(LARGE, "u1", mapped=False)
    a.write(b"abc", 1 << 20, via="map")
    assert a.read(start=1 << 20, count=3, via="map").tobytes() == b"abc"


def window() -> None:
    a = gd.zeros(LARGE, "u1", mapped=False)
    with a.window(0, 1000) as w:
        w.host[3] = 1
        w.move(1 << 20)
        w.host[3] = 2
    assert a.read(start=(1 << 20) + 3, count=1)[0] == 2


def writer() -> None:
    a = gd.zeros(LARGE, "u1", mapped=False)
    with a.writer() as w:
        w.write(b"x" * 100)
    assert a.read(count=1)[0] == ord("x")


def registered() -> None:
    a = gd.zeros(LARGE, "u1", mapped=False)
    b = gd.register(a)
    b.write(b"abc", 5)
    assert a.read(start=5, count=3).tobytes() == b"abc"


def pinned() -> None:
    p = gd.pinned(1000)
    p[:] = 2
    a = gd.zeros(1000)
    a.write(p)
    assert a.read()[-1] == 2


def streams() -> None:
    a, source, out = gd.zeros(1000), gd.pinned(1000), gd.pinned(1000)
    source[:] = 4
    with gd.stream() as s, gd.stream() as t:
        begin = s.record()
        a.write(source, stream=s)
        t.wait(s)
        b = a.copy(stream=t)
        b.read(out, stream=t)
        t.record().sync()
        begin.sync()
    assert out[-1] == 4


def fills() -> None:
    a = gd.zeros(LARGE, "u1")
    a.fill(5)
    gd.synchronize()
    assert a.read(count=1)[0] == 5


def scattered() -> None:
    a = gd.zeros((100, 4))
    a.scatter([3, 90], np.ones((2, 4), "f4"))
    found = a.gather([90])
    assert not EMULATED or found[0] == 1  # a kernel may have gathered: of the feigned driver it does nothing


def kernel() -> None:
    a = gd.zeros(10)
    gd.kernel(KERNEL, "one")[1, 1](a)
    gd.synchronize()
    if EMULATED:
        assert a.read()[0] == 1


def shared() -> None:
    a = gd.zeros(1000, shareable=True)
    a.share("rw")
    a.close()


def inputs() -> None:
    with gd.Inputs({"a": (64, "i4")}) as i:
        i["a"] = 7
        i.commit()
        assert i.arrays["a"].read()[5] == 7


def doorbell() -> None:
    gd.Doorbell().ring(1)


def service() -> None:
    with gd.Service(ADD, ["add"]) as s:
        assert s.call("add", 1, 2, timeout=60) == 3


def facts() -> None:
    assert devices.get(DEVICE).facts()["memory_bytes"]


EVERYWHERE: list[Callable[[], None]] = [
    device, bridge, array, pooled, pages, dma, on_demand, window, writer, registered, pinned, streams, fills,
    scattered, kernel, shared, inputs, doorbell, facts,
]  # fmt: skip
THINGS = EVERYWHERE + ([service] if EMULATED else [])


# -- each of its calls fails -------------------------------------------------------------------


def tried(do: Callable[[], None]) -> str:
    """The name of the error, "" where it went well all the same."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # a giving back that failed is told by one
            do()
            gc.collect()
            keeper.settle()
            patient.settle()
    except BaseException as e:
        ours = isinstance(e, gd.Error)
        return f"{'' if ours else 'RAW '}{type(e).__name__}: {e}"
    return ""


def beyond(before: dict[str, int]) -> dict[str, int]:
    """What is held more than before. Threads of a service that just ended may still close what they had."""
    end = time.monotonic() + LATE
    while True:
        now = held()
        more = {name: now[name] - before[name] for name in now if now[name] > before[name]}
        if not more or time.monotonic() > end:
            return more
        time.sleep(0.01)


def sweep(do: Callable[[], None], kind: int) -> list[dict[str, object]]:
    do()
    do()
    before, found, n = held(), [], 0
    while True:
        n += 1
        raised.clear()
        with Calls(n, kind) as calls:
            error = tried(do)
        if calls.failed is None:
            assert not error, error
            return found
        left = beyond(before)
        found.append({"call": calls.failed, "n": n, "error": error, "again": tried(do),
                      "raised": list(raised), "left": left})  # fmt: skip
        before = held()


def main() -> None:
    sys.unraisablehook = lambda told: raised.append(f"{type(told.exc_value).__name__}: {told.exc_value}")
    sys.excepthook = lambda kind, value, trace: raised.append(f"{kind.__name__}: {value}")
    feign()
    gd.use(device=DEVICE, bridge=BRIDGE)
    chosen = sys.argv[4:]
    found = {}
    for do in THINGS:
        if not chosen or do.__name__ in chosen:
            gc.freeze()
            found[do.__name__] = [sweep(do, kind) for kind in (0, 1)]
    sys.stdout.write(json.dumps(found))


try:
    main()
except BaseException:
    traceback.print_exc()  # the hook takes others'
    sys.exit(1)
