"""The copy engine against what bytes() would do, with memory that ends where the copy does."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpudirect._native import ffi, lib
from gpudirect.bench import _native as bench

PAGE = 4096
LINE = 64
CANARY = 0xA5
ISAS = [ffi.string(lib.gd_isa_name(i)).decode() for i in range(lib.gd_isa_count())]
USABLE = [name for i, name in enumerate(ISAS) if lib.gd_isa_usable(i)]


class Walled:
    """Pages between two that cannot be accessed: one byte too far is a crash, not a surprise."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.base = int(lib.gd_reserve(0, size + 2 * PAGE, 0))
        assert self.base > 0
        self.start = self.base + PAGE
        assert lib.gd_map(self.start, size, 1, 1, -1, 0, 1) == self.start
        self.end = self.start + size
        self.bytes = np.frombuffer(ffi.buffer(ffi.cast("char *", self.start), size), np.uint8)

    def close(self) -> None:
        del self.bytes
        assert lib.gd_unmap(self.base, self.size + 2 * PAGE) == 0


@pytest.fixture(scope="module")
def walls() -> Iterator[tuple[Walled, Walled]]:
    """The mapping, and ordinary memory."""
    both = Walled(4 * PAGE), Walled(4 * PAGE)
    yield both
    for w in both:
        w.close()


@pytest.fixture(params=USABLE)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    assert lib.gd_isa_select(request.param.encode()) == 0
    yield request.param
    assert lib.gd_isa_select(ffi.NULL) == 0


def char(address: int):
    return ffi.cast("char *", address)


def noise(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, n, np.uint8)


def check_copy(walls: tuple[Walled, Walled], mapped: int, other: int, n: int, write: bool) -> None:
    """One copy at offsets into both; everything outside stays as it was."""
    there, here = walls
    source, target = (here, there) if write else (there, here)
    from_, to = (other, mapped) if write else (mapped, other)
    low, high = max(0, to - 2 * LINE), min(target.size, to + n + 2 * LINE)
    target.bytes[low:high] = CANARY
    expected = target.bytes[low:high].copy()
    expected[to - low : to - low + n] = source.bytes[from_ : from_ + n]
    if write:
        code = lib.gd_write(there.start + mapped, char(here.start + other), n, 0)
    else:
        code = lib.gd_read(char(here.start + other), there.start + mapped, n, 0)
    assert code == 0
    assert np.array_equal(target.bytes[low:high], expected), (mapped, other, n)


@pytest.mark.parametrize("write", [True, False], ids=["write", "read"])
def test_every_small_size_at_every_alignment_of_the_mapping(walls, isa, write):
    source = walls[1] if write else walls[0]
    source.bytes[:] = noise(source.size)
    for n in range(0, 261):
        for mapped in range(PAGE, PAGE + LINE):
            check_copy(walls, mapped, PAGE + (n * 7 + mapped) % LINE, n, write)


@pytest.mark.parametrize("write", [True, False], ids=["write", "read"])
def test_every_pair_of_alignments(walls, isa, write):
    source = walls[1] if write else walls[0]
    source.bytes[:] = noise(source.size, 2)
    for n in (1, 3, 15, 16, 17, 63, 64, 65, 127, 130, 511, 513, 700):
        for mapped in range(PAGE, PAGE + LINE, 1 if n < 200 else 5):
            for other in range(PAGE, PAGE + LINE, 3):
                check_copy(walls, mapped, other, n, write)


@pytest.mark.parametrize("write", [True, False], ids=["write", "read"])
def test_nothing_beyond_the_first_and_the_last_page(walls, isa, write):
    """Both sides against the wall in front of them, then against the one behind."""
    source = walls[1] if write else walls[0]
    source.bytes[:] = noise(source.size, 3)
    size = source.size
    sizes = [*range(0, 300), 511, 512, 513, 1000, 4095, 4096, 4097, 9999, size]
    for n in sizes:
        for skew in (0, 1, 5, 16, 31, 33, 63):
            room = min(size, n + skew)
            first, last = room - n, size - room
            for mapped, other in ((0, 0), (first, 0), (0, first), (size - n, size - n),
                                  (last, size - n), (size - n, last),
                                  (0, size - n), (size - n, 0)):  # fmt: skip
                check_copy(walls, mapped, other, n, write)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_size_and_place(walls, data):
    size = walls[0].size
    n = data.draw(st.integers(0, size), "n")
    mapped = data.draw(st.integers(0, size - n), "mapped")
    other = data.draw(st.integers(0, size - n), "other")
    write = data.draw(st.booleans(), "write")
    isa = data.draw(st.sampled_from(USABLE), "isa")
    source = walls[1] if write else walls[0]
    source.bytes[:] = noise(size, n)
    lib.gd_isa_select(isa.encode())
    try:
        check_copy(walls, mapped, other, n, write)
    finally:
        lib.gd_isa_select(ffi.NULL)


