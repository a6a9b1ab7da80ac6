"""Whatever a user gets wrong: the right exception, and the next call works."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import gpudirect as gd


@pytest.fixture(autouse=True)
def emulated():
    gd.use(device="emulated", bridge=None)
    yield
    with gd.empty(100, "u1") as a:  # the next call works
        a.write(b"fine")
        assert a.read(start=0, count=4).tobytes() == b"fine"
    gd.use()


@pytest.mark.parametrize("shape", [-1, (3, -1), 2.5, "x", (2, "y"), None])
def test_a_wrong_shape(shape):
    with pytest.raises(gd.ArgumentError, match="shape|extent"):
        gd.empty(shape)


@pytest.mark.parametrize("shape", [1 << 62, (1 << 40, 1 << 40), (10**30,)])
def test_a_size_that_overflows(shape):
    with pytest.raises((gd.ArgumentError, gd.OutOfMemoryError), match="bytes"):
        gd.empty(shape, "f8")


@pytest.mark.parametrize("shape", [0, (0,), (5, 0, 3)])
def test_an_array_of_no_elements_works(shape):
    with gd.empty(shape) as a:
        assert a.nbytes == 0 and a.read().size == 0 and a.host.size == 0
        a.write(b"")
        a.flush()
        a.fill(3)
        assert a.buffer.nbytes == 0 and a.pages == []
        with pytest.raises(gd.RangeError):
            a.write(b"1234")


@pytest.mark.parametrize(
    "dtype", [object, [("a", "O")], "nonsense", "S0", "V0", ("i4", (3,)), 17, [("a",)]]
)
def test_a_dtype_that_cannot_be(dtype):
    with pytest.raises(gd.DTypeError):
        gd.empty(3, dtype)
    with pytest.raises(gd.DTypeError):
        gd.asarray(np.array([object()]))


@pytest.mark.parametrize("dtype", ["?", "i1", "f2", "c16", "S7", "U3", "V5", "M8[us]", ">i4",
                                   [("x", "f4"), ("y", "u1", (3,)), ("z", [("p", "u8")])]])  # fmt: skip
def test_every_other_dtype_goes_in_and_comes_out(dtype):
    kind = np.dtype(dtype)
    raw = np.random.default_rng(1).integers(1, 2, 12 * kind.itemsize, np.uint8)
    want = np.frombuffer(raw.tobytes(), kind).reshape(3, 4)
    with gd.empty((3, 4), kind) as a:
        a.write(want)
        assert a.read().tobytes() == want.tobytes()
        a.host[1] = want[0]
        assert a[1].read().tobytes() == want[0].tobytes()
        assert a.host.dtype == kind and a.read().dtype == kind


@pytest.mark.parametrize("offset", [-1, 97, 100, 1 << 70])
def test_writing_outside(offset):
    with gd.zeros(100, "u1") as a:
        with pytest.raises(gd.RangeError, match="do not fit"):
            a.write(b"1234", offset)
        assert not a.read().any(), "nothing was written"


@pytest.mark.parametrize(("offset", "nbytes"), [(-1, 4), (98, 4), (0, 101), (101, 0), (0, -1)])
def test_reading_outside(offset, nbytes):
    with gd.zeros(100, "u1") as a, pytest.raises(gd.RangeError, match="not inside"):
        a.read(start=offset, count=nbytes)


def test_an_index_outside():
    with gd.zeros((4, 5)) as a:
        for index in (4, (0, 5), (-5,), (0, 0, 0)):
            with pytest.raises(gd.RangeError):
                a[index]
        for index in ([1, 2], np.array([True]), 1.5, "field", True):
            with pytest.raises(gd.DTypeError):
                a[index]
        with pytest.raises(gd.ArgumentError):
            a.reshape(7, 3)
        with pytest.raises(gd.DTypeError):
            a.view("V7")


def test_data_of_another_dtype_is_not_reinterpreted_silently():
    with gd.zeros(10, "f4") as a:
        with pytest.raises(gd.DTypeError, match="astype"):
            a.write(np.arange(10, dtype="i4"))
        with pytest.raises(gd.DTypeError, match="astype"):
            a.write(np.arange(5, dtype="f8"))
        with pytest.raises(gd.DTypeError, match="view"):
            a.write(np.arange(10, dtype="f4").view("u1"))
        a.write(np.arange(10, dtype="f4").tobytes())
        a.write([1.5, 2.5], 1)
        assert a.read().tolist() == [0, 1.5, 2.5, 3, 4, 5, 6, 7, 8, 9]
        with pytest.raises(gd.DTypeError):
            a.write(["word"])
        with pytest.raises(gd.DTypeError):
            a.write(object())
        with pytest.raises(gd.DTypeError, match="whole number"):
            a.write(b"1234", 1.5)


def test_sources_of_every_layout():
    with gd.zeros((6, 8), "i4") as a:
        big = np.arange(6 * 8 * 4, dtype="i4").reshape(6, 8, 4)
        for source in (big[..., 1], big[::-1, :, 2], np.asfortranarray(big[..., 0]),
                       np.broadcast_to(np.int32(7), (6, 8))):  # fmt: skip
            a.write(source)
            assert np.array_equal(a.read(), source)
        frozen = big[..., 3].copy()
        frozen.flags.writeable = False
        a.write(frozen)
        assert np.array_equal(a.read(), frozen)
        a.write(a.host[::-1].copy())
        with gd.asarray(frozen) as b:
            a.write(b)  # array to array
            assert np.array_equal(a.read(), frozen)


def test_overlapping_source_and_destination():
    with gd.asarray(np.arange(1000, dtype="u1").repeat(4)) as a:
        want = a.read()
        a.write(a.host[:2000], 1000)
        want[1000:3000] = want[:2000].copy()
        assert np.array_equal(a.read(), want)


def test_an_out_that_does_not_fit():
    with gd.zeros((4, 4)) as a:
        for out in (np.empty(3), np.empty((4, 8), "f4"), np.frombuffer(bytes(64), "f4"),
                    np.empty((2, 8), "f4"), bytearray(60), bytes(64)):  # fmt: skip
            with pytest.raises(gd.ArgumentError, match="out must"):
                a.read(out)
        out = np.empty((4, 4), "f4")
        assert a.read(out) is out


def test_a_path_that_does_not_exist():
    with gd.zeros(10) as a:
        with pytest.raises(gd.ArgumentError, match="via"):
            a.read(via="teleport")
        with pytest.raises(gd.ArgumentError, match="via"):
            a.write(b"1234", via="carrier pigeon")


def test_arrays_are_made_by_functions_only():
    with pytest.raises(gd.ArgumentError, match="empty"):
        gd.Array(3)


@pytest.mark.parametrize("name", ["emulated:7", "cuda:0", "GPU-none", "0000:99:00.0", "emulated:-1"])
def test_a_device_that_does_not_exist(name):
    if name.startswith("cuda") and gd.devices.cuda_reason() is None:
        pytest.skip("there is a GPU here")
    with pytest.raises(gd.DeviceNotFoundError, match="no|there"):
        gd.empty(3, device=name)
    with pytest.raises(gd.DeviceNotFoundError):
        gd.use(device=name)


def test_device_memory_exhausted():
    free, total = gd.device().memory()
    with pytest.raises(gd.OutOfMemoryError, match=rf"{total}.*trim"):
        gd.empty(total + 1, "u1", mapped=False)
    assert gd.device().memory() == (free, total) or gd.device().memory()[0] > free


def test_bar1_exhausted_says_who_holds_it():
    gd.use(device="emulated", bridge="emulated")  # whose aperture is small
    gd.trim()
    arrays = []
    with pytest.raises(gd.ApertureError, match="this process, emulated:0 through emulated"):
        for _ in range(100):
            arrays.append(gd.empty(32 << 20, "u1"))
    assert 0 < len(arrays) < 9
    free = gd.device().memory()[0]
    with pytest.raises(gd.ApertureError):
        gd.empty(64 << 20, "u1")
    assert gd.device().memory()[0] == free, "the failed call took nothing"
    unmapped = gd.empty(32 << 20, "u1", mapped=False)
    unmapped.write(b"by DMA", 5, via="dma")
    assert unmapped.read(start=5, count=6).tobytes() == b"by DMA"
    with pytest.raises(gd.NotMappableError, match="mapped=False"):
        _ = unmapped.host
    del arrays


def test_room_is_made_of_what_the_pool_keeps():
    gd.use(device="emulated", bridge="emulated")
    gd.trim()
    for size in (20, 40, 60, 100, 130):
        for _ in range(3):
            gd.empty(size << 20, "u1").close()
    gd.trim()
    assert gd.device().aperture().used == sum(
        s.mapped for s in gd.statistics() if s.device == "emulated:0" and s.bridge == "emulated"
    )


def test_views_that_outlive_everything(recwarn):
    views = []
    for i in range(50):
        a = gd.full(1000, i, "u1")
        views.append((a.host, a[5:10], a.buffer))
        a.close()
        del a
    for i, (view, part, raw) in enumerate(views):
        assert int(view[3]) == i and part.read()[0] == i and raw[999] == i
    assert not recwarn.list


def test_numpy_reads_of_a_view_are_fetched_in_bulk():
    with gd.empty((50, 60), "f8") as a:
        want = np.random.default_rng(5).random((50, 60))
        h = a.host
        h[:] = want
        assert np.array_equal(h + 1, want + 1) and type(h + 1) is np.ndarray
        assert np.array_equal(h[:, ::7] * 2, want[:, ::7] * 2)
        assert np.isclose(np.sum(h), want.sum()) and np.isclose(h.mean(), want.mean())
        assert np.array_equal(np.concatenate([h, h]), np.concatenate([want, want]))
        assert h.copy().tobytes() == h.tobytes() == want.tobytes()
        h += 1
        assert type(h) is gd.HostView and np.array_equal(a.read(), want + 1)
        np.multiply(want, 3, out=h)
        assert np.array_equal(a.read(), want * 3)
        np.copyto(h, want)
        assert np.array_equal(a.read(), want)
        assert "Array.read" in repr(h)
        import pickle

        assert np.array_equal(pickle.loads(pickle.dumps(h)), want)


def test_dlpack_and_numpy_share_the_memory():
    a = gd.asarray(np.arange(12, dtype="i4").reshape(3, 4))
    b = np.from_dlpack(a)
    assert np.array_equal(b, a.read()) and b.__array_interface__["data"][0] == a.host_ptr
    a.host[0, 0] = 99
    assert b[0, 0] == 99
    part = np.from_dlpack(a[:, 1:3])
    assert part.shape == (3, 2) and part[0, 0] == 1
    a.close()
    assert b[0, 0] == 99
    capsule = gd.asarray([1, 2, 3]).__dlpack__()
    del capsule  # nobody took it
    with pytest.raises(AttributeError, match="emulated"):
        _ = gd.zeros(3).__cuda_array_interface__
    with pytest.raises(gd.DTypeError):
        gd.zeros(3, "M8[s]").__dlpack__()


def test_emulation_is_told():
    a = gd.zeros(3, bridge="emulated")
    assert "emulated" in repr(a) and "emulated" in repr(a.device) and a.pages[0].emulated
    assert a.device.facts()["emulated"] is True


@pytest.mark.parametrize("text", ["64M", "64 MiB", "67108864", "0x10", "", "lots", "-3"])
def test_sizes_from_the_environment(text, monkeypatch):
    from gpudirect.config import env_size

    monkeypatch.setenv("GPUDIRECT_POOL", text)
    if text in ("0x10", "lots", "-3"):
        with pytest.raises(gd.ArgumentError, match="GPUDIRECT_POOL"):
            env_size("GPUDIRECT_POOL", 5)
    else:
        assert env_size("GPUDIRECT_POOL", 5) == (5 if not text else 64 << 20)


def test_a_source_that_another_thread_frees_is_copied_whole_or_not_at_all():
    """The buffer is held while it is copied: clearing it meanwhile is refused to that thread."""
    size, refused = 4 << 20, 0
    with gd.zeros(size, "u1") as a:
        for value in range(1, 21):
            source = bytearray([value]) * size
            done = threading.Event()

            def free(source=source, done=done):
                nonlocal refused
                while not done.is_set():
                    try:
                        source.clear()
                        return
                    except BufferError:
                        refused += 1

            thread = threading.Thread(target=free)
            thread.start()
            a.write(source)
            done.set()
            thread.join()
            seen = a.read()
            assert seen.min() == seen.max() <= value


def test_what_cannot_be_read_into_says_why():
    with gd.full(8, 7, "u1") as a:
        frozen = np.zeros(8, "u1")
        frozen.flags.writeable = False
        for out, why in ((frozen, "is read-only"), (memoryview(bytearray(16))[::2], "contiguous"),
                         (np.zeros(7, "u1"), r"it has \(7,\)"), (bytes(8), "read-only"),
                         (bytearray(7), "has 7 bytes"), (3, "is a int")):  # fmt: skip
            with pytest.raises(gd.ArgumentError, match=why):
                a.read(out)
        spread = np.zeros((8, 2), "u1")
        assert a.read(spread[:, 0]).base is spread and (spread == [7, 0]).all()
        plain = bytearray(8)
        a.read(plain)
        assert plain == b"\7" * 8


def test_a_scatter_of_no_list():
    with gd.zeros(8, "u1") as a, pytest.raises(gd.ArgumentError, match="give a list"):
        a.scatter(5)


def test_limits_that_are_none():
    with pytest.raises(gd.ArgumentError, match="Limits"):
        gd.set_limits(3)
