"""The Python suite inside a guest, over /dev/p2pmod."""

from __future__ import annotations

import userland
from guests import CLIENTS, LOAD, MOUNT, VERSIONS, files_of, guest_modules

import boot
import build
import packages
from packages import Unpacked

# what every bridge must do, and nothing else: the rest runs outside, where it takes seconds
BRIDGES = "tests/bridges/test_conformance.py"


def over_p2pmod(what: str, kernel: str = "6.1") -> bool:
    """pytest in a guest, its outcome shown."""
    print(f"# inside the guest ({kernel}): {what}", flush=True)
    result = python_suite(packages.kernel(kernel), what)
    tail = [line for line in result.text.splitlines() if " passed" in line or " failed" in line]
    for line in result.text.splitlines():
        if line.startswith(("FAILED", "ERROR", "E  ")):
            print(f"#   {line}")
    for line in result.splats:
        print(f"#   kernel log: {line}")
    good = "suite-exit-0" in result.text and result.finished and not result.splats
    print(f"{'ok' if good else 'not ok'} - Python suite over /dev/p2pmod: {tail[-1] if tail else '?'},"
          f" {result.seconds:.0f} s", flush=True)  # fmt: skip
    if not good:
        print(result.text[-6000:])
    return good


def python_suite(kernel: Unpacked, what: str) -> boot.Result:
    """pytest, with ``what`` as its arguments, in a guest that sees a user land read-only."""
    land = userland.arm64() if kernel.architecture == "arm64" else userland.here()
    modules = build.modules(kernel, "open", "own")
    drivers = guest_modules(kernel, ("virtio_pci", "9pnet_virtio", "9p"))
    files = files_of(modules, build.tests(kernel.architecture)) | land.files
    files |= {f"/drivers/{f.name}": f for f in drivers}
    environment = {
        "TMPDIR": land.scratch, "GPUDIRECT_DEVICE": "emulated", "HOME": land.scratch,
        "GPUDIRECT_TEST_PAIRS": "emulated:p2pmod", "GPUDIRECT_TEST_PATIENCE": "10", **land.environment,
    }  # fmt: skip
    setting = " ".join(f"{k}={v}" for k, v in environment.items())
    script = (
        MOUNT.format(modules=" ".join(f"/drivers/{f.name}" for f in drivers), scratch=land.scratch)
        + land.script
        + LOAD.format(version=VERSIONS["1.2"])
        + CLIENTS
        + f"chroot /host /bin/sh -c 'cd {land.checkout} && env {setting} {land.python} -m pytest -q "
        f"--color=no -p no:cacheprovider --timeout 900 {what}; echo suite-exit-$?'\n"
        "cat /proc/driver/p2pmod\n"
    )
    return boot.boot(kernel, files, script, timeout=1800, bar=1024, memory=4096, share=land.root)
