"""Arguments that the C part does not know what to do with."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import kernels
from ..arrays import Array
from ..errors import ArgumentError
from ._errors import Telling

_VALUES = (int, float, bytes, np.generic, type(None))  # which stand for no memory


class Packing(Telling):
    """A Caller of arrays."""

    _packers: dict[str, list[Any]]

    def _pack(self, name: str, arguments: tuple[Any, ...]) -> tuple[bytes, tuple[object, ...]]:
        """The long way to an argument block; and what holds the memory that it points to.

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
        for pack, value in zip(packers, arguments, strict=True):
            if isinstance(value, Array):
                owners.append(value._open())  # the memory: the array may be closed meanwhile
            elif not isinstance(value, _VALUES):
                owners.append(value)
            pack(block, value, self.device)
        return bytes(block), tuple(owners)
