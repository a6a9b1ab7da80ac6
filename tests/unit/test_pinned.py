"""``gd.pinned``: a NumPy array for NumPy, and memory of the device's for kernels and services."""

from __future__ import annotations

import gc
import pickle

import numpy as np
import pytest
from waiting import HOLD

import gpudirect as gd
from gpudirect._keeper import keeper, patient
from gpudirect._pinned import heap

TWICE = """
__global__ void twice(float *to, const float *from, int n)
{
    for (int i = 0; i < n; i++)
        to[i] = 2 * from[i];
}
"""


@pytest.fixture(autouse=True)
def emulated():
    gd.use(device="emulated")
    yield
    gd.synchronize()
    gd.use()


def test_kernels_read_and_write_it():
    a, b = gd.pinned((2, 6)), gd.pinned(12)
    a[:] = np.arange(12).reshape(2, 6)
    b[:] = 0
    gd.kernel(TWICE, "twice")[1, 1](b, a[1:], 6)
    gd.synchronize()
    assert b.tolist() == [12, 14, 16, 18, 20, 22, 0, 0, 0, 0, 0, 0]
    assert a.ptr == a.__array_interface__["data"][0] and a[1:].ptr == a.ptr + 24


def test_services_take_it():
    x = gd.pinned(3)
    x[:] = 1, 2, 3
    with gd.Service("__device__ float at(const float *x, int i) { return x[i]; }", ["at"]) as svc:
        assert svc.call("at", x, 2) == 3
        with pytest.raises(gd.DTypeError, match="its elements are f8"):
            svc.call("at", gd.pinned(3, "f8"), 2)


def test_copies_take_it():
    x = gd.pinned(100)
    x[:] = np.arange(100)
    with gd.empty(100) as a:
        for via in ("map", "dma", None):
            a.write(x, via=via)
            y = gd.pinned(100)
            assert a.read(y, via=via) is y and (y == x).all()
        assert (gd.asarray(x).read() == x).all()


@pytest.mark.parametrize("wrong, why", [
    (lambda: gd.pinned(3, "i4"), "its elements are i4"),
    (lambda: gd.pinned(3)[[0, 1]], "ordinary memory"),
    (lambda: np.zeros(3, "f4"), "CPU memory"),
])  # fmt: skip
def test_what_a_kernel_cannot_take_is_named(wrong, why):
    with pytest.raises(gd.DTypeError, match=why):
        gd.kernel(TWICE, "twice")[1, 1](wrong(), gd.pinned(3), 3)


def test_numpy_makes_ordinary_arrays_of_it():
    a = gd.pinned(4)
    a[:] = 1, 2, 3, 4
    for made in (a + 1, np.sqrt(a), a.copy(), a.sum(), pickle.loads(pickle.dumps(a))):
        assert not isinstance(made, gd.PinnedArray)
    assert np.add(a, 1, out=a) is a and a.tolist() == [2, 3, 4, 5]
    assert isinstance(a[1:], gd.PinnedArray) and isinstance(a.reshape(2, 2), gd.PinnedArray)


@pytest.mark.parametrize("shape, dtype", [((), "f4"), (0, "f8"), ((3, 0), "u1"), ((2, 3), ">i2"),
                                          (5, [("x", "f4"), ("y", "i8")])])  # fmt: skip
def test_shapes_and_dtypes(shape, dtype):
    a = gd.pinned(shape, dtype)
    assert a.shape == np.empty(shape).shape and a.dtype == np.dtype(dtype)
    assert gd.pinned(3).dtype == np.float32


@pytest.mark.parametrize("shape, dtype, error", [
    (-1, "f4", gd.ArgumentError), ("x", "f4", gd.ArgumentError), (3, "O", gd.DTypeError),
])  # fmt: skip
def test_bad_input(shape, dtype, error):
    with pytest.raises(error):
        gd.pinned(shape, dtype)


def test_its_memory_goes_back_and_not_too_early():
    device = gd.device()
    gc.collect()
    gd.trim()
    free = device.memory()[0]
    with gd.zeros(1, "u4") as go:
        spin = HOLD + "__global__ void spin(volatile unsigned *go, float *out) { hold(go); *out = 7; }"
        kernel, stream, c = gd.kernel(spin, "spin"), gd.stream(), gd.pinned(10)
        c[:] = 0
        view, ptr = c[:1], c.ptr
        kernel[1, 1, stream](go, c)
        del c
        others = [gd.pinned(10) for _ in range(20)]
        assert ptr not in [o.ptr for o in others]
        go.host[0] = 1
        go.flush()
        stream.synchronize()
        assert view[0] == 7
        del view, others, kernel, stream
    large = gd.pinned(100 << 20, "u1")
    del large
    gc.collect()
    gd.trim()
    keeper.settle()
    patient.settle()
    assert heap(device).statistics().reserved == 0 and device.memory()[0] == free
