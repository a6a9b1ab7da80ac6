"""``gpudirect info``: one page about this machine."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import aperture, facts


def size(count: int | None) -> str:
    """Bytes for people: "256 MiB"."""
    if count is None:
        return "not told"
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"


def show(console: Console, as_json: bool) -> None:
    """Print the page, or the same as JSON."""
    found = facts.everything()
    found["aperture"] = aperture.told()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    machine = found["machine"]
    table = Table(title="Machine", show_header=False, title_justify="left")
    driver = machine["driver"]
    present = (n for n, usable in machine["copy_instructions_present"].items() if usable)
    for name, value in (
        ("CPU", f"{machine['cpu']}, {machine['cpus']} logical"),
        ("copy instructions", f"{machine['copy_instructions']} (present: {', '.join(present)})"),
        ("kernel", machine["kernel"]),
        ("NVIDIA driver", f"{driver}, {machine['driver_flavour']}" if driver else "none"),
        ("CUDA", "available" if found["cuda"]["available"] else found["cuda"]["reason"]),
        ("Python", f"{machine['python']}, NumPy {machine['numpy']}"),
    ):
        table.add_row(name, str(value))
    console.print(table)
    for device in found["devices"]:
        _device(console, device, device["device"] == found["default_device"])
    for heap in found["heaps"]:
        console.print(
            f"held by this process on {heap['device']} via {heap['bridge']}: "
            f"{size(heap['mapped'])} mapped, {size(heap['in_use'])} in use"
        )
    for use in found["aperture"]:
        console.print(f"  {use['device']}: {use['words']}", highlight=False)


def _device(console: Console, device: dict[str, Any], default: bool) -> None:
    mark = "  [bold yellow](emulated: no GPU is involved)[/]" if device["emulated"] else ""
    chosen = "  [green]default[/]" if default else ""
    table = Table(
        title=f"{device['device']}  {device['name']}{mark}{chosen}", title_justify="left"
    )
    table.add_column("bridge")
    table.add_column("usable")
    table.add_column("why")
    for name, standing in device["bridges"].items():
        usable = "[green]yes[/]" if standing["usable"] else "[red]no[/]"
        arrow = " [bold]<- chosen[/]" if name == device["bridge"] else ""
        table.add_row(name, usable, standing["reason"] + arrow)
    console.print(table)
    used = device["bar1_used_bytes"]
    console.print(
        f"  memory {size(device['memory_bytes'])}, {size(device['memory_free_bytes'])} free; "
        f"BAR1 {size(device['bar1_bytes'])}, {size(used)} used\n"
        f"  {device['uuid']} at {device['pci_address']}",
        highlight=False,
    )
    ordering = device.get("ordering")
    if ordering:
        console.print(
            f"  writes through BAR1: seen in order by {ordering['scope']}; flush by the host: "
            f"{'yes' if ordering['flush_by_host'] else 'no'}",
            highlight=False,
        )
