"""What gpudirect compiles with, where it keeps things, and what it was told."""

from __future__ import annotations

from ..config import SETTINGS
from ._machine import HEALTHY, Machine
from ._rules import LIMITS, NOTE, SLOWS, Seen, install, rule

KNOWN = [s.name for s in SETTINGS]


@rule(
    "NVRTC is missing", LIMITS,
    means="NVRTC is CUDA's run-time compiler: it compiles the kernels and services that are given as source.",
    costs="`gd.kernel`, `gd.Service` and the demo fail with CompileError; arrays work.",
    mend=lambda m: [f"$ pip install 'gpudirect[cu{12 if m.cuda and m.cuda < 13000 else 13}]'"],
    example=HEALTHY.where(nvrtc=None),
)
def no_nvrtc(m: Machine) -> Seen:
    if m.gpus and m.nvrtc is None:
        return "a GPU, and libnvrtc cannot be loaded"
    return None


@rule(
    "NVRTC is newer than the driver", LIMITS,
    means="Code that a newer CUDA compiled may be refused by a driver of an older major version.",
    costs="Loading a kernel can fail (CUDA_ERROR_INVALID_IMAGE, CUDA_ERROR_UNSUPPORTED_PTX_VERSION).",
    mend=lambda m: [f"$ pip install 'gpudirect[cu{(m.cuda or 12000) // 1000}]'", "Or update the driver."],
    example=HEALTHY.where(driver="550.163.01", library="550.163.01", cuda=12040, nvrtc="13.0"),
)
def nvrtc_newer(m: Machine) -> Seen:
    if m.nvrtc and m.cuda and int(m.nvrtc.split(".")[0]) > m.cuda // 1000:
        return f"NVRTC {m.nvrtc}, and a driver for CUDA {m.cuda // 1000}.{m.cuda % 1000 // 10}"
    return None


@rule(
    "No CUDA headers", NOTE,
    means="""Kernels that include CUDA's headers (cuda_fp16.h, cooperative_groups.h, curand_kernel.h) need them
    on disk; NVRTC brings only the language.""",
    costs="Such kernels fail with CompileError; others compile.",
    mend=lambda m: [
        "$ pip install " + ("nvidia-cuda-runtime-cu12" if m.cuda and m.cuda < 13000 else "nvidia-cuda-runtime")
    ],
    example=HEALTHY.where(cuda_headers=False),
)
def no_cuda_headers(m: Machine) -> Seen:
    return "cuda_fp16.h is found nowhere" if m.gpus and not m.cuda_headers else None


@rule(
    "No C++ compiler", LIMITS,
    means="The emulated device compiles kernels with the host's C++ compiler.",
    costs="Kernels and services do not run on the emulated device; on a GPU they do.",
    mend=lambda m: [*install(m, debian="g++", ubuntu="g++", fedora="gcc-c++", rhel="gcc-c++", suse="gcc-c++",
                             arch="gcc"), "Or say which one: export CXX=..."],
    example=HEALTHY.where(cxx_compiler=False),
)  # fmt: skip
def no_cxx_compiler(m: Machine) -> Seen:
    return "neither $CXX, c++, g++ nor clang++ is found" if not m.cxx_compiler else None


@rule(
    "No C compiler", NOTE,
    means="The litmus tests compile their CPU side.",
    costs="`gpudirect litmus` fails; nothing else needs it.",
    mend=lambda m: install(m, debian="gcc", ubuntu="gcc", fedora="gcc", rhel="gcc", suse="gcc", arch="gcc"),
    example=HEALTHY.where(c_compiler=False),
)
def no_c_compiler(m: Machine) -> Seen:
    return "neither $CC, cc nor gcc is found" if not m.c_compiler else None


@rule(
    "The cache cannot be written", SLOWS,
    means="Compiled kernels and calibrations are kept in a folder, by default ~/.cache/gpudirect.",
    costs="Each process compiles its kernels anew, and `gpudirect calibrate` cannot keep its answer.",
    mend=["$ export GPUDIRECT_CACHE=$(mktemp -d)    # or a folder that lasts and that only you can write"],
    example=HEALTHY.where(cache_writable=False),
)
def cache_not_writable(m: Machine) -> Seen:
    return "the cache folder cannot be made or written" if not m.cache_writable else None


@rule(
    "Others can write to the cache", SLOWS,
    means="""The cache holds code that runs as you. Its folder, or one above it, belongs to somebody else or can
    be written by everybody, so it is not used.""",
    costs="Each process compiles its kernels anew.",
    mend=["$ export GPUDIRECT_CACHE=$HOME/.cache/gpudirect-own    # or another folder that only you can write"],
    example=HEALTHY.where(cache_ours=False),
)
def cache_not_ours(m: Machine) -> Seen:
    return "the cache folder is not this user's alone" if m.cache_writable and not m.cache_ours else None


@rule(
    "Not calibrated", NOTE,
    means="At which sizes copies turn from mapped stores to DMA is as it was on another machine, an H200.",
    costs="Copies of some sizes take the slower path.",
    mend=["$ gpudirect calibrate    # a few seconds, once"],
    example=HEALTHY.with_gpu(calibrated=False),
)
def not_calibrated(m: Machine) -> Seen:
    ids = [g.id for g in m.gpus if g.calibrated is False and g.bridge]
    return f"no calibration of {', '.join(ids)} is kept" if ids else None


@rule(
    "A setting that does not exist", NOTE,
    means="A variable starts with GPUDIRECT_ and is none that is read.",
    costs="It has no effect.",
    mend=lambda m: [f"$ unset {name}" for name in _unknown(m)]
    + [f"There are {', '.join(KNOWN)}."],
    example=HEALTHY.where(environment={"GPUDIRECT_BRIGDE": "rm"}),
)  # fmt: skip
def unknown_setting(m: Machine) -> Seen:
    return ", ".join(f"{n} is {m.environment[n]!r}" for n in _unknown(m)) or None


def _unknown(m: Machine) -> list[str]:
    return sorted(n for n in m.environment if n.startswith("GPUDIRECT_") and n not in KNOWN
                  and not n.startswith(("GPUDIRECT_TEST_", "GPUDIRECT_FUZZ_")))  # fmt: skip


@rule(
    "The emulated device was asked for", NOTE,
    means="There is a GPU, and GPUDIRECT_DEVICE says emulated.",
    costs="No GPU is used; times say nothing about one.",
    mend=["$ unset GPUDIRECT_DEVICE"],
    example=HEALTHY.where(environment={"GPUDIRECT_DEVICE": "emulated"}),
)
def emulated_asked_for(m: Machine) -> Seen:
    value = m.environment.get("GPUDIRECT_DEVICE", "")
    return f"GPUDIRECT_DEVICE is {value!r}" if m.gpus and value.startswith("emulated") else None


@rule(
    "faulthandler is on", NOTE,
    means="""It takes SIGBUS and SIGSEGV, by which gpudirect learns that the driver took memory back (bridges
    p2pmod and gdrdrv). gpudirect steps in front of it, and hands on what is not its own.""",
    costs="Memory revoked while it is accessed may be reported as a crash before RevokedError is raised.",
    mend=["Nothing is to be mended. To do without its reports:", "$ unset PYTHONFAULTHANDLER"],
    example=HEALTHY.where(faulthandler=True),
)  # fmt: skip
def faulthandler_on(m: Machine) -> Seen:
    return "faulthandler.is_enabled() is true" if m.faulthandler else None
