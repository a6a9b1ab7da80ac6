"""``gpudirect config``: what a C compiler needs to know."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

from ..errors import ArgumentError, Error
from ._options import JsonOption, option

HERE = Path(__file__).resolve().parent.parent


def folders() -> dict[str, list[str]]:
    """Where the headers are, and the library. Raises Error where they are not."""
    headers, library = HERE / "include", HERE / "lib"
    include = [headers]
    if not (headers / "p2pmod.h").exists():  # a checkout: the kernel module's headers are in its own folder
        include.append(HERE.parent / "p2pmod")
    for file in (headers / "gpudirect.h", include[-1] / "p2pmod.h", library / "libgpudirect.so"):
        if not file.exists():
            raise Error(f"there is no {file.name} in {file.parent}: reinstall gpudirect; in a checkout, run "
                        "`make`")  # fmt: skip
    return {"include": [str(f) for f in include], "library": [str(library)]}


def config(
    cflags: Annotated[bool, option("Where the headers are, as -I", "--cflags")] = False,
    libs: Annotated[
        bool, option("The library, as -L and -l, and where it is when a program runs", "--libs")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """What a C compiler needs: `cc program.c $(gpudirect config --cflags --libs)`, with gpudirect.h.

    The same folders in words with `--json`.
    """
    if not (cflags or libs or as_json):
        raise ArgumentError("say what is wanted: --cflags, --libs, or both")
    found = folders()
    words = [f"-I{folder}" for folder in found["include"]] if cflags else []
    if libs:
        (place,) = found["library"]
        words += [f"-L{place}", f"-Wl,-rpath,{place}", "-lgpudirect"]
    if as_json:
        print(json.dumps({**found, "flags": words}, indent=2))
    else:
        print(shlex.join(words))  # for a shell: not folded, whatever the screen's width
