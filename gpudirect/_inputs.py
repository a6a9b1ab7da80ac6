"""``Inputs``: what a step that is replayed again and again reads, written by the CPU between two replays.

    inputs = gd.Inputs({"ids": (64, "i4"), "tables": ((64, 128), "i4")}, ahead=1)
    ... capture a graph that begins with inputs.take() and reads inputs.arrays["ids"] ...
    inputs["ids"][:n] = ids                   # ordinary memory: nothing that runs sees it
    inputs.replay(graph)                      # what changed goes to the device; then graph.replay()

A captured graph has fixed addresses, so the values of the next step would overwrite those that the
running one still reads. Two ways out, by ``ahead``:

ahead=0: the graph reads the memory that the CPU stores to. Costs the device nothing; ``replay`` waits until
the step before is over, which it is where its result was waited for.

ahead=k: the CPU stores to one of k slots, and the graph begins with a kernel (``take``) that copies its
step's slot to where the graph reads. Costs the device that kernel, about 2 us; ``replay`` waits only until
the step k before has begun. Each slot carries its step's number, which the kernel looks for: so it takes
a slot once, in order, and a replay that nobody committed values for keeps those of the one before (one
that has not begun when the next are committed takes them already, and so does the next). The kernel
tells the number in page-locked memory, where the CPU sees it without asking the driver.

In both, values are kept in ordinary memory and only lines of 64 bytes that differ from what the slot holds
are stored: what is not written keeps its value, whichever slot is next, and may be read at no cost.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from . import _native, devices
from ._keeper import keeper
from ._pinned import pinned
from .arguments import as_shape, index
from .arrays import Array, empty
from .devices import Device, Stream
from .dtypes import as_dtype
from .errors import ArgumentError, ClosedError, Error, RevokedError
from .extent import check_mapped
from .kernels import kernel

ALIGNMENT = 256
"""Bytes: where each input starts, as an allocation of its own would."""
MOST_AHEAD = 64
PATIENCE = 2_000_000
"""Nanoseconds of waiting in C before Python looks for signals and faults."""
THREADS, EACH = 1024, 64 << 10
"""Of the kernel: threads of a block, bytes that a block copies."""

SOURCE = """
typedef unsigned long long word;

// state: the number of the step whose values were taken last, and how many blocks are done
__global__ void take(word *inputs, const word *slots, const volatile word *numbers, volatile word *state,
                     volatile word *told, word count, word slot_count)
{
    const word next = state[0] + 1;
    const word slot = next % slot_count;
    const bool there = numbers[slot] == next;

    if (there)
        for (word i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x)
            inputs[i] = slots[slot * count + i];
    __syncthreads();
    if (threadIdx.x)
        return;
    __threadfence();
    if (atomicAdd((word *)&state[1], (word)1) != gridDim.x - 1)
        return;
    state[1] = 0; // the last block: all have read the state and their part of the slot
    if (there) {
        state[0] = next;
        *told = next;
        __threadfence_system();
    }
}
"""


class _Memory:
    """Device memory of all parts in one block, and the page-locked word; goes back after the last step."""

    def __init__(self, nbytes: int, slots: int, device: Device, bridge: str | None) -> None:
        words = 2 + max(slots, 1)
        copies = slots + 1 if slots else 1
        self.block = empty(copies * nbytes + words * 8, "u1", device=device, bridge=bridge, mapped=True)
        self.block.fill(0)
        device.synchronize()
        self.told = pinned(1, "u8", device=device)
        self.told[0] = 0
        self.stream: Stream | None = None
        """Where the last step was queued."""

    def retire(self) -> None:
        """Nobody refers to the inputs any more; steps may still read them. Keeper's."""
        stream, self.stream = self.stream, None
        if stream is not None and not stream.closed and not stream.device.forked:
            # what goes home now is not handed out before the stream has come this far
            stream.queue.note()
        self.block = self.told = None  # type: ignore[assignment]


