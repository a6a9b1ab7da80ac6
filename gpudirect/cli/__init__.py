"""The command ``gpudirect``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from .. import __version__, use
from ..config import defaults
from ..errors import Error

app: typer.Typer = typer.Typer(
    help="CPU code writes NVIDIA GPU memory directly, and launches kernels on that data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

DeviceOption = Annotated[
    str | None,
    typer.Option(help="cuda, cuda:1, emulated, a UUID or a PCI address [default: the first GPU]"),
]
BridgeOption = Annotated[
    str | None, typer.Option(help="p2pmod, dmabuf, gdrdrv, rm or emulated [default: first usable]")
]


def choose(device: str | None, bridge: str | None) -> None:
    """Make the options the process's choice, which every part of the package reads."""
    use(device=device or defaults.device, bridge=bridge or defaults.bridge)


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        console.print(f"gpudirect {__version__}")
        raise typer.Exit


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    device: DeviceOption = None,
    bridge: BridgeOption = None,
) -> None:
    """Devices, BAR1, driver, CPU copy instructions, and every bridge with its reason."""
    choose(device, bridge)
    from . import _info

    _info.show(console, as_json)


@app.command()
def demo(device: DeviceOption = None, bridge: BridgeOption = None) -> None:
    """The seed experiments: write GPU memory with CPU stores, see it arrive, run kernels on it."""
    choose(device, bridge)
    from .. import demo as experiments

    raise typer.Exit(experiments.run(console))


@app.command()
def calibrate(device: DeviceOption = None, bridge: BridgeOption = None) -> None:
    """Measure at which sizes mapped stores and loads beat DMA here, and keep the answer."""
    choose(device, bridge)
    from . import _calibrate

    _calibrate.run(console, device, bridge)


from . import _bench, _experiment  # noqa: E402 - they use what stands above

app.add_typer(_bench.app, name="bench")
app.command()(_experiment.experiment)


def main() -> None:
    """Entry point: errors of ours are one red sentence, not a traceback."""
    try:
        app()
    except Error as e:
        Console(stderr=True).print(f"[bold red]{type(e).__name__}[/]: ", end="")
        Console(stderr=True).print(str(e), markup=False, highlight=False)
        raise SystemExit(1) from None
