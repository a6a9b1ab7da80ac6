"""The NVIDIA driver, its device files, and CUDA on top of it."""

from __future__ import annotations

from collections.abc import Iterator

from ..bridges.rm_client import OLDEST_DRIVER
from ._machine import ABSENT, DENIED, HEALTHY, OK, Machine
from ._rules import LIMITS, STOPS, Seen, as_root, install, rule

NO_CUDA = HEALTHY.where(gpus=(), cuda_reason="cuInit failed: CUDA_ERROR_NO_DEVICE (100)")
NO_DRIVER = NO_CUDA.where(driver=None, library=None, libcuda=False, driver_installed=False,
                          loaded=frozenset(), nodes={}, nvrtc=None, module=None)  # fmt: skip
DOCKER = "$ docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility ..."


@rule(
    "No NVIDIA GPU", STOPS,
    means="The PCI bus shows no NVIDIA GPU, so everything runs on the emulated device.",
    costs="Results are right, and times say nothing about a GPU.",
    mend=["Run it on a machine with an NVIDIA GPU; in a virtual machine, pass the GPU through to it."],
    example=NO_DRIVER.where(pci_gpus=0),
)
def no_gpu(m: Machine) -> Seen:
    if m.pci_gpus or m.vendor_driver or m.driver_installed:
        return None
    if m.pci_gpus is None:
        return "neither a PCI bus that could be looked at nor an NVIDIA driver"
    return "no PCI device of vendor 10de that is a display or 3D controller"


def _driver(m: Machine) -> Iterator[str]:
    if m.distribution == "ubuntu":
        yield as_root(m, "ubuntu-drivers install")
    elif m.distribution == "debian":
        yield as_root(m, "apt install nvidia-driver") + "    # from the section non-free"
    elif m.distribution == "fedora":
        yield as_root(m, "dnf install akmod-nvidia") + "    # from RPM Fusion"
    else:
        yield "Install NVIDIA's driver the way your distribution describes."
    yield as_root(m, "reboot")


@rule(
    "The NVIDIA driver is not installed", STOPS,
    means="There is an NVIDIA GPU, and no NVIDIA kernel driver for the running kernel.",
    costs="No GPU; everything runs on the emulated device.",
    mend=lambda m: ["On the host, not in the container:", *_driver(m)] if m.container else _driver(m),
    example=NO_DRIVER,
)
def no_driver(m: Machine) -> Seen:
    if m.pci_gpus and not m.vendor_driver and not m.driver_installed and "nouveau" not in m.loaded:
        return f"{m.pci_gpus} GPU(s) on the PCI bus, and no /proc/driver/nvidia/version"
    return None


@rule(
    "The NVIDIA driver is installed and not loaded", STOPS,
    means="The driver's module is there for the running kernel, and the kernel has not loaded it.",
    costs="No GPU; everything runs on the emulated device.",
    mend=lambda m: [as_root(m, "modprobe nvidia"), as_root(m, "dmesg") + "    # where that is refused: why"],
    example=NO_DRIVER.where(driver_installed=True),
)
def driver_not_loaded(m: Machine) -> Seen:
    if not m.vendor_driver and m.driver_installed and "nouveau" not in m.loaded:
        return f"an nvidia module for kernel {m.kernel}, and no /proc/driver/nvidia/version"
    return None


@rule(
    "The driver nouveau holds the GPU", STOPS,
    means="nouveau is a driver for displays and offers no CUDA. While it has the GPU, NVIDIA's cannot.",
    costs="No GPU; everything runs on the emulated device.",
    mend=lambda m: [
        as_root(m, "sh -c 'echo blacklist nouveau >/etc/modprobe.d/blacklist-nouveau.conf'"),
        as_root(m, "dracut --force" if m.distribution in ("fedora", "rhel", "suse") else "update-initramfs -u"),
        as_root(m, "reboot"),
    ],
    example=NO_DRIVER.where(loaded=frozenset({"nouveau"})),
)  # fmt: skip
def nouveau(m: Machine) -> Seen:
    if "nouveau" in m.loaded and not m.vendor_driver:
        return "the kernel module nouveau is loaded, nvidia is not"
    return None


def _major(version: str) -> int:
    return int(version.split(".")[0])


