"""Hostile values everywhere in the public API: what is raised is an error of ours, and nothing crashes.

What a value's own methods raise (``Evil``), and that a call has no such argument, is Python's to tell.
"""

from __future__ import annotations

import inspect
import io
import os
import random
import traceback

import numpy as np
import pytest

import gpudirect as gd

ROUNDS = int(os.environ.get("GPUDIRECT_HOSTILE_ROUNDS", "25"))
"""Calls of each function with several of the values at once."""

CODE = """
__global__ void f(float *a, int n, double d, unsigned char b) {}
"""
LEFT_OUT = {"calibrate", "Device", "Event", "Future", "HostView", "PinnedArray", "Stream", "Service"}
"""Seconds long, not made by calling them, or NumPy's own constructors. Service is below."""
OPERATORS = (
    "__getitem__", "__setitem__", "__contains__", "__eq__", "__lt__", "__array__", "__dlpack__", "__add__",
    "__call__", "__sub__", "__iter__", "__len__", "__bool__", "__int__", "__float__", "__index__",
)  # fmt: skip
OBJECTS = {
    "array": lambda: gd.zeros((3, 4)),
    "bytes": lambda: gd.zeros(5, "u1"),
    "unmapped": lambda: gd.zeros(5, "u1", mapped=False),
    "strided": lambda: gd.zeros((3, 4)).T,
    "scalar": lambda: gd.zeros(()),
    "window": lambda: gd.zeros(50).window(3, 10),
    "writer": lambda: gd.zeros(50, "u1").writer(),
    "stream": gd.stream,
    "event": lambda: gd.stream().record(),
    "doorbell": gd.Doorbell,
    "kernel": lambda: gd.kernel(CODE, "f"),
}
NOT_CALLED = {
    "doorbell": {"wait"},  # for ever
    "stream": {"work"},  # for C
    # of io.RawIOBase: a writer is not read, and io says so in its own words
    "writer": {n for n in dir(io.RawIOBase) if n not in ("write", "seek", "tell", "close", "flush")},
}


class Evil:
    def __index__(self):
        raise ZeroDivisionError("evil")

    __int__ = __len__ = __float__ = __index__


class Plain:
    pass


def values():
    closed = gd.zeros(3)
    closed.close()
    array = gd.zeros(4)
    return [
        None, True, False, Ellipsis, 0, 1, -1, 3, 1.5, float("nan"), float("inf"), 1j, 10**30, -(10**30), 2**63,
        b"", b"abc", "", "x", "a\0b", "\ud800", "f4", "O", "emulated", "emulated:99", "dma", (), [], {}, set(),
        (1, 2, 3), [1, [2, 3]], (-1,), (2**40, 2**40), {"a": 1}, range(3), slice(None), iter([1, 2]),
        bytearray(4), memoryview(b"1234"), Plain, Plain(), Evil(), object(), int, type, len, gd,
        np.array(3), np.array(3.5), np.array(np.nan), np.float32(2), np.int64(2), np.zeros(0),
        np.zeros((2, 2)), np.zeros(4, "f4"), np.full(4, np.nan), np.array(["a"]), np.array([object()]),
        np.datetime64("now"), np.ma.array([1, 2]), [("a", "O")], array, array.host, closed, gd.pinned(4),
        gd.stream(), gd.device(), gd.Limits(), gd.zeros(2, "i2"),
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def emulated():
    gd.use(device="emulated", bridge="emulated")
    yield
    gd.use(device="emulated", bridge="emulated")
    with gd.empty(100, "u1") as a:  # the next call works
        a.write(b"fine")
        assert a.read(start=0, count=4).tobytes() == b"fine"
    gd.use()


def attempt(what, function, *args, **kwargs):
    try:
        made = function(*args, **kwargs)
    except gd.Error:
        return
    except Exception as e:
        ours = any(os.sep + "gpudirect" + os.sep in f.filename and "tests" not in f.filename
                   for f in traceback.extract_tb(e.__traceback__))  # fmt: skip
        evil = isinstance(e, ZeroDivisionError)
        signature = isinstance(e, TypeError) and not ours and ("argument" in str(e) or "iterable" in str(e))
        if not evil and not signature:
            pytest.fail(f"{what}{args!r:.200}, {kwargs!r:.200}: {type(e).__name__}: {e}")
    else:
        if isinstance(made, (gd.Array, gd.Doorbell)):
            made.close()


def attack(what, function, seed):
    rng = random.Random(seed)
    hostile = values()
    for value in hostile:
        attempt(what, function, value)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    for _ in range(ROUNDS):
        args, kwargs = [], {}
        for p in parameters:
            if p.kind is p.VAR_POSITIONAL:
                args += rng.choices(hostile, k=rng.randrange(4)) if not kwargs else []
            elif p.kind is p.KEYWORD_ONLY:
                if p.default is p.empty or rng.random() < 0.4:
                    kwargs[p.name] = rng.choice(hostile)
            elif p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and not kwargs and (
                p.default is p.empty or rng.random() < 0.5
            ):
                args.append(rng.choice(hostile))
        attempt(what, function, *args, **kwargs)


PUBLIC = [
    name for name in gd.__all__
    if callable(getattr(gd, name)) and name not in LEFT_OUT
    and not (isinstance(getattr(gd, name), type) and issubclass(getattr(gd, name), BaseException))
]  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_every_function(name):
    attack(name, getattr(gd, name), 1)


@pytest.mark.parametrize("kind", OBJECTS)
def test_every_method(kind):
    made = OBJECTS[kind]
    names = {n for n in dir(made()) if not n.startswith("_")} - NOT_CALLED.get(kind, set())
    for name in sorted(names | set(OPERATORS)):
        thing = made()
        try:
            method = getattr(thing, name)
        except (AttributeError, gd.Error):
            continue
        if callable(method) and not isinstance(method, type):
            attack(f"{kind}.{name}", method, 2)


@pytest.mark.parametrize("seed", range(3))
def test_every_argument_of_a_launch(seed):
    rng, kernel = random.Random(seed), gd.kernel(CODE, "f")
    hostile = values()
    for _ in range(ROUNDS * 4):
        grid, block, stream, *arguments = rng.choices(hostile, k=7)
        attempt("launch", lambda g=grid, b=block, a=arguments: kernel[g, b](*a))
        attempt("launch", lambda s=stream, a=arguments: kernel[1, 1, s](gd.zeros(3), *a[:3]))
        attempt("launch", lambda a=arguments: kernel[a[0]])


def test_use_takes_what_every_call_takes():
    for device in (gd.device(), 0, "emulated:0", gd.device().uuid):
        gd.use(device="emulated")
        try:
            gd.use(device=device)
        except gd.Error:
            assert device == 0  # an ordinal names a GPU where there is one
            continue
        assert gd.device().id == gd.empty(1).device.id
        if device != 0:
            assert gd.device() is gd.devices.get("emulated:0")
    before = gd.device()
    for wrong in (1.5, b"emulated", (), "emulated:99"):
        with pytest.raises(gd.Error):
            gd.use(device=wrong)
        assert gd.device() is before
    with pytest.raises(gd.ArgumentError, match="bridge"):
        gd.use(bridge=np.zeros(3))
