"""Programs of C for tests, built as a user builds one: by what ``gpudirect config`` says."""

from __future__ import annotations

import atexit
import fcntl
import functools
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECOND = 1_000_000_000
CC = shlex.split(os.environ.get("CC", "cc"))


def flags(*asked):
    """What `gpudirect config` answers."""
    done = subprocess.run([sys.executable, "-m", "gpudirect", "config", *asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


def compiled(source, program, *options):
    """A source file as a program. Warnings are errors."""
    done = subprocess.run([*CC, "-g", "-Wall", "-Wextra", "-Werror", *options, str(source),
                           *flags("--cflags", "--libs"), "-o", str(program)],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Path(program)


@functools.cache
def _folder():
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return folder


@functools.cache
def attach_commands():
    """attach_commands.c as a program, made once."""
    return compiled(Path(__file__).with_name("attach_commands.c"), Path(_folder(), "commands"))


SANITIZED = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wno-clobbered",
             "-fno-strict-aliasing", "-fno-tree-loop-distribute-patterns", "-pthread")  # fmt: skip


@functools.cache
def sanitized_attach_commands():
    """The same with the library in it, which the address and undefined-behaviour sanitizers watch. Skips the
    test where the compiler has none."""
    source, program = Path(_folder(), "empty.c"), Path(_folder(), "sanitized")
    source.write_text("int main(void) { return 0; }\n")
    if subprocess.run([*CC, *SANITIZED, str(source), "-o", str(program)], capture_output=True).returncode:
        pytest.skip("the compiler has no sanitizers here")
    build = runpy.run_path(str(ROOT / "gpudirect" / "_native" / "build.py"), run_name="build")
    sources = [str(ROOT / "gpudirect" / "_native" / f"{name}.c") for name in build["LIBRARY_SOURCES"]]
    done = subprocess.run([*CC, "-g", *SANITIZED, str(Path(__file__).with_name("attach_commands.c")), *sources,
                           *flags("--cflags"), f"-I{ROOT / 'p2pmod'}", "-o", str(program)],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return program


class OtherInC:
    """A process of attach_commands.c: ``other("r 0 0 4")`` -> what it answers, the code first."""

    def __init__(self, program, **how):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        encoding="utf-8", errors="backslashreplace", **how)  # fmt: skip
        self.pid = self.process.pid
        assert self("h 0") == (0, "")  # it runs, and has opened what it will

    def send(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self):
        line = self.process.stdout.readline()
        if not line:
            raise EOFError("the program ended")
        code, _, rest = line.rstrip("\n").partition(" ")
        return int(code), rest

    def __call__(self, line):
        self.send(line)
        return self.hear()

    def attach(self, token, handle=0, timeout=60 * SECOND):
        return self(f"a {handle} {timeout} {token}")

    def end(self):
        self.process.kill()
        self.process.communicate()


def memory(size=4096, seals=fcntl.F_SEAL_SHRINK):
    """The descriptor of a file in memory."""
    fd = os.memfd_create("feigned", os.MFD_ALLOW_SEALING)
    os.truncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd
