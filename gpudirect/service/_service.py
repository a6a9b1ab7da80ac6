"""``Service``: a resident kernel, its lanes, and their life."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import math
import os
import re
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _native, devices, kernels
from ..arrays import Array, empty
from ..devices import Device, HostMemory, Marker, Stream
from ..errors import (
    ArgumentError,
    CallError,
    CallTimeoutError,
    CompileError,
    DeviceAssertionError,
    Error,
    KernelNotFoundError,
    RefusedArgumentError,
    RevokedError,
    ServiceError,
)
from ._future import Future
from ._native import ARGUMENTS_MAX, Caller, Function
from ._poller import Poller
from ._source import KERNEL, Signature, declared, resident_source, signatures

PACKET, REPLY, WORD = 64, 16, 4  # bytes
LINE = 64
RELAY_HEAD = 48  # bytes of `struct relay` of before.cuh before its arguments
RELAY_ANSWERED = 32  # offset of its `answered`
GO_ON, STOP, PAUSE = 0, 1, 2  # what the control word says: after.cuh
START_TIMEOUT = 10.0  # seconds until the kernel must answer
MOST_LANES = 64
LONGEST_SLEEP = 1e-3  # seconds: CUDA's __nanosleep

_CACHING = "--ptxas-options=-dlcm=cg"
"""Loads bypass the L1 cache, where the CPU's stores do not arrive."""


@dataclass(frozen=True)
class ServiceInfo:
    """What a service is, and what it holds while it runs."""

    device: str
    emulated: bool
    running: bool
    functions: dict[str, str]
    """Each with its declaration, in words."""
    lanes: int
    slots: int
    """Calls that each lane can hold."""
    blocks: int
    """Blocks resident on the device until the service stops."""
    threads: int
    """Threads of each block."""
    share: float
    """Of the blocks of this kind that the device can hold at once."""
    device_bytes: int
    """Device memory of rings, arguments and control words, all of it mapped."""
    host_bytes: int
    """Page-locked host memory of the replies."""
    ordering: str
    """What the device promises a running kernel about the CPU's stores (attribute 118)."""
    packet_store: str
    """How the CPU stores a packet."""
    idle_after: float
    """Seconds without a call after which a lane sleeps between polls."""
    idle_sleep: float
    """Seconds of that sleep, at least; the device makes it up to twice as long."""
    lifetime: float | None
    """Seconds after which the kernel ends by itself, as soon as there is nothing to do."""


