"""What a user's type checker says: right programs pass mypy --strict, wrong ones are told."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="tools/setup installs it")

RIGHT = """
import numpy as np
import gpudirect as gd
from numpy.typing import NDArray

a: gd.Array = gd.zeros((4, 4), "f4", device="emulated", mapped=True, pool=False)
b = gd.asarray(np.arange(16), device=0)
out: NDArray[np.float32] = a.read(np.empty((4, 4), "f4"))
some = a.read(start=3, count=2, via="map", synchronize=False)
a.write(some, 3, via="dma")
a.write(b"1234")
a.host[1, :] = some
a[0] = 3.0
row = a[0].reshape(2, 2)
with row.window(0, 2) as w:
    w.write(b"12345678")
shape: tuple[int, ...] = a.shape
address: int = a.ptr + a.host_ptr
bytes_of_it: memoryview = a.buffer
kernel = gd.kernel("...", "k")
kernel[1, 2](a, 3)
stream: gd.Stream = gd.stream()
stream.synchronize()
with gd.Service("...", {"f": "thread"}, lanes=2) as svc:
    f: gd.Future = svc.submit("f", a, 1.0, timeout=1.0)
    f.result(timeout=2)
    svc.call("f", a, lane=1)
with gd.Doorbell(bits=64) as bell:
    bell.ring(1)
    bell.wait(1, timeout=0.5)
    answer: int = bell.answer
"""

WRONG = {
    "a.wirte(b'x')": "no attribute \"wirte\"",
    "gd.zeros(4, devise=3)": "Unexpected keyword argument \"devise\"",
    "gd.ones(4, mapt=True)": "Unexpected keyword argument \"mapt\"",
    "gd.full(4, 1, bridg='rm')": "Unexpected keyword argument \"bridg\"",
    "gd.asarray([1], devise=3)": "Unexpected keyword argument \"devise\"",
    "a.write(b'x', offset=3)": "Unexpected keyword argument \"offset\"",
    "a.read(nbytes=3)": "\"read\"",
    "a.shape = (3,)": "read-only",
    "a.dtype = np.dtype('f4')": "read-only",
    "a.ptr = 3": "read-only",
    "n: int = a.read()": "Incompatible types in assignment",
    "svc.submit('f', lanes=1)": "Unexpected keyword argument \"lanes\"",
    "bell.wait(1, timeot=1)": "Unexpected keyword argument \"timeot\"",
    "gd.kernel('', 'k').lunch(1, 1)": "no attribute \"lunch\"",
    "gd.empyt(3)": "no attribute \"empyt\"",
}


def mypy(folder: Path, program: str) -> str:
    """What it says of a program in a folder that is not ours, in the environment of this Python."""
    (folder / "program.py").write_text(textwrap.dedent(program))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", folder / "cache",
         "program.py"], cwd=folder, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert not done.stderr, done.stderr
    return done.stdout


def test_a_right_program_passes(tmp_path):
    assert mypy(tmp_path, RIGHT) == ""


def test_wrong_ones_are_told(tmp_path):
    head = """
import numpy as np
import gpudirect as gd
a = gd.zeros(4)
svc = gd.Service("...", "f")
bell = gd.Doorbell()
"""
    first = head.count("\n") + 1
    said = mypy(tmp_path, head + "\n".join(WRONG))
    for number, (line, words) in enumerate(WRONG.items(), first):
        of_it = "".join(x for x in said.splitlines() if x.startswith(f"program.py:{number}:"))
        assert "error" in of_it and words in of_it, (line, said)


@pytest.mark.parametrize("module", ["_native._mapped", "_native._lease", "service._native._calls"])
def test_the_stubs_name_what_the_c_types_have(module):
    found = importlib.import_module(f"gpudirect.{module}")
    assert found.__file__ is not None
    stub = ast.parse((Path(found.__file__).parent / f"{module.rpartition('.')[2]}.pyi").read_text())
    classes = {node.name: node for node in stub.body if isinstance(node, ast.ClassDef)}
    assert classes.keys() == {n for n, v in vars(found).items() if isinstance(v, type)}
    for name, node in classes.items():
        told = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
        told |= {n.target.id for n in node.body
                 if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}  # fmt: skip
        there = {n for n in vars(getattr(found, name)) if not n.startswith("_") or n in told}
        assert told == there, name
