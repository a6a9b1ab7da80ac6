"""``Service``: device functions that answer calls. The face of it; its life is in ``_life``."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import _native, devices, kernels
from ..devices import Device
from ..errors import ArgumentError
from ..kernels import compiler_options
from ..sharing import Token
from ._compiled import compiled
from ._function import ServiceFunction
from ._future import Future
from ._info import ServiceInfo, declaration
from ._layout import Layout, packet_store
from ._life import Living
from ._options import checked
from ._poller import Poller
from ._share import share_lane
from ._source import declared

DEFAULT_SLICE = 1e-3  # seconds
DEFAULT_NAP_AFTER = 5e-3
DEFAULT_PARK_AFTER = 1.0


class Service(Living):
    """Device functions that answer calls: a resident kernel that polls rings in its own memory.

        with gd.Service(source, {"scale": "thread", "sum": "block"}, lanes=2) as svc:
            svc.scale(2.0, a, 3)                  # blocks, a few microseconds
            svc.call("scale", 2.0, a, 3)          # the same
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
    slice: seconds after which the kernel ends by itself, between two calls, and its next launch,
        queued behind it, goes on. So whoever waits for the whole device (``torch.cuda.synchronize()``,
        loading code, cudaFree) waits for two slices at most. None keeps one launch for ever, and
        them waiting as long.
    nap_after: seconds without a call after which the kernel leaves the device, so that others have all
        of it. The next call's own store wakes it: 7 to 9 us instead of 2. None: it never naps.
    park_after: seconds without a call after which nothing of it is queued on the device, either, and nobody
        waits for anything of it. The next call has it launched, by a thread that must be woken first: tens of
        us. Not before it naps. None: never, as without naps, and as long as a lane is lent.

    It runs from ``start()`` (or ``with``) to ``stop()``; then it can be started again. Meanwhile it
    holds ``info.blocks`` blocks of the device. Other launches go on beside it; ``gd.synchronize()``
    does not wait for it.

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
        slice: float | None = DEFAULT_SLICE,
        nap_after: float | None = DEFAULT_NAP_AFTER,
        park_after: float | None = DEFAULT_PARK_AFTER,
        device: Device | str | int | None = None,
        bridge: str | None = None,
        options: Sequence[str] = (),
    ) -> None:
        teams = declared(functions)
        options = compiler_options(options)
        self.device = devices.get(device)
        self._options = checked(
            teams.values(), lanes=lanes, slots=slots, threads=threads, blocks=blocks,
            idle_after=idle_after, idle_sleep=idle_sleep, lifetime=lifetime, stop_timeout=stop_timeout,
            slice=slice, nap_after=nap_after, park_after=park_after,
        )  # fmt: skip
        self._bridge = bridge
        self._poller = Poller(self)
        self._kernel, self.functions = compiled(source, teams, self.device, options)
        longest = max(s.size for s in self.functions.values())
        self._layout = Layout(self._options.lanes, self._options.slots, longest)
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

    @property
    def lanes(self) -> int:
        """Independent rings."""
        return self._options.lanes

    @property
    def slots(self) -> int:
        """Calls that each lane can hold."""
        return self._options.slots

    @property
    def threads(self) -> int:
        """Threads of each block."""
        return self._options.threads

    @property
    def blocks(self) -> int:
        """Blocks of each lane."""
        return self._options.blocks

    @property
    def info(self) -> ServiceInfo:
        """What it is and what it holds."""
        options, resident = self._options, self._resident
        return ServiceInfo(
            device=self.device.id,
            emulated=self.device.emulated,
            running=self.running,
            functions={name: declaration(s) for name, s in self.functions.items()},
            lanes=options.lanes,
            slots=options.slots,
            blocks=options.all_blocks,
            threads=options.threads,
            share=self.share,
            device_bytes=self._layout.device_bytes,
            host_bytes=self._layout.host_bytes,
            host_shared=resident is not None and resident.host.descriptor is not None,
            ordering=self.device.ordering.scope,
            packet_store=packet_store()[1],
            idle_after=options.idle_after,
            idle_sleep=options.idle_sleep,
            lifetime=options.lifetime,
            slice=options.slice,
            nap_after=options.nap_after,
            park_after=options.park_after,
            state=resident.state if resident else "stopped",
            slices=resident.slices if resident else 0,
            late=resident.late if resident else 0,
            napped=resident.napped if resident else 0.0,
            parks=resident.parks if resident else 0,
        )

    def __repr__(self) -> str:
        mark = " (emulated)" if self.device.emulated else ""
        state = "running" if self.running else "stopped"
        options = self._options
        return (
            f"<Service of {', '.join(self.functions)} on {self.device.id}{mark}, {options.lanes} "
            f"lane(s), {options.all_blocks} block(s) of {options.threads} threads, {state}>"
        )

    # -- its functions by name ------------------------------------------------------------------

    def __getitem__(self, name: str) -> ServiceFunction:
        """``svc["scale"](2.0, a, 3)``. Raises KernelNotFoundError."""
        if name not in self.functions:
            raise self._unknown(name)
        return ServiceFunction(self, name)

    def __getattr__(self, name: str) -> ServiceFunction:
        """``svc.scale(2.0, a, 3)``: the same, unless the service has an attribute of this name."""
        if name in self.__dict__.get("functions", ()):
            return ServiceFunction(self, name)
        if name.startswith("_") or "functions" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise AttributeError(str(self._unknown(name)), name=name, obj=self)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(n for n in self.functions if n.isidentifier())})

    # -- calls of others ------------------------------------------------------------------------

    def lend(self, lane: int) -> Any:
        """Hand a lane over to C code: a ``struct gd_lane *`` of cffi (gpudirect/lane.h) to send with.

        The lane must be idle. The service sends nothing through it until it is started anew. The
        struct is good until ``stop()``. From now until then the service is not parked.
        """
        sent = self._lend(lane)
        lent = _native.ffi.new("struct gd_lane *")
        assert self._resident is not None
        self._resident.stay()
        ring = self._resident.ring(lane)
        lent.packets, lent.replies, lent.stride = ring.packets, ring.replies, ring.stride
        lent.arguments, lent.arguments_device = ring.arguments, ring.arguments_device
        lent.told, lent.wake = ring.told, ring.wake
        lent.slots, lent.flags = self.slots, self._resident.memory._flags
        code = _native.lib.gd_lane_init(lent)
        assert code == 0, f"lane {lane}: {os.strerror(-code)}"
        lent.sent = lent.taken = sent
        return lent

    def share_lane(self, lane: int) -> Token:
        """A token with which another process of the same user calls the functions through this lane
        (``gpudirect.attach``), without CUDA there.

        The lane must be idle; the service sends nothing through it until it is started anew. One
        process at a time: when it has ended, the lane can be shared again. The token is good until
        ``stop()``, and from now until then the service is not parked. Raises ArgumentError,
        ServiceError, SharingError.
        """
        return share_lane(self, lane)

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
