"""Arguments that the C part does not know what to do with."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import kernels
from ..arrays import Array
from ..devices import Device, Now, Stream
from ..errors import ArgumentError, ServiceError
from ._errors import Telling

_VALUES = (int, float, bytes, np.generic, type(None))  # which stand for no memory


class Packing(Telling):
    """A Caller of arrays."""

    _packers: dict[str, list[Any]]

    def _pack(self, name: str, arguments: tuple[Any, ...]) -> tuple[bytes, tuple[object, ...]]:
        """The long way to an argument block; and what holds the memory that it points to. What other
        libraries have queued on their memory is done then.

        Raises what is wrong with the arguments.
        """
        packers, signature = self._packers.get(name, []), self.functions.get(name)
        if len(arguments) != len(packers):
            wanted = ", ".join(kernels._describe(p) for p in signature.parameters) if signature else ""
            raise ArgumentError(
                f"{name} takes {len(packers)} argument(s) ({wanted or 'nothing'}); "
                f"{len(arguments)} given"
            )
        block, owners = bytearray(signature.size if signature else 0), []
        streams: list[Any] = []
        for pack, value in zip(packers, arguments, strict=True):
            if isinstance(value, Array):
                owners.append(value._open())  # the memory: the array may be closed meanwhile
            elif not isinstance(value, _VALUES):
                owners.append(value)
            stream = pack(block, value, self.device)
            if stream is not None:
                streams.append(stream)
        for stream in streams:
            _await(name, stream, self.device)
        return bytes(block), tuple(owners)


def _await(name: str, stream: Any, device: Device) -> None:
    """A call is in no stream, so what another library has queued on its own is waited for.

    Raises ServiceError where it captures a graph there.
    """
    if device.emulated and not isinstance(stream, Stream):
        return  # a driver's number, and here is no driver
    queue = device.as_stream(stream).queue
    now = queue.now()
    if now is Now.CAPTURED:
        raise ServiceError(f"an argument of {name} is of a library that captures a graph on its current "
                           "stream: nothing runs there, and a call is no part of a graph. Call before or "
                           "behind the capture, or give gpudirect.register(x), which is taken as it "
                           "is")  # fmt: skip
    if now is Now.BUSY:
        queue.synchronize()
