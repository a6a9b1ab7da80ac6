"""For tests of one copy made in several ways: the same result, and limits that choose the way."""

from __future__ import annotations

from contextlib import contextmanager

import gpudirect as gd
from gpudirect._transfer import paths
from gpudirect.courier import _worker
from gpudirect.limits import Limits


def same(found, wanted):
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    assert found.tobytes() == wanted.tobytes()


def never_in_python(monkeypatch, *names):
    """What comes from C to these methods of Array is a failure."""

    def came(*given, **how):
        raise AssertionError(f"this is not for Python: {given[1:]}, {how}")

    for name in names:
        monkeypatch.setattr(gd.Array, name, came)


@contextmanager
def awake_courier(monkeypatch):
    monkeypatch.setattr(_worker, "NAP_AFTER", None)  # however slow this machine is
    with gd.Courier() as c:
        yield c


@contextmanager
def in_force(a: gd.Array, **changed):
    choice = paths.of(a.device, a._open().bridge)
    before = choice.limits
    choice.limits = Limits(**{**before.as_dict(), **changed})
    try:
        yield
    finally:
        choice.limits = before