def _count(value: Any, what: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise ArgumentError(f"{what} is {value!r}: give a whole number from {low} to {high}")
    return int(value)


def _seconds(value: Any, what: str) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise ArgumentError(f"{what} is {value!r}: give seconds, 0 or more")
    return seconds


class Service(Caller):
    """Device functions that answer calls: a resident kernel that polls rings in its own memory.

        with gd.Service(source, {"scale": "thread", "sum": "block"}, lanes=2) as svc:
            svc.call("scale", 2.0, a, 3)          # blocks, a few microseconds
            future = svc.submit("sum", a, 4096)   # future.result(), or await it
            list(svc.map("scale", xs, arrays, ns))

    source: CUDA C++ with ``__device__`` functions. They take numbers, pointers (given an Array) and
        small structs, and return at most 8 bytes. The compiler tells their signatures.
    functions: names, or {name: team}, where the team that runs the function is one "thread", a
        "warp", a "block", or a "grid" of all blocks of the lane. gd_rank(), gd_size() and gd_sync()
        tell a team's threads apart; gd_assert() and gd_require() return early and make the call raise.
    lanes: independent rings, each with blocks of its own. slots: calls that each holds, a power of two.
    threads: of a block, a multiple of 32; default 32 where only threads and warps run functions,
        else 256. blocks: of each lane, for functions of a grid; default 8 where there are any.
    idle_after, idle_sleep: seconds without a call until a lane sleeps between polls, and how long.
    lifetime: seconds after which the kernel ends by itself, as soon as there is nothing to do.
    stop_timeout: seconds that ``stop`` waits for a function that does not end.

    It runs from ``start()`` (or ``with``) to ``stop()``; then it can be started again. Meanwhile it
    holds ``info.blocks`` blocks of the device. Other launches go on beside it; ``gd.synchronize()``
    does not wait for it. Compiling a kernel pauses it for a moment: loading code waits for
    all that runs.

    Raises CompileError, KernelNotFoundError, ArgumentError; ServiceError where the device is too
    small for it, or promises a running kernel no order of the CPU's stores.
    """

    def __init__(
        self,
        source: str,
        functions: str | Sequence[str] | Mapping[str, str],
        *,
        lanes: int = 1,
        slots: int = 256,
        threads: int | None = None,
        blocks: int | None = None,
        idle_after: float = 1e-3,
        idle_sleep: float = 2e-6,
        lifetime: float | None = None,
        stop_timeout: float = 5.0,
        device: Device | str | int | None = None,
        bridge: str | None = None,
        options: Sequence[str] = (),
    ) -> None:
        teams = declared(functions)
        wide = any(t in ("block", "grid") for t in teams.values())
        grid = "grid" in teams.values()
        self.device = devices.get(device)
        self.lanes = _count(lanes, "lanes", 1, MOST_LANES)
        self.slots = _count(slots, "slots", 2, _native.lib.P2PMOD_LANE_SLOTS_MAX)
        if self.slots & (self.slots - 1):
            raise ArgumentError(f"slots is {slots}: give a power of two")
        self.threads = _count((256 if wide else 32) if threads is None else threads, "threads", 32, 1024)
        if self.threads % 32:
            raise ArgumentError(f"threads is {threads}: give a multiple of 32, the size of a warp")
        if blocks is not None and not grid and blocks != 1:
            raise ArgumentError(f"blocks is {blocks!r}, but no function is declared for a grid")
        self.blocks = _count((8 if grid else 1) if blocks is None else blocks, "blocks", 1, 1 << 16)
        self._idle = _seconds(idle_after, "idle_after"), _seconds(idle_sleep, "idle_sleep")
        if self._idle[1] > LONGEST_SLEEP:
            raise ArgumentError(
                f"idle_sleep is {idle_sleep!r}: the device sleeps {LONGEST_SLEEP} s at most"
            )
        self._lifetime = None if lifetime is None else _seconds(lifetime, "lifetime")
        if self._lifetime == 0:
            raise ArgumentError("lifetime is 0: give seconds, or None for no end")
        self._stop_timeout = _seconds(stop_timeout, "stop_timeout")
        self._bridge = bridge
        self._lock = self.device.residents_lock
        self._poller = Poller(self)
        self._stream: Stream | None = None
        self._marker: Marker | None = None
        self._memory: Array | None = None
        self._host: HostMemory | None = None
        self._stopping = False
        self._end: str | None = "it was not started: call start(), or use it in a with statement"
        self._kernel, self.functions = self._compile(source, teams, tuple(options))
        self._packers = {
            name: [kernels._packer(name, i, p) for i, p in enumerate(s.parameters)]
            for name, s in self.functions.items()
        }
        self._check_device()

    if TYPE_CHECKING:

        def submit(
            self, function: str, /, *arguments: Any, timeout: float | None = None,
            lane: int | None = None,
        ) -> Future: ...  # fmt: skip

    # -- what it is ---------------------------------------------------------------------------

    def _compile(
        self, source: str, teams: dict[str, str], options: tuple[str, ...]
    ) -> tuple[kernels.Kernel, dict[str, Signature]]:
        text = resident_source(source, teams, options)
        try:
            kernel = kernels.kernel(text, KERNEL, device=self.device, options=(*options, _CACHING))
        except CompileError as e:
            for name in teams:
                plain = re.escape(name.rpartition("::")[2])
                if re.search(rf"[\"']{plain}[\"'].*(undefined|not declared|not a member)"
                             rf"|no member \"{plain}\"", e.log):  # fmt: skip
                    raise KernelNotFoundError(
                        f"the source has no function {name!r}: a `__device__` function of that name "
                        f"is needed\n{e.log}"
                    ) from None
            message = str(e).replace(f"the source of kernel {KERNEL!r}", "the source", 1)
            raise CompileError(message.replace(f"kernel {KERNEL!r}", "the source", 1), e.log) from None
        found = signatures(kernel._function.image(), teams)
        for s in found.values():
            if s.size > ARGUMENTS_MAX:
                raise ArgumentError(
                    f"{s.name} takes {s.size} bytes of arguments; {ARGUMENTS_MAX} is the most. Give "
                    "it an array."
                )
        return kernel, found

    def _check_device(self) -> None:
        """Raises ServiceError where the device cannot serve."""
        device, ordering = self.device, self.device.ordering
        if not ordering.direct_writes or ordering.scope == "none":
            raise ServiceError(
                f"{device.id} does not promise a running kernel the order of the CPU's stores "
                f"(attribute 116: {int(ordering.direct_writes)}, 118: {ordering.scope!r}), which a "
                "lane relies on. Launch kernels instead."
            )
        room = self._kernel._function.resident_blocks(self.threads)
        wanted = self.lanes * self.blocks
        others = sum(s.share for s in _running(device) if s is not self)
        if wanted > room * (1 - others):
            taken = f", of which services that run hold {others:.0%}" if others else ""
            raise ServiceError(
                f"{wanted} blocks of {self.threads} threads ({self.lanes} lanes of {self.blocks}) "
                f"must be resident at once; {device.id} holds {room}{taken}. Ask for fewer lanes, "
                "blocks or threads."
            )

    @property
    def share(self) -> float:
        """Part of the device's room for such blocks that it takes while it runs."""
        room = self._kernel._function.resident_blocks(self.threads)
        return self.lanes * self.blocks / room if room else 1.0

    @property
    def running(self) -> bool:
        """Whether calls are taken."""
        return bool(self._opened)

    @property
    def info(self) -> ServiceInfo:
        """What it is and what it holds."""
        return ServiceInfo(
            device=self.device.id,
            emulated=self.device.emulated,
            running=self.running,
            functions={name: _declaration(s) for name, s in self.functions.items()},
            lanes=self.lanes,
            slots=self.slots,
            blocks=self.lanes * self.blocks,
            threads=self.threads,
            share=self.share,
            device_bytes=self._layout()[-1],
            host_bytes=self.lanes * self.slots * REPLY,
            ordering=self.device.ordering.scope,
            packet_store=_stores()[1],
            idle_after=self._idle[0],
            idle_sleep=self._idle[1],
            lifetime=self._lifetime,
        )

    def _layout(self) -> tuple[int, int, int, int, int, int]:
        """(relays, bytes of each, packets, arguments, bytes of each, all) of the device memory."""
        longest = max(s.size for s in self.functions.values())
        relay = -(-(RELAY_HEAD + max(longest, 56)) // 256) * 256
        stride = -(-longest // LINE) * LINE if longest > 56 else 0
        packets = 256 + self.lanes * relay
        arguments = packets + self.lanes * self.slots * PACKET
        return 256, relay, packets, arguments, stride, arguments + self.lanes * self.slots * stride

    # -- its life -----------------------------------------------------------------------------

    def start(self) -> Service:
        """Launch the resident kernel, and see every lane answer. Raises ServiceError if it does not."""
        self.device.ensure_usable()  # first: in a child the lock may be held for ever
        with self._lock:
            if self._opened:
                raise ServiceError("the service runs already")
            if self._stream is not None:
                raise ServiceError(f"the service cannot be started again: {self._end}")
            self._check_device()
            try:
                self._take()
                self._launch()
                self._open_lanes()
                self.device.residents.add(self)
                _all.add(self)
                self._greet()
            except BaseException:
                with contextlib.suppress(Error):
                    self._halt("it did not start")
                raise
        return self

    def _take(self) -> None:
        """Memory and a stream."""
        layout = self._layout()
        self._memory = empty(layout[-1], "u1", device=self.device, bridge=self._bridge, mapped=True)
        self._host = self.device.host_allocate(self.lanes * self.slots * REPLY)
        self._memory.host[:] = 0
        self._memory.flush()
        ctypes.memset(self._host.ptr, 0, self._host.size)
        self._stream = self.device.stream()
        self._stream.resident = True

    def _packets(self) -> tuple[int, int]:
        """Where the packets are: for the device, and for the CPU."""
        assert self._memory is not None
        offset = self._layout()[2]
        return self._memory.ptr + offset, self._memory.host_ptr + offset

    def _launch(self) -> None:
        relays, relay, *_ = self._layout()
        memory, host, stream = self._memory, self._host, self._stream
        assert memory is not None and host is not None and stream is not None
        self._kernel.launch(
            self.lanes * self.blocks, self.threads,
            self._packets()[0], host.ptr, memory.ptr, memory.ptr + relays, relay, self.slots,
            self.blocks, int(self._idle[1] * 1e9), int(self._idle[0] * 1e9),
            int((self._lifetime or 0) * 1e9),
            stream=stream, cooperative=self.blocks > 1,
        )  # fmt: skip
        self._marker = stream.marker()
        self._end, self._stopping = None, False

    def _ring(self, lane: int) -> tuple[int, int, int, int, int]:
        """(packets, replies, arguments, arguments on the device, stride) of a lane."""
        _, _, _, arguments, stride, _ = self._layout()
        memory, host = self._memory, self._host
        assert memory is not None and host is not None
        first = lane * self.slots
        return (
            self._packets()[1] + first * PACKET,
            host.ptr + first * REPLY,
            memory.host_ptr + arguments + first * stride if stride else 0,
            memory.ptr + arguments + first * stride if stride else 0,
            stride,
        )

    def _open_lanes(self) -> None:
        memory = self._memory
        assert memory is not None
        lanes = tuple(map(self._ring, range(self.lanes)))
        functions = {
            s.name: Function(
                s.name, Array, s.number, s.size, s.result.kind, s.result.size,
                tuple((p.kind, p.size, p.offset) for p in s.parameters),
            )
            for s in self.functions.values()
        }  # fmt: skip
        functions[_NOTHING] = Function(
            _NOTHING, Array, _native.lib.P2PMOD_FUNCTION_NOTHING, 0, "v", 0, ()
        )
        self._open(lanes, self.slots, memory._flags, _stores()[0], functions, self.device, Future)

    def _greet(self) -> None:
        for lane in range(self.lanes):
            try:
                self.call(_NOTHING, lane=lane, timeout=START_TIMEOUT)
            except CallTimeoutError:
                raise ServiceError(
                    f"the resident kernel did not answer within {START_TIMEOUT} s of its launch: other "
                    f"work seems to hold {self.device.id}"
                ) from None

    def stop(self) -> None:
        """End the service: what was called is answered or fails, its memory goes back. Safe twice.

        A function that runs is waited for, ``stop_timeout`` seconds at most; then ServiceError, and
        the kernel and its memory stay until it ends, with this process at the latest.
        """
        if self.device.forked:
            return
        with self._lock:
            if self._stream is not None:
                self._halt("it was stopped")

    def _tell(self, what: int) -> None:
        assert self._memory is not None
        with contextlib.suppress(RevokedError):
            self._memory.write(what.to_bytes(WORD, "little"))

    def _await_end(self, timeout: float) -> bool:
        """Whether the kernel has ended within so many seconds."""
        assert self._marker is not None
        end = time.monotonic() + timeout
        while not self._marker.done():
            if time.monotonic() > end:
                return False
            time.sleep(50e-6)
        return True

    def _halt(self, why: str) -> None:
        """End the kernel, fail what is open, give everything back."""
        failure: str | None = None
        self._stopping = True
        if self._marker is not None:
            self._tell(STOP)
            if not self._await_end(self._stop_timeout):
                failure = (
                    f"a function did not end within {self._stop_timeout} s of the service's stop. It "
                    f"holds {self.lanes * self.blocks} blocks of {self.device.id} until it does, or "
                    "this process ends."
                )
        self._end = failure or why
        kept: list[object] = []
        self._shut(ServiceError(f"the service is over: {self._end}"), kept)
        self._poller.stop()
        self.device.residents.discard(self)
        _all.discard(self)
        if failure is not None:  # the function may still use all of it
            _kept.append((self._memory, self._host, self._stream, kept))
            raise ServiceError(failure)
        self._give_back()

    def _give_back(self) -> None:
        stream, self._stream = self._stream, None
        memory, self._memory = self._memory, None
        host, self._host = self._host, None
        self._marker = None
        end = time.monotonic() + 1.0  # a thread inside call() notices within milliseconds
        while self._waiting and time.monotonic() < end:
            time.sleep(200e-6)
        if self._waiting:
            _kept.append((memory, host))
            return
        if stream is not None:
            with contextlib.suppress(Error):  # a fault of the kernel has been told
                stream.close()
        if host is not None:
            host.free()
        if memory is not None:
            memory.close()

    def _check(self) -> None:
        """Raises ServiceError if the kernel has ended. Called by threads that wait for a reply."""
        if self.device.forked:
            self.device.ensure_usable()
        if not self._opened:
            self._refuse()
        if not self._lock.acquire(blocking=False):
            return  # something starts, stops or makes way: ask again later
        try:
            if self._marker is None or not self._marker.done():
                return
            why = "the resident kernel has ended"
            cause: BaseException | None = None
            try:
                assert self._stream is not None
                self._stream.synchronize()
                if self._lifetime is not None:
                    why = f"its lifetime of {self._lifetime} s is over"
            except Error as e:
                why, cause = f"the resident kernel failed: {e}", e
            raise self._over(why, cause)
        finally:
            self._lock.release()

    def _over(self, why: str, cause: BaseException | None) -> ServiceError:
        """The kernel is no more: what waits for it is told so. The exception that says it."""
        self._end = why
        failure = ServiceError(f"the service is over: {why}")
        failure.__cause__ = cause
        self._shut(failure, [])
        self.device.residents.discard(self)
        return failure

    # -- what others ask of a resident kernel: Device.quiet() ----------------------------------

    def pause(self) -> None:
        """End the kernel between two calls; calls sent from now on wait for ``resume``."""
        with self._lock:
            if not self._opened or self._marker is None:
                return
            self._tell(PAUSE)
            if not self._await_end(self._stop_timeout):
                self._tell(GO_ON)
                raise ServiceError(
                    f"{self.device.id} must be quiet for this, and a function of the resident service "
                    f"{self!r} did not end within {self._stop_timeout} s. Do it before the service is "
                    "started, or stop the service."
                )
            self._marker = None  # whoever checks meanwhile sees no end

    def resume(self) -> None:
        """Launch the kernel again where it was."""
        with self._lock:
            if not self._opened or self._marker is not None:
                return
            memory = self._memory
            assert memory is not None
            relays, relay, *_ = self._layout()
            try:
                for n in range(self.lanes):
                    at = relays + n * relay
                    answered = memory.read(offset=at + RELAY_ANSWERED, nbytes=WORD, synchronize=False)
                    memory.write(bytes(relay), at)
                    memory.write(answered.tobytes(), at + RELAY_ANSWERED)
                self._tell(GO_ON)
                self._launch()
            except Error as e:
                raise self._over(f"it could not be resumed: {e}", e) from e

    def __enter__(self) -> Service:
        return self if self._opened else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            if self._stream is not None and not self.device.forked:
                self.stop()

    def __repr__(self) -> str:
        mark = " (emulated)" if self.device.emulated else ""
        state = "running" if self.running else "stopped"
        return (
            f"<Service of {', '.join(self.functions)} on {self.device.id}{mark}, {self.lanes} lane(s), "
            f"{self.lanes * self.blocks} block(s) of {self.threads} threads, {state}>"
        )

    def lend(self, lane: int) -> Any:
        """Hand a lane over to C code: a ``struct gd_lane *`` of cffi (_native/lane.h) to send with.

        The lane must be idle. The service sends nothing through it until it is started anew. The
        struct is good until ``stop()``.
        """
        sent = self._lend(lane)
        lent = _native.ffi.new("struct gd_lane *")
        assert self._memory is not None
        lent.packets, lent.replies, lent.arguments, lent.arguments_device, lent.stride = self._ring(lane)
        lent.slots, lent.flags = self.slots, self._memory._flags
        code = _native.lib.gd_lane_init(lent)
        assert code == 0, f"lane {lane}: {os.strerror(-code)}"
        lent.sent = lent.taken = sent
        return lent

    # -- many calls ---------------------------------------------------------------------------

    def map(
        self,
        function: str,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        lane: int | None = None,
    ) -> Iterator[Any]:
        """The results of ``function`` for each set of arguments, in order, as ``map`` gives them.

        Calls are sent ahead through one lane, as many as it holds, and run in order.
        timeout: seconds to wait for each result.
        """
        if not iterables:
            raise ArgumentError("map() needs an iterable for each argument of the function")
        if function not in self.functions:
            raise self._unknown(function)
        for iterable in iterables:
            if not isinstance(iterable, Iterable):
                raise ArgumentError(f"map() takes an iterable for each argument; given {iterable!r}")
        if not self._opened:
            self._refuse()
        return self._mapped(function, iterables, timeout, lane)

    def _mapped(
        self, function: str, iterables: tuple[Iterable[Any], ...], timeout: float | None, lane: int | None
    ) -> Iterator[Any]:
        ahead: deque[Future] = deque()
        submit, most = self.submit, self.slots
        for arguments in zip(*iterables, strict=False):
            if len(ahead) >= most:
                yield ahead.popleft().result(timeout)
            sent = submit(function, *arguments, lane=lane, timeout=timeout)
            ahead.append(sent)
            lane = sent.lane
            while ahead and ahead[0].done():
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result(timeout)

    # -- what calls.c asks for: the long way, and exceptions ------------------------------------

    def _pack(self, name: str, arguments: tuple[Any, ...]) -> bytes:
        packers, signature = self._packers.get(name, []), self.functions.get(name)
        if len(arguments) != len(packers):
            wanted = ", ".join(kernels._describe(p) for p in signature.parameters) if signature else ""
            raise ArgumentError(
                f"{name} takes {len(packers)} argument(s) ({wanted or 'nothing'}); "
                f"{len(arguments)} given"
            )
        block = bytearray(signature.size if signature else 0)
        for pack, value in zip(packers, arguments, strict=True):
            if isinstance(value, Array):
                value._open()
            pack(block, value, self.device)
        return bytes(block)

    def _refuse(self) -> None:
        self.device.ensure_usable()
        raise ServiceError(f"the service takes no calls: {self._end or 'it is not running'}")

    def _unknown(self, name: object) -> KernelNotFoundError:
        return KernelNotFoundError(
            f"the service has no function {name!r}; it has {', '.join(self.functions)}"
        )

    def _timeout_wrong(self, value: object) -> ArgumentError:
        return ArgumentError(f"timeout is {value!r}: give seconds, 0 or more")

    def _lane_wrong(self, lane: int, why: int) -> ArgumentError:
        if why == 0:
            return ArgumentError(f"lane is {lane}; the service has lanes 0 to {self.lanes - 1}")
        if why == 1:
            which = "every lane" if lane < 0 else f"lane {lane}"
            return ArgumentError(f"{which} is lent already, to C code; start the service with more")
        return ArgumentError(f"lane {lane} is not idle: it has {self.pending[lane]} calls open")

    def _timeout_error(self, name: str, seconds: float, full: bool) -> CallTimeoutError:
        if full:
            return CallTimeoutError(
                f"{name} was not sent: all {self.slots} slots of the lane were taken for {seconds} s"
            )
        return CallTimeoutError(f"{name} has not answered within {seconds} s; it may still run")

    def _send_error(self, name: str, code: int) -> Error:
        if code == errno.EFAULT:
            return RevokedError(f"{name} was not sent: the memory of the service was revoked")
        return ServiceError(f"{name} was not sent: {os.strerror(code)}")

    def _call_error(self, name: str, status: int, value: int) -> Error:
        lib = _native.lib
        if status == lib.P2PMOD_STATUS_ASSERT:
            return DeviceAssertionError(
                f"{name}: the assertion in line {value} of the source failed", name, status, value
            )
        if status == lib.P2PMOD_STATUS_ARGUMENT:
            return RefusedArgumentError(
                f"{name} refused an argument: the condition in line {value} of the source", name,
                status, value,
            )  # fmt: skip
        if status == lib.P2PMOD_STATUS_STOPPED:
            why = "the service was stopped before"
            if not self._stopping and self._lifetime is not None:
                why = f"the service's lifetime of {self._lifetime} s is over"
            return ServiceError(f"{name} was not run: {why}")
        if status == lib.P2PMOD_STATUS_NO_FUNCTION:
            return CallError(f"the resident kernel knows no function {name}", name, status, value)
        return CallError(f"{name} returned status {status} in line {value} of the source", name,
                         status, value)  # fmt: skip


_NOTHING = ""
"""Under this name every service answers, and does nothing."""


def _declaration(s: Signature) -> str:
    def words(p: devices.Parameter) -> str:
        if p.kind == "p":
            return f"{p.pointee or 'void'}*"
        return {"v": "void", "s": f"struct of {p.size} bytes"}.get(p.kind, f"{p.kind}{p.size}")

    return f"{words(s.result)} ({', '.join(map(words, s.parameters))}), by a {s.team}"


def _stores() -> tuple[int, str]:
    """(number, words) of how this CPU stores a packet."""
    lib, ffi = _native.lib, _native.ffi
    lane = ffi.new("struct gd_lane *")
    lane.slots, lane.packets, lane.replies = 2, 64, 64
    lib.gd_lane_init(lane)
    one = lane.store == lib.GD_LANE_LINE
    words = "one 64-byte store (MOVDIR64B)" if one else "words, a fence, then the first and the last"
    return int(lane.store), words


_all: weakref.WeakSet[Service] = weakref.WeakSet()
_kept: list[object] = []  # memory that a thread, or a function that does not end, may still use


def _running(device: Device) -> list[Service]:
    return [s for s in _all if s.device is device and s.running]


@atexit.register
def _stop_all() -> None:
    """At exit: a resident kernel would keep the process, or the device, from ending in peace."""
    for service in tuple(_all):
        if not service.device.forked:
            service._stop_timeout = min(service._stop_timeout, 1.0)
            with contextlib.suppress(Exception):
                service.stop()
