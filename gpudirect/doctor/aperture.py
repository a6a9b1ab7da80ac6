"""BAR1: the part of a GPU's memory that the CPU can address at once."""

from __future__ import annotations

from collections.abc import Iterator

from .._words import size_text
from ._machine import GIB, HEALTHY, MIB, Gpu, Holder, Machine
from ._rules import LIMITS, NOTE, SLOWS, Seen, each, rule

GEFORCE = dict(name="NVIDIA GeForce RTX 3060", memory=12 * GIB, bar1=256 * MIB, bar1_used=6 * MIB,
               bar1_largest=16 * GIB)  # fmt: skip
FULL = 0.9


def _small(gpu: Gpu) -> bool:
    return bool(gpu.bar1 and gpu.memory and gpu.bar1 < gpu.memory)


def _can_grow(gpu: Gpu) -> bool:
    return bool(_small(gpu) and gpu.bar1 and (gpu.bar1_largest or 0) > gpu.bar1)


@rule(
    "BAR1 is smaller than it could be (Resizable BAR is off)", SLOWS,
    means="""The GPU can show all of its memory, and the firmware has given it the small size that it starts
    with.""",
    costs="""Arrays larger than BAR1 are reached through windows that move, and all processes of the GPU
    share this little: mapping fails when it is full.""",
    mend=["In the firmware's setup (BIOS), under PCIe: \"Above 4G decoding\" on, \"Resizable BAR\" on.",
          "$ nvidia-smi -q | grep -A3 BAR1    # afterwards"],
    example=HEALTHY.with_gpu(**GEFORCE),
)  # fmt: skip
def bar1_not_resized(m: Machine) -> Seen:
    return each(m, lambda g: f"BAR1 {size_text(g.bar1)}, could be {size_text(g.bar1_largest)}; "
                                    f"memory {size_text(g.memory)}"
                if _can_grow(g) else None)  # fmt: skip


@rule(
    "BAR1 is smaller than the GPU's memory", SLOWS,
    means="The CPU can address only a part of this GPU's memory at once.",
    costs="""Arrays larger than BAR1 are reached through windows that move, and all processes of the GPU
    share it: mapping fails when it is full.""",
    mend=["Map the part that is written in small pieces, and let the rest be reached on demand:",
          "    part = a.window(start, count); part.move(...)",
          "$ export GPUDIRECT_APERTURE=128M    # what each process may take"],
    example=HEALTHY.with_gpu(**{**GEFORCE, "bar1_largest": 256 * MIB}),
)  # fmt: skip
def bar1_small(m: Machine) -> Seen:
    return each(m, lambda g: f"BAR1 {size_text(g.bar1)}, memory {size_text(g.memory)}"
                if _small(g) and not _can_grow(g) else None)  # fmt: skip


def _full(gpu: Gpu) -> bool:
    return bool(gpu.bar1 and gpu.bar1_used is not None and gpu.bar1_used > FULL * gpu.bar1)


def _holders(m: Machine) -> Iterator[str]:
    pids = sorted({str(h.pid) for g in m.gpus if _full(g) for h in g.holders}, key=int)
    if pids:
        yield f"$ ps -o pid,user,etime,args -p {','.join(pids)}    # who it is, to be ended if it may be"
    else:
        yield "$ nvidia-smi --query-compute-apps=pid,used_memory --format=csv    # on the host"
    yield "$ export GPUDIRECT_APERTURE=64M    # a budget for each process, so that they fit beside each other"


@rule(
    "BAR1 is full", LIMITS,
    means="All processes of a GPU share BAR1, and what is mapped stays taken until it is unmapped.",
    costs="Mapping fails with ApertureError; gpudirect then reaches arrays through smaller windows or DMA.",
    mend=_holders,
    example=HEALTHY.with_gpu(**{**GEFORCE, "bar1_largest": 256 * MIB, "bar1_used": 250 * MIB},
                             holders=(Holder(4711, 900 * MIB), Holder(4712, None))),
)  # fmt: skip
def bar1_full(m: Machine) -> Seen:
    def told(g: Gpu) -> Seen:
        if not _full(g):
            return None
        held = [f"process {h.pid}" + (f" ({size_text(h.nbytes)} of GPU memory)" if h.nbytes else "")
                for h in g.holders]  # fmt: skip
        who = ", ".join(held) or "which processes is not told (a container hides those of others)"
        return f"{size_text(g.bar1_used or 0)} of {size_text(g.bar1 or 0)} used; on the GPU: {who}"

    return each(m, told)


@rule(
    "BAR1 has a budget", NOTE,
    means="GPUDIRECT_APERTURE bounds what this process maps.",
    costs="Arrays beyond it are reached through windows that move.",
    mend=["$ unset GPUDIRECT_APERTURE    # if it is not meant"],
    example=HEALTHY.where(environment={"GPUDIRECT_APERTURE": "64M"}),
)
def aperture_budget(m: Machine) -> Seen:
    value = m.environment.get("GPUDIRECT_APERTURE")
    return f"GPUDIRECT_APERTURE is {value!r}" if value else None
