"""The command ``gpudirect``.

Exit status: 0 done, and everything checked holds; 1 it ran and something failed or does not hold;
2 what was asked for makes no sense: a wrong name, option or file.

A command's module imports what its help tells; what it works with it imports when it runs. So help,
completion and `config` answer without NumPy, CUDA and the device.
"""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from ..errors import ArgumentError, BridgeError, CompileError, DeviceNotFoundError, Error
from ._options import Command, option

app: typer.Typer = typer.Typer(
    help="CPU code writes NVIDIA GPU memory directly, and launches kernels on that data.",
    epilog="Start with `gpudirect demo`. `gpudirect doctor` says what is missing or slow here, and "
    "what mends it. Exit status: 0 fine, 1 something failed, 2 not understood.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: it fits any width, and brackets stay brackets
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"gpudirect {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, option("Print the version", "--version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


from . import _bench, _calibrate, _config, _demo, _doctor, _experiment, _info, _litmus  # noqa: E402 - after `app`

app.command(cls=Command, short_help="What this machine has, and why not more.")(_info.info)
app.command(cls=Command, short_help="What is wrong or slow here, and the mend.")(_doctor.doctor)
app.command(cls=Command, short_help="See it work: five checked experiments.")(_demo.demo)
app.command(cls=Command, short_help="Find the faster path for each size.")(_calibrate.calibrate)
app.add_typer(_bench.app, name="bench", short_help="Measure, and judge what was measured.")
app.command(cls=Command, short_help="Does avoiding copies pay? Eleven programs.")(_experiment.experiment)
app.command(cls=Command, short_help="Is the promised order of stores kept?")(_litmus.litmus)
app.command(cls=Command, short_help="Flags for a C compiler.")(_config.config)


def main() -> None:
    """Entry point: errors of ours are one sentence and a status, not a traceback."""
    try:
        app()
    except Error as e:
        from ._screen import console

        err = console(error=True)
        err.print(type(e).__name__, style="bold red", end=": ")
        err.print(str(e))
        if isinstance(e, (BridgeError, DeviceNotFoundError, CompileError)):
            err.print("`gpudirect doctor` says what is missing here, and what mends it.")
        raise SystemExit(2 if isinstance(e, ArgumentError) else 1) from None
