"""libgpudirect: its headers stand alone, it exports what they declare, and the example runs."""

import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from c_programs import CC, compiled, flags

import gpudirect
from gpudirect.cli._config import folders

ROOT = Path(__file__).resolve().parents[2]
FOUND = folders()
LIBRARY = Path(FOUND["library"][0])


def run(*words, **how):
    return subprocess.run([str(w) for w in words], capture_output=True, text=True, **how)


@pytest.fixture(scope="module")
def headers(tmp_path_factory):
    """The public headers alone, as a wheel has them."""
    folder = tmp_path_factory.mktemp("include")
    for include in FOUND["include"]:
        for header in Path(include).rglob("*.h"):
            if "p2pmod" in include and header.name not in ("p2pmod.h", "p2pmod-lane.h"):
                continue
            to = folder / header.relative_to(include)
            to.parent.mkdir(exist_ok=True)
            shutil.copy(header, to)
    return folder


def test_config_tells_a_compiler_what_it_needs():
    include, *_ = words = flags("--cflags", "--libs")
    assert Path(include.removeprefix("-I"), "gpudirect.h").exists()
    assert f"-L{LIBRARY}" in words and "-lgpudirect" in words
    assert flags("--cflags") == [w for w in words if w.startswith("-I")]
    told = json.loads(run(sys.executable, "-m", "gpudirect", "config", "--json").stdout)
    assert told["include"] == FOUND["include"]


def test_config_without_a_wish_says_what_there_is():
    done = run(sys.executable, "-m", "gpudirect", "config")
    assert done.returncode == 2 and "--cflags" in done.stderr


@pytest.mark.parametrize("language", ("c", "c++"))
@pytest.mark.parametrize(
    "header", ("gpudirect.h", "gpudirect/copy.h", "gpudirect/lane.h", "gpudirect/attach.h", "p2pmod.h",
               "p2pmod-lane.h")
)
def test_each_header_stands_alone(headers, tmp_path, header, language):
    source = tmp_path / "one.c"
    source.write_text(f"#include <{header}>\n#include <{header}>\nint nothing(void) {{ return 0; }}\n")
    standard = "-std=c99" if language == "c" else "-std=c++11"
    strict = (standard, "-Wall", "-Wextra", "-Werror")
    done = run(*CC, "-x", language, *strict, "-fsyntax-only", f"-I{headers}", source)
    assert done.returncode == 0, done.stderr


def test_the_program_on_the_page_of_sharing_compiles(headers, tmp_path):
    """What a reader puts into his main()."""
    (code,) = re.findall(r"```c\n(.*?)```", (ROOT / "docs" / "sharing.md").read_text(), re.DOTALL)
    include, body = code.split("\n", 1)
    source = tmp_path / "page.c"
    before = f"{include}\n#include <stdio.h>\nstatic const float row[256];\n"
    source.write_text(f"{before}int main(int argc, char **argv)\n{{\n(void)argc;\n{body}\nreturn 0;\n}}\n")
    strict = ("-std=gnu11", "-Wall", "-Wextra", "-Werror")
    done = run(*CC, *strict, "-fsyntax-only", f"-I{headers}", source)
    assert done.returncode == 0, done.stderr


def test_no_header_includes_what_no_wheel_has(headers):
    for header in headers.rglob("*.h"):
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', header.read_text(), re.MULTILINE):
            assert (header.parent / name).exists() or (headers / name).exists(), f"{header.name} wants {name}"


def test_it_exports_what_its_headers_declare():
    spec = importlib.util.spec_from_file_location("native_build", ROOT / "gpudirect" / "_native" / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    told = run("nm", "-D", "--defined-only", LIBRARY / "libgpudirect.so.0").stdout
    assert [line.split()[-1] for line in told.splitlines() if " T " in line] == build.exported()
    assert {"gd_write", "gd_fence", "gd_lane_call", "gd_wait32", "gd_attach"} <= set(build.exported())


def test_the_example_runs():
    done = run(sys.executable, ROOT / "examples" / "c" / "control.py", "5", timeout=110)
    assert done.returncode == 1, done.stderr + done.stdout  # too few steps
    done = run(sys.executable, ROOT / "examples" / "c" / "control.py", timeout=110)
    assert done.returncode == 0 and "us in the median" in done.stdout, done.stderr + done.stdout


def test_the_example_of_two_processes_runs():
    done = run(sys.executable, ROOT / "examples" / "c" / "producer.py", "20", "3", timeout=110)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.count("with its call, takes") == 3


PROGRAM = """
#include <gpudirect.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

int main(void)
{
    char *mapping = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char from[200], to[200];
    memset(from, 7, sizeof(from));
    if (gd_write((uintptr_t)mapping + 3, from, 200, 0) || gd_read(to, (uintptr_t)mapping + 3, 200, 0))
        return 1;
    if (memcmp(from, to, 200) || gd_wait32((uintptr_t)mapping + 1024, 1, 1000) != -ETIMEDOUT)
        return 2;
    mprotect(mapping, 1 << 20, PROT_NONE); /* as a revoked mapping is */
    if (gd_write((uintptr_t)mapping + 64, from, 200, GD_GUARDED) != -EFAULT)
        return 3;
    printf("%s %d\\n", gd_isa_selected(), gd_fault_address() == (int64_t)(uintptr_t)mapping + 64);
    return 0;
}
"""


def test_a_program_without_python(tmp_path):
    source, program = tmp_path / "program.c", tmp_path / "program"
    source.write_text(PROGRAM)
    done = run(compiled(source, program))
    assert done.returncode == 0 and done.stdout.endswith(" 1\n"), (done.returncode, done.stdout)


BESIDE = f"""
import ctypes, mmap, sys
import gpudirect as gd
from gpudirect._native import lib
own = ctypes.CDLL({str(LIBRARY / "libgpudirect.so.0")!r})
own.gd_write.argtypes = [ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint]
for _ in range(3):  # each comes to stand in front of the other
    assert own.gd_write(4096, b"x" * 64, 64, 2) == -14
    assert lib.gd_write(4096, b"x" * 64, 64, 2) == -14
if sys.argv[1:] == ["fault"]:
    ctypes.string_at(4096, 1)
print("fine")
"""


def test_two_copies_of_the_guard_in_one_process():
    """The runtime's and the library's: each catches its own faults, and a fault of nobody ends the process."""
    done = run(sys.executable, "-c", BESIDE, timeout=60)
    assert done.stdout == "fine\n", done.stderr
    done = run(sys.executable, "-c", BESIDE, "fault", timeout=60)
    assert done.returncode == -signal.SIGSEGV and not done.stdout


def test_the_headers_name_the_version_of_the_library():
    text = Path(FOUND["include"][0], "gpudirect.h").read_text()
    assert f"#define GD_VERSION {(LIBRARY / 'libgpudirect.so').read_text().rpartition('.so.')[2][0]} " in text
    assert gpudirect.__version__
