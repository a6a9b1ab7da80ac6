"""Lines of code that each version of a port needs, counted the same way for all.

A line counts if it holds a token other than a comment or a docstring. A version needs its function
and whatever it alone refers to among the module's functions, classes and constants (its own CUDA
source included); what two versions share counts for neither.
"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

VERSIONS = ("sequential", "copy", "double_buffered", "direct")
_SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
           tokenize.ENCODING, tokenize.ENDMARKER}  # fmt: skip


def count(source: str) -> dict[str, int]:
    """Name of each version in a module's text -> its lines."""
    tree = ast.parse(source)
    code = _lines_of_code(source, tree)
    definitions = _definitions(tree)
    needs = {v: _reach(v, definitions) for v in VERSIONS if v in definitions}
    found = {}
    for version, names in needs.items():
        others = set().union(*(n for v, n in needs.items() if v != version))
        own = {version} | (names - others - set(VERSIONS))
        found[version] = sum(
            sum(line in code for line in range(first, last + 1))
            for first, last in (_extent(definitions[name]) for name in own)
        )
    return found


def count_file(path: Path) -> dict[str, int]:
    """``count`` of a file."""
    return count(path.read_text())


def _lines_of_code(source: str, tree: ast.Module) -> set[int]:
    docstrings: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            text = node.body[0]
            docstrings.update(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    lines: set[int] = set()
    text_lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _SILENT:
            lines.update(
                n for n in range(token.start[0], token.end[0] + 1) if text_lines[n - 1].strip()
            )
    return lines - docstrings


def _definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found.update({t.id: node for t in node.targets if isinstance(t, ast.Name)})
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    return found


def _reach(name: str, definitions: dict[str, ast.stmt]) -> set[str]:
    """What a definition refers to in its module, and what that refers to."""
    found: set[str] = set()
    todo = [name]
    while todo:
        for node in ast.walk(definitions[todo.pop()]):
            if isinstance(node, ast.Name) and node.id in definitions and node.id not in found:
                found.add(node.id)
                todo.append(node.id)
    return found


def _extent(node: ast.stmt) -> tuple[int, int]:
    return node.lineno, node.end_lineno or node.lineno
