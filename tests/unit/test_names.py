"""Whatever the source calls its functions and macros, what is compiled around it stays as it is.

On the emulated device, and by NVRTC, which needs no GPU to compile.
"""

from __future__ import annotations

import os

import pytest

import gpudirect as gd
from gpudirect.devices import _nvrtc
from gpudirect.service import _compiled, _overloads, _source

DEVICE = os.environ.get("GPUDIRECT_TEST_SERVICE_DEVICE", "emulated")
LIFETIME = 300.0  # seconds: a test that breaks off leaves no kernel behind

# of the resident kernel, of CUDA's and C's libraries, and short ones that macros like to have
NAMES = sorted(set("""
    put fits run first_row largest second follow alike now release fail value size lane status table team
    function arguments min max exp index abs floor look answer answer_ahead poll keep slow serve rows
    ordered failure blocks relayed relay control replies packets row at next far near quarters me start
    there word words half ready gone since stops stop heard polls work worked t end entry described touches
    choose indices count_to offset_of parameter kind number tabled from_row order_grid await_grid
    take_order copy back before agree between_looks failure_of_grid open orders arrivals part grid_barrier
    look_ahead go_to mask grids all plain reads writes count bits result both magic alignment
    pointee THREAD WARP BLOCK GRID ALL WORDS TAG SLOW GO_ON STOP PAUSE F R P I N T x y z w a b c d i j n
    sin cos pow sqrt log round swap move forward begin data time div rand signal remove rename abort exit
    system wait read write open close send recv gamma lgamma y0 j1 jn isnan fabs fmin fmax hypot ldexp
    modf lock unlock packet reply sequence tag slots arrive barrier order arrived answered reserved
    visibility inline_ thread_local_ kernel source options name main_ user cuda device host
""".split()))  # fmt: skip
KEYS = ("device", "host", "global", "shared", "constant")  # after which NVRTC knows no __device__
WORDS = ("const", "inline", "static", "register", "volatile")  # macros made of words of the language


def functions(names, qualifiers="__device__"):
    """(source, {name: what it adds}): one function for each name."""
    added = {name: 1 + i for i, name in enumerate(names)}
    # parameters that are no name of the list, and types that no library overloads the names with
    lines = [f"{qualifiers} int {n}(int q_, short u_, char v_) {{ return q_ + u_ + v_ + {k}; }}"
             for n, k in added.items()]  # fmt: skip
    return "\n".join(lines), added


class Compiler:
    """Stands for a device whose compiler is NVRTC: it compiles and launches nothing."""

    kind, ordinal, id, emulated = "cuda", 0, "nvrtc", False

    def compile(self, source, name, options=()):
        compiled = _nvrtc.compile_kernel(source, name, (9, 0), tuple(options))

        class Function:
            parameters = compiled.parameters
            image = staticmethod(lambda: compiled.code)
            unload_when_dropped = staticmethod(lambda: None)

        Function.name = name
        return Function()


@pytest.fixture(scope="module")
def nvrtc():
    if reason := _nvrtc.reason():
        (pytest.fail if os.environ.get("GPUDIRECT_REQUIRE_NVRTC") else pytest.skip)(reason)
    patch = pytest.MonkeyPatch()
    find = gd.devices.get
    patch.setattr(gd.devices, "get", lambda d=None: d if isinstance(d, Compiler) else find(d))
    yield Compiler()
    patch.undo()


def service(source, names, **options):
    return gd.Service(source, names, **{"device": DEVICE, "lifetime": LIFETIME, **options})


# -- functions ---------------------------------------------------------------------------------


def test_functions_of_any_name():
    source, added = functions(NAMES)
    with service(source, NAMES) as svc:
        assert {name: svc.call(name, 1000, 200, 3) - 1203 for name in NAMES} == added


def test_functions_of_any_name_by_nvrtc(nvrtc):
    source, _ = functions(NAMES)
    _, found = _compiled.compiled(source, dict.fromkeys(NAMES, "thread"), nvrtc, ())
    assert {tuple(p.kind + str(p.size) for p in s.parameters) for s in found.values()} == {
        ("i4", "i2", "i1")
    }


