"""How C maps a GPU's memory that it was handed: the driver's interface, which a feigned driver stands for.

What a real one makes of it tests/gpu/test_sharing.py sees.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import subprocess
from pathlib import Path

import pytest
from c_programs import CC, OtherInC, attach_commands, compiled, memory

from gpudirect.bridges import rm_client as rm
from gpudirect.sharing._owner import Share, server

HERE = Path(__file__).parent
PCI = "0000:C1:00.0"  # the driver's /proc has it in small letters


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return compiled(HERE / "feigned_driver.c", tmp_path_factory.mktemp("driver") / "driver.so", "-shared",
                    "-fPIC", "-ldl")  # fmt: skip


@pytest.fixture
def other(driver):
    made = []

    def start(**environment):
        made.append(OtherInC(attach_commands(), env={**os.environ, "LD_PRELOAD": str(driver), **environment}))
        return made[-1]

    yield start
    for each in made:
        each.end()


@pytest.fixture
def block():
    """A token for 6000 bytes from 5000 on of a "GPU's" block, and the block."""
    ends = []

    def share(mode="rw", pci=PCI):
        fd = memory(16384, seals=0)
        own = os.dup(fd)
        one = Share((fd,), None, {
            "mode": mode, "pid": os.getpid(), "emulated": False, "block": 1 << 40, "size": 16384,
            "offset": 5000, "nbytes": 6000, "pci_address": pci, "shape": [6000], "dtype": "|u1", "itemsize": 1,
            "ptr": (1 << 40) + 5000,
        })  # fmt: skip
        token, end = server().offer(one)
        ends.append((end, own))
        return token, own

    yield share
    for end, own in ends:
        end()
        os.close(own)


def test_the_pages_around_are_mapped(other, block):
    (token, fd), c = block(), other()
    assert c.attach(token) == (0, "")
    assert c("w 0 0 ab") == (0, "") and c("w 0 5999 cd") == (0, "")
    assert os.pread(fd, 1, 5000) == b"\xab" and os.pread(fd, 1, 10999) == b"\xcd"
    os.pwrite(fd, b"\x17", 6000)
    assert c("r 0 1000 1") == (0, "17")


def test_read_only(other, block):
    (token, _), c = block("r"), other()
    assert c.attach(token) == (0, "") and c("g 0") == (-errno.EFAULT, "")


@pytest.mark.parametrize("step", ["root", "info", "device", "subdevice", "import", "map"])
@pytest.mark.parametrize(("status", "code", "words"), [(0x1A, errno.ENOMEM, "BAR1"), (0x57, errno.EIO, "0x57")])
def test_the_driver_refuses(other, block, step, status, code, words):
    (token, _), c = block(), other(FEIGNED_FAIL=f"{step}={status:#x}")
    before = len(os.listdir(f"/proc/{c.pid}/fd"))
    found, said = c.attach(token)
    assert found == -code and words in said and "failed with driver status" in said
    kept = 1 if step in ("import", "map") else 0  # the feigned driver's own
    assert len(os.listdir(f"/proc/{c.pid}/fd")) == before + kept


def test_a_gpu_that_is_not_here(other, block):
    (token, _), c = block(pci="0000:02:00.0"), other()
    code, said = c.attach(token)
    assert code == -errno.ENOENT and "/proc/driver/nvidia/gpus" in said


def test_it_lets_go(other, block):
    (token, _), c = block(), other()
    c.attach(token), c("d 0")
    before = len(os.listdir(f"/proc/{c.pid}/fd"))
    for _ in range(5):
        assert c.attach(token) == (0, "") and c("d 0") == (0, "")
    assert len(os.listdir(f"/proc/{c.pid}/fd")) == before


STRUCTS = {"allocate": rm.Allocate, "control": rm.Control, "map_memory": rm.MapMemory,
           "register_file": rm.RegisterFile, "device_params": rm.DeviceParams,
           "subdevice_params": rm.SubdeviceParams, "object_info": rm.ObjectInfo,
           "import_object": rm.ImportObject}  # fmt: skip


def test_c_and_python_have_the_same_structs_and_numbers(tmp_path):
    """rm.h against bridges/rm_client.py: sizes, and where each member is."""
    header = HERE.parents[1] / "gpudirect" / "_native" / "rm.h"
    text = header.read_text()
    lines = []
    for name in STRUCTS:
        body = re.search(rf"struct gd_rm_{name} \{{(.*?)\}};", text, re.DOTALL)[1]
        members = [m for line in re.findall(r"^\s*\w+ ([^;]+);", body, re.MULTILINE)
                   for m in re.findall(r"(\w+)(?:\[\w+\])?(?:,|$)", line)]  # fmt: skip
        wanted = "".join(f', (int)offsetof(struct gd_rm_{name}, {m})' for m in members)
        lines.append(f'printf("%d{" %d" * len(members)}\\n", (int)sizeof(struct gd_rm_{name}){wanted});')
    numbers = ["ALLOCATE", "CONTROL", "MAP_MEMORY", "REGISTER_FILE", "CLASS_ROOT", "CLASS_DEVICE",
               "CLASS_SUBDEVICE", "EXPORTED_OBJECT_INFO", "IMPORT_OBJECT", "EXPORTED_TYPE"]  # fmt: skip
    lines += [f'printf("%d\\n", GD_RM_{n});' for n in numbers]
    source = tmp_path / "told.c"
    body = "\n".join(lines)
    source.write_text(f'#include <stdio.h>\n#include "{header}"\nint main(void) {{\n{body}\nreturn 0; }}\n')
    program = tmp_path / "told"
    subprocess.run([*CC, str(source), "-o", str(program)], check=True)
    told = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    for name, line in zip(STRUCTS, told, strict=False):
        kind = STRUCTS[name]
        expected = [ctypes.sizeof(kind), *(getattr(kind, f[0]).offset for f in kind._fields_)]
        assert list(map(int, line.split())) == expected, name
    assert list(map(int, told[len(STRUCTS):])) == [
        rm.Allocate.number, rm.Control.number, rm.MapMemory.number, rm.RegisterFile.number, rm.CLASS_ROOT,
        rm.CLASS_DEVICE, rm.CLASS_SUBDEVICE, rm.EXPORTED_OBJECT_INFO, rm.IMPORT_OBJECT, rm.EXPORTED_TYPE_RM,
    ]  # fmt: skip
