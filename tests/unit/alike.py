"""For tests of one copy made in several ways: the same result, and limits that choose the way."""

from __future__ import annotations

from contextlib import contextmanager

import gpudirect as gd
from gpudirect._transfer import paths
from gpudirect.limits import Limits


def same(found, wanted):
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    assert found.tobytes() == wanted.tobytes()


@contextmanager
def in_force(a: gd.Array, **changed):
    choice = paths.of(a.device, a._open().bridge)
    before = choice.limits
    choice.limits = Limits(**{**before.as_dict(), **changed})
    try:
        yield
    finally:
        choice.limits = before
