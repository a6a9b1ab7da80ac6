"""What an installed package does where there is a compiler. tools/wheels runs it in a fresh environment."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import gpudirect as gd

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "c"


def test_the_demo():
    done = subprocess.run([sys.executable, "-m", "gpudirect", "demo"], capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0 and "site-packages" in gd.__file__, done.stdout + done.stderr


def test_a_call():
    with gd.Service("__device__ int twice(int a) { return 2 * a; }", "twice") as service:
        assert [service.call("twice", i) for i in range(100)] == list(range(0, 200, 2))
        assert service.submit("twice", 21).result() == 42


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_a_c_program_over_the_wheels_headers_and_library():
    assert abs(example("control").main()) < 0.05


def test_a_process_of_c_alone_over_the_wheels_headers_and_library():
    assert example("producer").main(20, 2) == [19 * 256 + 128] * 2
