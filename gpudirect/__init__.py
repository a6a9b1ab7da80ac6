"""gpudirect: CPU code writes NVIDIA GPU memory directly, and launches kernels on it.

    import gpudirect as gd

    a = gd.empty((4096, 1024), "f4")       # GPU memory, already mapped
    a.host[17, :] = row                    # CPU stores go straight to the GPU
    k = gd.kernel(source, "scale")         # CUDA C++, compiled once
    k[grid, block](a, 4096, 2.0)           # by reference; pending stores are fenced first
    out = a.read()                         # picks mapped reads or DMA by size
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._public import *  # noqa: F403
    from ._public import __all__ as __all__

__version__ = "0.1.0"

# Everything imports NumPy and CUDA's bindings: a third of a second, 40 MiB. Who only attaches to an
# array of another process needs neither, so the public names come when the first is asked for.

if not TYPE_CHECKING:  # a type checker would take every name for there

    def __getattr__(name: str) -> Any:
        if name == "attach":
            return importlib.import_module("._attach", __name__).attach
        if importlib.util.find_spec(f"{__name__}.{name}"):  # a part: it and what it needs, no more
            return importlib.import_module(f".{name}", __name__)
        if name == "__all__" or not name.startswith("_"):
            _load()
        try:
            return globals()[name]
        except KeyError:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    _load()
    return sorted(globals())


def _load() -> None:
    """Import the public names into this module."""
    public = importlib.import_module("._public", __name__)
    globals().update({name: getattr(public, name) for name in public.__all__}, __all__=public.__all__)
