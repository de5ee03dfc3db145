"""Several runs in one page: curves are means over seeds, a run keeps its colour, twins count once."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from fake_run import Fake, write_run

pytest.importorskip("matplotlib", reason="needs the viz extra")
pytest.importorskip("plotly", reason="needs the viz extra")

from matplotlib.figure import Figure
from plotly.graph_objects import Figure as PlotlyFigure

from fedquilt.errors import ConfigError, StateError
from fedquilt.report import clustering, palette, radar
from fedquilt.report.compare import BEFORE, compare, compare_panels, load_runs
from fedquilt.report.panel import Panel

FEDIT = {"name": "glue-fedit", "method": "fedit", "clustered": False}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    fakes = {"a0": Fake(seed=0), "a1": Fake(seed=1, rounds=4), "b": Fake(**FEDIT), "c": Fake(lr=0.5)}  # type: ignore[arg-type]
    return [write_run(folder / name, fake) for name, fake in fakes.items()]


@pytest.fixture(scope="module")
def panels(paths: list[Path]) -> dict[str, Panel]:
    return {panel.slug: panel for panel in compare_panels(load_runs(paths))}


def lines(panel: Panel) -> dict[str, dict[str, Any]]:
    assert panel.picture is not None
    return {line["name"]: line for line in panel.picture.plot["data"] if "name" in line}


def test_every_figure_is_valid_for_plotly_and_drawn_by_matplotlib(panels: dict[str, Panel]) -> None:
    for panel in panels.values():
        if panel.picture is not None:
            PlotlyFigure(panel.picture.plot)
            figure = Figure(layout="constrained")
            panel.picture.draw(figure)
            figure.draw_without_rendering()


def test_a_curve_is_the_mean_over_seeds_with_a_band(panels: dict[str, Panel], paths: list[Path]) -> None:
    panel = panels["score-over-rounds"]
    both = [run.evals[2].mean for run in load_runs(paths[:2])]
    line = lines(panel)["glue-fltac (method.lr=0.002)"]
    assert line["x"] == [0, 1, 2, 3, 4]
    assert line["y"][2] == pytest.approx(statistics.fmean(both))
    assert panel.picture is not None
    band = next(line for line in panel.picture.plot["data"] if line.get("fill") == "toself")
    assert band["y"][2] - line["y"][2] == pytest.approx(statistics.stdev(both))


def test_a_run_keeps_its_colour_in_a_figure_that_lacks_another(panels: dict[str, Panel]) -> None:
    name = "glue-fltac (method.lr=0.5)"
    assert "glue-fedit" not in lines(panels["clustering"])
    colours = [lines(panels[slug])[name]["marker"]["color"] for slug in ("clustering", "score-over-rounds", "score-per-task")]
    assert colours == [palette.colour(2)] * 3


def test_bytes_are_the_mean_of_the_seeds(panels: dict[str, Panel], paths: list[Path]) -> None:
    sent = [run.megabytes(4) for run in load_runs(paths[:2])]
    line = lines(panels["score-against-bytes"])["glue-fltac (method.lr=0.002)"]
    assert line["x"][-1] == pytest.approx(sum(value for value in sent if value is not None) / 2)


@pytest.mark.parametrize("times", [2, 100])
def test_runs_that_send_far_more_do_not_squeeze_the_others_into_a_dash(times: int, tmp_path: Path) -> None:
    small, large = write_run(tmp_path / "small", Fake(name="small")), write_run(tmp_path / "large", Fake(name="large", lr=0.1))
    rounds = [json.loads(line) for line in (large / "rounds.jsonl").read_text().splitlines()]
    more = [{key: times * value if key in ("total_up", "total_down") else value for key, value in row.items()} for row in rounds]
    (large / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in more))
    silent = write_run(tmp_path / "silent", Fake(name="silent", lr=0.2))
    rows = [json.loads(line) | {"total_up": 0, "total_down": 0} for line in (silent / "rounds.jsonl").read_text().splitlines()]
    (silent / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    panels = {panel.slug: panel for panel in compare_panels(load_runs([silent, small, large]))}
    panel = panels["score-against-bytes"]
    assert panel.picture is not None
    assert ("silent" in lines(panel)) == (times == 2), "a logarithmic axis has no place for nothing"
    assert "silent" in {row[0] for row in panel.table.rows} if panel.table else False
    for name, line in lines(panel).items():
        assert line["marker"]["color"] == lines(panels["score-over-rounds"])[name]["marker"]["color"]
    assert (panel.picture.plot["layout"]["xaxis"].get("type") == "log") == (times == 100)
    assert ("logarithmic" in panel.text) == (times == 100)
    first = [line["x"][0] for name, line in lines(panel).items() if name != "silent"]
    assert all((value == 0) == (times == 2) for value in first)
    figure = Figure()
    panel.picture.draw(figure)
    assert (figure.axes[0].get_xscale() == "log") == (times == 100)


def test_only_rounds_that_all_seeds_have_reached_are_averaged(tmp_path: Path) -> None:
    short = write_run(tmp_path / "short", Fake(seed=1))
    text = (short / "evals.jsonl").read_text().splitlines(keepends=True)
    (short / "evals.jsonl").write_text("".join(text[:3]))
    both = load_runs([write_run(tmp_path / "long", Fake(seed=0)), short])
    panel = next(panel for panel in compare_panels(both) if panel.slug == "score-over-rounds")
    assert lines(panel)["glue-fltac"]["x"] == [0, 1, 2]


def test_the_page_and_its_figures_are_written(paths: list[Path], tmp_path: Path) -> None:
    page = compare(paths, tmp_path / "new" / "folder")
    assert page == tmp_path / "new" / "folder" / "compare.html"
    text = page.read_text(encoding="utf-8")
    assert "mean ± sd over 2 runs" in text
    assert {path.suffix for path in (page.parent / "figures").iterdir()} == {".png", ".svg", ".csv"}


def test_a_run_given_twice_counts_once(paths: list[Path]) -> None:
    assert len(load_runs([paths[0], paths[0].parent / "." / paths[0].name])) == 1


def test_an_accuracy_that_never_moves_is_drawn_as_in_a_runs_own_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Fake())
    rows = [json.loads(line) for line in (run / "evals.jsonl").read_text().splitlines()]
    rows = [row | {"clustering": row["clustering"] and row["clustering"] | {"accuracy": 1.0, "ari": -0.1}} for row in rows]
    (run / "evals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data,) = load_runs([run])
    together = next(panel for panel in compare_panels([data]) if panel.slug == "clustering")
    for panel, low in ((together, 0.0), (clustering.panel(data), -0.1)):
        assert panel.picture is not None
        assert panel.picture.plot["layout"]["yaxis"]["range"] == [low, 1.05]
        figure = Figure()
        panel.picture.draw(figure)
        assert figure.axes[0].get_ylim() == (low, 1.05)


def test_one_run_alone_can_be_compared(paths: list[Path], tmp_path: Path) -> None:
    assert compare(paths[:1], tmp_path).exists()


def test_no_run_and_a_wrong_folder_are_errors(paths: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare([], tmp_path)
    with pytest.raises(StateError, match="not a run directory"):
        compare([paths[0], tmp_path], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"cannot be written\n(.*\n)*  fix: choose another folder with --out"):
        compare(paths[:1], tmp_path / "file")


def test_the_circle_shows_the_means_per_task_and_closes(panels: dict[str, Panel]) -> None:
    """The same numbers as the figure beside it."""
    around, across = lines(panels["radar"]), lines(panels["score-per-task"])
    assert around.keys() == across.keys()
    for name, line in around.items():
        assert dict(zip(line["theta"], line["r"], strict=False)) == dict(zip(across[name]["y"], across[name]["x"], strict=True))
        assert (line["theta"][0], line["r"][0]) == (line["theta"][-1], line["r"][-1])


def test_what_the_model_scored_before_training_stands_beside_the_runs(
    panels: dict[str, Panel], paths: list[Path], tmp_path: Path
) -> None:
    runs = load_runs(paths)
    shown = dict(zip(lines(panels["score-per-task"])[BEFORE]["y"], lines(panels["score-per-task"])[BEFORE]["x"], strict=True))
    starts = {task: [run.evals[0].tasks[task].slot_mean for run in runs] for task in runs[0].tasks}
    assert shown == {task: pytest.approx(statistics.fmean(scores)) for task, scores in starts.items()}

    late = write_run(tmp_path / "late", Fake(seed=5))
    text = (late / "evals.jsonl").read_text().splitlines(keepends=True)
    (late / "evals.jsonl").write_text("".join(text[1:]))
    other = write_run(tmp_path / "other", Fake(seed=6))
    config = (other / "config.toml").read_text()
    (other / "config.toml").write_text(config.replace("[model]", "[model]\nrevision = 'another'"))
    assert "[model]" in config
    for path in (late, other):
        circle = next(panel for panel in compare_panels(load_runs([paths[0], path])) if panel.slug == "radar")
        assert BEFORE not in lines(circle)


def test_in_the_circle_better_is_further_out() -> None:
    scores = {"one": [1.0, 2.0, 3.0], "two": [2.0, None, 4.0]}
    ranges = {}
    for lower in (False, True):
        picture = radar.panel(["a", "b", "c"], scores, "", {lower}).picture
        assert picture is not None
        ranges[lower] = picture.plot["layout"]["polar"]["radialaxis"]["range"]
        PlotlyFigure(picture.plot)
        figure = Figure(layout="constrained")
        picture.draw(figure)
        figure.draw_without_rendering()
        low, high = figure.axes[0].get_ylim()
        assert [low, high] == pytest.approx(ranges[lower])
    assert ranges[False] == pytest.approx([0.7, 4.3])
    assert ranges[True] == ranges[False][::-1]


def test_long_names_do_not_run_into_the_circle() -> None:
    names = [f"a task with a long name {place}" for place in range(8)]
    picture = radar.panel(names, {"one": [1.0] * 8}, "", {False}).picture
    assert picture is not None
    figure = Figure(figsize=picture.inches, layout="constrained")
    picture.draw(figure)
    figure.draw_without_rendering()
    ax = figure.axes[0]
    (x, y), edge = ax.transAxes.transform((0.5, 0.5)), ax.transAxes.transform((1.0, 0.5))[0]
    for label in ax.get_xticklabels():
        box = label.get_window_extent()
        near = (min(max(x, box.x0), box.x1) - x, min(max(y, box.y0), box.y1) - y)
        assert math.hypot(*near) >= edge - x, label.get_text()


def test_two_tasks_make_no_circle(tmp_path: Path) -> None:
    found = {}
    for count in (2, 3):
        run = write_run(tmp_path / str(count), Fake(tasks=("a", "b", "c")[:count]))
        found[count] = [panel.slug for panel in compare_panels(load_runs([run]))]
    assert "radar" not in found[2]
    assert found[3] == [*found[2][:-1], "radar", found[2][-1]]


def test_a_circle_says_why_it_is_empty() -> None:
    assert radar.panel(["a", "b", "c"], {"one": [None] * 3}, "", {False}).picture is None
    assert "no one way" in radar.panel(["a", "b", "c"], {"one": [1.0] * 3}, "", {False, True}).text
