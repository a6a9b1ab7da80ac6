"""A layer imports only what stands below it: docs/architecture.md says what stands where."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gpudirect

PACKAGE = Path(gpudirect.__file__).parent
PAGE = PACKAGE.parent / "docs" / "architecture.md"
ENTRANCE = {"__init__", "_public", "__main__"}  # the public names, and `python -m gpudirect`


def rows() -> list[list[str]]:
    """The layers from top to bottom: the names of each. "a | b" are two that do not know each other."""
    block = re.search(r"```\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block
    lines = [line for line in block[1].splitlines() if re.match(r"\S", line)]
    return [re.split(r",\s+", re.split(r"\s{2,}", line)[0]) for line in lines]


def height(name: str) -> tuple[int, str] | None:
    """(row from the top, the entry that the name is part of)."""
    for i, row in enumerate(rows()):
        for entry in row:
            if name in entry.split(" | "):
                return i, entry
    return None


def modules() -> dict[str, list[Path]]:
    """{a part of the package: its files}."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        found.setdefault(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), []).append(path)
    return found


def imports(path: Path, package: Path = PACKAGE) -> set[tuple[str, int]]:
    """(part of the package, line) of every import in a file, in whatever function; "" is all of it."""
    here = ["gpudirect", *path.relative_to(package).with_suffix("").parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else []
            whole = ".".join([*base, *([node.module] if node.module else [])])
            part = {a.name: f".{a.name}" if a.name in modules() else "" for a in node.names}
            names = [whole + part[a.name] if whole == "gpudirect" else whole for a in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "gpudirect":
                found.add((parts[1] if len(parts) > 1 else "", node.lineno))
    return found


def wrong(part: str, path: Path, package: Path = PACKAGE) -> list[str]:
    """The imports of a file of ``part`` that go up, or to a neighbour."""
    place = height(part)
    assert place, f"docs/architecture.md does not say where {part} stands"
    row, entry = place
    last = height("service")
    said = []
    for name, line in sorted(imports(path, package)):
        if name == part:
            continue
        if name == "":  # all of gpudirect: what a user imports, so only what stands above it may
            fine = last is not None and row < last[0]
        else:
            there = height(name)
            assert there, f"docs/architecture.md does not say where {name} stands"
            fine = there[0] > row or (there[0] == row and there[1] != entry)
        if not fine:
            said.append(f"{path.relative_to(package)}:{line} imports {name or 'gpudirect'}")
    return said


def test_every_part_of_the_package_has_its_place_and_every_place_its_part():
    named = {name for row in rows() for entry in row for name in entry.split(" | ")}
    assert named == {*modules()} - ENTRANCE
    assert len(rows()) > 10


@pytest.mark.parametrize("part", sorted({*modules()} - ENTRANCE))
def test_a_layer_imports_only_what_stands_below_it(part):
    found = [line for path in modules()[part] for line in wrong(part, path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("part", "source", "said"),
    [("bridges", "from ..devices import Device", "imports devices"),
     ("devices", "def f():\n    from .. import memory", "x.py:2 imports memory"),
     ("_native", "import gpudirect.arrays", "imports arrays"),
     ("memory", "import gpudirect as gd", "imports gpudirect"),
     ("errors", "from gpudirect import kernels", "imports kernels"),
     ("arrays", "from ..memory import take\nfrom . import _window\nimport os", None),
     ("bench", "import gpudirect as gd", None)],
)  # fmt: skip
def test_an_import_that_goes_up_is_found(tmp_path, part, source, said):
    file = tmp_path / part / "x.py"
    file.parent.mkdir()
    file.write_text(source)
    found = wrong(part, file, tmp_path)
    assert bool(found) == bool(said) and (not said or said in found[0])


def test_no_public_name_is_the_name_of_a_part():
    # importing the part would put it in the name's place, whenever that happens
    assert not {*gpudirect.__all__} & {*modules()}


def test_the_package_itself_imports_neither_numpy_nor_cuda():
    code = ("import sys, gpudirect; gpudirect.__version__; "
            "assert not {'numpy', 'cuda', 'cffi'} & {*sys.modules}; "
            "assert gpudirect.Array.__name__ == 'Array' and 'empty' in dir(gpudirect)")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