def test_fill_every_edge(walls, isa):
    there = walls[0]
    for n in (*range(0, 200), 1023, 1024, 1025, 3000):
        for at in (0, 1, 17, 63, 64, there.size - n):
            there.bytes[:] = CANARY
            assert lib.gd_fill(there.start + at, n & 0xFF, n, 0) == 0
            expected = np.full(there.size, CANARY, np.uint8)
            expected[at : at + n] = n & 0xFF
            assert np.array_equal(there.bytes, expected), (n, at)


@pytest.mark.parametrize("shift", [0, 1, 63, 64, 999])
def test_overlap_is_refused_and_nothing_moves(walls, shift):
    there = walls[0]
    there.bytes[:] = before = noise(there.size, 4)
    for a, b in ((0, shift), (shift, 0)):
        a, b = there.start + a, there.start + b
        assert lib.gd_write(a, char(b), 1000, 0) == -errno.EINVAL
        assert lib.gd_read(char(a), b, 1000, 0) == -errno.EINVAL
    assert np.array_equal(there.bytes, before)
    assert lib.gd_write(there.start, char(there.start + 1000), 1000, 0) == 0  # they only touch
    assert lib.gd_write(there.start, char(there.start), 0, 0) == 0


# ---- instructions ----


def test_the_instructions_have_one_fallback_and_refuse_what_is_not_there():
    assert ISAS[-1] == "plain" and "plain" in USABLE
    assert lib.gd_isa_select(b"mmx") == -errno.EINVAL
    for name in set(ISAS) - set(USABLE):
        assert lib.gd_isa_select(name.encode()) == -errno.ENOTSUP
    assert ffi.string(lib.gd_isa_selected()).decode() == USABLE[0]
    assert lib.gd_isa_name(-1) == ffi.NULL and lib.gd_isa_name(len(ISAS)) == ffi.NULL


# ---- strided ----


