"""The account of the GPU's PCI aperture (BAR1): who holds how much of it, and how much may be held.

Every mapping that the runtime makes is charged here first: arrays mapped whole, memory registered
for somebody else, windows of the user's, and the windows that ``write``, ``read`` and ``writer``
map on demand. Only the last can be taken back at any time: they are kept for the next access, the
most recently used ones, as far as the budget goes.

The budget is $GPUDIRECT_APERTURE, in bytes of each device (K, M and G understood). Without one, a
device's whole aperture may be used, and windows mapped on demand take a quarter of it at most.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .bridges import Bridge, Mapping
from .bridges.base import PAGE, page_span
from .config import env_size
from .devices import Device, DeviceMemory
from .errors import ApertureError, ArgumentError, Error

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

    size: int
    """Bytes charged for it."""
    users: int

    def close(self) -> bool:
        """Unmap it and have the account forget it; False if that was done before."""
        ...


class Account:
    """The account of one device. Thread-safe; giving back never blocks."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.budget = _budget()
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()
        self._peak = 0
        self._total: int | None = None
        # what came back from a thread (or a collection) that could not wait for the lock
        self._returned: deque[tuple[str, int, Callable[[], object] | None]] = deque()
        self._kept: OrderedDict[Reclaimable, None] = OrderedDict()  # least recently used first

    # -- taking ------------------------------------------------------------------------------

    def __enter__(self) -> Account:
        """Hold the account still. Not to be done twice by one thread, nor in a ``__del__``."""
        self._lock.acquire()
        if self._returned:
            self._drain()
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.release()
        if self._returned:
            self._tidy()

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
            at: int | None = None) -> Mapping:
        """Map part of a block on the account. Undone with the mapping's ``close`` and ``give``.

        Takes back windows mapped on demand where room is needed.
        Raises ApertureError (BAR1 or the budget is exhausted) or what ``Bridge.map`` raises.
        """
        with self:
            return self.map_locked(kind, bridge, memory, offset, length, at=at)

    def map_locked(self, kind: str, bridge: Bridge, memory: DeviceMemory, offset: int, length: int,
                   *, at: int | None = None) -> Mapping:
        """``map``, for a caller that holds the account."""
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
        return mapping

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
        for window in self._kept:
            if not window.users:
                window.close()
                self._held[AUTOMATIC] -= window.size
                return True
        return False

    def keep(self, window: Reclaimable) -> None:
        """Count a window among those used most recently. The caller holds the account."""
        self._kept[window] = None
        self._kept.move_to_end(window)

    # -- giving back -------------------------------------------------------------------------

    def give(self, kind: str, size: int, close: Callable[[], object] | None = None) -> None:
        """Unmap something with ``close``, if that is still to be done, and take it off the account.

        Called on whatever thread drops the last reference, inside a garbage collection too. So it
        never waits: while somebody holds the account, who may be this very thread in the middle
        of mapping, it is only noted down. A ``close`` that returns False had nothing to do.
        """
        self._returned.append((kind, size, close))
        self._tidy()

    @property
    def held(self) -> bool:
        """Whether somebody holds the account, so that this is no moment to unmap anything."""
        return self._lock.locked()

    def _tidy(self) -> None:
        while self._returned and self._lock.acquire(blocking=False):
            try:
                self._drain()
            finally:
                self._lock.release()

    def _drain(self) -> None:
        while self._returned:
            kind, size, close = self._returned.popleft()
            try:
                if close is not None and close() is False:
                    continue
            except Error as e:  # whoever happens to tidy up here is not to blame
                warnings.warn(f"unmapping {size} bytes failed: {e}", ResourceWarning, stacklevel=2)
            self._held[kind] -= size

    def forget(self, window: Reclaimable) -> None:
        """A window mapped on demand is gone. The caller holds the account."""
        self._kept.pop(window, None)

    # -- telling -----------------------------------------------------------------------------

    def _use(self) -> ApertureUse:
        held = {kind: self._held[kind] for kind in _WORDS}
        return ApertureUse(self.device.id, self.budget, **held, peak=self._peak)

    def use(self) -> ApertureUse:
        """What is held now."""
        self._tidy()
        return self._use()


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
_accounts_lock = threading.Lock()


def account(device: Device) -> Account:
    """The account of a device, opened on first use."""
    found = _accounts.get(device)
    if found is None:
        with _accounts_lock:
            found = _accounts.setdefault(device, Account(device))
    return found


def use() -> list[ApertureUse]:
    """What this process holds of the aperture of each device that it used."""
    return [a.use() for a in _accounts.values()]


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
    found = account(device)
    with found:
        found.budget = size
        if size is not None:
            while sum(found._held.values()) > size and found._reclaim_one():
                pass


def _after_fork_in_child() -> None:
    global _accounts_lock
    _accounts_lock = threading.Lock()
    _accounts.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
