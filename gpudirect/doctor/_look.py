"""A Machine made of the real one. Every question may go unanswered; none may end the look."""

from __future__ import annotations

import ctypes
import faulthandler
import gzip
import lzma
import os
import platform
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, TypeVar

from .. import _cache, bridges, cpu, devices, facts
from ..bridges.rm_client import driver_version
from ..config import cache_folder
from ..devices import Device
from ..limits import file_of
from ..sharing import _wire
from ._machine import ABSENT, DENIED, OK, Gpu, Holder, Machine, ModuleFile

T = TypeVar("T")
Tell = Callable[[str], object]
SYSFS, PROC, MODULES = Path("/sys"), Path("/proc"), Path("/lib/modules")
CHECKOUT = Path(__file__).resolve().parents[2] / "p2pmod" / "p2pmod.ko"
SIGNED = b"~Module signature appended~\n"
HOST_PAGE_TABLES = 100  # CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES
KNOWN = ("debian", "ubuntu", "fedora", "rhel", "suse", "arch")
TRIED = 64 << 10  # bytes: one thread stores them


def ask(question: Callable[[], T], otherwise: Any = None) -> T:
    """The answer, or what stands for none."""
    try:
        return question()
    except Exception:
        return otherwise


def _text(path: Path | str) -> str:
    return ask(lambda: Path(path).read_text().strip(), "")