@pytest.mark.parametrize("team", ["warp", "block", "grid"])
def test_teams_run_functions_of_any_name(team):
    names = ["put", "second", "follow", "run", "serve", "alike", "now", "release", "fail", "team", "min"]
    source, added = functions(names)
    with service(source, dict.fromkeys(names, team)) as svc:
        assert {name: svc.call(name, 0, 0, 0, timeout=60) for name in names} == added


def test_names_in_namespaces_and_of_library_functions(nvrtc):
    source = """
        #include "mine.h"
        struct vec { float x, y; };
        __device__ vec min(vec a, vec b);                       // declared before
        namespace far { inline namespace near { struct min { int a; };
            __device__ int exp(float a, int n) { return int(a) * n; } } }
        __device__ vec min(vec a, vec b) { return {a.x + b.x, a.y}; }
        __device__ float twice(float a) noexcept { return max(a, a) + min(a, a) + exp(0.0f) - 1; }
        static __device__ __forceinline__ int index(int a = 3) { return a + 1; }
        """.replace('#include "mine.h"', "")
    names = ["min", "far::exp", "twice", "index"]
    _compiled.compiled(source, dict.fromkeys(names, "thread"), nvrtc, ())
    with service(source, names) as svc:
        assert svc.call("min", bytes(8), bytes(8)) == bytes(8)
        assert svc.call("far::exp", 2.5, 4) == 8
        assert svc.call("twice", 3.0) == 6.0
        assert svc.call("index", 7) == 8


@pytest.mark.parametrize(
    "source",
    [
        "__device__ int f(int a) { return a; } __device__ int f(float a) { return 1; }",
        "template <class T> __device__ T f(T a) { return a; }",
    ],
)
def test_functions_that_are_several(nvrtc, source):
    for device in (DEVICE, nvrtc):
        with pytest.raises(gd.CompileError, match="'f' is a template, or the name of several functions"):
            _compiled.compiled(source, {"f": "thread"}, gd.devices.get(device), ())


def test_functions_that_are_none(nvrtc):
    for source in ("__device__ int f(int a) { return a; }", "struct sub { int a; };"):
        for device in (DEVICE, nvrtc):
            with pytest.raises(gd.KernelNotFoundError, match="no function 'sub'"):
                _compiled.compiled(source, {"sub": "thread"}, gd.devices.get(device), ())


@pytest.mark.parametrize(
    ("source", "name", "like"),
    [
        ("__device__ int f(int a) { if (a) { f(1); } return 0; }", "f", "__device__ int g(int a);"),
        ("int f(int);\n int f(int a)\n{ }", "f", "int g(int a);"),
        ("// int f(char) {}\n#define f(a) { a }\nconst char *s = \"f(x) {\"; int f() { }", "f", "int g();"),
        ("namespace a::b { void f(float (*p)[3]) { } }", "a::b::f",
         "namespace a { namespace b { void g(float (*p)[3]); } }"),
        ("namespace a { void f() { } } void f(int) { }", "f", "void g(int);"),
        ("struct s { void f() { } };", "f", None),
        ("void g(int a = f(3)) { f(2); }", "f", None),
        ("void f(int) { } void f(char) { }", "f", None),
        ('extern "C" { __device__ void f(char) { } }', "f", "__device__ void g(char);"),
        ("__launch_bounds__(32) void f(int) { }", "f", "__launch_bounds__(32) void g(int);"),
        ("} } ; {", "f", None),
        ("", "f", None),
    ],
)  # fmt: skip
def test_the_head_of_a_function(source, name, like):
    assert _overloads.declared_like(source, name, "g") == like


# -- macros ------------------------------------------------------------------------------------

TEAMS = """
    __device__ int zorg(int q_) { return q_ * 1000 + gd_size(); }
    __device__ int zorg2(int q_) { gd_require(q_ != 7, -1); gd_sync(); return gd_rank(); }
    """


