"""What goes wrong with calls, as exceptions. The C part asks for them by these methods' names."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from .. import _native
from ..errors import (
    ArgumentError,
    CallError,
    CallTimeoutError,
    DeviceAssertionError,
    Error,
    KernelNotFoundError,
    RefusedArgumentError,
    RevokedError,
    ServiceError,
)
from ._native import Caller

if TYPE_CHECKING:
    from ..devices import Device
    from ._options import Options
    from ._source import Signature


class Telling(Caller):
    """A Caller that says what went wrong: the base of Service, and of those attached to one."""

    device: Device
    functions: dict[str, Signature]
    _options: Options
    _stopping = False
    _end: str | None = "it was not started: call start(), or use it in a with statement"
    """Why it takes no calls."""

    def _refuse(self) -> None:
        self.device.ensure_usable()
        raise ServiceError(f"the service takes no calls: {self._end or 'it is not running'}")

    def _unknown(self, name: object) -> KernelNotFoundError:
        return KernelNotFoundError(
            f"the service has no function {name!r}; it has {', '.join(self.functions)}"
        )

    def _timeout_wrong(self, value: object) -> ArgumentError:
        return ArgumentError(f"timeout is {value!r}: give seconds, 0 or more")

    def _lane_wrong(self, lane: Any, why: int) -> ArgumentError:
        if why == 0:
            return ArgumentError(f"lane is {lane!r}; the service has lanes 0 to {self._options.lanes - 1}")
        if why == 1:
            which = "every lane" if lane < 0 else f"lane {lane}"
            return ArgumentError(f"{which} is lent already, to C code; start the service with more")
        return ArgumentError(f"lane {lane} is not idle: it has {self.pending[lane]} calls open")

    def _timeout_error(self, name: str, seconds: float, full: bool) -> CallTimeoutError:
        if full:
            return CallTimeoutError(
                f"{name} was not sent: all {self._options.slots} slots of the lane were taken for "
                f"{seconds} s"
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
            if not self._stopping and self._options.lifetime is not None:
                why = f"the service's lifetime of {self._options.lifetime} s is over"
            return ServiceError(f"{name} was not run: {why}")
        if status == lib.P2PMOD_STATUS_NO_FUNCTION:
            return CallError(f"the resident kernel knows no function {name}", name, status, value)
        return CallError(f"{name} returned status {status} in line {value} of the source", name,
                         status, value)  # fmt: skip
