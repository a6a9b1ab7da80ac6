"""Couriers: workers beside the device's memory that move what the CPU is slow at.

    with gd.Courier():
        a.read(out)                   # 4 KiB in less than 3 us
        a.gather(indices)
        a.scatter(indices, values)

docs/couriers.md says what they are faster at, and what they cost.
"""

from __future__ import annotations

from ._courier import Courier, CourierInfo

__all__ = ["Courier", "CourierInfo"]
