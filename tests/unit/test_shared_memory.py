"""Replies and answers lie in files that a process without CUDA, or without gpudirect, can map."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import time

import numpy as np
import pytest

import gpudirect as gd
from gpudirect._keeper import keeper, patient
from gpudirect._pinned import heap
from gpudirect.devices._shared import SharedPages
from gpudirect.devices.cuda import device as cuda_device
from gpudirect.errors import DeviceError

READER = """
import mmap, sys
fd, size = int(sys.argv[1]), int(sys.argv[2])
print(mmap.mmap(fd, size, prot=mmap.PROT_READ)[int(sys.argv[3]):int(sys.argv[4])].hex())
"""


def read_elsewhere(fd, start, stop):
    """Bytes of a file as another process, which knows nothing of gpudirect, finds them."""
    size = os.fstat(fd).st_size
    done = subprocess.run(
        [sys.executable, "-c", READER, *map(str, (fd, size, start, stop))],
        capture_output=True, text=True, pass_fds=[fd], check=True,
    )  # fmt: skip
    return bytes.fromhex(done.stdout)


def descriptors():
    keeper.settle()
    patient.settle()
    return len(os.listdir("/proc/self/fd"))


def test_another_process_reads_a_services_replies():
    source = "__device__ int add(int a, int b) { return a + b; }"
    with gd.Service(source, "add", slots=8, device="emulated") as svc:
        assert svc.info.host_shared
        lane = svc._resident.ring(0).replies - svc._resident.host.ptr
        numbers = []
        for n in range(5):
            assert svc.call("add", n, 1000, timeout=60) == 1000 + n
            numbers.append(n)
        told = read_elsewhere(svc._resident.host.descriptor, lane, lane + 8 * 16)
        found = np.frombuffer(told, "<u8, <u4, <u4")
        assert {1000 + n for n in numbers} <= set(found["f0"].tolist())
        assert set(found["f1"].tolist()) == {0}
    assert not svc.info.host_shared


def test_another_process_reads_a_doorbells_answer():
    source = "__global__ void answer(volatile unsigned *to) { *to = 77; __threadfence_system(); }"
    with gd.Doorbell(device="emulated") as bell:
        gd.kernel(source, "answer", device="emulated")[1, 1](bell.answer_ptr)
        bell.wait(77, timeout=60)
        (block,) = heap(gd.device("emulated"), shared=True)._blocks
        start = bell.answer_ptr - block.memory.ptr
        assert read_elsewhere(block.memory.descriptor, start, start + 4) == (77).to_bytes(4, "little")


def test_what_the_user_pins_is_in_no_file_that_is_shared():
    before = heap(gd.device("emulated"), shared=True).statistics().in_use
    array = gd.pinned(1000, device="emulated")
    assert heap(gd.device("emulated"), shared=True).statistics().in_use == before
    assert array.size == 1000


@pytest.mark.parametrize("size", [1, 4096, 4097, 1 << 20])
def test_nobody_changes_the_size_of_such_a_file(size):
    pages = SharedPages(size)
    assert pages.size >= size and os.fstat(pages.fd).st_size == pages.size
    for other in (0, pages.size + 4096):
        with pytest.raises(PermissionError):
            os.truncate(pages.fd, other)
    pages.close()
    pages.close()


def test_services_that_come_and_go_leave_no_descriptor():
    def live():
        with gd.Service("__device__ int one() { return 1; }", "one", device="emulated") as svc:
            assert svc.call("one", timeout=60) == 1

    def settled():
        gc.collect()
        gd.synchronize("emulated")  # what is dropped goes when nothing runs any more
        gd.trim()
        return descriptors()

    live()
    before = settled()
    for _ in range(10):
        live()
    end = time.monotonic() + 60
    while settled() > before + 2:  # other tests' streams come and go as well
        assert time.monotonic() < end, f"{settled() - before} descriptors more after ten services"
        time.sleep(0.01)


def test_a_child_of_fork_has_neither_the_file_nor_the_mapping():
    pages = SharedPages(4096)
    mapped = f"{pages.ptr:x}-"
    child = os.fork()
    if child == 0:  # no pytest in here
        code = 1
        with contextlib.suppress(BaseException):
            with open("/proc/self/maps") as maps:
                here = mapped in maps.read()
            linked = any(os.path.realpath(f"/proc/self/fd/{n}").startswith("/memfd:gpudirect (")
                         for n in os.listdir("/proc/self/fd"))  # fmt: skip
            code = 2 * here + 4 * (linked and pages.fd != -1)
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pages.fd >= 0
    pages.close()


# -- where CUDA registers it: its driver stood for ------------------------------------------------


class Driver:
    """cuMemHostRegister and its neighbours, as a driver that can, or cannot, answers."""

    CU_MEMHOSTREGISTER_PORTABLE = CU_MEMHOSTREGISTER_DEVICEMAP = 1
    CU_MEMHOSTALLOC_PORTABLE = CU_MEMHOSTALLOC_DEVICEMAP = 1

    def __init__(self, register=0, moved=0):
        self.register, self.moved = register, moved
        self.registered: set[int] = set()
        self.allocated = 0

    def cuMemHostRegister(self, ptr, size, flags):
        assert ptr % 4096 == size % 4096 == 0
        if not self.register:
            self.registered.add(ptr)
        return (Code(self.register),)

    def cuMemHostUnregister(self, ptr):
        self.registered.remove(ptr)
        return (Code(0),)

    def cuMemHostGetDevicePointer(self, ptr, flags):
        return Code(0), ptr + self.moved

    def cuMemHostAlloc(self, size, flags):
        self.allocated += 1
        return Code(0), 0x1000

    def cuMemFreeHost(self, ptr):
        self.allocated -= 1
        return (Code(0),)

    def cuGetErrorString(self, code):
        return 0, b"told"


class Code(int):
    name = "CUDA_ERROR"


@pytest.fixture
def on_cuda(monkeypatch):
    def made(driver):
        found = object.__new__(cuda_device.CudaDevice)
        found.forked = False
        monkeypatch.setattr(found, "ensure_usable", lambda: None)
        monkeypatch.setattr(found, "current", contextlib.nullcontext)
        monkeypatch.setattr(found, "quiet", contextlib.nullcontext)
        monkeypatch.setattr(cuda_device, "driver", lambda: driver)
        monkeypatch.setattr("gpudirect.devices.cuda._driver.driver", lambda: driver)
        return found

    return made


def test_cuda_registers_the_file_and_gives_all_of_it_back(on_cuda):
    before, driver = descriptors(), Driver()
    memory = on_cuda(driver).host_allocate(5000, shared=True)
    assert memory.descriptor is not None and driver.registered == {memory.ptr}
    memory.free()
    assert descriptors() == before and not driver.registered


@pytest.mark.parametrize("driver", [Driver(register=801), Driver(moved=4096)])
def test_where_cuda_cannot_the_memory_is_its_own_and_says_so(on_cuda, driver):
    before = descriptors()
    memory = on_cuda(driver).host_allocate(5000, shared=True)
    assert memory.descriptor is None and driver.allocated == 1
    memory.free()
    assert descriptors() == before and not driver.registered and not driver.allocated


def test_an_error_of_the_driver_leaves_nothing(on_cuda):
    before, driver = descriptors(), Driver(register=304)
    with pytest.raises(DeviceError, match="page-locking 8192 bytes"):
        on_cuda(driver).host_allocate(5000, shared=True)
    assert descriptors() == before
