"""The kernel module as packages: what is in them, and what their scripts do is tests/vm/run dkms."""

import re
import shutil
import subprocess
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

import gpudirect as gd

ROOT = Path(__file__).resolve().parents[2]
WHO = "Somebody <somebody@somewhere.invalid>"


def script():
    loader = SourceFileLoader("module_packages", str(ROOT / "tools" / "module-packages"))
    module = module_from_spec(spec_from_loader("module_packages", loader))
    loader.exec_module(module)
    return module


tool = script()


def run(*words):
    return subprocess.run([str(w) for w in words], capture_output=True, text=True, check=True).stdout


def said(monkeypatch, **words):
    monkeypatch.setitem(tool.metadata, "settings", lambda: {"url": "", "maintainer": ""} | words)


needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="no dpkg-deb here")
needs_rpm = pytest.mark.skipif(not shutil.which("rpmbuild"), reason="no rpmbuild here: apt install rpm")


@needs_dpkg
def test_the_deb_has_the_module_and_nothing_else(tmp_path):
    package = tool.deb(tmp_path, gd.__version__)
    listed = re.findall(r"^-\S+ root/root\s+\d+ \S+ \S+ \./(\S+)$", run("dpkg-deb", "-c", package),
                        re.MULTILINE)  # fmt: skip
    folder = f"usr/src/p2pmod-{gd.__version__}"
    assert {f"{folder}/dkms.conf", f"{folder}/Kbuild", f"{folder}/p2pmod/main.c", f"{folder}/p2pmod/Makefile",
            "usr/lib/udev/rules.d/60-p2pmod.rules"} <= set(listed)  # fmt: skip
    assert not [x for x in listed if "/test/" in x or "/examples/" in x]
    assert run("dpkg-deb", "-f", package, "Version").strip() == gd.__version__
    assert run("dpkg-deb", "-f", package, "Depends").startswith("dkms")


@needs_dpkg
def test_the_deb_is_the_same_bytes_twice_and_of_any_version(tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir(), second.mkdir()
    assert tool.deb(first, "9.8.7").read_bytes() == tool.deb(second, "9.8.7").read_bytes()
    run("dpkg-deb", "-R", first / "gpudirect-p2pmod-dkms_9.8.7_all.deb", tmp_path / "tree")
    assert 'PACKAGE_VERSION="9.8.7"' in (tmp_path / "tree/usr/src/p2pmod-9.8.7/dkms.conf").read_text()
    for name in ("postinst", "prerm"):
        text = (tmp_path / "tree/DEBIAN" / name).read_text()
        assert "9.8.7" in text and "@" not in text
        run("sh", "-n", tmp_path / "tree/DEBIAN" / name)


@needs_dpkg
def test_nobody_is_invented(tmp_path, monkeypatch):
    said(monkeypatch)
    fields = run("dpkg-deb", "-f", tool.deb(tmp_path, "1.0"))
    assert "Maintainer" not in fields and "Homepage" not in fields
    said(monkeypatch, maintainer=WHO, url="https://somewhere.invalid")
    fields = run("dpkg-deb", "-f", tool.deb(tmp_path, "1.0"))
    assert f"Maintainer: {WHO}" in fields and "Homepage: https://somewhere.invalid" in fields


@pytest.mark.skipif(not shutil.which("lintian"), reason="no lintian here")
def test_lintian_has_nothing_to_say(tmp_path, monkeypatch):
    said(monkeypatch, maintainer=WHO)
    done = subprocess.run(["lintian", "--allow-root", "--fail-on", "error,warning", tool.deb(tmp_path, "1.0")],
                          capture_output=True, text=True)  # fmt: skip
    # bad addresses are ours, of this test
    told = [x for x in done.stdout.splitlines() if x and "invalid" not in x]
    assert told == [], done.stdout


@needs_rpm
def test_the_source_rpm_builds(tmp_path):
    package = tool.rpm(tmp_path, "1.2.3")
    assert run("rpm", "-qp", "--qf", "%{NAME} %{VERSION} %{LICENSE}", package) == (
        "gpudirect-p2pmod-dkms 1.2.3 MIT OR GPL-2.0-only")  # fmt: skip
    assert "gpudirect-p2pmod-1.2.3.tar.gz" in run("rpm", "-qlp", package)
    spec = (tmp_path / "gpudirect-p2pmod-dkms.spec").read_text()
    assert not re.search("@[A-Z]+@", spec) and "URL:" not in spec


# what this rpmlint complains of, and why it may
FINE = {
    "no-signature": "who releases it signs it",
    "no-packager-tag": "obsolete", "no-group-tag": "obsolete", "no-buildroot-tag": "obsolete",
    "no-url-tag": "there is none while tool.gpudirect.url is empty",
    "invalid-url": "the source is made by tools/module-packages", "invalid-license": "SPDX, as Fedora wants it",
    "hardcoded-library-path": "udev's rules lie there on every architecture",
}  # fmt: skip


@needs_rpm
@pytest.mark.skipif(not shutil.which("rpmlint"), reason="no rpmlint here")
def test_rpmlint_has_nothing_new_to_say(tmp_path):
    tool.rpm(tmp_path, "1.2.3")
    done = subprocess.run(["rpmlint", *map(str, tmp_path.iterdir())], capture_output=True, text=True)
    told = re.findall(r": [WE]: (\S+)", done.stdout)
    assert [t for t in told if t not in FINE] == [], done.stdout
