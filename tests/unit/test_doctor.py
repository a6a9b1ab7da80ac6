"""gpudirect doctor: every finding on a faked machine, what it prints, and its report."""

from __future__ import annotations

import json
import lzma
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from gpudirect import doctor
from gpudirect.cli._doctor import show, summary
from gpudirect.cli._screen import Screen
from gpudirect.config import SETTINGS
from gpudirect.doctor import HEALTHY, RULES, _look, _report, examine
from gpudirect.doctor._machine import ABSENT, DENIED, GIB, MIB, OK, Gpu, Holder, Machine, ModuleFile
from gpudirect.doctor.driver import NO_CUDA, NO_DRIVER

ROOT = Path(__file__).resolve().parents[2]
IDS = [r.id for r in RULES]


def ids(machine: Machine) -> list[str]:
    return [f.id for f in examine(machine)]


# -- the rules -------------------------------------------------------------------------------


def test_a_healthy_machine_has_nothing():
    assert ids(HEALTHY) == []


@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_each_finding_is_found_where_it_is_and_says_everything(rule):
    found = rule.find(rule.example)
    assert found is not None, "not found on its own example"
    assert rule.find(HEALTHY) is None, "found on a healthy machine"
    assert found.seen and found.means.endswith(".") and found.costs.endswith(".")
    assert found.mend and found.level in doctor.LEVELS


@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_each_example_shows_one_thing_and_what_follows_from_it(rule):
    follows = {
        "bar1-full": {"bar1-small"}, "driver-too-old": {"nvrtc-newer"},
        "device-files-missing": {"module-not-in-container"},
        "module-not-in-container": {"other-containers"},
    }  # fmt: skip
    assert set(ids(rule.example)) == {rule.id} | follows.get(rule.id, set())


@pytest.mark.parametrize("distribution", ["debian", "ubuntu", "fedora", "rhel", "suse", "arch", ""])
def test_every_command_can_be_typed(distribution):
    commands = [
        step[2:]
        for rule in RULES for root in (True, False)
        for step in rule.find(rule.example.where(distribution=distribution, root=root)).mend
        if step.startswith("$ ")
    ]  # fmt: skip
    assert len(commands) > 50
    for command in commands:
        run = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert run.returncode == 0, f"{command}: {run.stderr}"
        assert "None" not in command and "{" not in command.replace("${", ""), command


def test_root_needs_no_sudo():
    rule = next(r for r in RULES if r.id == "driver-not-loaded")
    assert rule.find(rule.example).mend[0] == "$ sudo modprobe nvidia"
    assert rule.find(rule.example.where(root=True)).mend[0] == "$ modprobe nvidia"


def test_an_unknown_distribution_is_told_all_ways_to_install():
    rule = next(r for r in RULES if r.id == "no-cxx-compiler")
    told = "\n".join(rule.find(rule.example.where(distribution="")).mend)
    assert all(way in told for way in ("apt install g++", "dnf install gcc-c++", "zypper", "pacman"))


GEFORCE = {"memory": 12 * GIB, "bar1": 256 * MIB, "bar1_used": 0}


