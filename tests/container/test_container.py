"""Where only the device files are visible that a container gets: tests/container/run makes such a place.

On the emulated device as part of the Python suite; on a GPU by tests/gpu/run.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = Path(__file__).with_name("run")
EVERY_CONTAINER = {"null", "zero", "full", "random", "urandom", "tty", "shm", "pts", "fd", "stdin", "stdout",
                   "stderr"}  # fmt: skip
TOOLKIT = re.compile(r"nvidia(ctl|-uvm|-uvm-tools|-modeset|\d+)")


def inside(*words, timeout=300):
    done = subprocess.run([str(RUN), *map(str, words)], capture_output=True, text=True, timeout=timeout)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    return done


def test_only_those_files_are_there():
    names = set(inside("ls", "/dev").stdout.split())
    assert names >= {"null", "shm"}
    assert [n for n in names - EVERY_CONTAINER if not TOOLKIT.fullmatch(n)] == []


def test_there_are_no_privileges():
    told = dict(x.split(":\t") for x in inside("cat", "/proc/self/status").stdout.splitlines() if ":\t" in x)
    assert int(told["CapEff"], 16) == int(told["CapBnd"], 16) == 0 and told["NoNewPrivs"] == "1"
    assert inside("sh", "-c", "echo 1 > /sys/kernel/mm/ksm/run").returncode != 0


def test_the_demo_runs():
    done = inside(sys.executable, "-m", "gpudirect", "demo")
    assert done.returncode == 0 and "All 11 checks held" in done.stdout, done.stdout[-3000:] + done.stderr
    on_gpu = os.environ.get("GPUDIRECT_DEVICE", "").startswith("cuda")
    assert ("emulated" in done.stdout) != on_gpu


def test_the_recipe_names_what_there_is():
    text = (ROOT / "package" / "Containerfile").read_text()
    extras = re.findall(r"^\[project.optional-dependencies\]\n(.*?)^\[", (ROOT / "pyproject.toml").read_text(),
                        re.MULTILINE | re.DOTALL)[0]  # fmt: skip
    assert f"\n{re.search(r'ARG CUDA=(.+)', text)[1]} = [" in extras
    assert 'ENTRYPOINT ["gpudirect"]' in text and "/dev/p2pmod" in text
    base = re.search(r"^FROM (\S+)$", text, re.MULTILINE)[1]
    assert "/" not in base, "no registry is named"


def test_its_shell_is_shell():
    text = (ROOT / "package" / "Containerfile").read_text().replace("\\\n", "")
    for line in re.findall(r"^RUN (.*)$", text, re.MULTILINE):
        subprocess.run(["sh", "-n", "-c", line], check=True)
