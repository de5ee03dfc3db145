"""The written report: files, one page that needs no network, nothing that leaks out of its place, watching a run."""

from __future__ import annotations

import json
import re
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_run import Fake, write_run

pytest.importorskip("matplotlib", reason="needs the viz extra")
pytest.importorskip("plotly", reason="needs the viz extra")

from fedquilt.errors import ConfigError, StateError
from fedquilt.report import page as page_module
from fedquilt.report.build import duration, report
from fedquilt.report.page import Fact, Page, render
from fedquilt.report.panel import Panel, Picture, layout
from fedquilt.report.table import Table


class Reader(HTMLParser):
    """Tags with their attributes, headings, and the JSON of the figures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.plots = ""
        self._inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = "plots" if dict(attrs).get("id") == "plots" else tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "plots":
            self.plots += data
        elif self._inside in ("h1", "h2"):
            self.headings.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs") / "run")
    report(folder)
    return folder


@pytest.fixture(scope="module")
def text(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def small(**changes: object) -> Page:
    """A page with one panel, for what the content does not matter to."""
    table = Table(("name", "score"), (("a", 0.5),))
    picture = Picture(lambda figure: None, {"data": [], "layout": layout(x="", y="")})
    given: dict[str, object] = {
        "title": "t",
        "subtitle": "",
        "facts": (),
        "settings": (),
        "panels": (Panel("p", "P", "", table, picture),),
    }
    return Page(**(given | changes))  # type: ignore[arg-type]


def test_every_figure_is_written_three_times(run: Path) -> None:
    slugs = {"score-against-bytes", "spread-over-slots", "adapters-pca", "clustering", "data", "training"}
    files = {path.name for path in (run / "figures").iterdir()}
    assert files == {f"{slug}.{kind}" for slug in slugs for kind in ("png", "svg", "csv")} | {"results.csv"}
    for slug in slugs:
        assert (run / "figures" / f"{slug}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (run / "figures" / f"{slug}.svg").read_text(encoding="utf-8")[:600]


def test_the_page_has_a_section_a_figure_and_a_folded_table_each(text: str) -> None:
    reader = Reader(text)
    assert reader.headings[0] == "glue-fltac"
    assert reader.headings[1] == "Results"
    plots = json.loads(reader.plots)
    places = [attributes["data-plot"] for _, attributes in reader.tags if "data-plot" in attributes]
    assert sorted(places) == sorted(plots)
    assert reader.count("table") == len(plots) + 1  # results has a table alone
    assert reader.count("details") == len(plots) + 2  # and the two sources


def test_the_page_needs_nothing_from_outside(text: str) -> None:
    reader = Reader(text)
    for tag, attributes in reader.tags:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "#").startswith("#"), tag
    policy = next(str(a["content"]) for _, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert text.count("plotly.js v") == 1


def test_the_page_does_not_offer_to_send_the_numbers_away(text: str) -> None:
    own = text[text.rindex("<script>") :]
    assert 'plotlyServerURL: ""' in own
    assert re.search(r"modeBarButtonsToRemove: \[[^]]*sendChartToCloud", own)


def test_the_header_says_method_model_seed_sizes_bytes_and_time(text: str) -> None:
    body = text[text.index("<main>") : text.index("<noscript>")]
    for wanted in (
        "fltac",
        "asset:minilm",
        "5,378",
        "4,608 adapter + 770 head",
        "7.06 MB",
        "2 min 11 s",
        "dirichlet-task",
        "2.13.0",
    ):
        assert wanted in body, wanted
    assert "<dt>seed</dt><dd>0</dd>" in body


def test_the_same_run_gives_the_same_files(run: Path, text: str, tmp_path: Path) -> None:
    other = write_run(tmp_path / "run")
    report(other)
    assert (other / "report.html").read_text(encoding="utf-8") == text
    for path in (run / "figures").iterdir():
        assert (other / "figures" / path.name).read_bytes() == path.read_bytes(), path.name


def test_text_of_a_user_stays_text(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Fake(method="<script>alert(1)</script>", tasks=("a", "b"), rounds=1))
    config = (run / "config.toml").read_text().replace('"glue-fltac"', '"<b>&"')
    (run / "config.toml").write_text(config)
    page = report(run).read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;b&gt;&amp;" in page


def test_a_script_end_inside_the_data_of_a_figure_is_harmless() -> None:
    data = [{"name": "</script><script>alert(1)</script>", "y": [float("nan")]}]
    picture = Picture(lambda figure: None, {"data": data, "layout": layout(x="", y="")})
    reader = Reader(render(small(panels=(Panel("p", "P", "", None, picture),))))
    assert json.loads(reader.plots)["p"]["data"] == [{"name": data[0]["name"], "y": [None]}]


def test_a_long_table_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "MOST_ROWS", 2)
    table = Table(("n",), tuple((number,) for number in range(5)))
    html = render(small(panels=(Panel("p", "P", "", table),)))
    assert Reader(html).count("tr") == 3
    assert "3 more rows are in the CSV file" in html


def test_a_page_without_figures_does_not_carry_plotly() -> None:
    assert len(render(small(panels=(Panel("p", "P", "nothing to see"),)))) < 20_000


def test_facts_and_notes_are_shown() -> None:
    html = render(small(facts=(Fact("rounds", "4", "of 9"),), notes=("look here",), refresh=7))
    assert "<strong>4</strong><small>of 9</small>" in html
    assert '<p class="note">look here</p>' in html
    assert '<meta http-equiv="refresh" content="7">' in html


def test_an_unfinished_run_is_reported_with_a_note(tmp_path: Path) -> None:
    page = report(write_run(tmp_path / "run", Fake(finished=False))).read_text(encoding="utf-8")
    assert "This run has not finished" in page
    assert "wall time" not in page
    assert 'http-equiv="refresh"' not in page


def test_watching_writes_again_until_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_run(tmp_path / "whole", Fake(rounds=2))
    run = write_run(tmp_path / "run", Fake(rounds=2, finished=False))
    page, seen = run / "report.html", []

    def sleep(seconds: float) -> None:
        seen.append(('content="3"' in page.read_text(encoding="utf-8"), page.stat().st_mtime_ns))
        if len(seen) == 2:  # after one idle look
            (run / "summary.json").write_bytes((whole / "summary.json").read_bytes())

    monkeypatch.setattr(time, "sleep", sleep)
    report(run, watch=True, every=3)
    assert [refreshing for refreshing, _ in seen] == [True, True]
    assert seen[0] == seen[1], "nothing was new at the first look"
    assert 'http-equiv="refresh"' not in page.read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written_is_a_state_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Fake(rounds=1))
    (run / "figures").write_text("a file in the way")
    with pytest.raises(StateError, match=r"cannot be written\n  where: .*figures\n(.*\n)*  fix: free space"):
        report(run)


@pytest.mark.parametrize(("package", "module"), [("matplotlib", "matplotlib.figure"), ("plotly", "plotly.offline")])
def test_a_missing_package_says_how_to_get_it(run: Path, monkeypatch: pytest.MonkeyPatch, package: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"a report needs {package}.*\n.*\n.*pip install 'fedquilt\[viz\]'"):
        report(run)


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.0, 59.94, 60, 3599, 3600)] == [
        "0.0 s",
        "59.9 s",
        "1 min 0 s",
        "59 min 59 s",
        "1 h 0 min",
    ]