@pytest.mark.parametrize(("machine", "expected"), [
    # BAR1: which of the two it is depends on what the GPU could show
    (HEALTHY.with_gpu(**GEFORCE, bar1_largest=16 * GIB), ["bar1-not-resized"]),
    (HEALTHY.with_gpu(**GEFORCE, bar1_largest=256 * MIB), ["bar1-small"]),
    (HEALTHY.with_gpu(**GEFORCE, bar1_largest=None), ["bar1-small"]),
    (HEALTHY.with_gpu(memory=256 * GIB), []),
    (HEALTHY.with_gpu(bar1=None, bar1_used=None), []),
    (HEALTHY.with_gpu(bar1_used=231 * GIB), ["bar1-full"]),
    (HEALTHY.with_gpu(bar1_used=230 * GIB), []),
    # the driver: one reason, not a list of what follows from it
    (NO_CUDA.where(cuda_reason="cuInit failed: CUDA_ERROR_SYSTEM_NOT_READY (802)"), ["no-fabric-manager"]),
    (NO_CUDA.where(libcuda=False), ["no-libcuda"]),
    (NO_CUDA, ["cuda-fails"]),
    (NO_CUDA.where(environment={"CUDA_VISIBLE_DEVICES": ""}), ["hidden-gpus"]),
    (HEALTHY.where(environment={"CUDA_VISIBLE_DEVICES": "0"}), []),
    (NO_DRIVER.where(driver_installed=True, loaded=frozenset({"nouveau"})), ["nouveau"]),
    (NO_DRIVER.where(pci_gpus=None), ["no-gpu"]),
    (HEALTHY.where(driver="535.01", library="535.01"), []),
    (HEALTHY.where(driver="530.30", library="530.30"), ["driver-too-old"]),
    # libraries of another version that work all the same (forward compatibility) are none
    (HEALTHY.where(library="590.10"), []),
    # the module: only where it could be loaded and is not
    (HEALTHY.where(module=None), []),
    (HEALTHY.where(module=None).with_nodes(p2pmod=ABSENT), ["module-not-built"]),
    (HEALTHY.where(module=None, loaded=frozenset()).with_nodes(p2pmod=ABSENT).where(modules_can_load=False),
     ["no-modules"]),
    (HEALTHY.where(module=ModuleFile(HEALTHY.kernel, False, False)).with_nodes(p2pmod=ABSENT),
     ["module-not-loaded"]),
    (HEALTHY.where(module=ModuleFile("5.10.0", False, True), signatures_needed=True).with_nodes(p2pmod=ABSENT),
     ["module-for-another-kernel"]),
    (NO_DRIVER.where(module=None), ["no-driver"]),
    # the rest, at their edges
    (HEALTHY.with_gpu(iommu=None), []),
    (HEALTHY.with_gpu(iommu="DMA"), ["iommu"]),
    (HEALTHY.with_gpu(near_cpus=frozenset()), []),
    (HEALTHY.where(cpus=frozenset({15, 16})), []),
    (HEALTHY.with_gpu(stores=1.99), ["not-write-combined"]),
    (HEALTHY.with_gpu(stores=0.8, link=4, link_most=4), []),
    (HEALTHY.with_gpu(stores=None), []),
    (HEALTHY.where(stores=("avx512", "avx2")), []),
    (HEALTHY.where(locked=64 * MIB), []),
    (HEALTHY.where(nvrtc="12.8", cuda=13000), []),
    (HEALTHY.where(descriptors=256), []),
    (HEALTHY.where(descriptors=None), []),
    (HEALTHY.where(container="docker", local_sockets="not permitted"), ["no-local-sockets"]),
    (HEALTHY.with_gpu(virtualization="passthrough"), []),
    (HEALTHY.with_gpu(compute_mode="prohibited"), ["compute-mode"]),
    (HEALTHY.with_gpu(calibrated=False, bridge=None), ["no-bridge"]),
    (HEALTHY.where(environment={"GPUDIRECT_POOL": "0", "GPUDIRECT_TEST_PAIRS": "x"}), []),
    # a GPU that cannot be opened says only that
    (HEALTHY.where(gpus=(Gpu("cuda:0", "unknown", reason="busy"),)), ["gpu-not-opened"]),
])  # fmt: skip
def test_findings_at_their_edges(machine, expected):
    assert ids(machine) == expected


def test_bar1_that_is_full_names_who_holds_it():
    machine = HEALTHY.with_gpu(bar1_used=256 * GIB, holders=(Holder(4711, 900 * MIB), Holder(815, None)))
    (found,) = examine(machine)
    assert "process 4711 (900 MiB of GPU memory), process 815" in found.seen
    assert "ps -o pid,user,etime,args -p 815,4711" in found.mend[0]


def test_the_weightiest_comes_first():
    machine = HEALTHY.where(faulthandler=True, governor="powersave", confidential=True, nvrtc=None)
    assert ids(machine) == ["confidential", "no-nvrtc", "powersave", "faulthandler-on"]


def test_of_several_gpus_each_is_named():
    second = replace(HEALTHY.gpus[0], id="cuda:1", link=8)
    machine = HEALTHY.with_gpu(link=4).where()
    machine = machine.where(gpus=(*machine.gpus, second))
    (found,) = examine(machine)
    assert found.seen == "cuda:0, NVIDIA H200: 4 of 16 lanes; cuda:1, NVIDIA H200: 8 of 16 lanes"