@rule(
    "The NVIDIA driver is too old", LIMITS,
    means=f"The bridge rm speaks the driver's interface as it is from {OLDEST_DRIVER} on.",
    costs="Without p2pmod or GDRCopy there is no way to map GPU memory.",
    mend=lambda m: [*_driver(m), "Or load p2pmod, which works with drivers from 470 on "
                                 "(515 to 530 excepted)."],
    example=HEALTHY.where(driver="470.256.02", library="470.256.02", cuda=11040),
)  # fmt: skip
def driver_too_old(m: Machine) -> Seen:
    if m.driver and _major(m.driver) < OLDEST_DRIVER:
        return f"driver {m.driver}; {OLDEST_DRIVER} or newer is needed"
    return None


@rule(
    "Driver and libraries are of different versions", STOPS,
    means="""The driver's libraries were updated, and the kernel still runs the module of before: each CUDA
    call is refused.""",
    costs="No GPU until the module is loaded anew.",
    mend=lambda m: (["On the host, not in the container:"] if m.container else [])
    + [as_root(m, "reboot"), "Or, where nothing uses the GPU:",
       as_root(m, "sh -c 'rmmod nvidia_drm nvidia_modeset nvidia_uvm nvidia; modprobe nvidia'")],
    example=NO_CUDA.where(library="580.65.06", cuda_reason="cuInit failed: "
                          "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)"),
)  # fmt: skip
def driver_mismatch(m: Machine) -> Seen:
    if m.driver and m.library and m.driver != m.library and m.cuda_reason:
        return f"the kernel runs driver {m.driver}, the libraries are of {m.library}"
    return None


@rule(
    "libcuda.so.1 is not found", STOPS,
    means="The driver is loaded, and its CUDA library is not installed, or not passed into the container.",
    costs="No GPU; everything runs on the emulated device.",
    mend=lambda m: [DOCKER] if m.container else
    [*install(m, debian="libcuda1", ubuntu=f"libnvidia-compute-{_major(m.driver or '580')}",
              fedora="xorg-x11-drv-nvidia-cuda"), as_root(m, "ldconfig")],
    example=NO_CUDA.where(libcuda=False, library=None, container="docker"),
)  # fmt: skip
def no_libcuda(m: Machine) -> Seen:
    if m.driver and not m.libcuda:
        return f"driver {m.driver} is loaded, and no libcuda.so.1 can be opened"
    return None


def _nodes(m: Machine, state: str) -> list[str]:
    return sorted(n for n, s in m.nodes.items() if n.startswith("/dev/nvidia") and s == state)


@rule(
    "Device files of the driver are missing", STOPS,
    means="""A program reaches the driver through /dev/nvidiactl, /dev/nvidia-uvm and /dev/nvidia0, ...
    In a container only those are there that were passed in.""",
    costs="No GPU, or not this one.",
    mend=lambda m: [DOCKER, "Other runtimes: --device /dev/nvidiactl --device /dev/nvidia-uvm "
                            "--device /dev/nvidia0"] if m.container
    else [as_root(m, "nvidia-modprobe -c 0 -u")],
    example=NO_CUDA.where(container="docker", nodes={"/dev/nvidiactl": OK, "/dev/nvidia-uvm": ABSENT,
                                                     "/dev/nvidia0": ABSENT}),
)  # fmt: skip
def device_files_missing(m: Machine) -> Seen:
    missing = _nodes(m, ABSENT)
    if m.driver and missing:
        return f"{', '.join(missing)} absent" + (f", in a container ({m.container})" if m.container else "")
    return None


@rule(
    "Device files of the driver may not be opened", STOPS,
    means="They are there, and this user may not read and write them.",
    costs="No GPU.",
    mend=lambda m: [
        "$ ls -l /dev/nvidia*    # which group they belong to: often video",
        as_root(m, "usermod -aG video $USER") + "    # then log in again",
    ],
    example=NO_CUDA.with_nodes(nvidia0=DENIED, nvidiactl=DENIED),
)
def device_files_denied(m: Machine) -> Seen:
    denied = _nodes(m, DENIED)
    return f"{', '.join(denied)} cannot be opened for reading and writing" if denied else None


