"""Services: device functions that answer calls, by a store of the CPU and without a launch.

    with Service(source, ["scale"]) as svc:
        svc.call("scale", 2.0, a, 3)

docs/doorbells.md says how it works and what it costs.
"""

from __future__ import annotations

from ._doorbell import Doorbell
from ._future import Future
from ._info import ServiceInfo
from ._service import Service

__all__ = ["Doorbell", "Future", "Service", "ServiceInfo"]
