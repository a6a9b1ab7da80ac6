"""p2pmod, our kernel module. It is not needed where the bridge rm works; it does what rm cannot."""

from __future__ import annotations

from collections.abc import Iterator

from ._machine import ABSENT, DENIED, HEALTHY, Machine, ModuleFile
from ._rules import LIMITS, NOTE, Seen, as_root, install, rule

NODE = "/dev/p2pmod"
WITHOUT = """Memory that other libraries took with cudaMalloc cannot be mapped, and other kernel modules
cannot use GPU memory. Memory of gpudirect's own is mapped by the bridge rm, as fast."""
ABSENT_HERE = HEALTHY.where(loaded=frozenset({"nvidia"}), module=None).with_nodes(p2pmod=ABSENT)


def _there(kernel: str = HEALTHY.kernel, signed: bool = True, old: bool = False) -> Machine:
    return ABSENT_HERE.where(module=ModuleFile(kernel, signed, old))


def _wanted(m: Machine) -> bool:
    """The driver is here, the module is not, and it could be."""
    return bool(m.driver) and m.nodes.get(NODE, ABSENT) == ABSENT and m.modules_can_load and not m.container


def _build(m: Machine) -> Iterator[str]:
    if not m.kernel_headers:
        yield from install(m, debian=f"linux-headers-{m.kernel}", ubuntu=f"linux-headers-{m.kernel}",
                           fedora=f"kernel-devel-{m.kernel}", suse="kernel-default-devel")  # fmt: skip
    yield "$ make -C p2pmod clean all    # in gpudirect's checkout"
    yield as_root(m, "make -C p2pmod install load")


@rule(
    "The kernel module p2pmod is not built", NOTE,
    means="There is no p2pmod.ko for any kernel here.", costs=WITHOUT, mend=_build,
    example=ABSENT_HERE.where(kernel_headers=False),
)
def module_not_built(m: Machine) -> Seen:
    if _wanted(m) and m.module is None:
        lacking = "" if m.kernel_headers else f"; the headers of kernel {m.kernel} are not installed either"
        return f"no p2pmod.ko under /lib/modules, and no {NODE}{lacking}"
    return None


@rule(
    "p2pmod was built for another kernel", LIMITS,
    means="The kernel was updated since: a module loads into the kernel that it was built for.",
    costs=WITHOUT,
    mend=lambda m: [*_build(m), "Or, where it came as a package or through dkms:",
                    as_root(m, f"dkms autoinstall -k {m.kernel}")],
    example=_there(kernel="6.1.0-25-amd64"),
)  # fmt: skip
def module_for_another_kernel(m: Machine) -> Seen:
    if _wanted(m) and m.module and m.module.kernel != m.kernel:
        return f"p2pmod.ko is for kernel {m.module.kernel}, running is {m.kernel}"
    return None


@rule(
    "p2pmod is not signed, and this kernel wants signatures", LIMITS,
    means="With secure boot the kernel loads only modules that are signed with a key it knows.",
    costs=WITHOUT,
    mend=lambda m: [
        as_root(m, f"kmodsign sha512 /var/lib/dkms/mok.key /var/lib/dkms/mok.pub "
                   f"$(modinfo -k {m.kernel} -n p2pmod)"),
        as_root(m, "mokutil --import /var/lib/dkms/mok.pub") + "    # then reboot, and confirm the key",
        as_root(m, "modprobe p2pmod"),
    ],
    example=_there(signed=False).where(signatures_needed=True),
)  # fmt: skip
def module_not_signed(m: Machine) -> Seen:
    if _wanted(m) and m.module and m.module.kernel == m.kernel and not m.module.signed \
            and m.signatures_needed:  # fmt: skip
        return "p2pmod.ko carries no signature, and the kernel refuses such modules"
    return None


@rule(
    "p2pmod was built before the driver", LIMITS,
    means="""It was linked with the symbol versions of another driver; the kernel says then that p2pmod
    "disagrees about version of symbol nvidia_p2p_get_pages".""",
    costs=WITHOUT, mend=_build, example=_there(old=True),
)  # fmt: skip
def module_for_another_driver(m: Machine) -> Seen:
    if _wanted(m) and m.module and m.module.kernel == m.kernel and m.module.older_than_driver:
        return f"p2pmod.ko is older than the module of driver {m.driver}, and it is not loaded"
    return None


@rule(
    "p2pmod is there and not loaded", LIMITS,
    means="The module is installed for this kernel, and nobody has loaded it.", costs=WITHOUT,
    mend=lambda m: [as_root(m, "modprobe p2pmod"),
                    as_root(m, "sh -c 'echo p2pmod >/etc/modules-load.d/p2pmod.conf'")
                    + "    # at every boot"],
    example=_there(),
)  # fmt: skip
def module_not_loaded(m: Machine) -> Seen:
    others = (module_for_another_kernel, module_not_signed, module_for_another_driver)
    if _wanted(m) and m.module and not any(other(m) for other in others):
        return f"p2pmod.ko for kernel {m.kernel}, and no {NODE}"
    return None


@rule(
    "p2pmod is loaded, and this user may not use it", LIMITS,
    means="/dev/p2pmod is there, and its permissions leave this user out: the udev rule is missing or narrow.",
    costs=WITHOUT,
    mend=lambda m: [
        as_root(m, "install -m 644 p2pmod/60-p2pmod.rules /usr/lib/udev/rules.d/") + "    # in the checkout",
        as_root(m, "udevadm control --reload"),
        as_root(m, "udevadm trigger --name-match=p2pmod"),
    ],
    example=HEALTHY.with_nodes(p2pmod=DENIED),
)
def module_denied(m: Machine) -> Seen:
    return f"{NODE} cannot be opened for reading and writing" if m.nodes.get(NODE) == DENIED else None


@rule(
    "p2pmod is not passed into the container", NOTE,
    means="A container shares the host's kernel: the module is loaded on the host, its device file passed in.",
    costs=WITHOUT,
    mend=["Where the host has loaded it:", "$ docker run --device /dev/p2pmod --gpus all ..."],
    example=HEALTHY.where(container="docker", module=None).with_nodes(p2pmod=ABSENT),
)
def module_not_in_container(m: Machine) -> Seen:
    if m.container and m.driver and m.nodes.get(NODE, ABSENT) == ABSENT:
        loaded = "p2pmod is loaded" if "p2pmod" in m.loaded else "p2pmod is not loaded on the host either"
        return f"in a container ({m.container}) without {NODE}; {loaded}"
    return None


@rule(
    "This kernel loads no modules", NOTE,
    means="Loading is switched off (kernel.modules_disabled, or a kernel without modules).",
    costs=WITHOUT, mend=["Nothing is to be mended: the bridge rm needs no module."],
    example=ABSENT_HERE.where(modules_can_load=False),
)
def no_modules(m: Machine) -> Seen:
    if m.driver and not m.modules_can_load and m.nodes.get(NODE, ABSENT) == ABSENT:
        return "p2pmod is not loaded, and the kernel takes no modules"
    return None
