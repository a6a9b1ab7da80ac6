"""An exception raised where a signal's handler may raise it: the tests raise one at every place in turn."""

from __future__ import annotations

import dis
import functools
import sys
from pathlib import Path

import gpudirect

OURS = str(Path(gpudirect.__file__).parent)


@functools.cache
def places(code) -> frozenset[int]:
    """Offsets of the bytecodes before which Python looks for signals: behind calls, where functions begin,
    and where loops go on."""
    found, behind = set(), True
    for instruction in dis.get_instructions(code):
        if behind:
            found.add(instruction.offset)
        name = instruction.opname
        behind = name.startswith(("CALL", "RESUME"))
        if name.startswith(("JUMP_BACKWARD", "JUMP_ABSOLUTE")):
            found.add(instruction.argval)
    return frozenset(found)


class Interrupted:
    """While it is entered, ``error`` is raised at the n-th place of these files, on this thread.

    anywhere: at the n-th bytecode, whether Python looks for signals there or not.
    """

    def __init__(self, n: int, error, files: tuple[str, ...] = (OURS,), anywhere: bool = False) -> None:
        self.left = n
        self._error, self._files, self._anywhere = error, files, anywhere

    @property
    def came(self) -> bool:
        """Whether that place was come to."""
        return self.left <= 0

    def __enter__(self) -> Interrupted:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *raised) -> None:
        sys.settrace(None)

    def _trace(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(self._files):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode" and (self._anywhere or frame.f_lasti in places(frame.f_code)):
            self.left -= 1
            if self.left == 0:
                raise self._error
        return self._trace
