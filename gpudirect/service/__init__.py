"""Services: device functions that answer calls, by a store of the CPU and without a launch.

    with Service(source, ["scale"]) as svc:
        svc.call("scale", 2.0, a, 3)

docs/doorbells.md says how it works and what it costs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._doorbell import Doorbell
    from ._future import Future
    from ._info import ServiceInfo
    from ._service import Service

# who is attached to a service of another process needs neither NumPy nor CUDA, and so not all of this
_WHERE = {"Doorbell": "_doorbell", "Future": "_future", "Service": "_service", "ServiceInfo": "_info"}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _WHERE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)


__all__ = ["Doorbell", "Future", "Service", "ServiceInfo"]
