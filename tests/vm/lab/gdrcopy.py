"""p2pmod beside GDRCopy's gdrdrv, from any checkout of GDRCopy: costs and behaviour, as tables."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import boot
import build
import packages
from packages import CACHE, LabError, run

RESULT = CACHE / "results" / "beside.json"
STEPS = ("pin", "map", "touch all", "unmap", "unpin")
SCRIPT = """
insmod /lab/nvidia.ko && insmod /lab/p2pmod.ko && insmod /lab/gdrdrv.ko
/lab/beside && echo "ok 1 beside" || echo "not ok 1 beside"
"""


def modules(kernel: packages.Unpacked, checkout: Path) -> tuple[build.Modules, Path]:
    """The stand-in, p2pmod, and gdrdrv built beside the same driver."""
    source = checkout / "src" / "gdrdrv"
    if not (source / "gdrdrv.c").exists():
        raise LabError(f"no checkout of GDRCopy: {source}/gdrdrv.c is missing")
    ours = build.modules(kernel, "open", "535")
    work = ours.p2pmod.parent
    shutil.copytree(source, work / "gdrdrv")
    # its own Makefile finds the driver, and asks the kernel; here both are known
    (work / "gdrdrv" / "Makefile").unlink()
    (work / "gdrdrv" / "Kbuild").write_text(
        "obj-m := gdrdrv.o\nccflags-y += -I$(src)/../standin -DGDRDRV_OPENSOURCE_NVIDIA "
        "-DGDRDRV_HAVE_PROC_OPS\n"
        "ifneq ($(shell grep -s vm_flags_set $(srctree)/include/linux/mm.h),)\n"
        "ccflags-y += -DGDRDRV_HAVE_VM_FLAGS_SET\nendif\n"
    )
    run(["make", "-C", kernel.headers, f"M={work / 'gdrdrv'}", "CONFIG_DEBUG_INFO_BTF_MODULES=",
         f"KBUILD_EXTRA_SYMBOLS={work / 'standin/Module.symvers'}", *kernel.words, "modules"])  # fmt: skip
    return ours, work / "gdrdrv" / "gdrdrv.ko"


def measure(kernel: packages.Unpacked, checkout: Path) -> boot.Result:
    """One guest with all three."""
    ours, gdrdrv = modules(kernel, checkout)
    program = gdrdrv.parent / "beside"
    run(["cc", "-std=gnu11", "-O2", "-Wall", "-static", "-pthread", f"-I{build.ROOT / 'p2pmod'}",
         f"-I{build.VM / 'standin'}", f"-I{build.VM / 'selftests'}", f"-I{gdrdrv.parent}",
         build.VM / "beside/beside.c", "-o", program])  # fmt: skip
    files = {"/lab/nvidia.ko": ours.nvidia, "/lab/p2pmod.ko": ours.p2pmod, "/lab/gdrdrv.ko": gdrdrv,
             "/lab/beside": program}  # fmt: skip
    return boot.boot(kernel, files, SCRIPT, timeout=900, bar=1024)


def tables(result: dict[str, object]) -> list[str]:
    """Markdown of what a run said."""
    lines = [f"Kernel {result['kernel']}, in software emulation; microseconds, medians of five rounds that "
             "alternate.", "",
             "| pages | bytes | who | " + " | ".join(STEPS) + " | in all | of gdrdrv's |",
             "| --- | --- | --- |" + " --- |" * (len(STEPS) + 2)]  # fmt: skip
    costs: dict[tuple[str, int], dict[str, list[int]]] = {}
    behaviour: dict[str, dict[str, str]] = {}
    for line in result["lines"]:  # type: ignore[attr-defined]
        word, *rest = line.split(" ")
        if word == "cost":
            costs.setdefault((rest[0], int(rest[1])), {})[rest[2]] = [int(x) for x in rest[3:]]
        else:
            behaviour.setdefault(rest[0].replace("-", " "), {})[rest[1]] = " ".join(rest[2:])
    for (pages, size), by in costs.items():
        for who, steps in by.items():
            lines.append(f"| {pages} | {size} | {who} | " + " | ".join(f"{s / 1000:.1f}" for s in steps)
                         + f" | {sum(steps) / 1000:.1f} | {sum(steps) / sum(by['gdrdrv']):.2f} |")  # fmt: skip
    lines += ["", "What p2pmod spends beyond gdrdrv's map and touch, for each page of 4 KiB (one PTE):", ""]
    for (pages, size), by in costs.items():
        ours, theirs = by["p2pmod"], by["gdrdrv"]
        each = (sum(ours[1:3]) - sum(theirs[1:3])) / (size // 4096)
        lines.append(f"- {pages}, {size} bytes: {each:.0f} ns; pinning {ours[0] / theirs[0]:.2f} of gdrdrv's")
    lines += ["", "| what | gdrdrv | p2pmod |", "| --- | --- | --- |"]
    lines += [f"| {what} | {by['gdrdrv']} | {by['p2pmod']} |" for what, by in behaviour.items()]
    return lines


def keep(kernel: packages.Unpacked, result: boot.Result) -> dict[str, object]:
    """What the guest measured, kept for the page."""
    lines = [line for line in result.text.splitlines() if line.startswith(("cost ", "behaviour "))]
    told: dict[str, object] = {"kernel": kernel.release, "lines": lines}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(told, indent=1))
    return told
