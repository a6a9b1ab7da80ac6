"""The CPU's side: how it stores, where it runs, what it may lock."""

from __future__ import annotations

from collections.abc import Iterator

from .._words import size_text
from ._machine import HEALTHY, MIB, Gpu, Machine
from ._rules import NOTE, SLOWS, Seen, as_root, each, rule

SLOW_STORES = 2.0  # GB/s: write-combined ones reach 17 over PCIe 5 x16, uncached ones less than 1
OF_A_LANE = 0.15  # GB/s: what one lane of PCIe 1 carries, and somewhat less
WIDE = ("avx512+movdir64b", "avx512", "movdir64b")


@rule(
    "The CPU has no stores of a whole line", SLOWS,
    means="It has neither AVX-512 nor MOVDIR64B, or the virtual machine hides them.",
    costs="""64 bytes leave in several stores that the CPU gathers: bulk is a little slower, and a packet of a
    doorbell goes in two steps with a fence between.""",
    mend=["In a virtual machine, give it the host's CPU: <cpu mode='host-passthrough'/> in libvirt, -cpu host "
          "in QEMU."],
    example=HEALTHY.where(stores=("avx2", "sse2", "plain")),
)  # fmt: skip
def narrow_stores(m: Machine) -> Seen:
    if m.architecture == "x86_64" and m.stores and not set(WIDE) & set(m.stores):
        return f"the copy engine uses {m.stores[0]}"
    return None


def _least(g: Gpu) -> float:
    """GB/s that write-combined stores reach on any link as wide as this one."""
    return min(SLOW_STORES, OF_A_LANE * (g.link or 16))


@rule(
    "Stores are slow: the mapping may not be write-combined", SLOWS,
    means="""Each store goes over the link alone, where the CPU should gather 64 bytes: the range was mapped
    uncached, by another driver or by the firmware's MTRRs, and on x86 the first one decides.""",
    costs="Writes are ten and more times slower; DMA is not.",
    mend=lambda m: [as_root(m, "cat /sys/kernel/debug/x86/pat_memtype_list")
                    + "    # BAR1's range should say write-combining",
                    "$ cat /proc/mtrr    # no uncachable range may cover it",
                    "$ gpudirect calibrate    # until then: let `write` use DMA where that is faster"],
    example=HEALTHY.with_gpu(stores=0.4),
)  # fmt: skip
def not_write_combined(m: Machine) -> Seen:
    return each(m, lambda g: f"{g.stores:.2g} GB/s of mapped stores by one thread"
                if g.stores is not None and g.stores < _least(g) else None)  # fmt: skip


def _far(m: Machine, g: Gpu) -> bool:
    return bool(g.near_cpus and m.cpus and not g.near_cpus & m.cpus)


def ranges(cpus: frozenset[int]) -> str:
    """"0-15,32"."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and cpu == parts[-1][1] + 1:
            parts[-1][1] = cpu
        else:
            parts.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _near(m: Machine) -> Iterator[str]:
    near = next(g.near_cpus for g in m.gpus if _far(m, g))
    yield f"$ taskset -c {ranges(near)} python program.py"
    yield f"In a container: docker run --cpuset-cpus {ranges(near)} ..."


@rule(
    "The process runs far from the GPU", SLOWS,
    means="None of the CPUs that it may use is on the GPU's side of the machine (NUMA).",
    costs="Each store and load crosses between the sockets: both take longer.",
    mend=_near,
    example=HEALTHY.where(cpus=frozenset(range(16, 32))),
)
def far_from_gpu(m: Machine) -> Seen:
    return each(m, lambda g: f"CPUs {ranges(m.cpus)} may be used, {ranges(g.near_cpus)} are near"
                if _far(m, g) else None)  # fmt: skip


@rule(
    "One CPU only", SLOWS,
    means="The process may use one logical CPU.",
    costs="""Large copies have no second thread, which is what doubles their speed, and whoever waits for a
    reply takes the CPU from whoever works.""",
    mend=["$ taskset -cp 0-3 $$    # more of them, for this shell", "In a container: docker run --cpus 4 ..."],
    example=HEALTHY.where(cpus=frozenset({3})),
)
def one_cpu(m: Machine) -> Seen:
    return f"CPU {ranges(m.cpus)}" if len(m.cpus) == 1 else None


@rule(
    "The CPU saves power", SLOWS,
    means="The frequency governor lets cores sleep and slow down between calls.",
    costs="Single writes and calls take longer and vary more.",
    mend=lambda m: [as_root(m, "cpupower frequency-set -g performance")],
    example=HEALTHY.where(governor="powersave"),
)
def powersave(m: Machine) -> Seen:
    return f"governor {m.governor}" if m.governor == "powersave" else None


ENOUGH_LOCKED = 64 * MIB


@rule(
    "Little memory may be locked", NOTE,
    means="""RLIMIT_MEMLOCK is low. gpudirect's own page-locked memory is locked by the driver and does not
    count; what io_uring registers, RDMA verbs and mlock() do.""",
    costs="Nothing here. Programs that register buffers with io_uring or a NIC beside it are refused (ENOMEM).",
    mend=["$ ulimit -l unlimited    # or in /etc/security/limits.conf: * - memlock unlimited",
          "In a container: docker run --ulimit memlock=-1 ..."],
    example=HEALTHY.where(locked=64 << 10),
)  # fmt: skip
def little_locked_memory(m: Machine) -> Seen:
    if m.locked is not None and m.locked < ENOUGH_LOCKED and m.vendor_driver:
        return f"the limit is {size_text(m.locked)}"
    return None