@st.composite
def geometries(draw):
    """A view of some array: shape, and strides of either sign with gaps, in any order."""
    itemsize = draw(st.sampled_from([1, 2, 3, 4, 8, 12, 16, 24, 64, 72]))
    shape = draw(st.lists(st.integers(1, 9), min_size=0, max_size=4))
    if draw(st.booleans()) and shape:
        shape[draw(st.integers(0, len(shape) - 1))] = draw(st.integers(1, 300))
    while np.prod(shape, dtype=int) * itemsize > 2048:
        shape[int(np.argmax(shape))] = max(1, max(shape) // 2)
    return itemsize, tuple(shape)


def strided(draw, base: np.ndarray, itemsize: int, shape: tuple[int, ...]) -> np.ndarray:
    """A view of `base` with this shape, elements of `itemsize` bytes, none of which overlap."""
    order = draw(st.permutations(range(len(shape))))
    strides, step = [0] * len(shape), itemsize
    for i in order:
        strides[i] = step + draw(st.sampled_from([0, 0, 1, 4, 52, 70]))
        step = strides[i] * shape[i]
    flips = [draw(st.booleans()) for _ in shape]
    start = sum((n - 1) * s for n, s, f in zip(shape, strides, flips, strict=True) if f)
    reach = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + itemsize
    start += draw(st.integers(0, max(0, min(130, base.size - reach))))
    signed = [-s if f else s for s, f in zip(strides, flips, strict=True)]
    return np.ndarray(shape, f"V{itemsize}", base.data, start, signed)


@pytest.fixture(scope="module")
def wide() -> Iterator[tuple[list[Walled], list[np.ndarray]]]:
    """Both sides, with room for every geometry, and what they hold at first."""
    sides = [Walled(256 * PAGE) for _ in range(2)]
    yield sides, [noise(w.size, i) for i, w in enumerate(sides)]
    for w in sides:
        w.close()


@given(st.data())
@settings(max_examples=300, deadline=None)
@pytest.mark.parametrize("write", [True, False], ids=["write", "read"])
def test_strided_copies_do_what_numpy_does(wide, write, data):
    sides, content = wide
    for side, at_first in zip(sides, content, strict=True):
        side.bytes[:] = at_first
    itemsize, shape = data.draw(geometries())
    mapped, other = (strided(data.draw, side.bytes, itemsize, shape) for side in sides)
    target, source = (mapped, other) if write else (other, mapped)
    base = sides[0 if write else 1].bytes
    copy = base.copy()
    expected = np.ndarray(shape, target.dtype, copy.data,
                          target.__array_interface__["data"][0] - base.ctypes.data,
                          target.strides)  # fmt: skip
    expected[...] = source
    flags = data.draw(st.sampled_from([0, lib.GD_GUARDED]))
    lib.gd_isa_select(data.draw(st.sampled_from(USABLE)).encode())
    try:
        assert nd(write, mapped, other, flags) == 0
    finally:
        lib.gd_isa_select(ffi.NULL)
    assert np.array_equal(base, copy)


def nd(write: bool, mapped: np.ndarray, other: np.ndarray, flags: int = 0) -> int:
    new = ffi.new
    m, o = (a.__array_interface__["data"][0] for a in (mapped, other))
    ms, os = new("int64_t[]", list(mapped.strides)), new("int64_t[]", list(other.strides))
    shape = new("int64_t[]", list(mapped.shape))
    if write:
        return lib.gd_write_nd(m, ms, char(o), os, shape, mapped.ndim, mapped.itemsize, flags)
    return lib.gd_read_nd(char(o), os, m, ms, shape, mapped.ndim, mapped.itemsize, flags)


@pytest.mark.parametrize("write", [True, False], ids=["write", "read"])
@pytest.mark.parametrize("way", ["transposed", "column", "every other", "reversed"])
def test_large_strided_copies(isa, write, way):
    """More than a block, so that blocks have to be joined."""
    a = np.arange(300 * 211, dtype="u4").reshape(300, 211)
    views = {"transposed": (a.T.copy(), a.T), "column": (a[:, :5].copy(), a[:, :5]),
             "every other": (a.copy()[:, ::2], a[:, ::2]),
             "reversed": (a.copy()[::-1], a[::-1, ::-1])}
    mapped, other = views[way]
    want = (other if write else mapped).copy()
    (mapped if write else other)[...] = 0
    assert nd(write, mapped, other) == 0
    assert np.array_equal(mapped if write else other, want)


@pytest.mark.parametrize("write", [True, False], ids=["write", "read"])
def test_strided_reads_and_writes_stay_inside_the_pages(isa, write):
    there = Walled(PAGE)
    for item in (1, 4, 12):
        for stride in (item, item + 1, 40, 64, 65, 200):
            count = (PAGE - item) // stride + 1
            reach = (count - 1) * stride + item
            for at in (0, PAGE - reach):
                mapped = np.ndarray(count, f"V{item}", there.bytes.data, at, stride)
                other = np.frombuffer(noise(count * item).tobytes(), f"V{item}").copy()
                want = (other if write else mapped).copy()
                assert nd(write, mapped, other) == 0
                assert np.array_equal(mapped if write else other, want)
                del mapped
    there.close()


@pytest.mark.parametrize("write", [True, False], ids=["write", "read"])
@pytest.mark.parametrize("item", [1, 2, 8])
@pytest.mark.parametrize("gap", [1, 2, 8])
def test_rows_with_a_small_gap_are_not_taken_for_dense(write, item, gap):
    for count in range(1, 12):
        wide = np.frombuffer(noise(9 * (count * item + gap)), np.uint8).copy()
        mapped = np.ndarray((9, count), f"V{item}", wide.data, 0, (count * item + gap, item))
        other = np.frombuffer(noise(9 * count * item, 7), f"V{item}").copy()
        other = other.reshape(count, 9).T
        expected = wide.copy()
        if write:
            np.ndarray(mapped.shape, mapped.dtype, expected.data, 0, mapped.strides)[...] = other
        want = (other if write else mapped).copy()
        assert nd(write, mapped, other) == 0
        assert np.array_equal(mapped if write else other, want)
        assert np.array_equal(wide, expected)


def test_strided_copies_refuse_nonsense():
    one, zero = ffi.new("int64_t[]", [1] * 65), ffi.new("int64_t[]", [0] * 65)
    buffer = ffi.new("char[]", 64)
    at = int(ffi.cast("uintptr_t", buffer))
    far = at + (1 << 20)

    def write(strides, shape, ndim, item=1, to=far):
        return lib.gd_write_nd(to, ffi.new("int64_t[]", strides), buffer,
                               ffi.new("int64_t[]", strides), ffi.new("int64_t[]", shape), ndim,
                               item, 0)  # fmt: skip

    assert write([1], [-1], 1) == -errno.EINVAL
    assert write([1 << 62], [1 << 62], 1) == -errno.EINVAL
    assert write([-(1 << 63)], [2], 1) == -errno.EINVAL
    assert write([1], [8], 1, to=at + 4) == -errno.EINVAL  # overlap
    assert lib.gd_write_nd(far, one, buffer, one, one, 65, 1, 0) == -errno.EINVAL
    assert lib.gd_write_nd(far, one, buffer, one, one, -1, 1, 0) == -errno.EINVAL
    assert write([1], [0], 1) == 0
    assert write([1, 1 << 40], [1 << 40, 0], 2) == 0  # empty, whatever the rest says
    assert lib.gd_write_nd(far, one, buffer, one, zero, 64, 1, 0) == 0
    assert write([1], [5], 1, item=0) == 0


def test_as_many_dimensions_as_numpy_has():
    source = np.arange(64, dtype="u2").reshape((1, 2) * 6 + (1,) * 52).T
    target = np.zeros(source.shape, "u2")
    assert source.ndim == lib.GD_MAX_DIMS
    assert nd(True, target, source) == 0
    assert np.array_equal(target, source)


# ---- scattered ----


@given(
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 300)), max_size=30),
    st.sampled_from(USABLE),
)
@settings(max_examples=300, deadline=None)
def test_scattered_pieces_land_in_order_or_not_at_all(walls, pieces, isa):
    there, here = walls
    here.bytes[:] = noise(here.size, 5)
    there.bytes[:] = CANARY
    expected = there.bytes.copy()
    lib.gd_isa_select(isa.encode())
    c = ffi.new("struct gd_piece[]", max(1, len(pieces)))
    inside = all(o + n <= PAGE for o, n in pieces)
    for i, (offset, n) in enumerate(pieces):
        c[i].offset, c[i].length, c[i].source = offset, n, here.start + i * 311
        if inside:
            expected[offset : offset + n] = here.bytes[i * 311 : i * 311 + n]
    code = lib.gd_scatter(there.start, PAGE, c, len(pieces), 0)
    lib.gd_isa_select(ffi.NULL)
    assert code == (0 if inside else -errno.ERANGE)
    assert np.array_equal(there.bytes, expected)


