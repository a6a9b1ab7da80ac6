"""Booting a kernel under QEMU's software emulation with a busybox initramfs, and reading the log."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packages import CACHE, LabError, Unpacked, busybox

DONE = "lab-guest-finished"

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t debugfs debug /sys/kernel/debug 2>/dev/null
mkdir -p /dev/shm /tmp
echo 8 > /proc/sys/kernel/printk
sh /run.sh
echo "{done}"
sync
poweroff -f
"""


@dataclass
class Result:
    """What a guest printed."""

    text: str
    seconds: float
    finished: bool
    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    splats: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Everything ran, nothing failed, and the kernel had nothing to say."""
        return self.finished and bool(self.passed) and not self.failed and not self.splats


# What a kernel says when something is wrong. Each must be found by tests/vm/lab/test_lab.py.
SPLATS = re.compile(
    r"BUG:|BUG at|WARNING:|Oops|general protection|Kernel panic|KASAN:|kmemleak:.*new suspected|"
    r"unreferenced object|possible circular locking|INFO: task .* blocked|soft lockup|hard LOCKUP|"
    r"rcu.*stall|sleeping function called|suspicious RCU|scheduling while atomic|refcount_t:|"
    r"list_(add|del) corruption|Bad page|UBSAN:|x86/PAT: .*(conflict|invalid|freeing)|Unknown symbol|"
    r"Call Trace:|unbalanced|possible recursive|inconsistent lock state|held lock freed|ODEBUG|"
    r"stack-protector|page table check|unable to handle"
)
# Lines that match and are harmless, each with its reason.
ALLOWED = (
    # printed once by any module that is not part of the kernel
    re.compile(r"loading out-of-tree module taints kernel|module verification failed"),
    # 7.2's serial console under QEMU, before user space starts
    re.compile(r"rcu: .*(stall detection|RCU CPU stall warning)|rcu_normal_wake|rcupdate\."),
    # boot messages that name what they would detect
    re.compile(r"debug: |Lock dependency validator|kmemleak: Kernel memory leak detector"),
)


def splats(text: str) -> list[str]:
    """The kernel's complaints in a log."""
    found = []
    for line in text.splitlines():
        if SPLATS.search(line) and not any(a.search(line) for a in ALLOWED):
            found.append(line.strip())
    return found


def initramfs(
    files: dict[str, Path], script: str, target: Path, architecture: str = "amd64"
) -> None:
    """A compressed cpio with busybox, the files (path in the guest -> here) and /run.sh."""
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        root = Path(folder)
        for name in ("bin", "proc", "sys", "dev", "tmp", "lab"):
            (root / name).mkdir()
        shutil.copy(busybox(architecture), root / "bin/busybox")
        (root / "bin/sh").symlink_to("busybox")
        for inside, source in files.items():
            place = root / inside.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, place)
        (root / "run.sh").write_text(script)
        (root / "init").write_text(INIT.replace("{done}", DONE))
        (root / "init").chmod(0o755)
        names = "\0".join(str(p.relative_to(root)) for p in sorted(root.rglob("*")))
        with target.open("wb") as out:
            pack = subprocess.Popen(["cpio", "--null", "-o", "-H", "newc", "--quiet"], cwd=root,
                                    stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
            squeeze = subprocess.Popen(["gzip", "-1"], stdin=pack.stdout, stdout=out)
            assert pack.stdin is not None
            pack.stdin.write(names.encode())
            pack.stdin.close()
            if pack.wait() or squeeze.wait():
                raise LabError("cpio or gzip failed: apt-get install cpio gzip")


# architecture -> program, Debian package, machine, console
EMULATORS = {
    "amd64": ("qemu-system-x86_64", "qemu-system-x86", ("-cpu", "max"), "ttyS0"),
    # the architecture's own signing of pointers takes half of the time of an emulated kernel
    "arm64": ("qemu-system-aarch64", "qemu-system-arm",
              ("-machine", "virt", "-cpu", "max,pauth-impdef=on"), "ttyAMA0"),
}  # fmt: skip


def boot(
    kernel: Unpacked, files: dict[str, Path], script: str, *, timeout: float = 1800,
    bar: int = 256, memory: int = 1024, append: Sequence[str] = (), share: Path | None = None,
) -> Result:
    """Boot, run ``script`` as /run.sh, and read TAP and the kernel's log from the console.

    timeout: seconds, which only a hang exceeds, on a busy machine too. bar: MiB of the PCI device's
    memory BAR. memory: MiB of the guest. share: a folder that is offered read-only as the 9p tag
    "root".
    """
    program, package, machine, console = EMULATORS[kernel.architecture]
    if shutil.which(program) is None:
        raise LabError(f"{program} is missing: apt-get install {package}")
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        image, vram = Path(folder) / "initrd", Path(folder) / "vram"
        initramfs(files, script, image, kernel.architecture)
        command = [
            program, *machine, "-accel", "tcg,thread=multi", "-smp", "2",
            "-m", f"{memory}M", "-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio",
            "-object", f"memory-backend-file,id=vram,share=on,mem-path={vram},size={bar}M",
            "-device", "ivshmem-plain,memdev=vram", "-kernel", str(kernel.image),
            "-initrd", str(image), "-append",
            " ".join([f"console={console}", "panic=-1", "oops=panic", "quiet",
                      # a busy machine starves the emulated timer, which is there all the same
                      "no_timer_check", *append]),
        ]  # fmt: skip
        if share:
            command += ["-virtfs", f"local,path={share},mount_tag=root,security_model=none,readonly=on,"
                        "multidevs=remap"]  # fmt: skip
        start = time.monotonic()
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  stdin=subprocess.DEVNULL, timeout=timeout)  # fmt: skip
            raw = done.stdout
        except subprocess.TimeoutExpired as e:
            raw = (e.stdout or b"") + f"\nguest killed after {timeout} s\n".encode()
    text = raw.decode(errors="replace").replace("\r", "")
    result = Result(text, time.monotonic() - start, DONE in text)
    for line in text.splitlines():
        if m := re.search(r"\bnot ok \d+ (\S+)", line):
            why = [w[1] for w in re.finditer(rf"^# {re.escape(m[1])}:(.*)$", text, re.MULTILINE)]
            result.failed.append(m[1] + ":".join(["", *why]))
        elif m := re.search(r"\bok \d+ (\S+)", line):
            result.passed.append(m[1])
    result.splats = splats(text)
    return result

