"""Options that several commands have, and what they mean."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer
import typer.core

from .. import bridges
from ..config import defaults
from ..errors import ArgumentError, BridgeUnavailableError, DeviceNotFoundError


class Command(typer.core.TyperCommand):
    """A command whose help is the same with any typer, and in nobody's inside words.

    0.15 escapes brackets, whoever prints; 0.29 puts braces around a name and Python types behind it.
    """

    def get_help(self, ctx: Any) -> str:
        text = super().get_help(ctx).replace(r"\[", "[")
        return re.sub(r"(?<=[A-Z]) <[\w\[\]]+>", lambda found: " " * len(found[0]), text)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


def starting(*names: str) -> list[str]:
    """Names to complete a word with."""
    return list(names)


def option(words: str, *flags: str, default: str = "", **more: Any) -> Any:
    """An option whose default is told in its help, in words.

    Not by typer: some versions take the brackets they put around it for markup, others escape it.
    """
    return typer.Option(*flags, help=_with(words, default), show_default=False, **more)


def argument(words: str, *, default: str = "", **more: Any) -> Any:
    """The same for an argument."""
    return typer.Argument(help=_with(words, default), show_default=False, **more)


def _with(words: str, default: str) -> str:
    return f"{words} (default: {default})" if default else words


DEVICES = ("cuda", "cuda:0", "cuda:1", "emulated", "emulated:0")

DeviceOption = Annotated[
    str | None,
    option(
        "cuda, cuda:1, emulated, a UUID or a PCI address",
        default="GPUDIRECT_DEVICE, else the first GPU, else emulated",
        metavar="NAME", autocompletion=lambda: starting(*DEVICES),
    ),
]  # fmt: skip
BridgeOption = Annotated[
    str | None,
    option(
        f"How GPU memory is mapped: {', '.join(bridges.NAMES)}",
        default="GPUDIRECT_BRIDGE, else the first that works",
        metavar="NAME", autocompletion=lambda: starting(*bridges.NAMES),
    ),
]  # fmt: skip
JsonOption = Annotated[bool, option("Print the answer as JSON and nothing else", "--json")]


def known(device: str | None, bridge: str | None) -> None:
    """Refuse names that mean nothing. Raises ArgumentError, which ends the command with status 2.

    A name that makes sense where the thing is missing (cuda without a GPU) passes.
    """
    from .. import devices

    if bridge is not None and bridge not in bridges.NAMES:
        raise ArgumentError(f"there is no bridge {bridge!r}; there are {', '.join(bridges.NAMES)}")
    name = device or defaults.device
    if name is None or (re.fullmatch(r"cuda(:\d+)?", name) and devices.cuda_reason()):
        return
    try:
        devices.get(name)
    except DeviceNotFoundError as e:
        raise ArgumentError(str(e)) from None


def choose(device: str | None, bridge: str | None) -> None:
    """Make the options the process's choice, which every part of the package reads."""
    from .. import devices

    known(device, bridge)
    chosen = devices.get(device)
    try:
        bridges.choose(chosen, bridge)
    except BridgeUnavailableError as e:
        raise BridgeUnavailableError(
            str(e).replace("bridge=", "--bridge ", 1) if bridge else str(e), e.errno
        ) from None
    defaults.device, defaults.bridge = device or defaults.device, bridge or defaults.bridge
