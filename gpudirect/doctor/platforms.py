"""Kinds of machines that are different: virtual, partitioned, confidential, coherent."""

from __future__ import annotations

from ._machine import HEALTHY, Machine
from ._rules import LIMITS, NOTE, SLOWS, STOPS, Seen, as_root, each, rule


@rule(
    "Windows Subsystem for Linux", STOPS,
    means="""Under WSL CUDA runs on Windows' driver, through /dev/dxg. None of the interfaces that map GPU
    memory for the CPU are there: no /dev/nvidiactl, no kernel driver to load p2pmod beside.""",
    costs="gpudirect cannot map memory; CUDA itself, and the emulated device, work.",
    mend=["Start Linux itself on the machine, or use another.",
          "$ export GPUDIRECT_DEVICE=emulated    # to try things without the GPU"],
    example=HEALTHY.where(wsl=True, driver=None, module=None, nodes={"/dev/dxg": "ok"},
                          kernel="6.6.87.2-microsoft-standard-WSL2"),
)  # fmt: skip
def wsl(m: Machine) -> Seen:
    return f"kernel {m.kernel}" + (", /dev/dxg" if "/dev/dxg" in m.nodes else "") if m.wsl else None


@rule(
    "Confidential computing is on", STOPS,
    means="""In this mode the GPU's memory is closed to the CPU: BAR1 shows nothing of it, and the driver
    copies through encrypted buffers.""",
    costs="No bridge can work. Copies and launches of CUDA do.",
    mend=["On the host, with the GPU unused, if the machine need not be confidential:",
          "$ sudo python3 nvidia_gpu_tools.py --devices gpus --set-cc-mode=off --reset-after-cc-mode-switch"
          "    # of NVIDIA's gpu-admin-tools"],
    example=HEALTHY.where(confidential=True),
)  # fmt: skip
def confidential(m: Machine) -> Seen:
    return "the driver says that confidential computing is on" if m.confidential and m.driver else None


@rule(
    "The GPU is partitioned (MIG)", LIMITS,
    means="""A MIG instance is a part of a GPU, with its own share of BAR1. gpudirect was not tried on one:
    an instance has device files of its own (/dev/nvidia-caps), which the bridge rm does not use.""",
    costs="Mapping may be refused. `gpudirect demo` shows whether it works; tell us.",
    mend=lambda m: ["$ gpudirect doctor --report    # and attach the file to an issue",
                    as_root(m, "nvidia-smi -mig 0") + "    # to use the GPU whole; ends what runs on it"],
    example=HEALTHY.with_gpu(mig=True),
)  # fmt: skip
def mig(m: Machine) -> Seen:
    return each(m, lambda g: "MIG is on" if g.mig else None)


@rule(
    "A virtual GPU (vGPU)", LIMITS,
    means="""The host shares one GPU among virtual machines, and decides what of BAR1 each sees. gpudirect
    was not tried on one.""",
    costs="Mapping may be refused, and BAR1 is small. `gpudirect demo` shows whether it works; tell us.",
    mend=["$ gpudirect doctor --report    # and attach the file to an issue",
          "Or have the host pass a whole GPU through."],
    example=HEALTHY.with_gpu(virtualization="vgpu"),
)  # fmt: skip
def vgpu(m: Machine) -> Seen:
    return each(m, lambda g: "the driver says that it is a vGPU" if g.virtualization == "vgpu" else None)


@rule(
    "CPU and GPU are coherent (GH200, GB200)", NOTE,
    means="""The CPU reaches this GPU's memory through its own caches, over NVLink-C2C. gpudirect was written
    for PCIe and was not run on such a machine; p2pmod maps such memory cached.""",
    costs="""Loads are cheap there, so what the documentation says of slow reads does not hold; calibrate, so
    that `read` knows.""",
    mend=["$ gpudirect calibrate", "$ gpudirect doctor --report    # and attach the file to an issue"],
    example=HEALTHY.where(architecture="aarch64", stores=("neon", "plain")).with_gpu(
        name="NVIDIA GH200 480GB", coherent=True),
)  # fmt: skip
def coherent(m: Machine) -> Seen:
    return each(m, lambda g: "the driver says that it uses the host's page tables" if g.coherent else None)


@rule(
    "An IOMMU translates", NOTE,
    means="""Devices behind an IOMMU use addresses of their own. What `a.pages` tells is the physical address,
    which is what the CPU uses, and not what another device behind an IOMMU must use.""",
    costs="""Nothing for stores and loads of the CPU. Whoever hands bus addresses to another device (a NIC,
    an FPGA) gets faults of the IOMMU.""",
    mend=lambda m: [
        "Add iommu=pt to the kernel's command line (GRUB_CMDLINE_LINUX in /etc/default/grub), then:",
        as_root(m, "grub2-mkconfig -o /boot/grub2/grub.cfg" if m.distribution in ("fedora", "rhel", "suse")
                else "update-grub"),
        as_root(m, "reboot"),
    ],
    example=HEALTHY.with_gpu(iommu="DMA-FQ"),
)  # fmt: skip
def iommu(m: Machine) -> Seen:
    return each(m, lambda g: f"its IOMMU group is of type {g.iommu}"
                if g.iommu and g.iommu.startswith("DMA") else None)  # fmt: skip


@rule(
    "The GPU is for one process at a time", LIMITS,
    means="Its compute mode lets one process (or none) open it.",
    costs="A second process, a service in another one for example, is refused.",
    mend=lambda m: [as_root(m, "nvidia-smi -c DEFAULT")],
    example=HEALTHY.with_gpu(compute_mode="exclusive"),
)
def compute_mode(m: Machine) -> Seen:
    return each(m, lambda g: f"compute mode {g.compute_mode}"
                if g.compute_mode in ("exclusive", "prohibited") else None)  # fmt: skip


@rule(
    "The PCIe link is narrower than the GPU", SLOWS,
    means="The slot, a riser or shared lanes give the GPU fewer lanes than it has.",
    costs="Large writes and DMA are slower in proportion. A small store takes as long as ever.",
    mend=["Put the GPU into a slot with all lanes (the mainboard's manual names it).",
          "$ nvidia-smi --query-gpu=pcie.link.width.current,pcie.link.width.max --format=csv"],
    example=HEALTHY.with_gpu(link=4),
)  # fmt: skip
def narrow_link(m: Machine) -> Seen:
    return each(m, lambda g: f"{g.link} of {g.link_most} lanes"
                if g.link and g.link_most and g.link < g.link_most else None)  # fmt: skip


@rule(
    "A running kernel need not see stores in order", NOTE,
    means="""The device's ordering attributes promise no order of writes through BAR1 to a kernel that is
    running (docs/memory-model.md). A launch orders them everywhere.""",
    costs="Doorbells of your own need `device.flush_writes()` before the flag, where the device offers it.",
    mend=["$ gpudirect litmus --rounds 1000000    # is it kept all the same?"],
    example=HEALTHY.with_gpu(ordering="none"),
)
def no_ordering(m: Machine) -> Seen:
    return each(m, lambda g: "device.ordering.scope is 'none'" if g.ordering == "none" else None)