class Inputs(Mapping[str, np.ndarray[Any, Any]]):
    """Named inputs of fixed shape for a step that is replayed: a captured graph, or kernels.

    fields: {name: (shape, dtype)}, or anything with ``shape`` and ``dtype`` for a value. They start as 0.
    ahead: how many steps may be queued behind the one that runs before ``replay`` waits.
    device, bridge: as for ``empty``.

    ``inputs[name]`` is a NumPy array in ordinary memory: the values of the next step. ``arrays[name]`` is
    what the step reads, always at the same address. One thread at a time writes and replays.
    It must live as long as graphs that read it are replayed.
    Raises ArgumentError, DTypeError, OutOfMemoryError, ApertureError.
    """

    def __init__(self, fields: Mapping[str, Any], *, ahead: int = 0,
                 device: Device | str | int | None = None, bridge: str | None = None) -> None:
        self.device = devices.get(device)
        self.ahead = slots = index(ahead, "ahead")
        if not 0 <= slots <= MOST_AHEAD:
            raise ArgumentError(f"ahead is {ahead}: give a number of steps from 0 to {MOST_AHEAD}")
        places, self._nbytes = _layout(fields)
        self._memory = memory = _Memory(self._nbytes, slots, self.device, bridge)
        self._lease = keeper.leave(memory.retire)
        self._now = np.zeros(self._nbytes, np.uint8)
        self._values = {name: _seen(self._now[at : at + size], shape, dtype)
                        for name, (at, size, shape, dtype) in places.items()}  # fmt: skip
        block = memory.block
        self.arrays: Mapping[str, Array] = MappingProxyType(
            {name: block[at : at + size].view(dtype).reshape(shape)
             for name, (at, size, shape, dtype) in places.items()})  # fmt: skip
        """What the step reads, by name."""
        self._taken = False  # take() was called: a graph can have it
        self._slots = self._cut(block, slots)
        self._state = _native.ffi.new("struct gd_inputs *", {
            "slots": self._slots, "ahead": slots, "n": self._nbytes,
            "now": _native.ffi.from_buffer("char[]", self._now),
            "told": _native.ffi.cast("uint64_t *", memory.told.ptr),
            "flags": block._open().copying,
        })  # fmt: skip
        self._take = self._kernel(block, slots) if slots else None

    def _cut(self, block: Array, slots: int) -> Any:
        """What C knows of each slot; without any, of what the step reads."""
        nbytes, ffi = self._nbytes, _native.ffi
        self._there = [np.zeros(nbytes, np.uint8) for _ in range(max(slots, 1))]
        found = ffi.new("struct gd_slot[]", len(self._there))
        for i, there in enumerate(self._there):
            found[i].data, found[i].there = block.host_ptr, ffi.from_buffer("char[]", there)
            if slots:
                found[i].data += (i + 1) * nbytes
                found[i].number = block.host_ptr + (slots + 1) * nbytes + (2 + i) * 8
        return found

    def _kernel(self, block: Array, slots: int) -> Callable[[Stream], None]:
        compiled = kernel(SOURCE, "take", device=self.device)
        nbytes, state = self._nbytes, block.ptr + (slots + 1) * self._nbytes
        arguments = compiled.pack((block.ptr, block.ptr + nbytes, state + 16, state,
                                   self._memory.told, nbytes // 8, slots))  # fmt: skip
        blocks, function = -(-nbytes // EACH), compiled._function

        def launch(stream: Stream) -> None:
            function.launch((blocks, 1, 1), (THREADS, 1, 1), 0, stream, arguments)

        return launch

    # -- a mapping of names --------------------------------------------------------------------

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        try:
            return self._values[name]
        except KeyError:
            raise ArgumentError(f"there is no input {name!r}: there are {', '.join(self._values)}") from None

    def __setitem__(self, name: str, value: Any) -> None:
        self[name][...] = value

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def nbytes(self) -> int:
        """Bytes of all inputs, each padded to a multiple of 256."""
        return self._nbytes

    # -- a step --------------------------------------------------------------------------------

    def take(self, stream: Any = None) -> None:
        """Have the step begin here: called first in what is captured. With ahead=0 there is nothing to do.

        stream: where the step is captured or queued; None is the current one.
        """
        self._open()
        self._taken = True
        if self._take is None:
            return
        queued = self._stream(stream)
        if queued.queue.capturing():  # nothing is queued that anybody could wait for
            queued = Stream(queued.queue, owned=False)
            queued.resident = True
        self._take(queued)

    def commit(self, stream: Any = None) -> int:
        """Give the next step its values, without replaying: for who launches by himself, once, after this.

        stream: where the step will be queued. Waits as ``replay`` does. Gives the bytes stored.
        """
        stored = self._commit(stream)
        self._state.step += 1
        return stored

    def replay(self, graph: Any, stream: Any = None) -> None:
        """Give the next step its values, and queue it.

        graph: something with ``replay()``, as ``torch.cuda.CUDAGraph``, or a function to call.
        stream: where that queues it; None is the current one.
        Waits until the values of the step ``ahead`` before (0: the one before) are not needed any more.
        What the graph raises goes through: the values then wait for the next replay.
        Raises Error where no graph ever takes the values, DeviceLostError, RevokedError, ClosedError.
        """
        self._commit(stream)
        getattr(graph, "replay", graph)()
        self._state.step += 1

    def _stream(self, stream: Any) -> Stream:
        if stream is None:
            return self.device.current_stream
        return stream if isinstance(stream, Stream) else self.device.adopt_stream(stream)

    def _open(self) -> _Memory:
        memory = self._memory
        if memory is None:
            raise ClosedError(f"these inputs ({', '.join(self._values)}) were closed")
        if self.device.forked:
            self.device.ensure_usable()
        return memory

    def _commit(self, stream: Any) -> int:
        memory = self._memory
        if memory is None or self.device.forked:
            memory = self._open()
        before = memory.stream
        if not self.ahead and before is not None:
            before.synchronize()
        stored = _native.lib.gd_inputs_commit(self._state, 0)
        while stored < 0:
            if stored != -errno.EAGAIN:
                check_mapped(memory.block._open())
                raise RevokedError(f"the memory of the inputs was revoked (error {-stored})")
            self._explain(memory)
            stored = _native.lib.gd_inputs_commit(self._state, PATIENCE)
        memory.stream = self._stream(stream)
        return int(stored)

    def _explain(self, memory: _Memory) -> None:
        """Raises what keeps a slot from getting free for ever."""
        self.device.ensure_alive()
        state = self._state
        if memory.stream is not None and memory.stream.idle() and state.told[0] + self.ahead <= state.step:
            what = "of a graph that was captured without inputs.take()" if self._taken else "without " \
                "inputs.take(), which has to be called first in what is captured"  # fmt: skip
            raise Error(f"{state.step} steps were replayed and {state.told[0]} took their values: they are "
                        f"{what}, or were queued on another stream than they were said to be")  # fmt: skip

    def close(self) -> None:
        """Give the memory back, once what was replayed is done and ``arrays`` are gone. Safe twice."""
        self._memory = None  # type: ignore[assignment]
        self.arrays = MappingProxyType({})
        self._lease = self._take = None

    def __enter__(self) -> Inputs:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        mark = " (emulated)" if self.device.emulated else ""
        parts = ", ".join(f"{n} {'x'.join(map(str, v.shape))} {v.dtype}" for n, v in self._values.items())
        return f"<{type(self).__name__} of {self.device.id}{mark}, {self.ahead} ahead: {parts}>"


def _layout(fields: Mapping[str, Any]) -> tuple[dict[str, tuple[int, int, Any, np.dtype[Any]]], int]:
    """{name: (offset, bytes, shape, dtype)} and the bytes of all."""
    if not isinstance(fields, Mapping) or not fields:
        raise ArgumentError('give the inputs by name, as in {"ids": (64, "i4")}')
    found, at = {}, 0
    for name, field in fields.items():
        if not isinstance(name, str):
            raise ArgumentError(f"{name!r} is no name of an input: give a text")
        if hasattr(field, "shape") and hasattr(field, "dtype"):
            field = field.shape, field.dtype
        if not isinstance(field, tuple) or len(field) != 2:
            raise ArgumentError(f'input {name!r} is {field!r}: give its shape and dtype, as in (64, "i4")')
        shape, dtype = as_shape(field[0]), as_dtype(field[1])
        size = dtype.itemsize * math.prod(shape)
        if not size:
            raise ArgumentError(f"input {name!r} of shape {shape} has no elements")
        found[name] = (at, size, shape, dtype)
        at += -(-size // ALIGNMENT) * ALIGNMENT
    return found, at


def _seen(raw: np.ndarray[Any, Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return raw.view(dtype).reshape(shape)


__all__ = ["Inputs"]
