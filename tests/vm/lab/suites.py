"""What the lab runs: each suite prints TAP-like lines and closes with `N passed, N failed`."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import boot
import build
import packages
from packages import CACHE, LabError, Unpacked, run

ROOT = build.ROOT
RESULTS = CACHE / "results"
NEEDED = {  # program -> Debian package
    "qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "cpio": "cpio",
    "depmod": "kmod", "make": "make", "gcc": "gcc", "flex": "flex", "bison": "bison", "bc": "bc",
    "objdump": "binutils", "sparse": "sparse", "unshare": "util-linux", "xz": "xz-utils", "perl": "perl",
}  # fmt: skip
LIBRARIES = {"/usr/include/libelf.h": "libelf-dev", "/usr/include/openssl/opensslv.h": "libssl-dev"}

FUZZ_SECONDS = 2400  # at most
LOAD = """
insmod /lab/nvidia.ko version={version} && insmod /lab/p2pmod.ko
"""
CLIENTS = "".join(f"insmod /lab/{name}.ko || echo not ok 901 {name}\n" for name in build.CLIENTS)
NO_CLIENTS = "".join(f"rmmod {name}\n" for name in build.CLIENTS)
UNLOAD = """
rmmod p2pmod && echo "ok 902 unload_p2pmod" || echo "not ok 902 unload_p2pmod"
rmmod nvidia && echo "ok 903 unload_driver" || echo "not ok 903 unload_driver"
"""


def prepare() -> None:
    """Install what is missing, as root; otherwise say what to install."""
    missing = [p for program, p in NEEDED.items() if shutil.which(program) is None]
    missing += [p for file, p in LIBRARIES.items() if not os.path.exists(file) and not
                list(Path("/usr/include").glob(f"*/{Path(file).parent.name}/{Path(file).name}"))]  # fmt: skip
    packages.install(*missing)


def report(passed: int, failed: int) -> int:
    """The closing line that a runner reads."""
    print(f"{passed} passed, {failed} failed", flush=True)
    return 1 if failed or not passed else 0


@dataclass
class Cell:
    """One guest of the matrix."""

    kernel: str
    flavour: str
    header: str
    version: str
    release: str = ""
    passed: int = 0
    failed: tuple[str, ...] = ()
    splats: tuple[str, ...] = ()
    finished: bool = False
    seconds: float = 0.0
    gpl_only: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        return (self.finished and self.passed > 0
                and not (self.failed or self.splats or self.gpl_only))  # fmt: skip


def files_of(modules: build.Modules, tests: Path) -> dict[str, Path]:
    """What a guest of the C tests holds."""
    files = {"/lab/nvidia.ko": modules.nvidia, "/lab/p2pmod.ko": modules.p2pmod,
             **{f"/lab/{client.name}": client for client in modules.clients}}  # fmt: skip
    for program in tests.iterdir():
        if program.name != "done":
            files[f"/lab/{program.name}"] = program
    return files


def test_script(version: str) -> str:
    """The C tests, every program of them but the fuzzer."""
    # edges unloads and loads the module: before anything else uses it
    runs = f"P2PMOD_KO=/lab/p2pmod.ko /lab/edges\n{CLIENTS}/lab/p2pmod\n/lab/lane\n"
    return LOAD.format(version=version) + runs + NO_CLIENTS + UNLOAD


def guest(kernel: Unpacked, cell: Cell, timeout: float = 400) -> boot.Result:
    """Build and run one cell."""
    modules = build.modules(kernel, cell.flavour, cell.header)
    symvers = kernel.headers / "Module.symvers"
    cell.gpl_only = tuple(
        s for m in (modules.p2pmod, *modules.clients)
        for s in build.gpl_only_symbols(m, symvers)
    )
    result = boot.boot(kernel, files_of(modules, build.tests()), test_script(cell.version),
                       timeout=timeout)  # fmt: skip
    cell.release, cell.passed, cell.failed = kernel.release, len(result.passed), tuple(result.failed)
    cell.splats, cell.finished = tuple(result.splats), result.finished
    cell.seconds = round(result.seconds, 1)
    log = RESULTS / f"{cell.kernel}-{cell.flavour}-{cell.header}-{cell.version}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(result.text)
    return result


def show(cell: Cell) -> None:
    """One line a guest, and what went wrong in it."""
    mark = "ok" if cell.good else "not ok"
    print(f"{mark} - {cell.kernel} ({cell.release}) {cell.flavour} header {cell.header} page table "
          f"{cell.version}: {cell.passed} passed, {len(cell.failed)} failed, {cell.seconds} s",
          flush=True)  # fmt: skip
    for what, lines in (("failed", cell.failed), ("kernel log", cell.splats),
                        ("GPL-only symbol", cell.gpl_only)):  # fmt: skip
        for line in lines[:20]:
            print(f"#   {what}: {line}")
    if not cell.finished:
        print("#   the guest did not finish")


VERSIONS = {"1.2": "0x00010002", "2.0": "0x00020000"}
HEADERS = ("own", "470", "535", "550")


def cells() -> list[Cell]:
    """Every kernel x flavour x page table version; the headers in turn, and all of them on one."""
    found = []
    turn = 0
    for kernel in packages.KERNELS:
        for flavour in build.FLAVOURS:
            for version in VERSIONS.values():
                found.append(Cell(kernel, flavour, HEADERS[turn % len(HEADERS)], version))
                turn += 1
            turn += 1  # so that every kernel and flavour meets different headers
    there = {(c.kernel, c.header) for c in found}
    for kernel in packages.KERNELS:
        for header in HEADERS:
            if (kernel, header) not in there:
                found.append(Cell(kernel, "open", header, VERSIONS["2.0"]))
    return found


def matrix() -> int:
    """All cells; two guests at a time."""
    prepare()
    kernels = {name: packages.kernel(name) for name in packages.KERNELS}
    for header in HEADERS[1:]:
        packages.driver_header(header)
    build.tests()
    wanted = cells()

    def work(cell: Cell) -> Cell:
        try:
            guest(kernels[cell.kernel], cell)
        except LabError as e:
            cell.failed = (str(e)[-1500:],)
        show(cell)
        return cell

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(work, wanted))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "matrix.json").write_text(json.dumps([vars(c) for c in done], indent=1))
    bad = sum(not c.good for c in done)
    return report(len(done) - bad, bad)


BEGIN, END = "<!-- matrix: made by tests/vm/run table -->", "<!-- matrix end -->"
BEGIN_COSTS, END_COSTS = "<!-- costs: made by tests/vm/run table -->", "<!-- costs end -->"


def table() -> int:
    """The last matrix as a table in docs/kernel-module.md."""
    source = RESULTS / "matrix.json"
    if not source.exists():
        raise LabError("there is no matrix yet: tests/vm/run matrix")
    lines = ["| kernel | driver | header | page table | tests passed | failed | kernel log |",
             "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for c in json.loads(source.read_text()):
        version = next(k for k, v in VERSIONS.items() if v == c["version"])
        log = "clean" if not c["splats"] else f"{len(c['splats'])} lines"
        lines.append(f"| {c['release']} | {c['flavour']} | {c['header']} | {version} | {c['passed']} "
                     f"| {len(c['failed'])} | {log if c['finished'] else 'did not finish'} |")  # fmt: skip
    costs = ["| kernel | driver | costs | lookup |", "| --- | --- | --- | --- |"]
    for c in json.loads(source.read_text()):
        if c["header"] != "own":
            continue
        log = RESULTS / f"{c['kernel']}-{c['flavour']}-{c['header']}-{c['version']}.log"
        told = {k: next((x.partition(k)[2].strip() for x in log.read_text().splitlines() if k in x), "")
                for k in ("# cost ns:", "# lookup:")}  # fmt: skip
        costs.append(f"| {c['release']} | {c['flavour']} | {told['# cost ns:']} | {told['# lookup:']} |")
    page = ROOT / "docs" / "kernel-module.md"
    text = page.read_text()
    for begin, end, rows in ((BEGIN, END, lines), (BEGIN_COSTS, END_COSTS, costs)):
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = before + begin + "\n" + "\n".join(rows) + "\n" + end + after
    page.write_text(text)
    return 0


def one(kernel: str = "6.1", flavour: str = "open", header: str = "own", test: str = "") -> int:
    """One guest, its console shown."""
    import debugkernel

    prepare()
    debugs = {"debug": "gcc", "debug-clang": "clang"}
    there = debugkernel.kernel(debugs[kernel]) if kernel in debugs else packages.kernel(kernel)
    if test.startswith("tests/"):  # Python's
        result = python_suite(there, test)
        print(result.text)
        good = "suite-exit-0" in result.text and result.finished and not result.splats
        return report(int(good), int(not good))
    modules = build.modules(there, flavour, header)
    script = test_script(VERSIONS["1.2"])
    if test:
        script = LOAD.format(version=VERSIONS["1.2"]) + CLIENTS + f"/lab/{test}\n" + NO_CLIENTS + UNLOAD
    result = boot.boot(there, files_of(modules, build.tests()), script, timeout=900)
    print(result.text)
    for line in result.splats:
        print(f"# kernel log: {line}")
    return report(len(result.passed), len(result.failed) + len(result.splats) + (not result.finished))


# -- the Python suite inside a guest ---------------------------------------------------------

MOUNT = """
for m in {modules}; do insmod $m || echo "not ok 900 $m"; done
mkdir -p /host && mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose root /host
mount -t proc proc /host/proc && mount -t sysfs sys /host/sys && mount -t devtmpfs dev /host/dev
mkdir -p /host/dev/shm && mount -t tmpfs shm /host/dev/shm
mount -t tmpfs scratch /host{scratch} && mount -t tmpfs run /host/run
ip link set lo up 2>/dev/null
chmod 1777 /host{scratch}
"""


def guest_modules(kernel: Unpacked, names: tuple[str, ...]) -> list[Path]:
    """Kernel modules and what they depend on, in the order of loading."""
    base = kernel.image.parent.parent
    folder = next(f for f in (base / "lib/modules" / kernel.release,
                              base / "usr/lib/modules" / kernel.release) if f.exists())  # fmt: skip
    by_name = {f.name.split(".ko")[0].replace("-", "_"): f for f in folder.rglob("*.ko*")}
    order: list[Path] = []

    def add(name: str) -> None:
        file = by_name.get(name.replace("-", "_"))
        if file is None or file in order:
            return  # built in
        for needed in run(["modinfo", "-F", "depends", file]).strip().split(","):
            if needed:
                add(needed)
        order.append(file)

    for name in names:
        add(name)
    return order


def quick() -> int:
    """The distribution's own kernel: C tests, then the Python suite over /dev/p2pmod."""
    prepare()
    kernel = packages.kernel("6.1")
    cell = Cell("6.1", "open", "own", VERSIONS["1.2"])
    guest(kernel, cell)
    show(cell)
    passed, failed = cell.passed, len(cell.failed) + len(cell.splats) + (not cell.finished)
    print("# the Python suite, inside the guest", flush=True)
    result = python_suite(kernel, f"tests/bridges tests/vm/guest tests/unit {NOT_HERE}")
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
    return report(passed + good, failed + (not good))


