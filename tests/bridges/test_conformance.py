"""What every (device, bridge) pair must do. The same suite on the emulated device and on a GPU."""

from __future__ import annotations

import gc
import io
import itertools
import signal
import socket
import threading

import numpy as np
import pytest

RANDOM = np.random.default_rng(20)


def data(n: int) -> np.ndarray:
    return RANDOM.integers(0, 256, n, np.uint8)


# -- data goes both ways ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 64, 255, 4096, 4097, 65536, 1 << 20, (5 << 20) + 13])
@pytest.mark.parametrize("into", ["map", "dma"])
@pytest.mark.parametrize("out", ["map", "dma"])
def test_every_path_in_meets_every_path_out(gd, size, into, out):
    with gd.empty(size, "u1") as a:
        want = data(size)
        a.write(want, via=into)
        assert np.array_equal(a.read(via=out), want)


def test_plain_stores_through_the_view_arrive(gd):
    with gd.empty((37, 53), "f4") as a:
        want = RANDOM.random((37, 53), np.float32)
        a.host[:] = want
        a.host[5, 7] = 42
        a.flush()
        want[5, 7] = 42
        assert np.array_equal(a.read(via="dma"), want)


def test_unaligned_offsets_simply_work(gd):
    with gd.zeros(8192, "u1") as a:
        want = np.zeros(8192, np.uint8)
        for offset in (0, 1, 3, 63, 64, 65, 4095, 4097):
            for size in (1, 2, 7, 63, 64, 65, 129):
                piece = data(size)
                a.write(piece, offset)
                want[offset : offset + size] = piece
        assert np.array_equal(a.read(via="dma"), want)
        for offset, size in ((1, 7), (63, 130), (4095, 3)):
            seen = a.read(start=offset, count=size, via="map")
            assert np.array_equal(seen, want[offset : offset + size])


def test_neighbours_are_not_disturbed(gd):
    arrays = [gd.full(300, i, "u1") for i in range(20)]
    arrays[7].write(data(300))
    for i, a in enumerate(arrays):
        if i != 7:
            assert np.all(a.read() == i)


