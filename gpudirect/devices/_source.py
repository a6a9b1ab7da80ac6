"""What can be told of CUDA C++ source by looking at it, for the sentences in errors."""

from __future__ import annotations

import re

_LITERAL = re.compile(
    r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])'", re.DOTALL
)


def mask(source: str) -> str:
    """The source with comments and literals blanked out, every character at its place."""
    return _LITERAL.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), source)


def kernels(masked: str) -> str:
    """The names of the kernels in a source, as one would say them."""
    heads = re.findall(r"__global__\b(.*?\))\s*[{;]", masked, re.DOTALL)
    plain = "\n".join(
        re.sub(r"\(.*", "(", re.sub(r"__launch_bounds__\s*\([^)]*\)", "", head), flags=re.DOTALL)
        for head in heads
    )
    return ", ".join(re.findall(r"(\w+)\s*\(", plain)) or "none"
