"""The account of the GPU's PCI aperture (BAR1): who holds how much of it, and how much may be held.

Every mapping that the runtime makes is charged here first: arrays mapped whole, memory registered
for somebody else, windows of the user's, and the windows that ``write``, ``read`` and ``writer``
map on demand. Only the last can be taken back at any time: they are kept for the next access, the
most recently used ones, as far as the budget goes.

The budget is $GPUDIRECT_APERTURE, in bytes of each device (K, M and G understood). Without one, a
device's whole aperture may be used, and windows mapped on demand take a quarter of it at most.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from ._keeper import keeper
from .bridges import Bridge, Mapping
from .bridges.base import PAGE, page_span
from .config import env_size
from .devices import Device, DeviceMemory
from .errors import ApertureError, ArgumentError

ENVIRONMENT = "GPUDIRECT_APERTURE"
ARRAYS, REGISTERED, WINDOWS, AUTOMATIC = "arrays", "registered", "windows", "automatic"
_WORDS = {
    ARRAYS: "arrays mapped whole",
    REGISTERED: "registered memory",
    WINDOWS: "windows",
    AUTOMATIC: "windows mapped on demand",
}
KEPT_WITHOUT_BUDGET = 64 << 20
"""Bytes of windows kept where neither a budget nor the size of the aperture is known."""


@dataclass(frozen=True)
class ApertureUse:
    """What this process holds of one device's aperture. All sizes in bytes."""

    device: str
    budget: int | None
    """$GPUDIRECT_APERTURE; None: as much as there is."""
    arrays: int
    """Arrays that are mapped whole, freed ones that the pool keeps included."""
    registered: int
    """Memory of others, mapped by ``register``."""
    windows: int
    """Windows made by ``Array.window``."""
    automatic: int
    """Windows mapped on demand. They make room for everything else."""
    peak: int
    """The most that was ever held."""

    @property
    def total(self) -> int:
        return self.arrays + self.registered + self.windows + self.automatic

    def __str__(self) -> str:
        parts = [
            f"{getattr(self, kind)} in {words}"
            for kind, words in _WORDS.items()
            if getattr(self, kind)
        ]
        limit = f" of {self.budget} ({ENVIRONMENT})" if self.budget is not None else ""
        return f"{self.total} bytes of aperture held{limit}" + (": " if parts else "") + ", ".join(parts)


class Reclaimable(Protocol):
    """A mapping that can be taken back while nobody uses it."""

    def reclaim(self) -> bool:
        """Unmap it; False if somebody uses it."""
        ...


class Charged:
    """A mapping on the account: undone by ``close``, or when nobody refers to it any more."""

    __slots__ = ("_lease", "_undo", "mapping", "size")

    def __init__(self, account: Account, kind: str, mapping: Mapping, size: int) -> None:
        self.mapping = mapping
        self.size = size
        """Bytes charged for it."""
        self._undo = partial(account.undo, kind, size, [mapping])
        self._lease = keeper.leave(self._undo)

    def close(self) -> None:
        """Unmap it now, and take it off the account. Safe twice."""
        self._lease.end()
        keeper.run(keeper.give_back, self._undo)


