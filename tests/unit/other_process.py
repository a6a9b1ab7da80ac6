"""A process without CUDA for tests of what is shared with it; and what this one holds meanwhile."""

from __future__ import annotations

import _thread
import json
import os
import subprocess
import sys


class Other:
    """Runs a line at a time, and answers each with a line of JSON."""

    SCRIPT = """
import json, sys, gpudirect
import gpudirect.sharing as sharing
for line in sys.stdin:
    code = json.loads(line)
    try:
        said = exec(code[1:]) if code.startswith("!") else eval(code)
    except BaseException as e:
        said = f"{type(e).__name__}: {e}"
    print(json.dumps(said, default=repr), flush=True)
"""

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, "-c", self.SCRIPT], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)  # fmt: skip

    def send(self, code):
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()

    def hear(self):
        return json.loads(self.process.stdout.readline())

    def __call__(self, code):
        self.send(code)
        return self.hear()

    def attach(self, token, name="a"):
        assert self(f"!{name} = gpudirect.attach({str(token)!r})") is None

    def end(self):
        self.process.kill()
        self.process.communicate()


def held():
    """Descriptors, threads and shared mappings of this process."""
    mappings = [line for line in open("/proc/self/maps") if line.split()[1][3] == "s"]
    return len(os.listdir("/proc/self/fd")), _thread._count(), len(mappings)