def look(tell: Tell = lambda what: None) -> Machine:
    """What this process sees of its machine. Maps 64 KiB of each GPU for a moment, writes nothing.

    tell: called with what is being looked at.
    """
    tell("kernel and driver")
    kernel = platform.release()
    cuda_reason = ask(devices.cuda_reason, "it cannot be asked")
    nvml = ask(_nvml)
    driver = ask(driver_version)
    gpus = []
    for n in range(0 if cuda_reason else ask(devices.cuda.count, 0)):
        tell(f"cuda:{n}")
        gpus.append(_gpu(n, nvml))
    tell("compilers and files")
    copies: dict[str, bool] = ask(cpu.copy_instructions, {})
    return Machine(
        architecture=platform.machine(),
        kernel=kernel,
        distribution=_distribution(),
        root=os.geteuid() == 0,
        container=_container(),
        wsl="microsoft" in kernel.lower(),
        command_line=tuple(_text(PROC / "cmdline").split()),
        loaded=frozenset(line.split()[0] for line in _text(PROC / "modules").splitlines()),
        modules_can_load=_text(PROC / "sys/kernel/modules_disabled") == "0",
        signatures_needed=_signatures_needed(),
        kernel_headers=(MODULES / kernel / "build/Makefile").exists(),
        module=ask(lambda: _module(kernel)),
        pci_gpus=ask(_pci_gpus),
        driver=driver,
        driver_installed=bool(driver) or bool(ask(lambda: _driver_file(kernel))),
        library=ask(lambda: _library(nvml)),
        libcuda=_opens("libcuda.so.1"),
        cuda_reason=cuda_reason,
        cuda=ask(_cuda),
        nvrtc=ask(_nvrtc),
        confidential=ask(lambda: bool(nvml.nvmlSystemGetConfComputeState().ccFeature)),
        nodes=_nodes(len(gpus)),
        gpus=tuple(gpus),
        stores=tuple(name for name, usable in copies.items() if usable),
        cpus=frozenset(ask(cpu.allowed, set())),
        governor=_text(SYSFS / "devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        locked=_limit(resource.RLIMIT_MEMLOCK),
        descriptors=_limit(resource.RLIMIT_NOFILE),
        local_sockets=_local_sockets(),
        packages=_packages(),
        faulthandler=faulthandler.is_enabled(),
        cuda_headers=ask(_cuda_headers, False),
        c_compiler=_compiler("CC", "cc", "gcc"),
        cxx_compiler=_compiler("CXX", "c++", "g++", "clang++"),
        cache_writable=ask(_cache_writable, False),
        cache_ours=ask(_cache_ours, True),
        environment={k: v for k, v in os.environ.items()
                     if k.startswith("GPUDIRECT_") or k == "CUDA_VISIBLE_DEVICES"},
    )  # fmt: skip


# -- the system ------------------------------------------------------------------------------


def _distribution() -> str:
    found = ask(platform.freedesktop_os_release, {})
    for name in [found.get("ID", ""), *found.get("ID_LIKE", "").split()]:
        for known in KNOWN:
            if name == known or (known == "suse" and "suse" in name):
                return known
    return ""


def _limit(which: int) -> int | None:
    limit = ask(lambda: resource.getrlimit(which)[0], resource.RLIM_INFINITY)
    return None if limit == resource.RLIM_INFINITY else limit


def _local_sockets() -> str | None:
    """Why sharing could not have its socket; closed again at once."""
    try:
        _wire.named()[0].close()
    except OSError as e:
        return e.strerror or str(e)
    return None


def _container() -> str:
    if Path("/.dockerenv").exists():
        return "docker"
    if Path("/run/.containerenv").exists():
        return "podman"
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    if "APPTAINER_NAME" in os.environ or "SINGULARITY_NAME" in os.environ:
        return "apptainer"
    return _text("/run/systemd/container")


def _signatures_needed() -> bool:
    lockdown = _text(SYSFS / "kernel/security/lockdown")
    return (
        _text(SYSFS / "module/module/parameters/sig_enforce") == "Y"
        or "[integrity]" in lockdown or "[confidentiality]" in lockdown
    )  # fmt: skip


def _files(kernel: str) -> list[str]:
    """The kernel's modules, as paths below its folder."""
    text = _text(MODULES / kernel / "modules.dep")
    return [line.partition(":")[0] for line in text.splitlines()]


def _driver_file(kernel: str) -> Path | None:
    for name in _files(kernel):
        if re.search(r"(^|/)nvidia(-current|-tesla|-open)?(-\d+)?\.ko(\.\w+)?$", name):
            return MODULES / kernel / name
    return None


def _module(kernel: str) -> ModuleFile | None:
    """p2pmod's file: of the running kernel, else of another, else the checkout's."""
    folders = [MODULES / kernel, *sorted(MODULES.glob("*"), reverse=True)]
    for folder in folders:
        for name in _files(folder.name):
            if re.search(r"(^|/)p2pmod\.ko(\.\w+)?$", name):
                return _module_file(folder / name, folder.name)
    if CHECKOUT.exists():
        found = re.search(rb"vermagic=(\S+)", CHECKOUT.read_bytes())
        return _module_file(CHECKOUT, found[1].decode() if found else kernel)
    return None


def _module_file(path: Path, kernel: str) -> ModuleFile:
    theirs = _driver_file(kernel)
    older = theirs is not None and ask(lambda: path.stat().st_mtime < theirs.stat().st_mtime, False)
    return ModuleFile(kernel, ask(lambda: _content(path).endswith(SIGNED), True), older)


def _content(path: Path) -> bytes:
    """A module's file without its compression. Raises where the compression is not known."""
    raw = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(raw)
    if path.suffix == ".gz":
        return gzip.decompress(raw)
    if path.suffix != ".ko":
        raise ValueError(path.suffix)
    return raw


def _pci_gpus() -> int | None:
    found = list((SYSFS / "bus/pci/devices").glob("*"))
    if not found:
        return None
    return sum(_text(d / "vendor") == "0x10de" and _text(d / "class")[:6] in ("0x0300", "0x0302")
               for d in found)  # fmt: skip


def _nodes(gpus: int) -> dict[str, str]:
    names = ["/dev/p2pmod", "/dev/gdrdrv"]
    if ask(driver_version):
        minors = [m for p in (PROC / "driver/nvidia/gpus").glob("*/information")
                  for m in re.findall(r"Device Minor:\s*(\d+)", _text(p))]  # fmt: skip
        names += ["/dev/nvidiactl", "/dev/nvidia-uvm", *(f"/dev/nvidia{m}" for m in sorted(minors))]
    found = {}
    for name in names:
        if not os.path.exists(name):
            # of the GPUs of the host a container is given some: those that CUDA counts suffice
            given = re.fullmatch(r"/dev/nvidia\d+", name) and gpus
            if not given:
                found[name] = ABSENT
        else:
            found[name] = OK if os.access(name, os.R_OK | os.W_OK) else DENIED
    if os.path.exists("/dev/dxg"):
        found["/dev/dxg"] = OK
    return found


# -- CUDA ------------------------------------------------------------------------------------


def _nvml() -> Any:
    import pynvml

    pynvml.nvmlInit()
    return pynvml


def _opens(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _library(nvml: Any) -> str | None:
    """The version of the driver's libraries: in the name of the one that is loaded."""
    if _opens("libcuda.so.1"):
        found = re.search(r"/libcuda\.so\.(\d+\.\d+(?:\.\d+)?)", _text(PROC / "self/maps"))
        if found:
            return found[1]
    told = nvml.nvmlSystemGetDriverVersion()
    return told.decode() if isinstance(told, bytes) else str(told)


def _cuda() -> int | None:
    from cuda.bindings import driver

    code, version = driver.cuDriverGetVersion()
    return None if int(code) else int(version)


def _nvrtc() -> str:
    from cuda.bindings import nvrtc

    _, major, minor = nvrtc.nvrtcVersion()
    return f"{major}.{minor}"


def _cuda_headers() -> bool:
    folders = [Path(os.environ[n]) / "include" for n in ("CUDA_HOME", "CUDA_PATH") if n in os.environ]
    folders += [Path("/usr/local/cuda/include"), Path("/usr/include")]
    for entry in sys.path:
        folders += Path(entry).glob("nvidia/*/include") if entry else ()
    return any((folder / "cuda_fp16.h").exists() for folder in folders)


def _gpu(n: int, nvml: Any) -> Gpu:
    name = f"cuda:{n}"
    try:
        device = devices.get(name)
        told = device.facts()
    except Exception as e:
        return Gpu(name, "unknown", reason=str(e))
    near = SYSFS / "bus/pci/devices" / device.pci_address
    handle = ask(lambda: nvml.nvmlDeviceGetHandleByPciBusId(device.pci_address.encode()))
    bridge = ask(lambda: bridges.choose(device).name)
    aperture = ask(device.aperture)
    ordering = told.get("ordering")
    return Gpu(
        name,
        device.name,
        memory=told.get("memory_bytes"),  # type: ignore[arg-type]
        bar1=aperture.total if aperture else None,
        bar1_used=aperture.used if aperture else None,
        bar1_largest=ask(lambda: _largest(near)),
        holders=tuple(ask(lambda: list(_holders(nvml, handle)), [])),
        bridge=bridge,
        bridges={name: s["reason"] for name, s in ask(lambda: facts.of_device(device)["bridges"], {}).items()},
        mig=ask(lambda: bool(nvml.nvmlDeviceGetMigMode(handle)[0])),
        virtualization=ask(lambda: {0: "none", 1: "passthrough", 2: "vgpu"}.get(
            nvml.nvmlDeviceGetVirtualizationMode(handle), "host")),
        coherent=ask(lambda: bool(device.attribute(HOST_PAGE_TABLES))),
        compute_mode=ask(lambda: {0: "default", 2: "prohibited"}.get(
            nvml.nvmlDeviceGetComputeMode(handle), "exclusive")),
        iommu=_text(near / "iommu_group/type") or None,
        link=ask(lambda: int(nvml.nvmlDeviceGetCurrPcieLinkWidth(handle))),
        link_most=ask(lambda: int(nvml.nvmlDeviceGetMaxPcieLinkWidth(handle))),
        near_cpus=frozenset(ask(device.near_cpus, [])),
        ordering=ordering.get("scope") if isinstance(ordering, dict) else None,
        calibrated=ask(lambda: file_of(device, bridge).exists()) if bridge else None,
        stores=ask(lambda: _stores(device)) if bridge else None,
    )  # fmt: skip


def _largest(near: Path) -> int | None:
    """From sysfs: bit n of resource1_resize is a size of 2^n MiB."""
    sizes = int(_text(near / "resource1_resize"), 16)
    return 1 << (20 + sizes.bit_length() - 1) if sizes else None


def _holders(nvml: Any, handle: Any) -> Iterator[Holder]:
    for p in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
        if p.pid != os.getpid():
            yield Holder(int(p.pid), p.usedGpuMemory)


def _stores(device: Device) -> float:
    """GB/s: the best of some mapped writes by one thread."""
    import gpudirect as gd

    data = bytes(TRIED)
    best = float("inf")
    with gd.empty(TRIED, "u1", device=device, mapped=True) as a:
        for _ in range(200):
            start = time.perf_counter()
            a.write(data, via="map")
            best = min(best, time.perf_counter() - start)
    return TRIED / best / 1e9


# -- what is used beside the GPU -------------------------------------------------------------


def _packages() -> dict[str, str]:
    wanted = {*facts.PACKAGES, "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12", "cuda-pathfinder", "torch",
              "cupy"}  # fmt: skip
    found = {}
    for d in distributions():
        name = ask(lambda d=d: d.metadata["Name"].lower(), "")  # type: ignore[misc]
        if name in wanted or name.startswith("cupy-cuda"):
            found[name] = d.version
    return found


def _compiler(variable: str, *names: str) -> bool:
    told = os.environ.get(variable)
    return any(shutil.which(n) for n in ((told.split() or [""])[:1] if told else names))


def _cache_ours() -> bool:
    """Of the cache's folders as they are; one that is not there yet will be ours if those above are."""
    folder = cache_folder()
    kinds = [f for f in folder.glob("*") if f.is_dir()]
    looked_at = kinds or [f for f in [folder] if f.exists()]
    return all(_cache.ours(f, close=False) for f in looked_at)


def _cache_writable() -> bool:
    """Whether the cache folder could be made and written; nothing is made for the question."""
    folder = cache_folder()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return False
    with tempfile.TemporaryFile(dir=folder):  # a read-only file system says so only here
        return True
