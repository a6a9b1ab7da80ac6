"""A machine as a value: all that findings may know of one. Nothing here asks a real machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

OK, ABSENT, DENIED = "ok", "absent", "denied"
GIB, MIB = 1 << 30, 1 << 20


@dataclass(frozen=True)
class Holder:
    """A process that holds memory of a GPU."""

    pid: int
    nbytes: int | None
    """Bytes of GPU memory; None where the driver does not tell."""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU. None: not told."""

    id: str
    name: str
    reason: str | None = None
    """Why it cannot be opened; None: it can."""
    memory: int | None = None
    bar1: int | None = None
    bar1_used: int | None = None
    bar1_largest: int | None = None
    """The largest size that this GPU's BAR1 can be set to (Resizable BAR)."""
    holders: tuple[Holder, ...] = ()
    bridge: str | None = None
    """The bridge that is chosen; None: none works."""
    bridges: Mapping[str, str] = field(default_factory=dict)
    """Why each bridge works, or does not."""
    mig: bool | None = None
    virtualization: str | None = None
    """"none", "passthrough", "vgpu", "host"."""
    coherent: bool | None = None
    """CPU and GPU keep their caches coherent (GH200, GB200)."""
    compute_mode: str | None = None
    """"default", "exclusive", "prohibited"."""
    iommu: str | None = None
    """What its IOMMU group does: "identity", "DMA", "DMA-FQ"; None: there is no group."""
    link: int | None = None
    link_most: int | None = None
    """Lanes of PCIe: in use, and what the GPU can."""
    near_cpus: frozenset[int] = frozenset()
    ordering: str | None = None
    """Who sees writes through BAR1 in order: "none", "owner", "all devices"."""
    calibrated: bool | None = None
    stores: float | None = None
    """GB/s of mapped stores by one thread, as tried for a moment."""


@dataclass(frozen=True)
class ModuleFile:
    """p2pmod's file, where there is one under /lib/modules."""

    kernel: str
    """The kernel it was built for."""
    signed: bool
    older_than_driver: bool
    """The driver's module was installed after it."""


@dataclass(frozen=True)
class Machine:
    """One machine, as a process on it sees it."""

    architecture: str = "x86_64"
    kernel: str = "6.1.0-28-amd64"
    distribution: str = "debian"
    """ID of /etc/os-release, or the first of ID_LIKE that is known here."""
    root: bool = False
    container: str = ""
    """"docker", "podman", ...; empty: none was noticed."""
    wsl: bool = False
    command_line: tuple[str, ...] = ()
    """Of the kernel."""
    loaded: frozenset[str] = frozenset()
    """Kernel modules."""
    modules_can_load: bool = True
    signatures_needed: bool = False
    """The kernel takes signed modules only (secure boot, lockdown, module.sig_enforce)."""
    kernel_headers: bool = True
    module: ModuleFile | None = None
    pci_gpus: int | None = None
    """NVIDIA GPUs on the PCI bus; None: the bus cannot be seen."""
    driver: str | None = None
    """Version of the NVIDIA kernel driver that is loaded."""
    driver_installed: bool = False
    """Its module is there for this kernel, loaded or not."""
    library: str | None = None
    """Version of the driver's libraries (libcuda, NVML)."""
    libcuda: bool = False
    cuda_reason: str | None = None
    """Why CUDA cannot be used; None: it can."""
    cuda: int | None = None
    """The newest CUDA that the driver knows: 13000 is 13.0."""
    nvrtc: str | None = None
    """NVRTC's version; None: there is none."""
    confidential: bool | None = None
    nodes: Mapping[str, str] = field(default_factory=dict)
    """Device files: OK, ABSENT or DENIED."""
    gpus: tuple[Gpu, ...] = ()
    stores: tuple[str, ...] = ()
    """The copy engine's instruction sets that this CPU has, best first."""
    cpus: frozenset[int] = frozenset()
    """Logical CPUs that this process may use."""
    governor: str | None = None
    locked: int | None = None
    """Bytes that the process may lock (RLIMIT_MEMLOCK); None: no limit."""
    descriptors: int | None = None
    """Files that the process may have open (RLIMIT_NOFILE); None: no limit."""
    local_sockets: str | None = None
    """Why the process may not make a socket for other processes to find; None: it may."""
    packages: Mapping[str, str] = field(default_factory=dict)
    faulthandler: bool = False
    cuda_headers: bool = True
    c_compiler: bool = True
    cxx_compiler: bool = True
    cache_writable: bool = True
    cache_ours: bool = True
    """Nobody else can put files into the cache."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """GPUDIRECT_* and CUDA_VISIBLE_DEVICES."""

    def where(self, **changes: Any) -> Machine:
        """The same machine but for some facts."""
        return replace(self, **changes)

    def with_gpu(self, **changes: Any) -> Machine:
        """The same machine, its first GPU changed."""
        return replace(self, gpus=(replace(self.gpus[0], **changes), *self.gpus[1:]))

    def with_nodes(self, **states: str) -> Machine:
        """The same machine, device files changed: ``with_nodes(p2pmod="absent")``."""
        return replace(self, nodes={**self.nodes, **{f"/dev/{n}": s for n, s in states.items()}})

    @property
    def vendor_driver(self) -> bool:
        """The NVIDIA driver is loaded, or would be reached without being seen (WSL)."""
        return self.driver is not None or self.wsl


HEALTHY = Machine(
    loaded=frozenset({"nvidia", "nvidia_uvm", "p2pmod"}),
    module=ModuleFile(kernel="6.1.0-28-amd64", signed=True, older_than_driver=False),
    pci_gpus=1,
    driver="580.159.04",
    driver_installed=True,
    library="580.159.04",
    libcuda=True,
    cuda=13000,
    nvrtc="13.0",
    confidential=False,
    nodes={"/dev/nvidiactl": OK, "/dev/nvidia-uvm": OK, "/dev/nvidia0": OK, "/dev/p2pmod": OK,
           "/dev/gdrdrv": ABSENT},
    gpus=(
        Gpu(
            "cuda:0", "NVIDIA H200", memory=141 * GIB, bar1=256 * GIB, bar1_used=20 * MIB,
            bar1_largest=256 * GIB, bridge="p2pmod", mig=False,
            virtualization="none", coherent=False, compute_mode="default", iommu="identity", link=16,
            link_most=16, near_cpus=frozenset(range(16)), ordering="owner", calibrated=True, stores=17.0,
        ),
    ),
    stores=("avx512+movdir64b", "avx512", "movdir64b", "avx2", "sse2", "plain"),
    cpus=frozenset(range(16)),
    governor="performance",
    packages={"cuda-bindings": "13.0.1", "nvidia-ml-py": "13.580.65", "numpy": "2.3.0"},
)  # fmt: skip
"""A machine on which there is nothing to find."""
