"""``slices``: calls of a service that makes way for others, and what others wait for beside it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

import gpudirect as gd

from ..devices import Device
from .doorbell import LIFETIME, MAIN, SOURCE, timed_calls
from .measure import Figure, figure
from .others import current
from .progress import Tell, silent

NAME = "slices"
NOTE = ("A service's kernel ends after each slice and its next launch goes on; without calls nothing of it is "
        "on the device until the next call wakes it. Calls are timed from C; waiting for the device is a "
        "cuCtxSynchronize while nothing else is queued.")  # fmt: skip
SLICE = 1e-3  # seconds
NAP_AFTER = 1e-3
PARK_AFTER = 3e-3
ROUNDS = 4  # of each kind of service, in turn


def _service(device: Device, **options: Any) -> gd.Service:
    return gd.Service(SOURCE, ["f56"], device=device, lifetime=LIFETIME, **options)


def _in_turn(device: Device, count: int) -> list[Figure]:
    """One launch for ever and slices, one after the other, again and again."""
    kinds: dict[str, dict[str, Any]] = {
        "one launch": {"slice": None}, "relayed": {"slice": SLICE, "nap_after": None},
    }  # fmt: skip
    times: dict[str, list[np.ndarray[Any, Any]]] = {kind: [] for kind in kinds}
    for _ in range(ROUNDS):
        for kind, options in kinds.items():
            with _service(device, **options) as service:
                lane = service.lend(0)
                timed_calls(service, lane, MAIN, 1000)
                times[kind].append(timed_calls(service, lane, MAIN, count))
    return [
        figure(NAME, f"call {MAIN}, {kind}: C", MAIN, np.concatenate(found), group="slices")
        for kind, found in times.items()
    ]


def _asleep(service: gd.Service, state: str = "napping") -> None:
    end = time.monotonic() + 10
    while service.info.state != state:
        if time.monotonic() > end:
            raise gd.Error(f"bench {NAME}: a service without calls was not {state} within 10 s")


def _naps(device: Device, count: int) -> list[Figure]:
    """The first call after a nap, at any moment of a slice, and the one that follows it at once."""
    draw = np.random.default_rng(1)
    first, second = np.empty(count), np.empty(count)
    with _service(device, slice=SLICE, nap_after=NAP_AFTER) as service:
        lane = service.lend(0)  # so it is never parked
        for i in range(count):
            _asleep(service)
            time.sleep(draw.uniform(0, 1.5 * SLICE))
            first[i], second[i] = timed_calls(service, lane, MAIN, 2)
    return [
        figure(NAME, f"call {MAIN}, first after a nap: C", MAIN, first, group="slices"),
        figure(NAME, f"call {MAIN}, second after a nap: C", MAIN, second, group="slices"),
    ]


def _parked(device: Device, count: int) -> list[Figure]:
    """The first call of a service of which nothing was queued. From Python: a lent lane is never parked."""
    times = np.empty(count)
    with _service(device, slice=SLICE, nap_after=NAP_AFTER, park_after=PARK_AFTER) as service:
        for i in range(count):
            _asleep(service, "parked")
            start = time.perf_counter_ns()
            service.call("f56", *range(7))
            times[i] = time.perf_counter_ns() - start
    return [figure(NAME, f"call {MAIN}, first after parking: Python", MAIN, times, group="slices")]


def _waiting(device: Device, count: int) -> list[Figure]:
    """What whoever waits for the whole device waits for."""
    if device.emulated:
        return []  # no other library waits for it
    from cuda.bindings import driver

    def wait() -> np.ndarray[Any, Any]:
        times = np.empty(count)
        with current(device):
            for i in range(count):
                start = time.perf_counter_ns()
                driver.cuCtxSynchronize()
                times[i] = time.perf_counter_ns() - start
                time.sleep(1e-4 * (i % 7))
        return times

    found = {"no service": wait()}
    with _service(device, slice=SLICE, nap_after=None) as service:
        service.call("f56", *range(7))
        found["an awake service"] = wait()
    with _service(device, slice=SLICE, nap_after=NAP_AFTER, park_after=None) as service:
        _asleep(service)
        found["a napping service"] = wait()
    with _service(device, slice=SLICE, nap_after=NAP_AFTER, park_after=PARK_AFTER) as service:
        _asleep(service, "parked")
        found["a parked service"] = wait()
    return [figure(NAME, f"wait for the device beside {who}", 0, t, group="waiting")
            for who, t in found.items()]  # fmt: skip


def run(device: Device, quick: bool = False, tell: Tell = silent) -> list[Figure]:
    """Figures of calls across slices and naps, and of waiting for the device."""
    tell("calls", 0, 4)
    found = _in_turn(device, 200 if quick else 50_000)
    tell("naps", 1, 4)
    found += _naps(device, 5 if quick else 1000)
    tell("parking", 2, 4)
    found += _parked(device, 5 if quick else 200)
    tell("waiting for the device", 3, 4)
    return found + _waiting(device, 20 if quick else 200)
