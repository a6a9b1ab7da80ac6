"""Calls from processes without CUDA, through a lane that a service shares."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time

import pytest
from other_process import Other, held
from waiting import LONG, until

import gpudirect as gd
from gpudirect.service._attached import AttachedService

SOURCE = """
struct Two { float x, y; };
__device__ double mix(int a, float b, double c, long long d) { return a + b + c + d; }
__device__ unsigned char small(unsigned char a, signed char b, bool c) { return a + b + c; }
__device__ void put(float *to, int n, float v) { for (int i = 0; to && i < n; i++) to[i] = v; }
__device__ float both(Two t) { return t.x + 10 * t.y; }
__device__ int checked(int n) { gd_require(n >= 0, 0); gd_assert(n < 100, 0); return n; }
__device__ int last(int n, int *p) { p[1] = 1; while (*(volatile int *)p == 0) { } return n; }
"""
NAMES = ["mix", "small", "put", "both", "checked", "last"]


@pytest.fixture
def other():
    found = Other()
    yield found
    found.end()


@pytest.fixture
def service():
    with gd.Service(SOURCE, NAMES, lanes=3, slots=8) as svc:
        yield svc


def test_a_process_without_cuda_calls(service, other):
    token = service.share_lane(1)
    assert "a lane of process" in repr(token) and token.secret not in repr(token)
    other.attach(token, "svc")
    assert other("svc.mix(1, 2.5, 3.25, 1 << 40)") == 1 + 2.5 + 3.25 + (1 << 40)
    assert other("svc.call('small', 250, -3, True)") == 248
    assert other("svc['mix'](1, 2, 3, 4)") == 10
    assert other("svc.submit('mix', 1, 2, 3, 4).result(30)") == 10
    assert other("svc.both(__import__('struct').pack('<2f', 1, 2))") == 21
    assert other("[m for m in ('numpy', 'cuda') if m in sys.modules]") == []
    assert other("sorted(svc.functions)") == sorted(NAMES) and other("svc.pid") == os.getpid()
    assert service.mix(1, 2, 3, 4) == 10  # the others lanes are the owner's as before


def test_more_calls_than_slots_beside_the_owners_own(service, other):
    other.attach(service.share_lane(1), "svc")
    other.send("[svc.mix(i, 0, 0, 0) for i in range(500)]")
    own = [service.mix(i, 0, 0, 0) for i in range(500)]
    assert other.hear() == own == list(range(500))
    other.send("[f.result(60) for f in [svc.submit('mix', i, 0, 0, 0) for i in range(30)]]")
    assert other.hear() == list(range(30))


def test_it_stores_where_attached_arrays_are(service, other):
    with gd.zeros(8, shareable=True) as a:
        other.attach(service.share_lane(0), "svc")
        other.attach(a.share("rw"), "a")
        assert other("svc.put(a, 8, 7.0)") is None and (a.read() == 7).all()
        assert other("svc.put(None, 8, 7.0)") is None
        assert other("[svc.put(a, 8, float(i)) for i in range(9)] and a.read()[3].item()") == 8


def test_a_call_wakes_a_nap(service, other):
    other.attach(service.share_lane(2), "svc")
    for _ in range(5):
        until(lambda: service.info.state in ("napping", "parked") or not service.device.emulated)
        assert other("svc.mix(1, 2, 3, 4)") == 10


@pytest.mark.parametrize(("call", "words"), [
    ("svc.mix(1, 2)", "ArgumentError: mix takes 4 argument"),
    ("svc.mix('x', 1, 1, 1)", "DTypeError: mix: 'x' does not fit"),
    ("svc.mix(1 << 31, 1, 1, 1)", "DTypeError"), ("svc.small(-1, 0, False)", "DTypeError"),
    ("svc.put([1], 1, 1.0)", "DTypeError: put: [1] does not fit"), ("svc.both(b'abc')", "DTypeError"),
    ("svc.nothing()", "AttributeError: the service has no function 'nothing'"),
    ("svc.call('nothing')", "KernelNotFoundError"), ("svc.call()", "TypeError"),
    ("svc.call('mix', 1, 1, 1, 1, lane=1)", "ArgumentError: lane is 1"),
    ("svc.call('mix', 1, 1, 1, 1, timeout=-1)", "ArgumentError: timeout is -1"),
    ("svc.checked(-1)", "RefusedArgumentError: checked refused"),
    ("svc.checked(100)", "DeviceAssertionError: checked: the assertion"),
    ("type(svc)()", "ArgumentError: attached services are made by"),
])  # fmt: skip
def test_wrong_calls(service, other, call, words):
    other.attach(service.share_lane(0), "svc")
    assert other(call).startswith(words), other(call)
    assert other("svc.checked(5)") == 5


def test_one_process_at_a_time(service, other):
    token = service.share_lane(1)
    other.attach(token, "svc")
    with pytest.raises(gd.ServiceError, match=f"process {other.process.pid} is attached to lane 1"):
        service.share_lane(1)
    with pytest.raises(gd.SharingError, match="used already"):
        gd.attach(token)
    with pytest.raises(gd.ArgumentError, match="lane 1 is lent already"):
        service.call("mix", 1, 2, 3, 4, lane=1)
    with pytest.raises(gd.ArgumentError, match="lent already"):
        service.lend(1)
    other("svc.mix(1, 2, 3, 4)")
    other("svc.close()")
    assert other("svc.mix(1, 2, 3, 4)").startswith("ClosedError")
    until(lambda: service.share_lane(1) if _free(service, 1) else None)


def _free(service, lane):
    return not service._resident.shared[lane].peers


def test_a_token_that_nobody_used_is_replaced(service):
    old, new = service.share_lane(1), service.share_lane(1)
    with pytest.raises(gd.SharingError, match="never shared"):
        gd.attach(old)
    with gd.attach(new) as svc:
        assert svc.mix(1, 2, 3, 4) == 10


@pytest.mark.parametrize("lane", [3, -1, None, 1.5, "1"])
def test_no_such_lane(service, lane):
    with pytest.raises(gd.ArgumentError, match="lane is"):
        service.share_lane(lane)


def test_a_service_that_does_not_run():
    svc = gd.Service(SOURCE, NAMES)
    with pytest.raises(gd.ServiceError, match="takes no calls"):
        svc.share_lane(0)
    with svc:
        token = svc.share_lane(0)
    with pytest.raises(gd.ServiceError, match="takes no calls"):
        svc.share_lane(0)
    with pytest.raises(gd.SharingError, match="closed the array, or never|closed it, or never"):
        gd.attach(token)


def test_whoever_calls_is_killed_and_the_next_goes_on(service):
    for turn in range(4):
        caller = Other()
        caller.attach(service.share_lane(1), "svc")
        caller.send("!while True: svc.mix(1, 2, 3, 4); svc.submit('mix', 1, 2, 3, 4)")
        time.sleep(0.05 * turn)
        caller.process.kill()
        caller.process.wait(LONG)
        until(lambda: _free(service, 1))
        token = None
        while token is None:
            try:
                token = service.share_lane(1)
            except gd.ServiceError as e:
                assert "still running" in str(e)
        with gd.attach(token) as svc:
            assert [svc.mix(i, 0, 0, 0) for i in range(20)] == list(range(20))
        until(lambda: _free(service, 1))
    assert service.mix(1, 2, 3, 4) == 10


def test_the_owner_stops_while_a_call_waits(other):
    with gd.zeros(2, "i4", shareable=True) as flag:
        svc = gd.Service(SOURCE, NAMES, lanes=2).start()
        other.attach(svc.share_lane(1), "svc")
        other.attach(flag.share("rw"), "flag")
        other.send("svc.last(1, flag)")
        until(lambda: flag.host[1])  # it runs, and waits
        stopper = threading.Thread(target=svc.stop)
        stopper.start()
        until(lambda: svc._stopping)
        flag.write([1])  # the function ends, and so does the service
        stopper.join(LONG)
        said = other.hear()
        assert said == 1 or "closed it" in said or "stopped" in said
        assert other("svc.mix(1, 2, 3, 4)").startswith("SharingError")
        assert other("svc.owner_lives") is False
        with svc:  # started again: other memory, other tokens
            other.attach(svc.share_lane(1), "svc")
            assert other("svc.mix(1, 2, 3, 4)") == 10


OWNER = f"""
import sys, gpudirect as gd
svc = gd.Service({SOURCE!r}, {NAMES!r}, lanes=2).start()
flag = gd.zeros(2, "i4", shareable=True)
print(svc.share_lane(1), flush=True)
print(flag.share("rw"), flush=True)
sys.stdin.read()
"""


def test_the_owner_is_killed_while_a_call_waits():
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             text=True)  # fmt: skip
    try:
        svc = gd.attach(owner.stdout.readline().strip())
        flag = gd.attach(owner.stdout.readline().strip())
        assert svc.mix(1, 2, 3, 4) == 10


        def kill():
            until(lambda: flag.host[1])
            owner.kill()

        threading.Thread(target=kill).start()
        with pytest.raises(gd.SharingError, match=f"process {owner.pid}, its owner, has ended"):
            svc.last(1, flag, timeout=LONG)
        assert not svc.owner_lives and "has ended" in repr(svc)
        svc.close()
        flag.close()
    finally:
        owner.kill()
        owner.communicate()


def test_a_fork_of_who_is_attached(service):
    with gd.attach(service.share_lane(1)) as svc:
        svc.mix(1, 2, 3, 4)
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                said = repr(svc.mix(1, 2, 3, 4))
            except BaseException as e:
                said = type(e).__name__
            os.write(write, said.encode())
            os._exit(0)
        os.close(write)
        with open(read) as f:
            assert f.read() == "ForkError"
        os.waitpid(pid, 0)
        assert svc.mix(1, 2, 3, 4) == 10


def test_threads_of_one_process_share_the_lane(service):
    with gd.attach(service.share_lane(1)) as svc:
        failed = []

        def work(base):
            try:
                assert [svc.mix(base + i, 0, 0, 0) for i in range(50)] == [base + i for i in range(50)]
            except BaseException as e:
                failed.append(e)

        threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(4)]
        [t.start() for t in threads]
        [t.join(LONG) for t in threads]
        assert not failed


def test_replies_cannot_be_written(service):
    with gd.attach(service.share_lane(1)):
        maps = [line.split() for line in open("/proc/self/maps") if "memfd" in line]
        assert any(m[1] == "r--s" for m in maps)


def test_a_lanes_token_is_no_arrays(service):
    token = service.share_lane(1)
    with pytest.raises(gd.ArgumentError, match=r"use gpudirect\.attach"):
        gd.sharing.attach(token)
    with gd.attach(token) as svc:
        assert isinstance(svc, AttachedService)


def test_nothing_is_left_behind(service):
    def once():
        with gd.attach(service.share_lane(1)) as svc:
            svc.mix(1, 2, 3, 4)
        gd.attach(_next(service)).mix(1, 2, 3, 4)  # dropped
        gc.collect()
        until(lambda: _free(service, 1))

    once()
    before = held()
    for _ in range(10):
        once()
    until(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))


def _next(service):
    until(lambda: _free(service, 1))
    return service.share_lane(1)
