"""What the packages say of themselves, from one place each.

The version is gpudirect.__version__; where the project lives is tool.gpudirect.url in pyproject.toml, who
answers project.maintainers there. What is empty is left out of every package, never invented.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent


def version() -> str:
    text = (ROOT / "gpudirect" / "__init__.py").read_text()
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    assert found, "gpudirect/__init__.py has no __version__"
    return found[1]


def settings() -> dict[str, str]:
    """url, and maintainer as in a mail ("Name <address>"), each perhaps empty."""
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())
    who = [f"{m['name']} <{m['email']}>" for m in found["project"]["maintainers"]]
    return {"url": found["tool"]["gpudirect"]["url"].rstrip("/"), "maintainer": ", ".join(who)}


def readme(url: str) -> str:
    """README.md for an index: links lead to the tag of this version, or are words where no URL is set."""

    def link(found: re.Match[str]) -> str:
        words, target = found[1], found[2]
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        return f"[{words}]({url}/blob/v{version()}/{target})" if url else words

    # code holds brackets too, and no links
    parts = re.split(r"(```.*?```|`[^`\n]*`(?!\]))", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    parts[::2] = (re.sub(r"\[([^\]\[]+)\]\(([^)\s]+)\)", link, part) for part in parts[::2])
    return "".join(parts)


def arguments() -> dict[str, Any]:
    """For setup()."""
    url = settings()["url"]
    found: dict[str, Any] = {
        "version": version(),
        "long_description": readme(url),
        "long_description_content_type": "text/markdown",
        "project_urls": {},
    }
    if url:
        found["project_urls"] = {
            "Homepage": url,
            "Documentation": f"{url}/tree/v{version()}/docs",
            "Changelog": f"{url}/blob/v{version()}/CHANGELOG.md",
            "Issues": f"{url}/issues",
        }
    return found