def test_what_is_not_told_is_no_finding():
    """A machine of which next to nothing is known: no rule stumbles, none makes something up."""
    found = ids(Machine())
    assert found == ["no-gpu"]
    assert ids(HEALTHY.where(gpus=(Gpu("cuda:0", "GPU", bridge="rm"),))) == []


def test_every_rule_is_of_a_group_that_has_a_title():
    assert {r.group for r in RULES} == set(doctor.GROUPS)
    assert len(set(IDS)) == len(IDS)


# -- settings --------------------------------------------------------------------------------


def test_every_variable_that_is_read_is_told_and_no_other():
    read: set[str] = set()
    for file in [*(ROOT / "gpudirect").rglob("*.py"), *(ROOT / "gpudirect").rglob("*.c")]:
        if file.parent.name != "doctor" and file.name != "config.py":
            read |= set(re.findall(r"GPUDIRECT_[A-Z0-9_]+[A-Z0-9]\b", file.read_text()))
    read |= {"GPUDIRECT_DEVICE", "GPUDIRECT_BRIDGE", "GPUDIRECT_CACHE"}  # config.py's own
    named = {s.name for s in SETTINGS}
    assert named <= read, "told, and read nowhere"
    # what is not a setting of the environment: macros of C
    assert read - named <= {"GPUDIRECT_EMULATED"}, read - named


# -- what is printed -------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80])
def test_what_is_printed_fits(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    screen = Screen()
    for rule in RULES:
        show(screen, rule.find(rule.example))
    for line in capsys.readouterr().out.splitlines():
        # a command is never broken, and a word longer than the line has no place to break at
        command = line.startswith("    $ ") or line.startswith("        ")
        assert command or len(line) <= width or len(line.split()) <= 2, line


def test_the_summary_counts():
    assert summary([], ["cuda:0, NVIDIA H200"]) == "cuda:0, NVIDIA H200: nothing to mend."
    found = examine(HEALTHY.where(faulthandler=True, governor="powersave", cuda_headers=False))
    assert summary(found, ["cuda:0, GPU"]) == "cuda:0, GPU: 1 slows, 2 notes."


def command(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "gpudirect", "doctor", *words], capture_output=True, text=True, timeout=300,
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **environment},
    )  # fmt: skip


def test_the_command_tells_what_is_here_and_writes_nothing(tmp_path):
    run = command(cwd=tmp_path, GPUDIRECT_BRIGDE="rm")
    assert run.returncode in (0, 1) and "Traceback" not in run.stderr, run.stderr
    assert "note: A setting that does not exist" in run.stdout and "unset GPUDIRECT_BRIGDE" in run.stdout
    assert not list(tmp_path.iterdir())
    found = json.loads(command("--json", cwd=tmp_path, GPUDIRECT_BRIGDE="rm").stdout)
    assert "unknown-setting" in {f["id"] for f in found["findings"]}
    assert found["stopped"] == (run.returncode == 1)
    refused = command("--out", "x.json", cwd=tmp_path)
    assert refused.returncode == 2 and "--report" in refused.stderr


# -- looking ---------------------------------------------------------------------------------


def test_a_look_at_this_machine_answers_every_question():
    machine = doctor.look()
    assert machine.kernel and machine.cpus and machine.stores and machine.packages["numpy"]
    examine(machine)


def test_a_look_survives_that_nothing_answers(monkeypatch, tmp_path):
    def fails(*words, **more):
        raise OSError("not here")

    for name in ("SYSFS", "PROC", "MODULES", "CHECKOUT"):
        monkeypatch.setattr(_look, name, tmp_path / "nothing")
    for name in ("driver_version", "_module", "_pci_gpus", "_library", "_cuda", "_nvrtc", "_cuda_headers",
                 "_nvml", "_cache_writable"):  # fmt: skip
        monkeypatch.setattr(_look, name, fails)
    monkeypatch.setattr(_look.devices, "cuda_reason", fails)
    monkeypatch.setattr(_look.cpu, "allowed", fails)
    monkeypatch.setattr(_look.cpu, "copy_instructions", fails)
    machine = doctor.look()
    assert machine.cuda_reason == "it cannot be asked" and machine.gpus == ()
    examine(machine)