@given(st.sampled_from([1, 2, 3, 4, 8, 16, 60, 64, 100]), st.data())
@settings(max_examples=300, deadline=None)
def test_scattered_items(walls, itemsize, data):
    there, here = walls
    offsets = data.draw(st.lists(st.integers(-3, PAGE), max_size=40))
    if data.draw(st.booleans()):
        offsets = [min(max(o, 0), PAGE - itemsize) for o in offsets]
    here.bytes[:] = noise(here.size, 6)
    there.bytes[:] = CANARY
    expected = there.bytes.copy()
    inside = all(0 <= o <= PAGE - itemsize for o in offsets)
    if inside:
        for i, o in enumerate(offsets):
            expected[o : o + itemsize] = here.bytes[i * itemsize : (i + 1) * itemsize]
    code = lib.gd_scatter_items(there.start, PAGE, ffi.new("int64_t[]", offsets), len(offsets),
                                char(here.start), itemsize, 0)  # fmt: skip
    assert code == (0 if inside else -errno.ERANGE)
    assert np.array_equal(there.bytes, expected)


def test_scattering_refuses_what_cannot_be(walls):
    there = walls[0]
    there.bytes[:] = CANARY
    piece = ffi.new("struct gd_piece[]", 2)
    piece[0].offset, piece[0].length, piece[0].source = 0, 8, there.start + 2 * PAGE
    for offset, length in ((1 << 63, 8), (8, 1 << 63), ((1 << 64) - 4, 8), (0, PAGE + 1)):
        piece[1].offset, piece[1].length, piece[1].source = offset, length, there.start + 2 * PAGE
        assert lib.gd_scatter(there.start, PAGE, piece, 2, 0) == -errno.ERANGE
    piece[1].offset, piece[1].length, piece[1].source = 0, 8, there.start + 100
    assert lib.gd_scatter(there.start, PAGE, piece, 2, 0) == -errno.EINVAL
    offsets = ffi.new("int64_t[]", [0, 1])
    assert lib.gd_scatter_items(there.start, 64, offsets, 2, char(there.start + 100), 65, 0) == (
        -errno.ERANGE)  # fmt: skip
    assert lib.gd_scatter_items(there.start, PAGE, offsets, 2, char(there.start + 100), 8, 0) == (
        -errno.EINVAL)  # fmt: skip
    assert (there.bytes == CANARY).all()


