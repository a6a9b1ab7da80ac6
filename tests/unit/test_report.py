"""``gpudirect bench report``: the page shows what the file holds, stands alone, and hides nothing."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from gpudirect import _words
from gpudirect.bench import bars as targets
from gpudirect.bench import check, plots, report
from gpudirect.bench.measure import figure
from gpudirect.cli import app
from gpudirect.errors import ArgumentError, Error

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "results" / "nvidia-h200.json"
SIZES = [1 << i for i in range(0, 25, 3)] + [100, 5000]
LATENCY = {"chosen": 150, "map": 140, "dma": 6000}


def made(emulated: bool = False, **more: object) -> dict:
    """A file with curves, single figures, and bars on both sides of their limits."""
    shape = 1 + np.random.default_rng(7).gamma(1, 0.05, 300)
    found = [
        figure("copybw", f"write: {who}", size, shape * (ns + size / 20), 10, "write")
        for who, ns in LATENCY.items()
        for size in SIZES
    ]
    singles = {"load 4: C": 1000, "round: C": 1500, "round: Python": 1900}
    found += [figure("pingpong", case, 4, shape * ns) for case, ns in singles.items()]
    device = {"name": "emulated GPU" if emulated else "A GPU", "bridge": "rm", "emulated": emulated,
              "bar1_bytes": 256 << 20,
              "bridges": {"rm": {"usable": True, "reason": "it is there"}}}  # fmt: skip
    machine = {"cpu": "A CPU", "driver": "580.1", "commit": "abc-dirty", "time": "2026-11-21T06:52:49+00:00"}
    return {"format": 1, "unit": "ns", "machine": machine, "device": device, "checks": {},
            "figures": [f.as_dict() for f in found], **more}  # fmt: skip


@pytest.fixture(scope="module")
def page() -> tuple[str, dict[str, bytes]]:
    return report.build(made())


@pytest.fixture(scope="module")
def emulated() -> tuple[str, dict[str, bytes]]:
    return report.build(made(emulated=True))


class Reader(HTMLParser):
    """The page's elements, ids, references and text; unbalanced tags are found."""

    ALONE = frozenset({"meta", "br", "img", "link", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        if tag not in self.ALONE:
            self.open.append(tag)
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            if key in ("href", "src", "srcset", "xlink:href", "data", "action", "poster"):
                self.links.append(value)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.ALONE:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing, open were {self.open}"

    def handle_data(self, data: str) -> None:
        self.text += data


def read(text: str) -> Reader:
    """The page read, with its text as plain words."""
    reader = Reader(text)
    reader.text = re.sub(r"\s+", " ", reader.text.replace("\N{NO-BREAK SPACE}", " "))
    return reader


# -- the page -----------------------------------------------------------------------------------


@pytest.mark.timeout(600)  # 44 plots: half a minute of processor time
def test_the_committed_results_make_a_page_with_every_figure():
    text, images = report.build(check.read(COMMITTED))
    words = read(text).text
    found = json.loads(COMMITTED.read_text())
    assert found["device"]["name"] in words and found["machine"]["commit"] in words
    for f in found["figures"]:
        # under the heading of its group a case goes without that name
        assert f["case"].removeprefix(f"{f['group']}: ") in words
        for key in ("p0", "p50", "p99", "p999"):
            assert _words.time_text(f[key]).replace(" us", " µs") in words, (f["case"], key)
    assert images and "EMULATED" not in text


def test_it_stands_alone(page):
    reader = read(page[0])
    outside = [link for link in reader.links if not link.startswith("#")]
    assert outside == [] and not {"script", "link", "iframe", "object", "img"} & set(reader.tags)
    assert "://" not in page[0] and "@import" not in page[0]
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", page[0]))


def test_its_parts_refer_to_parts_that_are_there_once(page):
    reader = read(page[0])
    assert len(reader.ids) == len(set(reader.ids))
    wanted = {link[1:] for link in reader.links} | set(re.findall(r"url\(#([^)]*)\)", page[0]))
    assert wanted and wanted <= set(reader.ids)


def test_curves_histograms_and_tables_are_there_and_labelled(page):
    text, images = page
    assert sorted(images) == [
        "copybw-write-bandwidth.png", "copybw-write-relative.png", "copybw-write-spread-at-2-mib.png",
        "copybw-write-spread-at-64-b.png", "copybw-write-time.png", "pingpong-spread.png",
    ]  # fmt: skip
    drawn = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(drawn) == len(images)
    for svg in drawn[:3]:  # each curve has its name beside it
        assert all(f">{who}</text>" in svg for who in LATENCY), svg[:200]
    assert "at 64 B" in drawn[3] and "at 2 MiB" in drawn[4]
    words = read(text).text
    assert "At 64 B map takes least, " in words and "dma takes most, " in words
    assert "All 33 figures" in words and "bandwidth" in words and "300of 10 calls" in words


def test_what_was_asked_of_the_clock_is_said_for_each_bench(page):
    words = read(page[0]).text
    assert words.count("What was asked of the clock: ") == 2
    assert "CPU store retired" in words and "Visible to the GPU" in words


def test_a_note_of_the_file_is_told_and_an_unknown_bench_owns_up():
    only = {"figures": [figure("newbench", "case", 0, [1.0, 2.0]).as_dict()]}
    assert "The file does not say on what the clock stopped." in read(report.build(made(**only))[0]).text
    told = read(report.build(made(**only, notes={"newbench": "On the moon."}))[0]).text
    assert "What was asked of the clock: On the moon." in told and "does not say" not in told


def test_bars_stand_there_with_their_figures(page):
    words = read(page[0]).text
    bars = len(targets.load())
    assert f"1 of {bars} bars hold, 1 fall short, {bars - 2} were not measured" in words
    held, short = words.index("✓ holds"), words.index("✗ falls short")
    assert short < held, "what falls short comes first"
    assert re.search(r"pingpong-python.*?falls short\+4\d\d ns ?at most \+300 ns", words)
    assert "“Ping-pong from C: p50 at most 1.6 times" in words


def test_facts_are_for_people(page):
    words = read(page[0]).text
    assert "abc-dirty" in words and "256 MiB" in words and "rm: usable; it is there" in words
    assert "2026-11-21 06:52:49 UTC" in words


def test_colours_are_defined_for_light_and_dark(page):
    light, dark = re.findall(r":root \{(.*?)\}", page[0], re.S)
    used = set(re.findall(r"var\(--(\w+)\)", page[0]))
    assert {"c0", "c1", "c2", "ink", "rule"} <= used
    for role in used - {"shade", "soft", "good"}:
        assert f"--{role}:" in light and f"--{role}:" in dark, role
    drawn = "".join(re.findall(r"<svg.*?</svg>", page[0], re.S))
    assert set(re.findall(r"#[0-9a-fA-F]{6}\b", drawn)) <= {"#000000", "#ffffff"}, (
        "a colour that cannot turn dark"
    )


# -- the emulated device -------------------------------------------------------------------------


def test_the_emulated_device_is_marked_everywhere(page, emulated):
    text, images = emulated
    assert "<title>EMULATED: " in text and 'role="alert">EMULATED DEVICE' in text
    assert all("EMULATED" in svg for svg in re.findall(r"<svg.*?</svg>", text, re.S))
    assert text.count("<caption>EMULATED. ") == len(re.findall("<caption>[^<]*(?:Times|Median)", text)) > 0
    assert "emulated: ✓ holds" in read(text).text and 'class="holds"' not in text
    assert all(images[name] != page[1][name] for name in images), "the mark is in the PNGs too"
    assert "EMULATED" not in page[0]


# -- the plots -----------------------------------------------------------------------------------


def test_the_pngs_hold_pictures(page):
    import io

    from matplotlib.image import imread

    for name, png in page[1].items():
        pixels = imread(io.BytesIO(png))
        assert pixels.shape[1] > 800 and pixels[..., :3].std() > 0.02, name


def test_the_spread_is_drawn():
    """Another p99 is another picture."""
    found = made()["figures"]
    calm = [f for f in found if f["case"] == "write: map"]
    wild = [{**f, "p99": f["p99"] * 30} for f in calm]
    for draw in (plots.time, plots.bandwidth):
        a, b = (draw([plots.Series("map", f)], False).png for f in (calm, wild))
        assert a != b
    rows = [("map", calm[0])], [("map", {**calm[0], "values": [v * 2 for v in calm[0]["values"]]})]
    assert plots.histogram(rows[0], False).svg != plots.histogram(rows[1], False).svg


@pytest.mark.parametrize("wanted", [[0.5] * 6, [0.1, 0.11, 0.9], [0.9, 0.1, 0.5], [1, 1, 0, 0.99], [0.3]])
@pytest.mark.parametrize("height", [0.06, 0.11])
def test_labels_are_kept_apart_and_in_order(wanted, height):
    heights = [height * (1 + i % 2) for i in range(len(wanted))]
    places = plots._apart(wanted, heights, floor=0.02)
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    for below, above in pairwise(order):
        assert places[above] - places[below] >= (heights[below] + heights[above]) / 2 - 1e-9
    assert min(places) >= 0.02 - 1e-9


def test_labels_that_have_room_stay_where_they_belong():
    assert plots._apart([0.9, 0.1, 0.5], [0.1, 0.1, 0.1]) == [0.9, 0.1, 0.5]


def test_a_long_name_leaves_the_curve_its_room():
    found = [f for f in made()["figures"] if f["case"] == "write: map"]
    name = "a case whose name says very much, with brackets (and more)"
    svg = plots.time([plots.Series(name, found)], False).svg
    (area,) = re.findall(r'<rect x="[\d.]+" y="[\d.]+" width="([\d.]+)"', svg)
    assert float(area) > 0.5 * plots.WIDTH * 72


def test_lines_stay_different_when_there_are_many():
    looks = {
        (plots.COLOURS[i % len(plots.COLOURS)], plots.DASHES[i % len(plots.DASHES)],
         plots.MARKERS[i % len(plots.MARKERS)])
        for i in range(40)
    }  # fmt: skip
    assert len(looks) == 40


def test_odd_figures_are_drawn_all_the_same():
    """No time at all, one sample, no samples kept, forty cases, sizes that are alike."""
    zero = figure("alloc", "nothing", 0, [0.0, 0.0]).as_dict()
    one = figure("alloc", "one", 1, [5.0]).as_dict()
    bare = {**figure("alloc", "bare", 1, [5.0]).as_dict(), "values": []}
    many = [figure("alloc", f"case {i}", 0, [100.0 * i, 101.0]).as_dict() for i in range(12)]
    flat = [figure("copybw", "write: map", s, [9.0] * 3, group="write").as_dict() for s in (1, 2, 3)]
    text, images = report.build(made(figures=[zero, one, bare, *many, *flat]))
    words = read(text).text
    assert all(f"case {i}" in words for i in range(12)) and "0 ns" in words
    assert {"alloc-spread.png", "alloc-spread-more.png"} <= set(images)


def test_names_are_text_and_no_markup():
    evil = "<script>alert('x')</script> & \"more\""
    found = [figure(evil, evil, 0, [1.0, 2.0], group=evil).as_dict()]
    found += [figure("copybw", evil, s, [1.0, 2.0]).as_dict() for s in (1, 2, 4)]
    text, images = report.build(made(figures=found))
    assert "script" not in read(text).tags and evil in read(text).text
    assert all(re.fullmatch(r"[a-z0-9-]+\.png", name) for name in images)


def test_groups_whose_names_differ_in_signs_only_keep_their_plots():
    found = [figure("b", "case", 1, [1.0, 2.0], group=g).as_dict() for g in ("a b", "a-b")]
    with pytest.raises(ArgumentError, match="measured twice"):
        report.build(made(figures=found))
    found[1]["case"] = "other"
    assert len(report.build(made(figures=found))[1]) == 2


# -- the command ---------------------------------------------------------------------------------


def saved(tmp_path: Path, found: object) -> Path:
    path = tmp_path / "run.json"
    path.write_text(found if isinstance(found, str) else json.dumps(found))
    return path


def command(*words: object):
    return CliRunner().invoke(app, ["bench", "report", *map(str, words)])


def test_the_command_writes_the_page_and_its_plots(tmp_path):
    few = made()["figures"][-3:]
    run = command(saved(tmp_path, made(figures=few)))
    assert run.exit_code == 0, run.exception
    folder = tmp_path / "run-report"
    assert f"{folder / 'index.html'}; 1 plots in" in run.output.replace("\n", "")
    assert (folder / "index.html").read_text().startswith("<!doctype html>")
    png = (folder / "plots" / "pingpong-spread.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert command(tmp_path / "run.json", "--out", tmp_path / "a" / "b").exit_code == 0
    assert (tmp_path / "a" / "b" / "plots" / "pingpong-spread.png").read_bytes() == png, "the same each time"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ("not json", "is no figures file"),
        ({"format": 7}, "is no figures file of format 1"),
        (made(figures=[]), "holds no figures"),
        (made(figures=[{"bench": "b"}]), "figure 1: case is None"),
        (made(device=[]), "its 'device' is broken"),
    ],
)
def test_what_is_no_figures_file_is_refused_and_nothing_is_written(tmp_path, found, words):
    run = command(saved(tmp_path, found), "--out", tmp_path / "out")
    assert isinstance(run.exception, ArgumentError) and words in str(run.exception)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file")
    few = made(figures=made()["figures"][-3:])
    run = command(saved(tmp_path, few), "--out", tmp_path / "taken")
    assert isinstance(run.exception, ArgumentError)
    assert f"cannot be written to {tmp_path / 'taken'}" in str(run.exception) and "--out" in str(run.exception)


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = command(saved(tmp_path, made()), "--out", tmp_path / "out")
    assert isinstance(run.exception, Error) and "pip install 'gpudirect[plot]'" in str(run.exception)
    assert not (tmp_path / "out").exists()
