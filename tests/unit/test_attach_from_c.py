"""Attaching from C: a process without CUDA and without Python, linked to libgpudirect."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import json
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
from random import Random
from resource import RLIMIT_NOFILE, setrlimit

import numpy as np
import pytest
from c_programs import OtherInC, attach_commands, memory, sanitized_attach_commands
from waiting import LONG, until

import gpudirect as gd
from gpudirect.sharing import Token, _wire

SECOND = 1_000_000_000
SOURCE = """
__device__ double mix(int a, float b, double c, long long d) { return a + b + c + d; }
__device__ void put(float *to, int n, float v) { for (int i = 0; i < n; i++) to[i] = v; }
struct Big { int of[30]; };
__device__ int total(Big b) { int n = 0; for (int i = 0; i < 30; i++) n += b.of[i]; return n; }
__device__ int nothing() { return 5; }
__device__ int last(int n, const int *p) { while (*(const volatile int *)p == 0) { } return n; }
"""
NAMES = ["mix", "put", "total", "nothing", "last"]


@pytest.fixture
def other():
    found = OtherInC(attach_commands())
    yield found
    found.end()


@pytest.fixture
def array():
    with gd.zeros((4, 8), "f4", shareable=True) as a:
        yield a


@pytest.fixture
def service():
    with gd.Service(SOURCE, NAMES, lanes=2, slots=8) as svc:
        yield svc


def test_memory(array, other):
    assert other.attach(array.share("rw")) == (0, "")
    assert other("s 0") == (0, f"128 4 <f4 1 {os.getpid()} [4,8]")
    assert other(f"w 0 0 {bytes(range(128)).hex()}") == (0, "")
    assert bytes(array.read().view("u1").reshape(-1)) == bytes(range(128))
    array.write(np.float32([2.5]), 31)
    assert other("r 0 124 4") == (0, struct.pack("<f", 2.5).hex())
    assert array.peers == (other.pid,) and other("l 0") == (0, "")
    double = gd.kernel("extern __global__ void twice(float *a) { a[threadIdx.x] *= 2; }", "twice")
    other("w 0 0 " + np.full(32, 3, "f4").tobytes().hex())
    double[1, 32](array)
    gd.synchronize()
    assert other("r 0 0 8") == (0, np.full(2, 6, "f4").tobytes().hex())
    assert other("d 0") == (0, "")
    until(lambda: array.peers == ())


def test_a_part_at_an_offset_that_is_no_page(other):
    with gd.zeros(10_000, "u1", shareable=True) as whole:
        assert other.attach(whole[4100:9000].share("rw"))[0] == 0
        assert other("w 0 4899 ab") == (0, "") and other("w 0 0 cd") == (0, "")
        assert (whole.read()[[4100, 8999]] == [0xCD, 0xAB]).all() and whole.read().sum() == 0xCD + 0xAB


@pytest.mark.parametrize("dtype", ["u1", ">i4", "?", "S5", [("x", "<f4"), ("y", "<i8", (2,))], "c8", "V300"])
def test_dtypes(dtype, other):
    with gd.zeros((2, 3), dtype, shareable=True) as a:
        assert other.attach(a.share("rw"))[0] == 0
        assert other("s 0")[1] == f"{a.nbytes} {a.itemsize} {a.dtype.str} 1 {os.getpid()} [2,3]"


def test_bytes_outside(array, other):
    other.attach(array.share("rw"))
    for line in ("w 0 128 00", "w 0 127 0000", f"w 0 {2**64 - 1} 00", "r 0 129 0", f"r 0 1 {2**64 - 1}"):
        code, said = other(line)
        assert code == -errno.ERANGE and "an array of 128 bytes" in said, line
    assert other("w 0 128 ") == (0, "") and other("r 0 128 0") == (0, "")
    assert not array.read().any()


def test_read_only(array, other):
    array.fill(1)
    other.attach(array.share("r"))
    assert other("r 0 0 4") == (0, "0000803f")
    code, said = other("w 0 0 00")
    assert code == -errno.EACCES and "read-only" in said and "share(mode='rw')" in said
    assert other("g 0") == (-errno.EFAULT, "")  # the mapping itself
    assert (array.read() == 1).all()


def test_calls(service, other):
    token = service.share_lane(1)
    assert other.attach(token) == (0, "")
    said = other("s 0")[1]
    for function in ("mix:24", "put:16", "total:120", "nothing:0", "last:16"):
        assert f" {function}:" in said
    for i in range(30):  # more than there are slots
        block = struct.pack("<ifdq", i, 2.5, 3.25, 1 << 40).hex()
        status, value = other(f"c 0 mix {60 * SECOND} {block}")[1].split()
        found = struct.unpack("<d", int(value).to_bytes(8, "little"))[0]
        assert status == "0" and found == i + 5.75 + (1 << 40)
    assert other(f"c 0 nothing {60 * SECOND}") == (0, "0 5")
    big = struct.pack("<30i", *range(30)).hex()  # goes by reference
    assert other(f"c 0 total {60 * SECOND} {big}") == (0, f"0 {sum(range(30))}")
    assert service.mix(1, 2, 3, 4) == 10  # the other lane is the owner's
    with gd.zeros(8, shareable=True) as a:
        other.attach(a.share("r"), handle=1)
        assert other(f"c 0 put {60 * SECOND} {struct.pack('<Qif', a.ptr, 8, 7.0).hex()}") == (0, "0 0")
        assert (a.read() == 7).all()


def test_a_call_wakes_a_nap(service, other):
    other.attach(service.share_lane(1))
    for _ in range(3):
        until(lambda: service.info.state in ("napping", "parked") or not service.device.emulated)
        assert other(f"c 0 nothing {60 * SECOND}") == (0, "0 5")


@pytest.mark.parametrize(("call", "code", "words"), [
    ("c 0 mix 1000 00", errno.EMSGSIZE, "mix takes 24 bytes"),
    ("c 0 nothing 1000 " + "00" * 16, errno.EMSGSIZE, "takes 0 bytes"),
    ("c 0 none 1000", errno.ENOENT, "no function none"),
    ("w 0 0 00", errno.ENOTSUP, "no array"), ("r 0 0 1", errno.ENOTSUP, "no array"),
])  # fmt: skip
def test_wrong_calls(service, other, call, code, words):
    other.attach(service.share_lane(0))
    found, said = other(call)
    assert found == -code and words in said
    assert other(f"c 0 nothing {60 * SECOND}") == (0, "0 5")


def test_a_call_that_is_not_answered_in_time(service, other):
    with gd.zeros(1, "i4") as flag:
        other.attach(service.share_lane(1))
        block = struct.pack("<iiQ", 9, 0, flag.ptr).hex()
        code, said = other(f"c 0 last {SECOND // 100} {block}")
        assert code == -errno.ETIMEDOUT and "last did not answer in 0.01 s" in said
        code, said = other(f"c 0 nothing {60 * SECOND}")
        assert code == -errno.EBUSY and "gd_lane_take" in said
        flag.write([1])
        assert other(f"t 0 {60 * SECOND}") == (0, "0 9")
        assert other(f"c 0 nothing {60 * SECOND}") == (0, "0 5")


def test_the_lane_goes_on_after_a_killed_process(service):
    for _ in range(3):
        each = OtherInC(attach_commands())
        assert each.attach(service.share_lane(1))[0] == 0
        assert [each(f"c 0 nothing {60 * SECOND}") for _ in range(11)] == [(0, "0 5")] * 11
        each.end()
        until(lambda: not service._resident.shared[1].peers)


# -- tokens -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    "", "nonsense", "gpudirect-token-", "gpudirect-token-1", "gpudirect-token-1:a:b:c:d:e", "x" * 10_000,
    "gpudirect-token-1:::::", "gpudirect-token-x:a:ff:1:rw:1", "gpudirect-token-1:" + "s" * 108 + ":ff:1:rw:1",
    'gpudirect-token-1:a:"}:1:rw:1',
])  # fmt: skip
def test_what_is_no_token(text, other):
    code, said = other.attach(text)
    assert code == -errno.EINVAL and "this is no token" in said


def test_a_token_of_another_version(array, other):
    token = str(array.share("rw")).replace("gpudirect-token-1", "gpudirect-token-2")
    code, said = other.attach(token)
    assert code == -errno.EINVAL and "of version 2" in said and "install one version" in said
    with pytest.raises(gd.ArgumentError, match="of another version of gpudirect"):
        gd.attach(token)


def test_a_token_used_twice(array, other):
    token = array.share("rw")
    assert other.attach(token)[0] == 0
    code, said = other.attach(token, handle=1)
    assert code == -errno.EACCES and f"used already, by process {other.pid}" in said
    forged = Token(token.socket, secrets.token_hex(32), token.pid, "rw", 128)
    code, said = other.attach(forged, handle=1)
    assert code == -errno.EACCES and "never shared it with this token" in said


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user(array, other):
    token = array.share("rw")
    assert other("u 0") == (0, "")
    code, said = other.attach(token)
    assert code == -errno.EPERM and "not you (user 65534)" in said
    with gd.attach(token) as a:  # it was not used up
        assert a.mode == "rw"


# -- ends -------------------------------------------------------------------------------------------


def test_the_owner_closes_the_array(array, other):
    token = array.share("rw", uses=None)
    other.attach(token)
    array.close()
    until(lambda: other("l 0")[0] != 0)
    for line in ("l 0", "w 0 0 00", "r 0 0 1"):
        code, said = other(line)
        assert code == -errno.ESTALE and "closed it" in said
    assert other.attach(token, handle=1)[0] == -errno.EACCES
    assert other("d 0") == (0, "")


OWNER = """
import sys, gpudirect as gd
a = gd.full((4, 8), 3, shareable=True)
flag = gd.zeros(1, "i4")
svc = gd.Service(sys.argv[1], ["nothing", "last"], lanes=2)
svc.start()
print(a.share("rw", uses=None), svc.share_lane(1), flag.ptr, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def owner():
    process = subprocess.Popen([sys.executable, "-c", OWNER, SOURCE], stdin=subprocess.PIPE, text=True,
                               stdout=subprocess.PIPE)  # fmt: skip
    process.tokens = process.stdout.readline().split()
    yield process
    process.kill()
    process.wait(LONG)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_owner_dies(owner, other, end):
    array, lane, _ = owner.tokens
    assert other.attach(array)[0] == 0 and other.attach(lane, handle=1)[0] == 0
    assert other(f"c 1 nothing {60 * SECOND}") == (0, "0 5")
    owner.send_signal(end)
    owner.wait(LONG)
    until(lambda: other("l 0")[0] != 0)
    for line in ("w 0 0 00", f"c 1 nothing {60 * SECOND}", f"c 1 nothing {60 * SECOND}"):
        code, said = other(line)
        assert code == -errno.EPIPE and f"process {owner.pid}, its owner, has ended" in said, line
    code, said = other.attach(array, handle=2)
    assert code == -errno.ECONNREFUSED and "has ended" in said


def test_the_owner_dies_in_the_middle_of_a_call(owner, other):
    _, lane, flag = owner.tokens
    assert other.attach(lane)[0] == 0
    other.send(f"c 0 last -1 {struct.pack('<iiQ', 1, 0, int(flag)).hex()}")  # waits for ever
    threading.Timer(0.2, owner.kill).start()
    code, said = other.hear()
    assert code == -errno.EPIPE and "has ended" in said


def test_a_stopped_owner(owner, other):
    os.kill(owner.pid, signal.SIGSTOP)
    try:
        until(lambda: all(open(f"/proc/{owner.pid}/task/{t}/stat").read().rpartition(")")[2].split()[0] == "T"
                          for t in os.listdir(f"/proc/{owner.pid}/task")))  # fmt: skip
        code, said = other.attach(owner.tokens[0], timeout=SECOND // 10)
        assert code == -errno.ETIMEDOUT and "is it stopped" in said
        assert other.attach(owner.tokens[0], timeout=0)[0] == -errno.ETIMEDOUT
    finally:
        os.kill(owner.pid, signal.SIGCONT)
    assert other.attach(owner.tokens[0])[0] == 0


def test_a_child_of_fork(array, other):
    other.attach(array.share("rw"))
    assert other("f 0") == (0, "7")
    assert other("w 0 0 01") == (0, "") and array.peers == (other.pid,)  # its child's end was not its own


def test_nothing_is_left(array, other):
    def held():
        mappings = [line for line in open(f"/proc/{other.pid}/maps") if line.split()[1][3] == "s"]
        return len(os.listdir(f"/proc/{other.pid}/fd")), len(mappings)

    before, token = held(), array.share("rw", uses=None)
    with gd.Service(SOURCE, NAMES) as svc:
        for _ in range(5):
            assert other.attach(token)[0] == 0 and other.attach(svc.share_lane(0), handle=1)[0] == 0
            assert held() > before
            other("d 0"), other("d 1")
            until(lambda: not svc._resident.shared[0].peers)
    assert other.attach("nonsense")[0] != 0 and held() == before
    until(lambda: array.peers == ())


# -- an owner that is not ours -------------------------------------------------------------------------


@contextlib.contextmanager
def feigned(*packets, descriptors=()):
    """The token of an owner that sends these packets, whatever it is asked, and hangs up."""
    name = "gpudirect-" + secrets.token_hex(16)
    with _wire.opened() as listener:
        listener.bind("\0" + name)
        listener.listen(1)

        def serve():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    for packet in packets:
                        raw = packet if isinstance(packet, bytes) else json.dumps(packet).encode()
                        socket.send_fds(connection, [raw], descriptors)

        threading.Thread(target=serve, daemon=True).start()
        yield Token(name, secrets.token_hex(32), os.getpid(), "rw", 128)
    for fd in descriptors:
        os.close(fd)


GOOD = {"protocol": 1, "mode": "rw", "pid": 1, "emulated": True, "block": 0, "size": 4096, "offset": 0,
        "pci_address": "", "nbytes": 128, "shape": [32], "dtype": "<f4", "itemsize": 4, "descr": "<f4",
        "format": "f", "ptr": 65536}  # fmt: skip


def test_the_feigned_owner_is_taken_for_one(other):
    with feigned(GOOD, descriptors=(memory(),)) as token:
        assert other.attach(token) == (0, "")
        assert other("s 0") == (0, "128 4 <f4 1 1 [32]") and other("w 0 0 01") == (0, "")


@pytest.mark.parametrize(("fd", "words"), [
    (lambda: memory(seals=0), "not sealed"), (lambda: memory(seals=fcntl.F_SEAL_GROW), "not sealed"),
    (lambda: memory(64), "a file of 64 bytes, and 128 are asked"),
    (lambda: os.open(__file__, os.O_RDONLY), "not sealed"), (lambda: os.pipe()[0], "no memory"),
])  # fmt: skip
def test_memory_that_could_go_away(other, fd, words):
    """A store to a file that was made shorter ends the process."""
    with feigned(GOOD, descriptors=(fd(),)) as token:
        code, said = other.attach(token)
        assert code == -errno.EBADF and words in said
    with feigned(GOOD, descriptors=(fd(),)) as token, pytest.raises(gd.SharingError, match=words):
        gd.attach(token)


def test_another_version_answers(other):
    with feigned({**GOOD, "protocol": 2}, descriptors=(memory(),)) as token:
        code, said = other.attach(token)
    assert code == -errno.EPROTO and "speaks version 2" in said and "install one version" in said
    with (feigned({**GOOD, "protocol": 2}, descriptors=(memory(),)) as token,
          pytest.raises(gd.SharingError, match="speaks version 2")):  # fmt: skip
        gd.attach(token)


WHOLE = json.dumps(GOOD).encode()


@pytest.mark.parametrize("packet", [
    WHOLE[:-1], WHOLE[:40], WHOLE + b"}", b"{", b"[]", b"5", b"null", b"{}", b" ", b"\xff" * 100, b"[" * 60_000,
    b'{"a": [' * 100 + b"]}" * 100, b'{"protocol": 1}', b'{"protocol": 1e0}', b'{"protocol": -1}',
    b'{"protocol": 99999999999999999999999}', b'{"protocol": 1,}', b"{'protocol': 1}",
    {"mode": "w"}, {"mode": 5}, {"mode": "rwrwrwrwrw"}, {"pid": -1}, {"pid": 2**31}, {"emulated": 1},
    {"offset": 2**62}, {"offset": 4000}, {"offset": -1}, {"nbytes": 2**64 - 1}, {"size": 2**64},
    {"shape": 5}, {"shape": [1] * 65}, {"shape": [[1]]}, {"shape": [-1]}, {"dtype": None},
    {"itemsize": 2**32}, {"ptr": None}, {"ptr": 1.5}, {"mode": "call"},
    {"emulated": False, "pci_address": "../../../../etc"}, {"emulated": False, "pci_address": "0" * 32},
    {"emulated": False, "pci_address": 7},
], ids=lambda p: str(p)[:50])  # fmt: skip
def test_answers_that_are_none(other, packet):
    """Bytes as they are; or a good answer with members that are wrong."""
    with feigned(packet if isinstance(packet, bytes) else {**GOOD, **packet}, descriptors=(memory(),)) as token:
        code, said = other.attach(token)
    assert code == -errno.EPROTO and ("not understood" in said or "version" in said or "/proc" in said), said
    with feigned(GOOD, descriptors=(memory(),)) as token:
        assert other.attach(token) == (0, "")


def lane(**wrong):
    placed = {"block": 65536, "size": 8192, "pci_address": "", "offset": 0, "nbytes": 8192}
    return {"protocol": 1, "mode": "call", "pid": 1, "nbytes": 0, "emulated": True, "memory": placed,
            "wake": None, "host_size": 4096, "ring": [256, 0, 4096, 69632, 64, 1024, 1, 0], "slots": 8,
            "sent": 5, "in_packet": 56, "functions": [["f", 0, 8, "i", 4, [], "f"]], **wrong}  # fmt: skip


def test_the_feigned_lane_is_taken_for_one(other):
    with feigned(lane(), descriptors=(memory(), memory(8192))) as token:
        assert other.attach(token) == (0, "")
        assert other(f"c 0 f {60 * SECOND} {'00' * 8}")[0] == -errno.EPIPE  # it hung up


@pytest.mark.parametrize("wrong", [
    {"ring": [8192, 0, 4096, 0, 64, 1024, 1, 0]}, {"ring": [256, 4090, 4096, 0, 64, 1024, 1, 0]},
    {"ring": [256, 0, 8000, 0, 64, 1024, 1, 0]}, {"ring": [256, 0, 4096, 0, 64, 4090, 1, 0]},
    {"ring": [257, 0, 4096, 0, 64, 1024, 1, 0]}, {"ring": [256, 0, 4096, 0, 63, 1024, 1, 0]}, {"ring": [256]},
    {"ring": [2**63 - 1, 0, 4096, 0, 64, 1024, 1, 0]}, {"slots": 7}, {"slots": 0}, {"slots": 2**16},
    {"sent": 2**32}, {"functions": 5}, {"functions": [[]]}, {"functions": [["f", 2**16, 8, "i", 4, [], "f"]]},
    {"functions": [["f", 0, 8, "i", 9, [], "f"]]}, {"functions": [[5, 0, 8, "i", 4, [], "f"]]},
    {"memory": None}, {"memory": {}}, {"wake": {}}, {"wake": 5}, {"host_size": -1},
], ids=str)  # fmt: skip
def test_lanes_that_are_none(other, wrong):
    with feigned(lane(**wrong), descriptors=(memory(), memory(8192), memory())) as token:
        code, said = other.attach(token)
    assert code == -errno.EPROTO and "not understood" in said, said


def mutated(raw, random):
    """A packet with some bytes changed, left out, put in, or twice."""
    raw = bytearray(raw)
    for _ in range(random.randint(1, 4)):
        if not raw:
            break
        at, n = random.randrange(len(raw)), random.choice((1, 1, 1, 2, 8))
        kind = random.randrange(4)
        if kind == 0:
            raw[at] = random.choice(b'{}[]",:0123456789-.eE\\ntfu \x00\xff')
        elif kind == 1:
            del raw[at : at + n]
        elif kind == 2:
            others = b"9" * n, b"[" * n, b'"', b"\\ud800", b"-1", b"null", raw[at : at + 20]
            raw[at:at] = random.choice(others)
        else:
            raw = raw[: at + 1] if random.random() < 0.2 else raw
    return bytes(raw) or b"{"


def test_mutated_answers_harm_nothing():
    """The library under the sanitizers, which end the process at the first wrong step."""
    seed = int(os.environ.get("GPUDIRECT_SEED", "0")) or secrets.randbits(32)
    random, taken = Random(seed), 0
    other = OtherInC(sanitized_attach_commands(), env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"})
    good = [json.dumps(GOOD).encode(), json.dumps(lane()).encode()]
    try:
        for i in range(300):
            packet = mutated(good[i % 2], random)
            with feigned(packet, descriptors=(memory(), memory(8192), memory())) as token:
                code, said = other.attach(token)
            assert code == 0 or said, (seed, packet)
            if code == 0:
                taken += 1
                other("s 0"), other("w 0 0 00"), other("r 0 0 1"), other("l 0"), other("d 0")
        assert taken < 300, seed
    except (EOFError, BrokenPipeError):  # it ended
        pytest.fail(f"GPUDIRECT_SEED={seed}: {packet!r}")
    finally:
        other.end()


def test_an_answer_that_is_too_long(other):
    with feigned({**GOOD, "more": "x" * 70_000}, descriptors=(memory(),)) as token:
        code, said = other.attach(token)
    assert code == -errno.EPROTO and "longer than any answer" in said


@pytest.mark.parametrize(("why", "words"), [
    ("h\u00fcte \u20ac \U0001f600 \"x\" a\\b", "h\u00fcte \u20ac \U0001f600 \"x\" a\\b"),
    ("\ud800 half", "? half"), ("a\0b", "a?b"), ("x" * 1000, "it does not say why"), (5, "it does not say why"),
])  # fmt: skip
def test_what_a_refusal_says(other, why, words):
    with feigned({"refused": why}) as token:
        code, said = other.attach(token)
    assert code == -errno.EACCES and said.endswith(f"refused: {words}")


def test_no_memory_comes_with_it(other):
    with feigned(GOOD) as token:
        code, said = other.attach(token)
    assert code == -errno.EPROTO and "no memory came" in said


def test_an_owner_that_hangs_up(other):
    with feigned() as token:
        code, said = other.attach(token)
    assert code == -errno.ECONNRESET and "ended while it was asked" in said


def test_no_descriptor_is_left():
    other = OtherInC(attach_commands(), preexec_fn=lambda: setrlimit(RLIMIT_NOFILE, (5, 5)))
    try:
        with gd.zeros(8, shareable=True) as a:
            token = a.share("rw", uses=None)
            assert other.attach(token)[0] == 0  # what it was handed was closed again
            assert other.attach(token, handle=1)[0] == -errno.EMFILE
            assert "ulimit -n" in other.attach(token, handle=1)[1]
            assert other("d 0") == (0, "") and other.attach(token)[0] == 0
            gc.collect()
    finally:
        other.end()
