"""Which function of the source is meant where a library has others of the same name.

``min``, ``exp`` or ``index`` name functions of CUDA's or the host's headers as well, and the compiler
cannot tell which is offered. The source can: it defines the one. Its head, under another name, then
tells the type by which the compiler finds it.
"""

from __future__ import annotations

import re

_OTHER = re.compile(
    r"//(?:\\\n|[^\n])*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])+'"
    r"|^[ \t]*#(?:\\\n|[^\n])*",
    re.DOTALL | re.MULTILINE,
)
_WORD = re.compile(r"[A-Za-z_]\w*")
_NAMESPACE = re.compile(r"\bnamespace((?:\s+|\s*::\s*)[A-Za-z_][\w:\s]*)?\s*$|\bextern\s*$")


def declared_like(source: str, name: str, other: str) -> str | None:
    """The head of the one function ``name`` (``inner::twice``) that the source defines, as the
    declaration of a function ``other`` beside it. None where there is not exactly one.
    """
    text = _OTHER.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), source)
    outer, _, plain = name.rpartition("::")
    heads = [
        f"{head[: at]}{other}{head[at + len(plain):]}"
        for scope, head in _heads(text)
        for at in [_declarator(head, plain)]
        if scope == outer and at is not None
    ]
    if len(heads) != 1:
        return None
    around = outer.split("::") if outer else []
    opened = "".join(f"namespace {part} {{ " for part in around)
    return f"{opened}{' '.join(heads[0].split())};{' }' * len(around)}"


def _heads(text: str) -> list[tuple[str, str]]:
    """(namespace, what stands before the brace) of each definition outside of any other."""
    found: list[tuple[str, str]] = []
    scopes: list[str] = []  # names of the namespaces that are open
    inside = start = 0  # braces of something else that are open; where its head began
    for brace in re.finditer(r"[{};]", text):
        head = text[start : brace.start()]
        if inside:
            inside += {"{": 1, "}": -1, ";": 0}[brace[0]]
        elif brace[0] == "{":
            if namespace := _NAMESPACE.search(head):
                scopes += ["".join((namespace[1] or "").split())]
            else:
                found.append(("::".join(filter(None, scopes)), head))
                inside = 1
        elif brace[0] == "}" and scopes:
            scopes.pop()
        if not inside:
            start = brace.end()
    return found


def _declarator(head: str, plain: str) -> int | None:
    """Where in the head of a function its name stands; None where it is not the head of ``plain``."""
    opening = head.find("(")
    while opening > 0:
        words = list(_WORD.finditer(head, 0, opening))
        last = words[-1] if words else None
        if last is not None and not head[last.end() : opening].strip():
            if last[0] == plain:
                return last.start()
            if not re.fullmatch(r"__\w+__|alignas|decltype|noexcept", last[0]):
                return None
        opening = head.find("(", opening + 1)
    return None