class Account:
    """The account of one device. What changes it runs on the keeper's thread, and so one by one."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.budget = _budget()
        self._held: dict[str, int] = dict.fromkeys(_WORDS, 0)
        self._peak = 0
        self._total: int | None = None
        self._kept: OrderedDict[Reclaimable, None] = OrderedDict()  # least recently used first

    # -- taking ------------------------------------------------------------------------------

    def could_hold(self, size: int) -> bool:
        """Whether ``size`` bytes would fit if nothing else were mapped."""
        if self.budget is not None:
            return size <= self.budget
        total = self.total()
        return not total or size <= total

    def total(self) -> int:
        """Size of the aperture in bytes; 0 where the driver does not tell."""
        if self._total is None:
            there = self.device.aperture()
            self._total = there.total if there is not None else 0
        return self._total

    def on_demand(self) -> int:
        """Bytes that windows mapped on demand may take now."""
        if self.budget is None:
            return self.total() // 4 or KEPT_WITHOUT_BUDGET
        others = sum(self._held.values()) - self._held[AUTOMATIC]
        return max(self.budget - others, 0)

    def map(self, kind: str, bridge: Bridge, memory: DeviceMemory, offset: int, length: int, *,
            at: int | None = None) -> Charged:
        """Map part of a block on the account.

        Takes back windows mapped on demand where room is needed.
        Raises ApertureError (BAR1 or the budget is exhausted) or what ``Bridge.map`` raises.
        """
        return keeper.run(self._map, kind, bridge, memory, offset, length, at)

    def _map(self, kind: str, bridge: Bridge, memory: DeviceMemory, offset: int, length: int,
             at: int | None) -> Charged:
        size = charge(offset, length)
        self._fit(kind, size)
        while True:
            try:
                mapping = bridge.map(memory, offset, length, at=at)
                break
            except ApertureError:
                if not self._reclaim_one():  # other processes fill BAR1
                    raise
        self._held[kind] += size
        self._peak = max(self._peak, sum(self._held.values()))
        return Charged(self, kind, mapping, size)

    def _fit(self, kind: str, size: int) -> None:
        if kind == AUTOMATIC:
            while self._held[AUTOMATIC] + size > self.on_demand() and self._reclaim_one():
                pass
        if self.budget is None:
            return
        while sum(self._held.values()) + size > self.budget:
            if not self._reclaim_one():
                raise ApertureError(
                    f"no room for {size} bytes in the aperture's budget of {self.device.id}: "
                    f"{self._use()}. Close arrays or windows, use a smaller window, or raise "
                    f"{ENVIRONMENT}."
                )

    def _reclaim_one(self) -> bool:
        """Take back the window that was not used for longest; False when all are in use."""
        return any(window.reclaim() for window in tuple(self._kept))

    def keep(self, window: Reclaimable) -> None:
        """Count a window among those that can be taken back. Keeper's."""
        self._kept[window] = None

    def touch(self, window: Reclaimable) -> None:
        """It is the one used last. On any thread."""
        with contextlib.suppress(KeyError):  # taken back in this moment
            self._kept.move_to_end(window)

    def forget(self, window: Reclaimable) -> None:
        """A window mapped on demand is gone. Keeper's."""
        self._kept.pop(window, None)

    # -- giving back -------------------------------------------------------------------------

    def undo(self, kind: str, size: int, left: list[Mapping]) -> None:
        """Unmap, and take off the account, what is left in the list. Keeper's."""
        while left:
            if not self.device.forked:
                left[-1].close()
            left.pop()
            self._held[kind] -= size

    # -- telling -----------------------------------------------------------------------------

    def _use(self) -> ApertureUse:
        return ApertureUse(self.device.id, self.budget, **self._held, peak=self._peak)

    def use(self) -> ApertureUse:
        """What is held now, after what was dropped before is given back."""
        return keeper.run(self._use)

    def limit(self, size: int | None) -> None:
        """Change the budget. Keeper's."""
        self.budget = size
        if size is not None:
            while sum(self._held.values()) > size and self._reclaim_one():
                pass


def charge(offset: int, length: int) -> int:
    """Bytes of aperture that a mapping of ``length`` bytes from ``offset`` of a block takes."""
    return page_span(offset, length)[1]


def _budget() -> int | None:
    text = os.environ.get(ENVIRONMENT)
    if text is None or not text.strip():
        return None
    found = env_size(ENVIRONMENT, 0)
    if found < PAGE:
        raise ArgumentError(f"{ENVIRONMENT} is {text!r}: give at least {PAGE} bytes, a page")
    return found


_accounts: dict[Device, Account] = {}
_tellers: list[Callable[[], list[str]]] = []


def account(device: Device) -> Account:
    """The account of a device, opened on first use."""
    found = _accounts.get(device)
    if found is None:
        found = _accounts.setdefault(device, Account(device))
    return found


def use() -> list[ApertureUse]:
    """What this process holds of the aperture of each device that it used."""
    return [a.use() for a in tuple(_accounts.values())]


def holders() -> str:
    """Who holds how much of the aperture, in words, for an error message."""
    lines = [line for tell in _tellers for line in tell()]
    lines.extend(f"  this process, {u.device}: {u}" for u in use())
    for device in tuple(_accounts):
        bar1 = device.aperture()
        if bar1 is not None:
            lines.append(
                f"  all processes, {device.id}: {bar1.used} of {bar1.total} bytes of BAR1"
            )
    return "\n".join(lines)


def also_told_by(tell: Callable[[], list[str]]) -> None:
    """Have somebody above say more in ``holders``."""
    _tellers.append(tell)


def told() -> list[dict[str, object]]:
    """``use`` as plain data, for `gpudirect info`. Accounts are opened when a device is used."""
    return [
        {**vars(u), "total": u.total, "words": str(u)} for u in use()
    ] or [{"device": "any device", "budget": _budget(), "words": _nothing_held()}]


def _nothing_held() -> str:
    budget = _budget()
    if budget is None:
        return f"no budget is set for the aperture ({ENVIRONMENT})"
    return f"the aperture's budget is {budget} bytes ({ENVIRONMENT})"


def set_budget(size: int | None, device: Device) -> None:
    """Change the budget of one device, in bytes; None lifts it. What is mapped stays mapped.

    Raises ArgumentError below a page.
    """
    if size is not None and size < PAGE:
        raise ArgumentError(f"a budget of {size} bytes is below a page ({PAGE})")
    keeper.run(account(device).limit, size)


def _after_fork_in_child() -> None:
    _accounts.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