# ---- the bare loops, which figures are held against ----


@pytest.mark.parametrize("kind", range(bench.lib.gd_bare_count()),
                         ids=lambda k: ffi.string(bench.lib.gd_bare_name(k)).decode())  # fmt: skip
def test_bare_loops_copy_too(walls, kind):
    name = ffi.string(bench.lib.gd_bare_name(kind)).decode()
    assert bench.lib.gd_bare_find(name.encode()) == kind
    if not bench.lib.gd_bare_usable(kind):
        assert bench.lib.gd_bare_run(kind, walls[0].start, char(walls[1].start), 64) == -errno.ENOTSUP
        return
    reads = bool(bench.lib.gd_bare_reads(kind))
    source, target = walls if reads else walls[::-1]
    moves = name.startswith(("store-", "load-"))
    sizes = (1, 63, 64, 65, 200, 1000, 4096) if moves else (4,)
    for n in sizes:
        for at in (0, 1, 40, 64) if moves else (0,):
            source.bytes[:] = noise(source.size, n)
            target.bytes[:] = CANARY
            assert bench.lib.gd_bare_run(kind, walls[0].start + at, char(walls[1].start + at), n) == 0
            expected = np.full(target.size, CANARY, np.uint8)
            if name not in ("fence", "guard", "nothing"):
                expected[at : at + n] = source.bytes[at : at + n]
            assert np.array_equal(target.bytes, expected), (name, n, at)
    ns = ffi.new("double[]", 3)
    assert bench.lib.gd_bare_time(kind, walls[0].start, char(walls[1].start), 64, 10, 3, ns) == 0
    assert all(t > 0 for t in ns)
    code = bench.lib.gd_bare_time_threads(kind, walls[0].start, char(walls[1].start), 9999, 3, ffi.NULL,
                                    0, 3, ns)  # fmt: skip
    bare = moves and "engine" not in name
    assert code == (0 if bare else -errno.EINVAL)
    if bare:
        assert np.array_equal(target.bytes[:9999], source.bytes[:9999])


def test_bare_loops_refuse_nonsense(walls):
    ns = ffi.new("double[]", 1)
    at, here = walls[0].start, char(walls[1].start)
    kind = bench.lib.gd_bare_find(b"store-memcpy")
    assert bench.lib.gd_bare_find(b"store-mmx") == -errno.EINVAL
    assert bench.lib.gd_bare_name(-1) == ffi.NULL
    assert bench.lib.gd_bare_run(bench.lib.gd_bare_count(), at, here, 1) == -errno.EINVAL
    assert bench.lib.gd_bare_time(kind, at, here, 1, 0, 1, ns) == -errno.EINVAL
    assert bench.lib.gd_bare_time_threads(kind, at, here, 1, 0, ffi.NULL, 0, 1, ns) == -errno.EINVAL
    assert bench.lib.gd_bare_time_threads(kind, at, here, 1, 65, ffi.NULL, 0, 1, ns) == -errno.EINVAL
    cpus = ffi.new("int[]", [1 << 20])
    assert bench.lib.gd_bare_time_threads(kind, at, here, 1, 2, cpus, 1, 1, ns) == -errno.EINVAL
