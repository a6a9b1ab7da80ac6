"""``gpudirect info``: one page about this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._words import size_text
from ..config import defaults
from ._options import BridgeOption, DeviceOption, JsonOption, known
from ._table import Table

if TYPE_CHECKING:
    from ._screen import Screen


def info(
    as_json: JsonOption = False,
    device: DeviceOption = None,
    bridge: BridgeOption = None,
) -> None:
    """This machine: devices, BAR1, driver, CPU, and each way to map GPU memory with its reason.

    Whatever is missing is told as such: `info` itself does not fail. `gpudirect doctor` says what
    would mend it.
    """
    from .. import facts
    from ._screen import Screen

    if device is not None or bridge is not None:
        known(device, bridge)
        defaults.device, defaults.bridge = device or defaults.device, bridge or defaults.bridge
    screen = Screen(as_json)
    with screen.progress("looking at this machine"):
        found = facts.everything()
    screen.json(found)
    show(screen, found)


def show(screen: Screen, found: dict[str, Any]) -> None:
    """Print the page."""
    machine, versions = found["machine"], found["versions"]
    present = (n for n, usable in machine["copy_instructions_present"].items() if usable)
    driver = f"{machine['driver']}, {machine['driver_flavour']} kernel modules"
    screen.line("Machine", "bold")
    screen.facts([
        ("CPU", f"{machine['cpu']}, {machine['cpus']} logical"),
        ("copy instructions", f"{machine['copy_instructions']} (present: {', '.join(present)})"),
        ("kernel", machine["kernel"]),
        ("NVIDIA driver", driver if machine["driver"] else "none is loaded"),
        ("CUDA", found["cuda"]["reason"] or "available"),
        ("Python", f"{machine['python']}, NumPy {machine['numpy']}, "
                   f"cuda-bindings {machine['cuda_bindings'] or 'not installed'}"),
        ("gpudirect", versions["gpudirect"]),
    ], "  ")  # fmt: skip
    for device in found["devices"]:
        screen.line()
        _device(screen, device, device["device"] == found["default_device"])
    screen.line()
    if found["default_device"] is None:
        screen.say(f"No default device: {found['default_device_reason']}", "bold red")
    for heap in found["heaps"]:
        screen.say(f"Held by this process on {heap['device']} via {heap['bridge']}: "
                   f"{size_text(heap['mapped'])} mapped, {size_text(heap['in_use'])} in use.")  # fmt: skip
    for use in found["aperture"]:
        screen.say(f"{use['device']}: {use['words']}.")
    for part, reason in found["not_told"].items():
        screen.say(f"{part}: not told: {reason}", "yellow")


def _device(screen: Screen, device: dict[str, Any], default: bool) -> None:
    marks = ["emulated: no GPU is involved"] if device.get("emulated") else []
    marks += ["the default"] if default else []
    marked = f" ({', '.join(marks)})" if marks else ""
    screen.say(f"{device['device']}, {device.get('name', 'unknown')}{marked}",
               "bold yellow" if device.get("emulated") else "bold")  # fmt: skip
    if device.get("reason"):
        screen.say(device["reason"], "red", "  ")
        return
    used = device["bar1_used_bytes"]
    rows = [
        ("memory", f"{size_text(device['memory_bytes'])}, {size_text(device['memory_free_bytes'])} free"),
        ("BAR1", f"{size_text(device['bar1_bytes'])}, {size_text(used)} used"),
        ("UUID", device["uuid"]),
        ("PCI address", device["pci_address"]),
    ]
    if ordering := device.get("ordering"):
        flush = "yes" if ordering["flush_by_host"] else "no"
        rows.append(("writes through BAR1", f"seen in order by {ordering['scope']}; flush by the "
                                            f"host: {flush}"))  # fmt: skip
    screen.facts(rows, "  ")
    table = Table(("bridge", "usable", "why"), words=(1, 2))
    for name, standing in device["bridges"].items():
        chosen = " <- chosen" if name == device["bridge"] else ""
        table.add(name, "yes" if standing["usable"] else "no", standing["reason"] + chosen)
    screen.table(table)
    if device["bridge"] is None:
        screen.say(f"No bridge: {device['bridge_reason']}", "red", "  ")
