"""Arrays, host views, windows, writers and scatters against NumPy, in random programs: every dtype
goes in both byte orders, mapped and not, and whatever one side refuses the other does as well."""

from __future__ import annotations

import os
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import gpudirect as gd

DTYPES = ["u1", "i2", ">i2", "u4", ">u4", "f4", ">f4", "f8", ">f8", "c8", ">c8", "?", "S3", "U2", ">U2",
          ">M8[s]", [("a", ">i2"), ("b", "f4")], [("a", "<i2"), ("b", ">f4")]]  # fmt: skip
pytestmark = pytest.mark.timeout(600)
STEPS = int(os.environ.get("GPUDIRECT_MODEL_EXAMPLES", "60"))
numbers = st.integers(0, 2**32 - 1)
SETTINGS = settings(
    max_examples=STEPS, stateful_step_count=25, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip


def values(dtype, shape, seed):
    """Random elements of a dtype that compare equal to themselves."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.names:
        made = np.zeros(shape, kind)
        for i, name in enumerate(kind.names):
            made[name] = values(kind[name], shape, seed + i + 1)
        return made
    whole = rng.integers(0, 100, shape)
    if kind.kind == "M":
        return whole.astype("M8[s]").astype(kind)
    return whole.astype(kind)


class Model(RuleBasedStateMachine):
    """One array and its twin in ordinary memory."""

    @initialize(dtype=st.sampled_from(DTYPES), mapped=st.booleans(), order=st.sampled_from("CF"),
                shape=st.lists(st.integers(0, 5), min_size=0, max_size=3), seed=numbers)  # fmt: skip
    def make(self, dtype, mapped, order, shape, seed):
        gd.use(device="emulated", bridge="emulated")
        self.whole = gd.empty(tuple(shape), dtype, mapped=mapped, order=order)
        self.want = np.array(values(dtype, tuple(shape), seed), order=order)
        self.whole.write(self.want)
        self.dtype, self.mapped = np.dtype(dtype), mapped
        self.a, self.twin = self.whole, self.want

    def teardown(self):
        if hasattr(self, "whole"):
            self.whole.close()
        gd.use()

    def swapped(self, array, swap):
        return array.astype(array.dtype.newbyteorder("S")) if swap else array

    # -- views ----------------------------------------------------------------------------------

    def part(self, data):
        """An index of a part of what is there, never of nothing but a scalar."""
        index = []
        for n in self.twin.shape:
            kind = data.draw(st.sampled_from(["all", "part", "step", "back", "one"]))
            if kind == "one" and n:
                index.append(data.draw(st.integers(-n, n - 1)))
            elif kind == "part":
                index.append(slice(data.draw(st.integers(-1, n)), data.draw(st.integers(0, n + 1))))
            else:
                index.append(slice(None, None, {"step": 2, "back": -1}.get(kind)))
        return (*index, ...)

    @rule(data=st.data())
    def cut(self, data):
        """Go on with a part."""
        index = self.part(data)
        self.a, self.twin = self.a[index], self.twin[index]

    @rule()
    def whole_again(self):
        self.a, self.twin = self.whole, self.want

    @rule()
    def transposed(self):
        self.a, self.twin = self.a.T, self.twin.T

    @precondition(lambda self: self.twin.flags.c_contiguous)
    @rule()
    def flat(self):
        self.a, self.twin = self.a.reshape(-1), self.twin.reshape(-1)

    # -- in ---------------------------------------------------------------------------------------

    def by(self, via, move):
        """Move data in the way asked for; DMA refuses what is not one piece."""
        try:
            move(via)
        except gd.ArgumentError as e:
            assert via == "dma" and not self.a.contiguous and "strides" in str(e)
            move(None)

    @rule(seed=numbers, swap=st.booleans(), via=st.sampled_from([None, "map", "dma"]))
    def write(self, seed, swap, via):
        data = values(self.dtype, self.twin.shape, seed)
        self.by(via, lambda way: self.a.write(self.swapped(data, swap), via=way))
        self.twin[...] = data

    @rule(seed=numbers, swap=st.booleans(), raw=st.booleans(), data=st.data())
    def write_part(self, seed, swap, raw, data):
        start = data.draw(st.integers(-1, self.twin.size + 1))
        count = data.draw(st.integers(0, self.twin.size + 1))
        new = values(self.dtype, (count,), seed)
        given = new.tobytes() if raw else self.swapped(new, swap)
        fits = 0 <= start and start + count <= self.twin.size
        whole = start == 0 and self.twin.shape == (count,)
        if fits and (self.twin.flags.c_contiguous or whole):
            self.a.write(given, start)
            self.twin.reshape(-1)[start : start + count] = new
        else:
            with pytest.raises(gd.ArgumentError):
                self.a.write(given, start)

    @rule(other=st.sampled_from(["u1", "i2", "f4", "f8", "c8", "?", "S2", "U3"]))
    def write_another_dtype(self, other):
        if np.can_cast(other, self.dtype, "equiv"):
            return
        with pytest.raises(gd.DTypeError):
            self.a.write(np.zeros(self.twin.shape, other))
        with pytest.raises(gd.DTypeError):
            self.a.read(np.zeros(self.twin.shape, other))

    @precondition(lambda self: self.dtype.kind in "iufc?")
    @rule(value=st.integers(0, 1))
    def fill(self, value):
        self.a.fill(value)
        self.twin.fill(value)

    @precondition(lambda self: self.twin.flags.c_contiguous)
    @rule(seed=numbers, swap=st.booleans(), each=st.integers(1, 2), data=st.data())
    def scatter(self, seed, swap, each, data):
        count = data.draw(st.integers(0, 4))
        high = self.twin.size + data.draw(st.integers(0, 1))
        places = data.draw(st.lists(st.integers(0, max(high - 1, 0)), min_size=count, max_size=count))
        items = values(self.dtype, (count, each), seed)
        if all(p + each <= self.twin.size for p in places):
            self.a.scatter(places, self.swapped(items, swap))
            for place, item in zip(places, items, strict=True):
                self.twin.reshape(-1)[place : place + each] = item
        else:
            with pytest.raises(gd.RangeError, match="nothing was stored"):
                self.a.scatter(places, self.swapped(items, swap))

    @precondition(lambda self: self.twin.flags.c_contiguous)
    @rule(seed=numbers, swap=st.booleans(), data=st.data())
    def scatter_pieces(self, seed, swap, data):
        pieces, taken = [], self.twin.reshape(-1)
        for i in range(data.draw(st.integers(0, 3))):
            start = data.draw(st.integers(0, self.twin.size))
            count = data.draw(st.integers(0, self.twin.size - start))
            piece = values(self.dtype, (count,), seed + i)
            pieces.append((start, self.swapped(piece, swap)))
            taken[start : start + count] = piece
        self.a.scatter(pieces)

    @precondition(lambda self: self.mapped)
    @rule(seed=numbers)
    def store_by_numpy(self, seed):
        data = values(self.dtype, self.twin.shape, seed)
        np.copyto(self.a.host, data)
        self.twin[...] = data
        if self.twin.size > 1:
            flipped = np.flip(self.a.host)
            flipped[...] = data
            np.flip(self.twin)[...] = data
        assert np.array_equal(self.a.host.fetch(), self.twin)

    @precondition(lambda self: self.mapped)
    @rule(seed=numbers, swap=st.booleans(), data=st.data())
    def host_view(self, seed, swap, data):
        """A part of the CPU's view: looked at, stored to, and a result of NumPy's."""
        index = self.part(data)
        view, twin = self.a.host[index], self.twin[index]
        assert view.dtype == twin.dtype and view.fetch().tobytes() == twin.tobytes()
        new = values(self.dtype, twin.shape, seed)
        view[...] = self.swapped(new, swap)
        twin[...] = new
        if self.dtype.kind in "iufc":
            view += 1
            np.subtract(view, self.swapped(new, swap), out=view)
            twin += 1
            np.subtract(twin, new, out=twin)
        assert view.fetch().tobytes() == twin.tobytes()

    # -- windows and writers ----------------------------------------------------------------------

    @precondition(lambda self: self.twin.flags.c_contiguous and self.twin.size)
    @rule(seed=numbers, swap=st.booleans(), data=st.data())
    def window(self, seed, swap, data):
        start = data.draw(st.integers(0, self.twin.size - 1))
        count = data.draw(st.integers(1, self.twin.size - start))
        flat = self.twin.reshape(-1)
        with self.a.window(start, count) as w:
            assert np.array_equal(w.read(), flat[start : start + count])
            new = values(self.dtype, (count,), seed)
            w.write(self.swapped(new, swap))
            flat[start : start + count] = new
            to = data.draw(st.integers(0, self.twin.size - count))
            w.move(to)
            w.host[...] = new[::-1]
            w.flush()
            flat[to : to + count] = new[::-1]
            assert (w.start, w.size) == (to, count)
            at = data.draw(st.integers(0, count - 1))
            w.write(self.swapped(new[at:], swap), at)
            flat[to + at : to + count] = new[at:]
            out = np.zeros(count - at, self.dtype.newbyteorder("S") if swap else self.dtype)
            assert np.array_equal(w.read(out, start=at, count=count - at), new[at:])

    @precondition(lambda self: self.twin.flags.c_contiguous)
    @rule(seed=numbers, data=st.data())
    def writer(self, seed, data):
        raw = self.twin.reshape(-1).view("u1")
        with self.a.writer() as file:
            at = data.draw(st.integers(0, raw.size))
            if self.dtype.kind in "?UM" or self.dtype.names:  # not every byte is a value
                at -= at % self.dtype.itemsize
                new = values(self.dtype, (2 * (raw.size - at) // self.dtype.itemsize,), seed)[::2]
            else:
                size = data.draw(st.integers(0, raw.size - at))
                new = np.random.default_rng(seed).integers(1, 50, size, "u1")
            file.seek(at)
            assert file.write(new) == new.nbytes and file.tell() == at + new.nbytes
        raw[at : at + new.nbytes] = new.copy().view("u1")

    # -- out --------------------------------------------------------------------------------------

    @rule(data=st.data(), swap=st.booleans())
    def read_part(self, data, swap):
        start = data.draw(st.integers(-1, self.twin.size + 1))
        count = data.draw(st.integers(0, self.twin.size + 1))
        fits = 0 <= start and start + count <= self.twin.size
        kind = self.dtype.newbyteorder("S") if swap else self.dtype
        out = np.zeros(count, kind)
        if fits and self.twin.flags.c_contiguous:
            want = self.twin.reshape(-1)[start : start + count]
            assert np.array_equal(self.a.read(start=start, count=count), want)
            assert self.a.read(out, start=start, count=count) is out and np.array_equal(out, want)
        else:
            with pytest.raises(gd.ArgumentError):
                self.a.read(out, start=start, count=count)

    @rule(swap=st.booleans(), via=st.sampled_from([None, "map", "dma"]), spread=st.booleans())
    def read_into(self, swap, via, spread):
        kind = self.dtype.newbyteorder("S") if swap else self.dtype
        out = np.zeros((*self.twin.shape, 2), kind)[..., 0] if spread else np.zeros(self.twin.shape, kind)
        self.by(via, lambda way: self.a.read(out, via=way))
        assert np.array_equal(out, self.twin)

    @precondition(lambda self: self.twin.flags.c_contiguous and self.twin.size)
    @rule(data=st.data(), swap=st.booleans(), via=st.sampled_from([None, "map", "dma"]))
    def gather(self, data, swap, via):
        size = self.twin.size
        places = np.array(data.draw(st.lists(st.integers(-size, size - 1), max_size=6)), int)
        places = places.reshape(2, -1) if places.size % 2 == 0 else places
        want = self.twin.reshape(-1)[places]
        out = np.zeros(places.shape, self.dtype.newbyteorder("S") if swap else self.dtype)
        assert np.array_equal(self.a.gather(places, via=via if self.mapped else None), want)
        assert self.a.gather(places, out) is out and np.array_equal(out, want)

    @invariant()
    def they_are_the_same(self):
        if not hasattr(self, "whole"):
            return
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for seen in (self.a.read(), np.asarray(self.a)):
                assert seen.dtype == self.twin.dtype and seen.shape == self.twin.shape
                assert seen.tobytes() == self.twin.tobytes()
            assert self.whole.read().tobytes() == self.want.tobytes()


TestModel = Model.TestCase
TestModel.settings = SETTINGS
