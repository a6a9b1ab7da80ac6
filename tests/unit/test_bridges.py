"""What each bridge does, shown without the hardware it is for."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import gpudirect as gd
from gpudirect import bridges
from gpudirect.bridges import dmabuf
from gpudirect.bridges import rm_client as rm


class Gpu:
    """A device as a bridge sees it."""

    kind, name, pci_address = "cuda", "a GPU", "0000:01:00.0"

    def __init__(self, **attributes: int) -> None:
        self.attributes = {int(k.strip("a")): v for k, v in attributes.items()}

    def attribute(self, number):
        return self.attributes.get(number)


class Block:
    """Device memory as a bridge sees it: a memfd stands in for what the driver would hand out."""

    ptr, size, pci_address = 0x7000_0000_0000, 1 << 20, "0000:01:00.0"

    def __init__(self, fd=None):
        self.fd = os.memfd_create("block") if fd is None else fd
        if fd is None:
            os.truncate(self.fd, self.size)
        self.asked = []

    def dmabuf_fd(self, offset, length):
        """A dma-buf of a part starts at its beginning: a fresh file with the same bytes."""
        self.asked.append((offset, length))
        return os.dup(self.fd)

    export_fd = prepare_pinning = None


# -- the choice ------------------------------------------------------------------------------


def test_every_bridge_gives_its_reason():
    for device in (Gpu(), gd.device("emulated")):
        found = bridges.standings(device)
        assert tuple(found) == ("p2pmod", "dmabuf", "gdrdrv", "rm", "emulated")
        for name, standing in found.items():
            assert len(standing.reason) > 15, name


def test_without_any_usable_bridge_every_reason_is_told(monkeypatch):
    monkeypatch.setattr(rm, "PROC", Path("/nonexistent"))
    monkeypatch.setattr(bridges.defaults, "bridge", None)
    if os.path.exists("/dev/p2pmod"):
        pytest.skip("p2pmod is loaded here")
    with pytest.raises(gd.BridgeUnavailableError) as caught:
        bridges.choose(Gpu())
    for name in bridges.NAMES:
        assert f"\n  {name}: " in str(caught.value)


# -- rm --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("struct", "size"),
    [(rm.Allocate, 32), (rm.Control, 32), (rm.MapMemory, 56), (rm.UnmapMemory, 32), (rm.Free, 16),
     (rm.RegisterFile, 4), (rm.DeviceParams, 56), (rm.SubdeviceParams, 4), (rm.ObjectInfo, 80),
     (rm.ImportObject, 20)],
)  # fmt: skip
def test_the_drivers_structs_have_the_drivers_sizes(struct, size):
    assert ctypes.sizeof(struct) == size


@pytest.mark.parametrize(
    ("text", "version", "usable"),
    [("NVRM version: NVIDIA UNIX x86_64 Kernel Module  530.41.03  Thu Mar 16", "530.41.03", False),
     ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release", "580.65.06",
      None),
     ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.261.03  Wed", "535.261.03", None)],
)  # fmt: skip
def test_old_drivers_are_refused_with_the_reason(tmp_path, monkeypatch, text, version, usable):
    (tmp_path / "version").write_text(text + "\nGCC version: gcc 12.2.0\n")
    monkeypatch.setattr(rm, "PROC", tmp_path)
    assert rm.driver_version() == version
    standing = bridges.get("rm").standing(Gpu())
    if usable is False:
        assert not standing.usable and "too old" in standing.reason and "535" in standing.reason
    else:
        assert "too old" not in standing.reason


def test_the_device_node_is_found_by_pci_address(tmp_path, monkeypatch):
    folder = tmp_path / "gpus" / "0000:41:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text("Model: \t\t X\nDevice Minor: \t 3\nGPU Excluded:\t No\n")
    monkeypatch.setattr(rm, "PROC", tmp_path)
    rm.device_minor.cache_clear()
    assert rm.device_minor("0000:41:00.0") == 3
    with pytest.raises(gd.BridgeUnavailableError, match="0000:42:00.0"):
        rm.device_minor("0000:42:00.0")
    rm.device_minor.cache_clear()


def test_a_refused_call_says_what_was_refused():
    with open(os.devnull, "rb+") as null, pytest.raises(gd.BridgeError, match="refused") as caught:
        rm._ioctl(null.fileno(), rm.Free(), "freeing a reference")
    assert caught.value.errno and "freeing a reference" in str(caught.value)


# -- dmabuf ----------------------------------------------------------------------------------


def test_dmabuf_asks_the_attribute_and_not_the_version():
    bridge = bridges.get("dmabuf")
    assert bridge.standing(Gpu(a152=1)).usable
    for attributes in ({}, {"a152": 0}, {"a124": 1}):
        standing = bridge.standing(Gpu(**attributes))
        assert not standing.usable and "152" in standing.reason
    assert "can be made" in bridge.standing(Gpu(a124=1)).reason


def test_dmabuf_maps_ranges_that_start_inside_a_page():
    block = Block()
    mapping = bridges.get("dmabuf").map(block, 5000, 3000)
    assert block.asked == [(4096, 4096)]
    assert mapping.address % 4096 == 5000 % 4096
    (run,) = mapping.pages()
    assert (run.device_address, run.size, run.bus_address) == (block.ptr + 4096, 4096, None)
    view = np.frombuffer((ctypes.c_char * 3000).from_address(mapping.address), "u1")
    view[0] = 7
    assert os.pread(block.fd, 1, 5000 - 4096) == b"\7"
    del view
    mapping.close()
    mapping.close()
    with pytest.raises(gd.BridgeError, match="not inside"):
        bridges.get("dmabuf").map(block, block.size - 10, 11)
    with pytest.raises(gd.BridgeError, match="'uc'"):
        bridges.get("dmabuf").map(block, 0, 11, caching="uc")


def test_a_dmabuf_that_cannot_be_mapped_names_the_way_out():
    fd = os.eventfd(0)  # its mmap fails with ENODEV, much as older drivers' dma-bufs do
    with pytest.raises(gd.NotMappableError, match="13.3.*rm or p2pmod"):
        bridges.get("dmabuf").map(Block(fd), 0, 4096)
    os.close(fd)
    assert dmabuf.DMA_BUF_MMAP_SUPPORTED == 152


# -- gdrdrv ----------------------------------------------------------------------------------

FAKE_GDRAPI = r"""
/* GDRCopy's interface over a memfd: what was pinned, in 64 KiB pages. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
struct gdr { int open; };
typedef struct { unsigned long h; } mh;
static size_t pinned[16];
static int count;
struct gdr *gdr_open(void) { return calloc(1, sizeof(struct gdr)); }
int gdr_close(struct gdr *g) { free(g); return 0; }
int gdr_pin_buffer(struct gdr *g, unsigned long a, size_t n, uint64_t t, uint32_t s, mh *h)
{
    if (a % 65536 || n % 65536) return EINVAL;
    if (n > 1 << 20) return ENOMEM;
    pinned[count] = n; h->h = count++; return 0;
}
int gdr_unpin_buffer(struct gdr *g, mh h) { pinned[h.h] = 0; return 0; }
int gdr_map(struct gdr *g, mh h, void **va, size_t n)
{
    if (n != pinned[h.h]) return EINVAL;
    *va = mmap(0, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); return 0;
}
int gdr_unmap(struct gdr *g, mh h, void *va, size_t n) { return munmap(va, n); }
void gdr_runtime_get_version(int *major, int *minor) { *major = 2; *minor = 6; }
size_t fake_pinned(void) { size_t s = 0; for (int i = 0; i < count; i++) s += pinned[i]; return s; }
"""


def test_gdrdrv_speaks_gdrcopys_interface(tmp_path):
    """Against a library of GDRCopy's interface; the real one needs its module and a GPU."""
    (tmp_path / "fake.c").write_text(FAKE_GDRAPI)
    library = tmp_path / "libgdrapi.so.2"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "fake.c"], check=True)
    program = """
    import ctypes, sys
    import gpudirect as gd
    from gpudirect.bridges import gdrdrv
    gdrdrv.NODE = "/dev/null"
    bridge = gdrdrv.GdrdrvBridge()
    class Gpu: kind, name, pci_address = "cuda", "a GPU", "x"
    class Block:
        ptr, size, pci_address, prepared = 0x7000_0000_8000, 4 << 20, "x", 0
        def prepare_pinning(self): self.prepared += 1
    standing = bridge.standing(Gpu)
    assert standing.usable and "2.6" in standing.reason, standing
    fake = ctypes.CDLL("libgdrapi.so.2")
    fake.fake_pinned.restype = ctypes.c_size_t
    block = Block()
    mapping = bridge.map(block, 40000, 100)
    assert block.prepared == 1 and fake.fake_pinned() == 65536
    assert mapping.address % 65536 == (block.ptr + 40000) % 65536 % 4096 + (mapping.address // 4096 % 16) * 4096
    ctypes.memset(mapping.address, 1, 100)
    assert mapping.pages()[0].device_address == (block.ptr + 40000) // 65536 * 65536
    mapping.close(); mapping.close()
    assert fake.fake_pinned() == 0
    for size, kind in ((2 << 20, gd.ApertureError),):
        try: bridge.map(block, 0, size)
        except kind as e: assert "exhausted" in str(e)
        else: sys.exit("no error")
    try: bridge.map(block, 0, 10, at=4096)
    except gd.NotMappableError: print("fine")
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
    )  # fmt: skip
    assert run.stdout == "fine\n", run.stderr
