"""The site's pages: what they link to and name exists, figures are the files', pictures are drawn."""

from __future__ import annotations

import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import gpudirect as gd

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(p.name for p in DOCS.glob("*.md"))
PROSE = [Path(f"docs/{name}") for name in PAGES] + [
    Path(name) for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "examples/README.md",
                            "results/README.md")]  # fmt: skip
FENCED = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
RELIABILITY = (DOCS / "reliability.md").read_text()
FIGURES = {(f["bench"], f["case"], f["size"]): f["p50"]
           for f in json.loads((ROOT / "results/nvidia-h200.json").read_text())["figures"]}  # fmt: skip


def rows(text: str) -> list[list[str]]:
    """The cells of every table's rows, without heads."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines
            if not line.startswith("| ---")]  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_what_it_links_to_exists(page):
    for link in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", (DOCS / page).read_text()):
        assert (DOCS / link).exists(), link


@pytest.mark.parametrize("page", PROSE, ids=str)
def test_tables_are_whole(page):
    """A row behind an empty line is a paragraph of bars."""
    lines = ["", *FENCED.sub("", (ROOT / page).read_text()).splitlines(), ""]
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        if line.startswith("|") and not before.startswith("|"):
            assert re.fullmatch(r"\|[ :|-]+\|", after), line


@pytest.mark.parametrize("page", PROSE, ids=str)
def test_commands_that_are_named_do_something(page):
    """`gpudirect bench` alone, for one, only lists what could follow."""
    text = (ROOT / page).read_text()
    parts = re.findall(r"^## gpudirect (.+)$", (DOCS / "commands.md").read_text(), re.MULTILINE)
    code = "\n".join([*FENCED.findall(text), *re.findall(r"`([^`\n]+)`", FENCED.sub("", text))])
    for words in re.findall(r"^(?:[A-Z_]+=\S+ |\.venv/bin/|sudo )*gpudirect +([a-z].*)$", code, re.MULTILINE):
        assert any(f"{words} ".startswith(f"{part} ") for part in parts), words


def test_every_page_is_in_the_sites_list():
    listed = re.findall(r"^([\w./-]+)$", (DOCS / "index.md").read_text(), re.MULTILINE)
    assert {f"{name}.md" for name in listed if "/" not in name} | {"index.md"} == set(PAGES)
    assert all((DOCS / f"{name}.md").exists() for name in listed)
    assert "[start here](docs/index.md)" in (ROOT / "README.md").read_text()


def test_the_first_program_runs_as_it_stands(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    exec(compile(re.sub(r"^   ", "", code, flags=re.MULTILINE), "index.md", "exec"), {})
    assert capsys.readouterr().out.strip() == "[0. 2. 4. 6.]"


def test_ci_builds_the_site_and_minds_warnings():
    assert "\nstage docs make docs" in (ROOT / ".ci/run").read_text()
    recipe = (ROOT / "Makefile").read_text().partition("\ndocs:")[2].partition("\n\n")[0]
    assert re.search(r"-m sphinx [^\n]*-W .*-c docs \. build/site", recipe)


def test_every_public_name_has_its_place_in_the_reference():
    text = (DOCS / "reference.md").read_text()
    told = re.findall(r"^\.\. auto(?:function|class|exception):: ([\w.]+)$", text, re.MULTILINE)
    assert len(told) == len(set(told))
    assert set(gd.__all__) <= set(told)
    for library in ("torch", "cupy", "rmm", "numba", "cuda_core"):
        public = importlib.import_module(f"gpudirect.{library}").__all__
        assert {f"gpudirect.{library}.{name}" for name in public} <= set(told)


# -- commands ----------------------------------------------------------------------------------


def told(*words: str) -> str:
    """What ``-h`` prints."""
    run = subprocess.run([sys.executable, "-m", "gpudirect", *words, "-h"], capture_output=True, text=True,
                         env={**os.environ, "COLUMNS": "200"}, timeout=60)  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_every_command_and_option_of_the_help_is_on_its_page():
    """Against what is printed, not against what the page is made of."""
    text = (DOCS / "commands.md").read_text()
    parts = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    names = re.findall(r"^  ([a-z]+) ", told().partition("Commands:")[2], re.MULTILINE)
    below = re.findall(r"^  ([a-z]+) ", told("bench").partition("Commands:")[2], re.MULTILINE)
    commands = [(name,) for name in names if name != "bench"] + [("bench", name) for name in below]
    assert set(parts) == {" ".join(("gpudirect", *words)) for words in commands} and len(commands) > 9
    for words in commands:
        part, listed = parts[" ".join(("gpudirect", *words))], told(*words)
        for option in set(re.findall(r"^ +(--[a-z-]+(?: [A-Z]+)?)  ", listed, re.MULTILINE)):
            assert f"| `{option}` |" in part, (words, option)
        for option in re.findall(r"^\| `\[?(--[a-z-]+|[A-Z]+)", part, re.MULTILINE):
            assert option in listed, (words, option)


# -- figures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("row, cells", [
    ("`cuMemcpy`, pageable memory", [("write: cuMemcpy", 64), ("write: cuMemcpy", 1 << 16),
                                     ("write: cuMemcpy", 1 << 24), ("read: cuMemcpy", 64)]),
    ("managed memory, with its migration", [("write: managed memory (with its migration)", 64)]),
    ("**gpudirect** `a.write(x)`, `a.read(out)`", [("write: chosen", 64), ("write: chosen", 1 << 16),
                                                   ("write: chosen", 1 << 24), ("read: chosen", 64)]),
])  # fmt: skip
def test_figures_of_copies_are_the_files(row, cells):
    (found,) = [r for r in rows((DOCS / "which-tool.md").read_text()) if r[0] == row]
    for (case, size), cell in zip(cells, found[1:], strict=False):
        assert cell.endswith(" us")
        assert float(cell[:-3]) == pytest.approx(FIGURES["copybw", case, size] / 1000, rel=0.006), case


@pytest.mark.parametrize("words, case", [
    ("CUDA graph, launch and synchronise; from C", "graph launch + sync: C"),
    ("**gpudirect** service, a call; from Python", "call 56: Python"),
])  # fmt: skip
def test_figures_of_calls_are_the_files(words, case):
    (found,) = [r for r in rows((DOCS / "which-tool.md").read_text()) if r[0] == words]
    assert float(found[1][:-3]) == pytest.approx(FIGURES["doorbell", case, 56] / 1000, rel=0.006)


def test_figures_of_sharing_are_the_files():
    figures = json.loads((ROOT / "results/nvidia-h200-sharing.json").read_text())["figures"]["first store"]
    (found,) = [r for r in rows((DOCS / "which-tool.md").read_text()) if r[0].startswith("from `import`")]
    seconds = statistics.median(figures["seconds"]["attached"])
    assert float(found[1][:-3]) == pytest.approx(1e3 * seconds, rel=0.006)
    told = {unit: [statistics.median(figures[kind][who]) * scale for who in ("attached", "with CUDA")]
            for unit, kind, scale in (("MB", "bytes", 1e-6), ("ms", "seconds", 1e3))}  # fmt: skip
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert (f"for {told['MB'][0]:.0f} MB and {told['ms'][0]:.0f} ms where a CUDA context takes "
            f"{told['MB'][1]:.0f} MB and {told['ms'][1]:.0f} ms") in readme  # fmt: skip


def test_every_cell_has_a_figure_or_says_that_there_is_none():
    parts = (DOCS / "which-tool.md").read_text().split("<!-- figures: ")[1:]
    assert len(parts) == 4
    for part in parts:
        table = rows(part.partition("<!-- figures end")[0])
        for name, *cells in table[1:]:
            if name == "GDRCopy":
                continue
            for cell in cells:
                assert re.fullmatch(r"[\d.]+ (us|ms|MB)|not measured|", cell), (name, cell)
            assert any(cells), name


# -- reliability -------------------------------------------------------------------------------

CLAIMS = [r for r in rows(RELIABILITY) if len(r) == 4 and r[0] != "what"]


def test_each_claim_has_a_command_and_a_place():
    assert len(CLAIMS) > 25
    for what, shown, again, kept in CLAIMS:
        assert shown and ("`" in again or again == "the same"), what
        assert "results/" in kept or "stage `" in kept, what


@pytest.mark.parametrize("claim", [c for c in CLAIMS if "results/" in c[3]], ids=lambda c: c[0][:40])
def test_numbers_of_a_claim_are_in_the_file_it_names(claim):
    texts = [(DOCS / link).read_text() for link in re.findall(r"\]\((\.\./results/[\w.-]+)\)", claim[3])]
    numbers = re.findall(r"(?<![\w.])\d{3,}(?!\w)", claim[1].replace(",", ""))
    for number in numbers:
        assert any(re.search(rf"(?<!\d){number}(?!\d)", text) for text in texts), number


def test_commands_and_stages_exist():
    stages = re.findall(r"^stage ([\w-]+) ", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for stage in re.findall(r"`([\w-]+)`", " ".join(re.findall(r"stages? (`[\w-]+`)", RELIABILITY))):
        assert stage in stages, stage
    for target in re.findall(r"`make ([\w-]+)`", RELIABILITY):
        assert target in targets, target
    for path in re.findall(r"(?:^|[ `])((?:tests|tools)/[\w./-]+)", RELIABILITY):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PROSE, ids=str)
def test_what_pytest_is_told_to_choose_exists(page):
    text = (ROOT / page).read_text()
    for paths, quoted, word in re.findall(r"pytest (?:-q )?([\w./ -]+?) -k (?:\"([^\"]+)\"|(\w+))", text):
        files = [f for path in paths.split() for f in ([ROOT / path] if path.endswith(".py")
                                                        else (ROOT / path).glob("test_*.py"))]  # fmt: skip
        names = re.findall(r"^def (test_\w+)", "".join(f.read_text() for f in files), re.MULTILINE)
        for each in (quoted or word).split(" or "):
            assert any(each in name for name in names), (paths, each)


def test_what_security_names_exists():
    """Functions and tests; files, too, by their ends."""
    tracked = subprocess.run(["git", "ls-files", "p2pmod", "gpudirect", "tests"], cwd=ROOT, capture_output=True,
                             text=True, check=True).stdout.split()  # fmt: skip
    code = [ROOT / name for name in tracked if name.endswith((".c", ".h", ".py", ".cuh"))]
    words = set(re.findall(r"\w+", " ".join(f.read_text() for f in code if f.exists())))
    named = re.findall(r"`([\w/.-]+)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 20
    for name in named:
        if re.search(r"\.(py|c|h|rules)$", name):
            assert any(f"/{each}".endswith(f"/{name}") for each in tracked), name
        elif re.fullmatch(r"\w+_\w+", name):
            assert name in words, name


# -- pictures ----------------------------------------------------------------------------------


def test_pictures_are_what_is_described():
    run = subprocess.run([sys.executable, ROOT / "tools/pictures", "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("picture", sorted((DOCS / "pictures").glob("*.svg")), ids=lambda p: p.stem)
def test_a_picture_is_told_in_words_fits_and_is_shown(picture):
    drawn = ElementTree.parse(picture).getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert drawn.find(f"{space}title").text and drawn.find(f"{space}desc").text
    assert "prefers-color-scheme: dark" in drawn.find(f"{space}style").text
    for text in drawn.iter(f"{space}text"):
        # DejaVu, wider than most, takes 0.55 of its size for a letter of a sentence
        wide = len(text.text) * float(text.get("font-size")) * 0.55
        left = float(text.get("x")) - wide * {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor")]
        assert left >= 0 and left + wide <= float(drawn.get("width")), text.text
    shown = "".join((DOCS / page).read_text() for page in PAGES)
    assert f"](pictures/{picture.name})" in shown
