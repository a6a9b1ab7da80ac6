"""p2pmod/driver: what the module's build finds out about the installed NVIDIA driver."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

DRIVER = Path(__file__).resolve().parents[2] / "p2pmod" / "driver"
KVER = "6.1.0-99-amd64"
SYMBOLS = ("get_pages", "put_pages", "free_page_table", "get_pages_persistent", "put_pages_persistent")

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("gcc", "readelf", "objcopy", "xz"))), reason="needs gcc, binutils and xz"
)


def crc(symbol):
    return 0xE0000000 + sum(map(ord, symbol))


def module(file, version="550.1", symbols=SYMBOLS, words=True, licence="_gpl", versions=True):
    """An object as a kernel module would be: versions as words of a section, or absolute symbols."""
    lines = [f'.section .modinfo,"a"\n.string "license=NVIDIA"\n.string "version={version}"']
    for name in symbols:
        symbol = f"nvidia_p2p_{name}"
        lines.append(f'.section __ksymtab{licence},"a"\n__ksymtab_{symbol}: .long 0')
        if versions and words:
            lines.append(f'.section __kcrctab{licence},"a"\n__crc_{symbol}: .long {crc(symbol):#x}')
        elif versions:
            lines.append(f".globl __crc_{symbol}\n.set __crc_{symbol}, {crc(symbol):#x}")
    source = file.parent / "m.s"
    file.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("\n".join(lines) + "\n")
    subprocess.run(["gcc", "-c", source, "-o", file], check=True)
    return file


@pytest.fixture
def system(tmp_path):
    """A system in a folder: a kernel that checks versions, and no driver yet."""
    build = tmp_path / "lib/modules" / KVER / "build"
    build.mkdir(parents=True)
    (build / ".config").write_text("CONFIG_MODVERSIONS=y\n")
    return tmp_path


def ask(system, what, **environment):
    build = system / "lib/modules" / KVER / "build"
    return subprocess.run(
        ["sh", DRIVER, what, KVER, build],
        env={"PATH": os.environ["PATH"], "SYSROOT": str(system), **environment},
        capture_output=True, text=True,
    )  # fmt: skip


def told(done):
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert all(len(r) == 5 and r[2:4] == ["nvidia", "EXPORT_SYMBOL"] for r in rows), rows
    return {r[1]: int(r[0], 16) for r in rows}


ALL = {f"nvidia_p2p_{s}": crc(f"nvidia_p2p_{s}") for s in SYMBOLS}


@pytest.mark.parametrize("words", [True, False], ids=["words", "absolute"])
@pytest.mark.parametrize("licence", ["", "_gpl"])
def test_versions_are_read_from_the_module(system, words, licence):
    module(system / "lib/modules" / KVER / "updates/nvidia.ko", words=words, licence=licence)
    assert told(ask(system, "symvers")) == ALL


@pytest.mark.parametrize("packer", ["xz", "gzip", "zstd"])
@pytest.mark.parametrize("name", ["nvidia.ko", "nvidia-current.ko", "nvidia-current-open.ko"])
def test_compressed_modules_under_their_names_are_read(system, packer, name):
    if shutil.which(packer) is None:
        pytest.skip(f"{packer} is not installed")
    file = module(system / "lib/modules" / KVER / "updates/dkms" / name)
    subprocess.run([packer, *(["--rm", "-q"] if packer == "zstd" else []), file], check=True)
    assert told(ask(system, "symvers")) == ALL


def test_symbols_are_not_looked_for_in_the_drivers_other_modules(system):
    module(system / "lib/modules" / KVER / "updates/nvidia-peermem.ko")
    assert ask(system, "module").stdout == ""


def test_without_the_driver_a_kernel_that_checks_versions_gets_no_module(system):
    done = ask(system, "symvers")
    assert done.returncode == 1 and KVER in done.stderr and "NVIDIA_KO=" in done.stderr
    assert done.stdout == ""


def test_a_kernel_that_checks_nothing_needs_no_versions(system):
    (system / "lib/modules" / KVER / "build/.config").write_text("# CONFIG_MODVERSIONS is not set\n")
    assert told(ask(system, "symvers")) == dict.fromkeys(ALL, 0)
    module(system / "lib/modules" / KVER / "updates/nvidia.ko", symbols=SYMBOLS[:3], versions=False)
    assert told(ask(system, "symvers")) == dict.fromkeys(list(ALL)[:3], 0)


def test_a_module_without_readable_versions_is_refused(system):
    file = module(system / "lib/modules" / KVER / "updates/nvidia.ko", versions=False)
    done = ask(system, "symvers")
    assert done.returncode == 1 and str(file) in done.stderr and "version" in done.stderr


def test_what_is_no_driver_is_refused(system):
    file = module(system / "elsewhere/nvidia.ko", symbols=("get_pages",))
    done = ask(system, "symvers", NVIDIA_KO=str(file))
    assert done.returncode == 1 and "nvidia_p2p_put_pages" in done.stderr
    assert ask(system, "symvers", NVIDIA_KO="/nowhere/nvidia.ko").returncode == 1


def test_a_driver_before_535_has_no_persistent_pins(system):
    module(system / "lib/modules" / KVER / "updates/nvidia.ko", "470.256.02", SYMBOLS[:3])
    assert list(told(ask(system, "symvers"))) == [f"nvidia_p2p_{s}" for s in SYMBOLS[:3]]


@pytest.mark.parametrize("version", ["515.43.04", "520.61.05", "525.147.05", "530.30.02"])
def test_drivers_that_free_what_put_pages_reads_are_refused(system, version):
    module(system / "lib/modules" / KVER / "updates/nvidia.ko", version)
    for what in ("symvers", "header", "module"):
        done = ask(system, what)
        assert done.returncode == 1 and version in done.stderr and "535" in done.stderr


def test_the_loaded_driver_is_the_one_then_the_newest(system):
    for version in ("535.261.03", "550.163.01", "470.256.02"):
        module(system / "lib/modules" / KVER / version / "nvidia.ko", version)
    assert ask(system, "module").stdout.split()[-1] == "550.163.01"
    loaded = system / "sys/module/nvidia/version"
    loaded.parent.mkdir(parents=True)
    loaded.write_text("535.261.03\n")
    assert ask(system, "module").stdout.split()[-1] == "535.261.03"


def put_header(system, place):
    file = system / place / "nv-p2p.h"
    file.parent.mkdir(parents=True)
    file.write_text("/* */\n")
    return str(file)


def test_the_newest_header_is_taken_where_no_driver_tells(system):
    put_header(system, "usr/src/nvidia-current-470.256.02/nvidia")
    newest = put_header(system, "usr/src/nvidia-current-open-1550.163.01/nvidia")
    put_header(system, "usr/src/nvidia-590.44/kernel-open/nvidia")
    assert ask(system, "header").stdout.strip() == newest


def test_the_header_is_that_of_the_installed_driver_or_none(system):
    module(system / "lib/modules" / KVER / "updates/nvidia.ko", "535.261.03")
    put_header(system, "usr/src/nvidia-current-470.256.02/nvidia")
    put_header(system, "usr/src/nvidia-550.163.01/nvidia")
    assert ask(system, "header").stdout.strip() == "", "another driver's header declares another interface"
    mine = put_header(system, "usr/src/nvidia-open-535.261.03/nvidia")
    assert ask(system, "header").stdout.strip() == mine
    given = put_header(system, "my/own/nvidia")
    assert ask(system, "header", NVIDIA_SRC=str(system / "my/own")).stdout.strip() == given
    assert ask(system, "header", NVIDIA_SRC="/nowhere").returncode == 1