@pytest.mark.parametrize("how", ["source", "options"])
def test_any_macro(nvrtc, how):
    macros = {name: f"(-{i + 3})" for i, name in enumerate(NAMES) if name not in KEYS}
    source, options = {
        "source": ("".join(f"#define {n} {v}\n" for n, v in macros.items()) + TEAMS
                   + "".join(f"\n#define {n}" for n in KEYS), []),
        "options": (TEAMS, [f"-D{n}={v}" for n, v in macros.items()]),
    }[how]
    teams = {"zorg": "warp", "zorg2": "grid"}
    _compiled.compiled(source, teams, nvrtc, tuple(options))
    with service(source, teams, options=options, blocks=2, threads=64) as svc:
        assert svc.call("zorg", 5) == 5032
        assert svc.call("zorg2", 5) == 0
        with pytest.raises(gd.RefusedArgumentError):
            svc.call("zorg2", 7)


def test_macros_of_words_of_the_language(nvrtc):
    source = (
        "".join(f"#define {word}\n" for word in WORDS)
        + "#define bool int\n#define true 1\n#define class struct\n#define float double\n#define long short\n"
        + "class pair { long a, b; };\n"
        + "__device__ float zorg(float q_, const bool u_, class pair v_) { return q_ + u_ + v_.a; }"
    )
    _, found = _compiled.compiled(source, {"zorg": "thread"}, nvrtc, ())
    assert [(p.kind, p.size) for p in found["zorg"].parameters] == [("f", 8), ("i", 4), ("s", 4)]
    with service(source, "zorg") as svc:
        assert svc.call("zorg", 0.25, 2, b"\3\0\0\0") == 5.25


def test_a_function_by_the_name_of_its_macro():
    source = "#define mine real\n#define N 3\n__device__ int mine(int a) { return a + N; }"
    with service(source, "mine") as svc:
        assert svc.call("mine", 1) == 4


def test_options_define_and_undefine(nvrtc):
    source = "#ifdef A\n#error\n#endif\n__device__ int f(int a) { return a + B C; }"
    options = ("-DA", "-UA", "-D", "B=4", "--define-macro=C=+ 1")
    assert _source.resident_source(source, {"f": "thread"}, (*options, "-Ihere"))[1] == ("-Ihere",)
    _compiled.compiled(source, {"f": "thread"}, nvrtc, options)
    with service(source, "f", options=options) as svc:
        assert svc.call("f", 1) == 6


def test_lines_are_those_of_the_source(nvrtc):
    source = "\n#define f value\n\n__device__ int f(int a) { return b; }"
    for device in (DEVICE, nvrtc):
        with pytest.raises(gd.CompileError) as e:
            _compiled.compiled(source, {"f": "thread"}, gd.devices.get(device), ("-DX=1",))
        assert "kernel.cu:4" in e.value.log or "kernel.cu(4)" in e.value.log


# -- kernels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["value", "arguments", "min", "index", "exp", "kernel", "entry", "lane"])
def test_kernels_of_any_name(nvrtc, name):
    source = f"__global__ void {name}(int *q_, short u_, char v_) {{ *q_ = u_ + v_; }}"
    assert [p.size for p in gd.kernel(source, name, device=nvrtc).parameters] == [8, 2, 1]
    if name in ("min", "exp"):  # templates of the host's library have these names as well
        return
    kernel = gd.kernel(source, name, device=DEVICE)
    with gd.zeros(1, "i4", device=DEVICE) as a:
        kernel[1, 1](a, 3, 4)
        gd.synchronize(DEVICE)
        assert a.read()[0] == 7


def test_kernels_beside_any_macro(nvrtc):
    source = (
        "".join(f"#define {name} (-{i})\n" for i, name in enumerate(NAMES) if name not in KEYS)
        + "".join(f"#define {word}\n" for word in WORDS)
        + "#define bool int\n#define true 1\n#define class struct\n#define float double\n"
        + "\n__global__ void zorg(float *q_, const bool u_) { *q_ = u_; }"
        + "".join(f"\n#define {name}" for name in KEYS)
    )
    for device in (DEVICE, nvrtc):
        kernel = gd.kernel(source, "zorg", device=device)
        assert [(p.kind, p.size, p.pointee) for p in kernel.parameters] == [("p", 8, "f8"), ("i", 4, "")]
        with pytest.raises(gd.CompileError) as e:
            gd.kernel(source + "\n{", "zorg", device=device)
        line = source.count("\n") + 2
        assert f"kernel.cu:{line}" in e.value.log or f"kernel.cu({line})" in e.value.log
