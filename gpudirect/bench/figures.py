"""A figures file: what was measured, and on what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError

if TYPE_CHECKING:
    from ..devices import Device
    from .measure import Figure

FORMAT = 1


class Figures:
    """Figures of one run on one device."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.figures: list[Figure] = []
        self.checks: dict[str, Any] = {}
        """Outcomes that are no times: "cycles", say."""
        self.notes: dict[str, str] = {}
        """For each benchmark, what the clock stopped on."""

    def add(self, *figures: Figure) -> None:
        self.figures.extend(figures)

    def as_dict(self) -> dict[str, Any]:
        from .. import facts  # of the devices, which who only reads a file does not need

        return {
            "format": FORMAT,
            "unit": "ns",
            "machine": facts.machine(),
            "device": facts.of_device(self.device),
            "checks": self.checks,
            "notes": self.notes,
            "figures": [f.as_dict() for f in self.figures],
        }

    def save(self, path: Path) -> None:
        """Write the file. Raises ArgumentError when it cannot be written, with the reason."""
        text = json.dumps(self.as_dict(), indent=None, separators=(",", ":")) + "\n"
        # one figure a line, so that a change of a file can be read
        text = text.replace('{"bench"', '\n{"bench"').replace('],"device"', '],\n"device"')
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError as e:
            raise ArgumentError(f"the figures cannot be written to {path}: {e.strerror}") from e


def load(path: Path) -> dict[str, Any]:
    """A figures file. Raises ArgumentError when it is none."""
    try:
        found = json.loads(Path(path).read_text())
    except OSError as e:
        raise ArgumentError(f"{path}: {e.strerror}") from e
    except ValueError as e:
        raise ArgumentError(f"{path} is no figures file: {e}") from e
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ArgumentError(f"{path} is no figures file of format {FORMAT}")
    return found


def find(found: dict[str, Any], bench: str, case: str, size: int | None = None) -> dict[str, Any]:
    """One figure of a loaded file. Raises ArgumentError with what there is."""
    for f in found["figures"]:
        if f["bench"] == bench and f["case"] == case and size in (None, f["size"]):
            return dict(f)
    there = sorted({f"{f['bench']}/{f['case']}" for f in found["figures"]})
    raise ArgumentError(f"no figure {bench}/{case} (size {size}); there are {', '.join(there)}")