def test_a_large_array_is_mapped_from_end_to_end(gd):
    size = 48 << 20
    with gd.empty(size, "u1") as a:
        for offset in (0, size // 3 + 1, size - 4096):
            want = data(4096)
            a.write(want, offset)
            assert np.array_equal(a.read(start=offset, count=4096, via="dma"), want)


# -- addresses -------------------------------------------------------------------------------


def test_memory_of_ours_has_one_address_on_both_sides(gd, pair):
    with gd.empty(1000) as small, gd.empty(3 << 20, "u1") as large:
        for a in (small, large):
            assert a.unified == (pair[1] != "gdrdrv")
            assert (a.ptr == a.host_ptr) == a.unified
            assert a.host.__array_interface__["data"][0] == a.host_ptr


def test_pages_cover_exactly_the_array(gd, pair):
    with gd.empty(5 << 20, "u1") as a:
        part = a[70_001:-9]
        runs = part.pages
        assert runs[0].device_address == part.ptr
        assert sum(r.size for r in runs) == part.nbytes
        for before, after in itertools.pairwise(runs):
            assert before.device_address + before.size == after.device_address
        for run in runs:
            assert run.emulated == (pair[1] == "emulated")
            if run.bus_address is not None and run.bus_address:
                assert run.bus_address % 4096 == run.device_address % 4096


def test_an_address_is_left_reserved_when_the_mapping_goes(gd, pair, program):
    """Whatever is unmapped must not become a hole that the next mmap falls into."""
    if pair[1] == "gdrdrv":
        pytest.skip("GDRCopy chooses addresses itself; nothing of CUDA's is replaced")
    run = program(
        """
        import gpudirect as gd
        from gpudirect import bridges
        device = gd.device()
        memory = device.allocate(2 << 20)
        mapping = bridges.choose(device).map(memory, 0, memory.size, at=memory.ptr)
        mapping.close()
        line = next(l for l in open("/proc/self/maps")
                    if int(l.split("-")[0], 16) <= memory.ptr < int(l.split("-")[1].split()[0], 16))
        print(line.split()[1])
        memory.free()
        """
    )
    assert run.stdout.strip() == "---p", run.stderr


def test_pointers_stored_in_the_data_work_on_both_sides(gd):
    with gd.empty(10, [("next", "u8"), ("value", "i4"), ("pad", "i4")]) as a, gd.zeros(2, "i4") as r:
        a.host["value"] = np.arange(10)
        a.host["next"][:-1] = a.ptr + 16 * np.arange(1, 10, dtype="u8")
        a.host["next"][-1] = 0
        walk = gd.kernel(
            "struct N { N *next; int value; };"
            "__global__ void walk(N *n, int *r) { for (; n; n = n->next) r[0]++, r[1] += n->value; }",
            "walk",
        )
        walk[1, 1](a, r)
        assert r.read().tolist() == [10, 45]


# -- kernels run on it -----------------------------------------------------------------------

SCALE = """
__global__ void scale(float *a, int n, float f)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        a[i] *= f;
}
"""


def test_a_kernel_sees_what_the_cpu_stored_before_the_launch(gd):
    scale = gd.kernel(SCALE, "scale")
    with gd.empty(10_000, "f4") as a:
        for round_ in range(5):
            want = RANDOM.random(10_000, np.float32)
            a.host[:] = want
            scale[79, 128](a, a.size, 2.0)
            assert np.array_equal(a.read(via="map"), want * 2), round_


def test_read_waits_for_the_kernel(gd):
    slow = gd.kernel(
        """
        __global__ void slow(int *a, int rounds)
        {
            unsigned x = 1;
            for (int i = 0; i < rounds; i++)
                x = x * 1664525u + 1013904223u;
            a[0] = x == 7 ? 2 : 1;
        }
        """,
        "slow",
    )
    with gd.zeros(1, "i4") as a:
        slow[1, 1](a, 20_000_000)
        assert a.read(via="map")[0] == 1


# -- views and lifetimes ---------------------------------------------------------------------


def test_slices_keep_both_sides(gd):
    with gd.empty((8, 6, 4), "i4") as a:
        want = np.arange(8 * 6 * 4, dtype="i4").reshape(8, 6, 4)
        a.write(want)
        for index in (3, (slice(None), 2), (slice(1, 7, 2), ..., 1), np.s_[::-1], (None, 4, 5, 3)):
            part = a[index]
            assert part.shape == want[index].shape
            assert np.array_equal(part.read(), want[index])
            assert part.host_ptr - part.ptr == a.host_ptr - a.ptr
        a[2:4, :, 1] = 7
        want[2:4, :, 1] = 7
        a[5].write(np.full((6, 4), 9, "i4"))
        want[5] = 9
        assert np.array_equal(a.read(), want)


def test_views_outlive_a_closed_array(gd):
    a = gd.zeros(5000, "u1")
    view, part, raw = a.host, a[10:20], a.buffer
    a.close()
    a.close()
    gc.collect()
    others = [gd.full(5000, 255, "u1") for _ in range(10)]
    view[0], raw[1] = 1, 2
    part.write(b"0123456789")
    assert bytes(view[:2]) == b"\1\2" and part.read().tobytes() == b"0123456789"
    assert all(np.all(o.read() == 255) for o in others)


@pytest.mark.parametrize(
    "use", ["host", "read", "write", "flush", "ptr_of_host", "slice", "pages", "buffer", "fill"]
)
def test_a_closed_array_says_so(gd, use):
    a = gd.empty(100, "u1")
    a.close()
    assert a.closed and "closed" in repr(a)
    with pytest.raises(gd.ClosedError, match="closed"):
        {
            "host": lambda: a.host,
            "read": a.read,
            "write": lambda: a.write(b"x"),
            "flush": a.flush,
            "ptr_of_host": lambda: a.host_ptr,
            "slice": lambda: a[1:2],
            "pages": lambda: a.pages,
            "buffer": lambda: a.buffer,
            "fill": lambda: a.fill(1),
        }[use]()


def test_memory_comes_back(gd, pair):
    device = gd.device()
    bridge = gd.empty(1).bridge
    gd.trim()
    free, aperture = device.memory()[0], device.aperture()
    for i in range(200):
        a = gd.empty(1 << (i % 23), "u1", pool=i % 2 == 0)
        a.write(b"x")
        a.close()
    gc.collect()
    gd.trim()
    assert device.memory()[0] >= free - (64 << 20 if pair[0] == "cuda" else 0)
    if pair[0] == "emulated":
        assert device.memory()[0] == free
    if aperture is not None:
        assert device.aperture().used == aperture.used, bridge


def test_memory_in_use_by_a_kernel_is_not_handed_out_again(gd):
    wait = gd.kernel(
        """
        __global__ void late(unsigned *a, unsigned n, unsigned rounds)
        {
            unsigned x = 1;
            for (unsigned i = 0; i < rounds; i++)
                x = x * 1664525u + 1013904223u;
            for (unsigned i = 0; i < n; i++)
                a[i] = 0xdead + (x == 7);
        }
        """,
        "late",
    )
    a = gd.empty(64, "u4")
    wait[1, 1](a, 64, 30_000_000)
    a.close()
    fresh = [gd.full(64, 5, "u4") for _ in range(20)]
    gd.synchronize()
    assert all(np.all(f.read() == 5) for f in fresh)


# -- the buffer protocol ---------------------------------------------------------------------


def test_a_file_is_read_straight_into_device_memory(gd, tmp_path):
    want = data(300_000)
    (tmp_path / "file").write_bytes(want.tobytes())
    with gd.empty(300_000, "u1") as a, open(tmp_path / "file", "rb", buffering=0) as file:
        view = a.buffer
        done = 0
        while n := file.readinto(view[done:]):
            done += n
        assert done == 300_000
        assert np.array_equal(a.read(via="dma"), want)
        assert io.BytesIO(want.tobytes()).readinto(a.buffer) == 300_000


def test_a_socket_delivers_straight_into_device_memory(gd):
    want = data(40_000)
    left, right = socket.socketpair()
    with left, right, gd.empty(40_000, "u1") as a:
        sender = threading.Thread(target=left.sendall, args=(want.tobytes(),))
        sender.start()
        view, done = a.buffer, 0
        while done < 40_000:
            done += right.recv_into(view[done:])
        sender.join()
        assert np.array_equal(a.read(via="dma"), want)


# -- foreign memory --------------------------------------------------------------------------


def test_registered_memory_has_an_address_of_its_own(gd):
    """A range that starts inside a block, at an odd address."""
    with gd.zeros(6 << 20, "u1") as owner:
        b = gd.register(owner.ptr + 100_001, 3_000_000)
        assert b.ptr == owner.ptr + 100_001 and b.host_ptr != b.ptr
        want = data(3_000_000)
        b.write(want)
        assert np.array_equal(owner.read()[100_001:3_100_001], want)
        assert sum(r.size for r in b.pages) == b.nbytes
        b.close()
        owner.write(b"still here", 5)
        assert owner.read(start=5, count=10).tobytes() == b"still here"


def test_registering_what_is_no_device_memory_says_so(gd):
    host = np.zeros(10_000_000, "u1")
    with pytest.raises(gd.Error, match="memory") as caught:
        gd.register(host.__array_interface__["data"][0], host.nbytes)
    assert isinstance(caught.value, (gd.NotMappableError, gd.DeviceError))
    with pytest.raises(gd.DTypeError, match="no device memory"):
        gd.register("tensor")
    with pytest.raises(gd.ArgumentError, match="nbytes"):
        gd.register(0x1000)
    for bad in ((0, 10), (4096, 0), (4096, -1), (4096, 1 << 63)):
        with pytest.raises(gd.ArgumentError):
            gd.register(*bad)


def test_registering_more_than_there_is_leaves_nothing_behind(gd):
    with gd.zeros(2 << 20, "u1", pool=False) as owner:
        with pytest.raises(gd.Error):
            gd.register(owner.ptr, 1 << 40)
        again = gd.register(owner.ptr, owner.nbytes)
        again.write(b"abc")
        assert owner.read(start=0, count=3).tobytes() == b"abc"


# -- processes and threads -------------------------------------------------------------------


def test_threads_allocate_write_and_free_at_once(gd):
    failures = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        try:
            for _ in range(60):
                size = int(random.integers(1, 200_000))
                want = random.integers(0, 256, size, np.uint8)
                a = gd.empty(size, "u1")
                a.write(want)
                if not np.array_equal(a.read(via="map"), want):
                    failures.append(f"{size} bytes differ")
        except BaseException as e:
            failures.append(repr(e))

    threads = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_a_child_does_not_inherit_device_memory(program):
    run = program(
        """
        import os, warnings
        import gpudirect as gd
        warnings.simplefilter("ignore")
        a = gd.zeros(100, "u1")
        child = os.fork()
        if child == 0:
            try:
                gd.synchronize(a.device)
            except gd.ForkError as e:
                assert "spawn" in str(e)
            else:
                os._exit(2)
            try:
                a.read()
            except gd.ForkError:
                pass
            else:
                os._exit(3)
            lines = open("/proc/self/maps").read().splitlines()
            for line in lines:
                low, high = (int(x, 16) for x in line.split()[0].split("-"))
                if low <= a._piece.host < high and line.split()[1] != "---p":
                    os._exit(4)
            del a
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, status
        a.write(b"the parent goes on")
        assert a.read().tobytes().startswith(b"the parent goes on")
        print("fine")
        """
    )
    assert run.stdout == "fine\n", run.stderr


def test_exit_with_arrays_alive_is_quiet(program):
    run = program(
        """
        import gpudirect as gd
        keep = [gd.zeros(n, "u1") for n in (10, 1000, 5 << 20)]
        views = [a.host for a in keep]
        k = gd.kernel("__global__ void k(unsigned char *a) { a[0] = 1; }", "k")
        k[1, 1](keep[0])
        cycle = [keep]; cycle.append(cycle)
        print("end")
        """
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "end\n", "")


def test_a_killed_process_leaves_nothing_behind(gd, program):
    before = gd.device().aperture()
    run = program(
        """
        import os, signal
        import gpudirect as gd
        a = gd.zeros(32 << 20, "u1")
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    assert run.returncode == -signal.SIGKILL
    if before is not None:
        for _ in range(600):
            if gd.device().aperture().used <= before.used:
                break
            threading.Event().wait(0.1)
        assert gd.device().aperture().used <= before.used


def test_a_forced_bridge_that_cannot_work_says_why(gd, pair, program):
    wrong = "rm" if pair[0] == "emulated" else "emulated"
    with pytest.raises(gd.BridgeUnavailableError, match=wrong):
        gd.empty(10, bridge=wrong)
    with pytest.raises(gd.BridgeUnavailableError, match=wrong):
        gd.use(device=pair[0], bridge=wrong)
    with pytest.raises(gd.ArgumentError, match="there is no bridge"):
        gd.empty(10, bridge="teleport")
    gd.empty(10).write(b"fine")
    run = program("import gpudirect as gd; gd.empty(10)", GPUDIRECT_BRIDGE=wrong)
    assert f"BridgeUnavailableError: GPUDIRECT_BRIDGE={wrong} was asked for" in run.stderr


def test_the_demo_holds(gd, pair, capsys):
    from gpudirect import demo
    from gpudirect.cli._demo import Teller
    from gpudirect.cli._screen import Screen

    checks = demo.run(Teller(Screen()))
    assert len(checks) == 11 and all(c.held for c in checks), [c for c in checks if not c.held]
    shown = capsys.readouterr().out
    assert ("emulated device" in shown) == (pair[0] == "emulated")
    assert f"bridge {pair[1]}" in shown


def test_memory_freed_by_its_owner(gd):
    """An importing bridge keeps it alive; a pinning one loses it, and says so, without a crash."""
    device = gd.device()
    memory = device.allocate(4 << 20)
    b = gd.register(memory.ptr, memory.size)
    b.write(b"here", 70_000)
    revocable = b._piece.revocable
    memory.free()
    if not revocable:
        assert b.read(start=70_000, count=4, via="map").tobytes() == b"here"
        return
    for use in (
        lambda: b.write(b"gone"),
        lambda: b.write(b"gone", 3 << 20, via="map"),
        lambda: b.read(via="map"),
        lambda: b.read(start=5, count=1, via="map"),
        lambda: b[::7].write(np.zeros(-(-b.size // 7), "u1")),
        lambda: b.host,
    ):
        with pytest.raises(gd.RevokedError, match="revoked"):
            use()
    b.close()
    with gd.empty(100, "u1") as a:
        a.write(b"the next call works")
