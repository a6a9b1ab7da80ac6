"""``gpudirect doctor --report``: one file about a machine, for an issue. No names, no paths.

The demo and the quick benchmarks run in processes of their own: on a machine that nobody has tried
they may crash, and then the report says so.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import facts
from ..errors import ArgumentError
from ._look import ask
from ._machine import Machine
from ._rules import Finding

FORMAT = 1
BENCHES = ("alloc", "copylat", "copybw", "launch", "pingpong", "doorbell")
LIMIT = 300.0  # seconds for the demo, and for each benchmark

# paths that tell nothing of a person: device files, the kernel's own, libraries by name
PUBLIC = re.compile(r"/(dev|proc|sys|lib/modules)(/[\w.:+-]+)*")
PATH = re.compile(r"(?<![\w.])~?/(?:[\w.@+:~-]+/)*[\w.@+:~-]+")
OURS = str(Path(__file__).resolve().parents[2]) + os.sep  # of our own files a traceback may name the place
UUID = re.compile(r"\b(?:GPU-|MIG-)?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.I)
ADDRESS = re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b(?!\.\d)")


def names_here() -> list[str]:
    """What must not be in a report: the user, the machine, the folders they work in."""
    found = [
        ask(getpass.getuser, ""), ask(socket.gethostname, ""), ask(socket.getfqdn, ""), platform.node(),
        os.environ.get("USER", ""), os.environ.get("LOGNAME", ""), os.environ.get("HOSTNAME", ""),
        Path.home().name,
    ]  # fmt: skip
    # words so short or so common that replacing them would only garble the rest
    common = {"root", "user", "localhost", "gpu", "cuda", "linux", "python", "gpudirect", "debian", "ubuntu"}
    return sorted({n for n in found if len(n) > 2 and n.lower() not in common}, key=len, reverse=True)


def scrubbed(value: Any, names: list[str] | None = None) -> Any:
    """The same data, every name, path, UUID and network address in its words replaced."""
    names = names_here() if names is None else names
    if isinstance(value, Mapping):
        return {_scrub(str(k), names): scrubbed(v, names) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [scrubbed(v, names) for v in value]
    if isinstance(value, (set, frozenset)):
        return [scrubbed(v, names) for v in sorted(value)]
    return _scrub(value, names) if isinstance(value, str) else value


def _scrub(text: str, names: list[str]) -> str:
    text = UUID.sub("<uuid>", text).replace(OURS, "")
    text = PATH.sub(lambda found: found[0] if PUBLIC.fullmatch(found[0]) else "<path>", text)
    text = ADDRESS.sub("<address>", text)
    for name in names:
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "<name>", text, flags=re.IGNORECASE)
    return text


def report(machine: Machine, findings: list[Finding], path: Path, *,
           tell: Callable[[str], object] = lambda what: None, measure: bool = True) -> dict[str, Any]:
    """Write the report, and return what is in it. Written anew after each part, so that a machine
    that hangs leaves what came before.

    measure: the demo and quick benchmarks too; some minutes.
    Raises ArgumentError when the file cannot be written, with the reason.
    """
    tell("facts")
    found: dict[str, Any] = {"format": FORMAT, "what": "gpudirect doctor --report"}
    parts: list[tuple[str, Callable[[], Any]]] = [
        ("versions", facts.versions),
        ("machine", lambda: _machine(machine)),
        ("facts", _facts),
        ("findings", lambda: [{"id": f.id, "level": f.level, "seen": f.seen} for f in findings]),
    ]
    if measure:
        parts.append(("demo", lambda: _run("demo")))
        parts += [(f"bench {n}", lambda n=n: _figures(_run("bench", "run", n, "--quick")))  # type: ignore[misc]
                  for n in BENCHES]  # fmt: skip
    for name, part in parts:
        tell(name)
        try:
            found[name] = scrubbed(part())
        except Exception as e:
            found[name] = scrubbed({"failed": f"{type(e).__name__}: {e}"})
        try:
            path.write_text(json.dumps(found, indent=1) + "\n")
        except OSError as e:
            raise ArgumentError(f"the report cannot be written to {path}: {e.strerror}") from e
    return found


def _machine(machine: Machine) -> dict[str, Any]:
    told = asdict(machine)
    # a command line can hold anything; what bears on the GPU is known by name
    told["command_line"] = [w for w in machine.command_line if re.match(
        r"(intel_iommu|amd_iommu|iommu|pci|nvidia|nouveau|module|nomodule|mitigations|pcie|hugepages)", w)]
    # likewise the environment: whether a file is named counts, not which
    told["environment"] = {k: v for k, v in machine.environment.items()}
    for gpu in told["gpus"]:
        gpu["holders"] = len(gpu["holders"])
    return told


def _facts() -> dict[str, Any]:
    told = facts.everything()
    for device in told["devices"]:
        device.pop("uuid", None)
    return told


def _run(*words: str) -> Any:
    """A command of ours in a process of its own: its JSON, or how it ended."""
    try:
        run = subprocess.run(
            [sys.executable, "-m", "gpudirect", *words, "--json"], capture_output=True, text=True,
            timeout=LIMIT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"ended": f"stopped after {LIMIT:.0f} s"}
    try:
        answer = json.loads(run.stdout)
    except ValueError:
        answer = {"said": (run.stdout + run.stderr)[-2000:]}
    if run.returncode:
        code = run.returncode
        answer["ended"] = signal.Signals(-code).name if code < 0 else f"status {code}"
    return answer


def _figures(answer: dict[str, Any]) -> dict[str, Any]:
    """Of a benchmark only what is compared: nanoseconds by case and size."""
    if "figures" not in answer:
        return answer
    return {f"{f['case']}, {f['size']} bytes" if f["size"] else f["case"]:
            {"best": round(f["p0"]), "median": round(f["p50"]), "p99": round(f["p99"])}
            for f in answer["figures"]}  # fmt: skip