@rule(
    "CUDA_VISIBLE_DEVICES hides the GPU", STOPS,
    means="CUDA shows a process only the GPUs that this variable names; it names none that is here.",
    costs="No GPU; everything runs on the emulated device.",
    mend=["$ unset CUDA_VISIBLE_DEVICES"],
    example=NO_CUDA.where(environment={"CUDA_VISIBLE_DEVICES": "-1"}),
)
def hidden_gpus(m: Machine) -> Seen:
    value = m.environment.get("CUDA_VISIBLE_DEVICES")
    if value is not None and m.driver and m.cuda_reason and not m.gpus:
        return f"CUDA_VISIBLE_DEVICES is {value!r}"
    return None


@rule(
    "cuda-bindings is not installed", STOPS,
    means="gpudirect speaks to CUDA through NVIDIA's package cuda-bindings.",
    costs="No GPU; everything runs on the emulated device.",
    mend=lambda m: [f"$ pip install 'gpudirect[cu{'12' if m.cuda and m.cuda < 13000 else '13'}]'"],
    example=NO_CUDA.where(packages={"numpy": "2.3.0"}),
)
def no_bindings(m: Machine) -> Seen:
    if m.vendor_driver and "cuda-bindings" not in m.packages:
        return "a driver, and no package cuda-bindings in this Python"
    return None


@rule(
    "The fabric manager does not run", STOPS,
    means="""GPUs behind NVSwitch (HGX, DGX) start no CUDA program before NVIDIA's fabric manager has set the
    switches up. Its version must be the driver's.""",
    costs="No GPU.",
    mend=lambda m: [as_root(m, "systemctl enable --now nvidia-fabricmanager")],
    example=NO_CUDA.where(cuda_reason="cuInit failed: CUDA_ERROR_SYSTEM_NOT_READY (802)"),
)
def no_fabric_manager(m: Machine) -> Seen:
    if m.driver and m.cuda_reason and "SYSTEM_NOT_READY" in m.cuda_reason:
        return m.cuda_reason
    return None


EXPLAINED = (no_libcuda, device_files_missing, device_files_denied, hidden_gpus, no_bindings,
             no_fabric_manager, driver_mismatch)  # fmt: skip


@rule(
    "CUDA does not start", STOPS,
    means="The driver is loaded, and it refuses CUDA for a reason that doctor does not know.",
    costs="No GPU; everything runs on the emulated device.",
    mend=lambda m: ["$ nvidia-smi    # does the driver itself see the GPU?",
                    as_root(m, "dmesg") + " | grep -i -e nvrm -e xid    # what it logged"],
    example=NO_CUDA.where(cuda_reason="cuInit failed: CUDA_ERROR_UNKNOWN (999)"),
)  # fmt: skip
def cuda_fails(m: Machine) -> Seen:
    if m.driver and m.cuda_reason and not any(other(m) for other in EXPLAINED):
        return m.cuda_reason
    return None


@rule(
    "A GPU cannot be opened", STOPS,
    means="CUDA counts this GPU, and opening a context on it fails.",
    costs="This GPU cannot be used; others can.",
    mend=["$ nvidia-smi    # is it used exclusively, in error, or out of memory?",
          "$ CUDA_VISIBLE_DEVICES=1 ...    # leave it out: name the others"],
    example=HEALTHY.with_gpu(reason="opening the GPU: CUDA_ERROR_DEVICE_UNAVAILABLE (46)"),
)  # fmt: skip
def gpu_not_opened(m: Machine) -> Seen:
    return "; ".join(f"{g.id}: {g.reason}" for g in m.gpus if g.reason) or None


@rule(
    "No bridge can map the GPU's memory", STOPS,
    means="Each way to make GPU memory addressable by the CPU has a reason why it does not work here.",
    costs="gpudirect cannot be used on this GPU. Copies and launches of other libraries can.",
    mend=["Mend one of the reasons; each is told above, and by:", "$ gpudirect info"],
    example=HEALTHY.with_gpu(bridge=None, bridges={"p2pmod": "/dev/p2pmod is absent",
                                                   "rm": "/dev/nvidiactl cannot be opened"}),
)  # fmt: skip
def no_bridge(m: Machine) -> Seen:
    found = [f"{g.id}: " + "; ".join(f"{name}: {why}" for name, why in g.bridges.items())
             for g in m.gpus if g.reason is None and g.bridge is None]  # fmt: skip
    return "; ".join(found) or None