def test_a_socket_is_tried_and_closed(monkeypatch):
    before = len(os.listdir("/proc/self/fd"))
    assert _look._local_sockets() is None
    assert len(os.listdir("/proc/self/fd")) == before

    def refused():
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(_look._wire, "opened", refused)
    assert _look._local_sockets() == "Operation not permitted"


def put(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_pci_bus_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(_look, "SYSFS", tmp_path)
    assert _look._pci_gpus() is None
    for n, (vendor, kind) in enumerate([("0x10de", "0x030200"), ("0x10de", "0x030000"), ("0x10de", "0x040300"),
                                        ("0x8086", "0x030000")]):  # fmt: skip
        put(tmp_path / f"bus/pci/devices/{n}/vendor", vendor + "\n")
        put(tmp_path / f"bus/pci/devices/{n}/class", kind + "\n")
    assert _look._pci_gpus() == 2


def test_the_largest_bar_is_the_highest_bit(tmp_path):
    put(tmp_path / "resource1_resize", "0000000000007fc0\n")  # 64 MiB to 16 GiB
    assert _look._largest(tmp_path) == 16 * GIB


@pytest.mark.parametrize("suffix", ["", ".xz"])
@pytest.mark.parametrize("signed", [True, False])
def test_the_modules_file_is_read(tmp_path, monkeypatch, suffix, signed):
    monkeypatch.setattr(_look, "MODULES", tmp_path)
    content = b"ELF" + (_look.SIGNED if signed else b"")
    put(tmp_path / f"6.1/updates/p2pmod.ko{suffix}", lzma.compress(content) if suffix else content)
    put(tmp_path / "6.1/updates/nvidia-current.ko", "")
    listed = "updates/nvidia-current.ko:\nupdates/nvidia-current-drm.ko:\n"
    put(tmp_path / "6.1/modules.dep", f"updates/p2pmod.ko{suffix}: updates/nvidia-current.ko\n{listed}")
    put(tmp_path / "5.10/modules.dep", "kernel/x.ko:\n")
    os.utime(tmp_path / f"6.1/updates/p2pmod.ko{suffix}", (1000, 1000))
    assert _look._module("6.1") == ModuleFile("6.1", signed, True)
    assert _look._module("5.10") == ModuleFile("6.1", signed, True), "that of another kernel is found too"
    assert _look._driver_file("6.1") == tmp_path / "6.1/updates/nvidia-current.ko"
    assert _look._driver_file("5.10") is None


def test_the_cache_is_asked_for_and_not_made(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUDIRECT_CACHE", str(tmp_path / "a" / "b"))
    assert _look._cache_writable() is True
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("GPUDIRECT_CACHE", "/proc/nothing")
    assert _look.ask(_look._cache_writable, False) is False


# -- the report ------------------------------------------------------------------------------

SECRETS = {
    "a home": "/home/alice/models/secret.bin", "its owner": "alice", "tilde": "~/x/y.txt",
    "uuid": "GPU-6c2b5f1e-9d1f-4a3e-8b1d-0123456789ab", "address": "192.168.17.4",
    "machine": "vault-7.example.org",
}  # fmt: skip


def test_names_and_paths_are_taken_out():
    told = json.dumps(_report.scrubbed({
        "a": [f"cannot open {SECRETS['a home']}: no", ("x", SECRETS["uuid"])],
        SECRETS["its owner"]: {"b": f"on {SECRETS['machine']} ({SECRETS['address']}) by Alice"},
        "c": f"{SECRETS['tilde']} and '/opt/team/x'", "n": 3, "none": None,
    }, ["vault-7.example.org", "alice"]))  # fmt: skip
    for what, secret in SECRETS.items():
        assert secret.lower() not in told.lower(), what
    assert "gpudirect/cli/x.py" == _report.scrubbed(str(ROOT / "gpudirect/cli/x.py"), [])
    assert "team" not in told and "<path>" in told and "<uuid>" in told and "<name>" in told


@pytest.mark.parametrize("text", [
    "/dev/nvidia0 and /dev/p2pmod are absent", "/proc/driver/nvidia/version is absent",
    "driver 580.159.04, 24 of 24", "GB/s, and us/call", "/lib/modules/6.1.0-28-amd64/updates/p2pmod.ko",
    "median 1.5 us; 64 bytes", "0000:01:00.0", "NVIDIA RTX 6000/8000",
])  # fmt: skip
def test_what_tells_nothing_of_a_person_stays(text):
    assert _report.scrubbed(text, ["alice"]) == text


@pytest.fixture
def person(tmp_path, monkeypatch):
    """Somebody with a name, on a machine with a name, in a folder with a name."""
    home = tmp_path / "wonderland-home"
    home.mkdir()
    for name, value in {"USER": "mrs-dodgson", "LOGNAME": "mrs-dodgson", "HOSTNAME": "looking-glass",
                        "HOME": str(home), "GPUDIRECT_CACHE": str(home / "kept"),
                        "GPUDIRECT_DEVICE": "emulated"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(_report.socket, "gethostname", lambda: "looking-glass")
    return home


def test_a_report_has_no_names_and_no_paths_and_all_the_rest(person, tmp_path, monkeypatch):
    monkeypatch.setattr(_report, "BENCHES", ("alloc",))
    machine = HEALTHY.where(command_line=("root=/dev/mrs-dodgson", "iommu=pt", "secret=looking-glass"))
    path = tmp_path / "report.json"
    told: list[str] = []
    doctor.report(machine, examine(doctor.look()), path, tell=told.append)
    text = path.read_text()
    for secret in ("mrs-dodgson", "looking-glass", "wonderland", str(tmp_path), str(ROOT), sys.prefix,
                   "EMULATED-0"):  # fmt: skip
        assert secret not in text, secret
    found = json.loads(text)
    assert found["demo"]["held"] is True and len(found["demo"]["checks"]) == 11
    assert found["bench alloc"]["write, 64 bytes, 64 bytes"]["median"] > 0
    assert found["machine"]["command_line"] == ["iommu=pt"]
    assert found["facts"]["devices"][0]["bridges"]["emulated"]["usable"] is True
    assert found["versions"]["gpudirect"] and isinstance(found["findings"], list)
    assert told == ["facts", "versions", "machine", "facts", "findings", "demo", "bench alloc"]
    assert not set(p.name for p in tmp_path.iterdir()) - {"report.json", "wonderland-home"}


def test_a_crash_is_part_of_the_report(person, tmp_path, monkeypatch):
    crash = put(tmp_path / "crash", "#!/bin/sh\necho about to touch /home/mrs-dodgson/x >&2\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(_report.sys, "executable", str(crash))
    monkeypatch.setattr(_report, "BENCHES", ())
    found = doctor.report(HEALTHY, [], tmp_path / "report.json")
    assert found["demo"] == {"said": "about to touch <path>\n", "ended": "SIGSEGV"}


def test_a_hang_ends_and_what_came_before_is_kept(person, tmp_path, monkeypatch):
    hang = put(tmp_path / "hang", "#!/bin/sh\nexec sleep 600\n")
    hang.chmod(0o755)
    monkeypatch.setattr(_report.sys, "executable", str(hang))
    monkeypatch.setattr(_report, "BENCHES", ())
    monkeypatch.setattr(_report, "LIMIT", 0.5)
    assert doctor.report(HEALTHY, [], tmp_path / "r.json")["demo"] == {"ended": "stopped after 0 s"}
    assert json.loads((tmp_path / "r.json").read_text())["machine"]["kernel"] == HEALTHY.kernel


def test_a_report_that_cannot_be_written_says_so():
    from gpudirect.errors import ArgumentError

    with pytest.raises(ArgumentError, match="cannot be written to /proc/nothing"):
        doctor.report(HEALTHY, [], Path("/proc/nothing"), measure=False)


def test_the_report_carries_every_fact_of_the_machine():
    told = _report._machine(HEALTHY)
    assert set(told) == {f.name for f in fields(Machine)}
    assert told["gpus"][0]["holders"] == 0 and {OK, DENIED, ABSENT} >= set(told["nodes"].values())
