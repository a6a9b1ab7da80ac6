"""What the packages say of themselves, and what is in them. What a wheel does: tools/wheels."""

import re
import runpy
import subprocess
import sys
import tarfile
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import gpudirect as gd

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
metadata = runpy.run_path(str(ROOT / "package" / "metadata.py"))
URL = "https://somewhere.invalid/gpudirect"


def script(name):
    loader = SourceFileLoader(name, str(ROOT / "tools" / name))
    module = module_from_spec(spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


# -- the version -------------------------------------------------------------------------------------


def test_the_version_has_one_place():
    assert metadata["version"]() == gd.__version__ and "version" in PROJECT["dynamic"]


def test_the_kernel_modules_version_is_the_same():
    """dkms reads a literal: it has to be written there too, and `tools/release` looks at it as well."""
    text = (ROOT / "dkms.conf").read_text()
    assert re.search(r'^PACKAGE_VERSION="(.+)"', text, re.MULTILINE)[1] == gd.__version__


# -- links -------------------------------------------------------------------------------------------


def links(text):
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def test_the_readme_of_an_index_has_no_link_that_leads_nowhere():
    assert [x for x in links(metadata["readme"]("")) if not x.startswith(("http", "#"))] == []
    told = links(metadata["readme"](URL))
    assert all(x.startswith(("http", "#")) for x in told)
    ours = [x.removeprefix(f"{URL}/blob/v{gd.__version__}/") for x in told if x.startswith(URL)]
    assert len(ours) > 10 and all((ROOT / x.partition("#")[0]).exists() for x in ours)


def test_without_a_url_no_package_says_one(monkeypatch):
    assert metadata["arguments"]()["project_urls"] == {} or metadata["settings"]()["url"]
    told = metadata["arguments"].__globals__
    monkeypatch.setitem(told, "settings", lambda: {"url": URL, "maintainer": ""})
    assert set(metadata["arguments"]()["project_urls"]) == {"Homepage", "Documentation", "Changelog", "Issues"}
    assert "maintainer" not in metadata["arguments"]()


# -- what is installed with it ---------------------------------------------------------------------


@pytest.mark.parametrize("extra, major", (("cu12", 12), ("cu13", 13)))
def test_an_extra_takes_bindings_and_compiler_of_its_cuda_only(extra, major):
    wanted = {r.name: r.specifier for r in map(Requirement, PROJECT["optional-dependencies"][extra])}
    assert "cuda-bindings" in wanted
    for name, versions in wanted.items():
        assert versions.contains(f"{major}.9") and not versions.contains(f"{major + 1}.0"), name
        assert not versions.contains(f"{major - 1}.9"), name
        assert name == "cuda-bindings" or name.endswith("-cu12") == (extra == "cu12")


def test_every_python_named_is_one_that_pip_installs_it_for():
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert named[0] == "3.10" and PROJECT["requires-python"] == ">=3.10"


# -- what is in the sdist --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    wheels = script("wheels")
    folder = tmp_path_factory.mktemp("sdist")
    source = wheels.checkout(folder / "source")
    # what lies about in a checkout in use
    (source / "gpudirect" / "lib").mkdir()
    for name in ("gpudirect/lib/libgpudirect.so.0", "gpudirect/_native/_cffi.abi3.so", "p2pmod/main.o",
                 "gpudirect/__pycache__/x.pyc", "gpudirect/_native/_cffi.c"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("left over")
    return wheels.sdist(source, folder)


def names(sdist):
    with tarfile.open(sdist) as archive:
        return {m.name.partition("/")[2]: m for m in archive.getmembers()}


def test_the_sdist_has_all_that_a_build_and_a_user_need(sdist):
    there = set(names(sdist))
    folders = ("gpudirect", "p2pmod", "docs", "examples", "package")
    tracked = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True,
                             check=True).stdout.split()
    assert {f for f in tracked if not f.startswith("p2pmod/test/") and (ROOT / f).exists()} <= there
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE", "CHANGELOG.md", "Kbuild", "dkms.conf",
            "Makefile"} <= there


def test_the_sdist_has_nothing_of_the_lab_and_nothing_built(sdist):
    there = set(names(sdist))
    for name in there:
        assert not name.startswith(("tests", "results", ".ci", ".github", "p2pmod/test", "gpudirect/lib")), name
        assert not name.endswith((".so", ".so.0", ".o", ".pyc", "_cffi.c")), name


def test_the_sdist_tells_nothing_of_who_made_it(sdist):
    members = names(sdist).values()
    assert {(m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, "", "")}
    assert len({m.mtime for m in members}) == 1


def test_a_wheel_is_not_taken_for_fit_by_its_name_alone():
    wheels = script("wheels")
    for machine, other in (("x86_64", "aarch64"), ("aarch64", "x86_64")):
        for wrong in (f"cp311-manylinux_2_17_{machine}", f"abi3-linux_{machine}",
                      f"abi3-manylinux_2_17_{other}"):
            with pytest.raises(SystemExit, match="tagged"):
                wheels.audit(Path(f"gpudirect-0.1.0-cp311-{wrong}.whl"), machine)


def test_ci_has_a_stage_for_wheels():
    assert "stage wheel " in (ROOT / ".ci" / "run").read_text()