# what is about the emulated GPU's process, compilers, the copy engine, feigned drivers and pages, and
# about no bridge: it runs outside, where it takes seconds
NOT_HERE = " ".join(
    f"--ignore tests/{name if '/' in name else 'unit/' + name}"
    for name in (
        "test_emulation.py",
        "test_emulation_process.py",
        "test_native_copy.py",
        "test_native_guard.py",
        "test_native_threads.py",
        "test_mapped.py",
        "test_lab.py",
        "test_readme.py",
        "test_memory_model.py",
        "test_check.py",
        "test_report.py",
        "test_experiment.py",
        "test_paths.py",
        # its services live for 60 seconds, which is too short here; tests/vm/guest has its own
        "test_service.py",
    )
)


def python_suite(kernel: Unpacked, what: str) -> boot.Result:
    """pytest, with ``what`` as its arguments, in a guest that sees this machine's files read-only."""
    python = ROOT / ".venv" / "bin" / "python"
    if not python.exists():
        raise LabError(f"{python} is missing: run `make demo` first")
    modules = build.modules(kernel, "open", "own")
    drivers = guest_modules(kernel, ("virtio_pci", "9pnet_virtio", "9p"))
    files = files_of(modules, build.tests())
    files |= {f"/drivers/{f.name}": f for f in drivers}
    cache = os.environ.get("GPUDIRECT_CACHE") or str(Path.home() / ".cache" / "gpudirect")
    # the only place that the guest can write to: not where the checkout is
    scratch = next(f for f in ("/mnt", "/srv", "/var/tmp", "/tmp") if not ROOT.is_relative_to(f))
    environment = {
        "TMPDIR": scratch, "GPUDIRECT_DEVICE": "emulated", "GPUDIRECT_CACHE": cache, "HOME": scratch,
        "GPUDIRECT_TEST_PAIRS": "emulated:p2pmod", "PATH": os.environ["PATH"],
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    setting = " ".join(f"{k}={v}" for k, v in environment.items())
    script = (
        MOUNT.format(modules=" ".join(f"/drivers/{f.name}" for f in drivers), scratch=scratch)
        + LOAD.format(version=VERSIONS["1.2"])
        + CLIENTS
        + f"chroot /host /bin/sh -c 'cd {ROOT} && env {setting} {python} -m pytest -q --color=no -p "
        f"no:cacheprovider --timeout 900 {what}; echo suite-exit-$?'\n"
        "cat /proc/driver/p2pmod\n"
    )
    return boot.boot(kernel, files, script, timeout=1800, bar=1024, memory=4096, share=True)


# -- the debug kernel ------------------------------------------------------------------------


def debug(compiler: str = "gcc") -> int:
    """C tests, failing allocations, and the fuzzer, on a kernel that looks for mistakes."""
    import debugkernel

    prepare()
    start = time.monotonic()
    kernel = debugkernel.kernel(compiler)
    took = time.monotonic() - start
    print(f"# debug kernel {kernel.release}, built with {compiler}, ready after {took:.0f} s", flush=True)
    modules = build.modules(kernel, "open", "own", ("KCFLAGS=-g",))
    files = files_of(modules, build.tests())
    passed = failed = 0
    calls = int(os.environ.get("GPUDIRECT_FUZZ_CALLS", "100000"))
    seed = int(os.environ.get("GPUDIRECT_FUZZ_SEED", "1605"))
    parts: list[tuple[str, str, float]] = [("C tests", test_script(VERSIONS["1.2"]), 1500)]
    parts.append(("failing allocations", LOAD.format(version=VERSIONS["1.2"])
                  + CLIENTS + "/lab/failnth\n" + NO_CLIENTS + UNLOAD, 900))  # fmt: skip
    if calls:
        parts.append((f"fuzz, seed {seed}, {calls} calls", LOAD.format(version=VERSIONS["1.2"])
                      + f"{CLIENTS}/lab/fuzz {seed} {calls} {FUZZ_SECONDS} 4\n{NO_CLIENTS}"
                      + UNLOAD, 3000))  # fmt: skip
    leaks = ("echo scan > /sys/kernel/debug/kmemleak; sleep 6; echo scan > /sys/kernel/debug/kmemleak; "
             "cat /sys/kernel/debug/kmemleak\n")  # fmt: skip
    for name, script, timeout in parts:
        result = boot.boot(kernel, files, script + leaks, timeout=timeout, memory=2048)
        bad = len(result.failed) + len(result.splats) + (not result.finished) + (not result.passed)
        print(f"{'not ok' if bad else 'ok'} - {name}: {len(result.passed)} passed, "
              f"{len(result.failed)} failed, {result.seconds:.0f} s", flush=True)  # fmt: skip
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{kernel.series}-{name.replace(' ', '-')}.log").write_text(result.text)
        for line in [*result.failed, *result.splats][:40]:
            print(f"#   {line}")
        for line in result.text.splitlines():
            if line.startswith("# ") and name != "C tests":
                print(line)
        passed += not bad
        failed += bool(bad)
    return report(passed, failed)


def static() -> int:
    """sparse, checkpatch and the licence of every symbol."""
    prepare()
    kernel = packages.kernel("6.1")
    checks: list[tuple[str, Callable[[], list[str]]]] = [
        ("sparse", lambda: build.sparse(kernel)),
        ("checkpatch", build.checkpatch),
        ("the symbol check, on a module that needs pgprot_writecombine",
         lambda: build.planted_symbol(kernel)),
        ("MOVDIR64B, written in bytes", lambda: build.store64(kernel)),
    ]
    failed = 0
    for name, check in checks:
        lines = check()
        print(f"{'not ok' if lines else 'ok'} - {name}: {len(lines)} complaints", flush=True)
        for line in lines[:40]:
            print(f"#   {line}")
        failed += bool(lines)
    return report(len(checks) - failed, failed)

