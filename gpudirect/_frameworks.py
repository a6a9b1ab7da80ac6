"""Other libraries, found when they are asked for: what the modules that serve one have in common."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import FrameworkError


def load(name: str, package: str, *needs: str, since: str) -> Any:
    """A library by its module's name, with what is needed of it.

    package: as an installer knows it. needs: dotted names in it. since: the first version with all.
    Raises FrameworkError with one sentence.
    """
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name is not None and name.startswith(e.name):
            raise FrameworkError(f"{package} is not installed: pip install {package}") from None
        raise FrameworkError(f"{package} is installed but cannot be imported: {e}") from e
    except Exception as e:  # somebody else's code
        raise FrameworkError(f"{package} is installed but cannot be imported: {e}") from e
    for need in needs:
        found: Any = module
        for part in need.split("."):
            found = getattr(found, part, None)
        if found is None:
            version = getattr(module, "__version__", "of no version")
            raise FrameworkError(
                f"{package} {version} has no {name}.{need}: install {package} {since} or newer"
            )
    return module
