"""Every section of the report: its table against the logs, its figure against plotly's schema and matplotlib."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_run import Fake, write_run

pytest.importorskip("matplotlib", reason="needs the viz extra")
pytest.importorskip("plotly", reason="needs the viz extra")

from matplotlib.figure import Figure
from plotly.graph_objects import Figure as PlotlyFigure

from fedquilt.report import adaptermap, clustering, heatmap, palette, results, scores, spread, training
from fedquilt.report.adapterplot import SEVERAL
from fedquilt.report.build import run_panels
from fedquilt.report.panel import Panel
from fedquilt.report.project import Dot, Frame, Map
from fedquilt.report.read import RunData, load_run

VARIANTS = {
    "usual": Fake(),
    "unclustered": Fake(clustered=False),
    "unfinished": Fake(finished=False),
    "one round": Fake(rounds=1),
    "one task": Fake(tasks=("sst2",)),
    "one client": Fake(clients=1),
    "many": Fake(tasks=tuple(f"task{n}" for n in range(12)), clients=45, rounds=42),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    return load_run(write_run(tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunData:
    return load_run(write_run(tmp_path_factory.mktemp("runs") / "run", VARIANTS[request.param]))


def plot(panel: Panel) -> dict[str, Any]:
    assert panel.picture is not None
    return panel.picture.plot


def rows(panel: Panel) -> list[dict[str, Any]]:
    assert panel.table is not None
    return panel.table.records()


def test_every_figure_is_valid_for_plotly_and_drawn_by_matplotlib(variant: RunData) -> None:
    panels = run_panels(variant, "pca")
    assert len({panel.slug for panel in panels}) == len(panels) == 7
    for panel in panels:
        assert panel.text
        if panel.picture is None:
            continue
        PlotlyFigure(panel.picture.plot)  # refuses an unknown key or value
        json.dumps(panel.picture.plot, allow_nan=False)
        figure = Figure(figsize=panel.picture.inches, layout="constrained")
        panel.picture.draw(figure)
        figure.draw_without_rendering()
        assert figure.axes
        assert panel.table is not None
        assert panel.table.rows


def test_a_run_without_any_round_has_only_its_data(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Fake(finished=False))
    for log in run.glob("*.jsonl"):
        log.unlink()
    drawn = [panel.slug for panel in run_panels(load_run(run), "pca") if panel.picture]
    assert drawn == ["data"]


def test_results_are_the_last_evaluation(data: RunData) -> None:
    row = next(row for row in rows(results.panel(data)) if row["task"] == "mrpc")
    mine = [slot.metrics["accuracy"] for slot in data.evals[-1].slots if slot.task == "mrpc"]
    assert (row["slot lowest"], row["slot highest"], row["slots"]) == (min(mine), max(mine), len(mine))
    assert row["f1"] == data.evals[-1].tasks["mrpc"].metrics["f1"]
    assert row["matthews"] is None


def test_scores_stand_over_the_bytes_sent_by_then(data: RunData) -> None:
    panel = scores.panel(data)
    lines = {line["name"]: line for line in plot(panel)["data"]}
    sent = [0.0, *((row.total_up + row.total_down) / 1e6 for row in data.rounds)]
    assert lines["cola (matthews)"]["x"] == pytest.approx(sent)
    assert lines["mean over slots"]["y"] == [row.mean for row in data.evals]
    assert [row["MB"] for row in rows(panel)] == pytest.approx(sent)


def test_the_first_point_is_before_training_only_if_it_is(data: RunData) -> None:
    assert "before training" in scores.panel(data).text
    assert "before training" not in scores.panel(replace(data, evals=data.evals[1:])).text


def test_boxes_have_numpys_quartiles_in_page_and_table(data: RunData) -> None:
    panel = spread.panel(data)
    values = [slot.metrics["accuracy"] for slot in data.evals[-1].slots if slot.task == "sst2"]
    lower, middle, upper = np.percentile(values, [25, 50, 75])
    box = next(box for box in plot(panel)["data"] if box["name"].startswith("sst2"))
    assert (box["q1"][0], box["median"][0], box["q3"][0]) == pytest.approx((lower, middle, upper))
    row = next(row for row in rows(panel) if row["task"] == "sst2")
    assert row["upper quartile"] == pytest.approx(upper)
    assert row["slots"] == len(values)


def test_the_heat_map_holds_the_partition_and_none_is_blank(data: RunData) -> None:
    panel = heatmap.panel(data)
    trace = plot(panel)["data"][0]
    assert trace["customdata"] == [list(data.counts[task]) for task in data.tasks]
    assert trace["z"][0][1] is None  # client 1 has no cola
    assert trace["z"][0][0] == pytest.approx(np.log10(data.counts["cola"][0]))
    assert rows(panel)[-1]["together"] == sum(sum(counts) for counts in data.counts.values())


def test_refused_contributions_are_counted_by_reason(data: RunData) -> None:
    row = rows(training.panel(data))[1]
    assert (row["refused"], row["reasons"], row["accepted"]) == (1, "nonfinite 1", data.rounds[1].jobs - 1)


def test_clustering_is_drawn_from_the_evaluations(data: RunData) -> None:
    found = [row.clustering.ari for row in data.evals if row.clustering]
    line = next(line for line in plot(clustering.panel(data))["data"] if line["name"] == "adjusted Rand index")
    assert line["y"] == found


def test_the_slider_has_a_step_per_round_and_slots_keep_their_place(data: RunData) -> None:
    panel = adaptermap.panel(data, "pca")
    figure = plot(panel)
    assert [step["label"] for step in figure["layout"]["sliders"][0]["steps"]] == ["1", "2", "3", "4"]
    assert [frame["name"] for frame in figure["frames"]] == ["1", "2", "3", "4"]
    table = rows(panel)
    for frame in figure["frames"]:
        for trace, task in zip(frame["data"], data.tasks, strict=False):
            mine = sorted((r["client"], r["slot"], r["x"]) for r in table if r["task"] == task and str(r["round"]) == frame["name"])
            assert trace["x"] == pytest.approx([x for _, _, x in mine], rel=1e-4)
    shown = figure["data"][0]
    assert shown["x"] == figure["frames"][-1]["data"][0]["x"]


def test_colour_is_the_true_task_and_shape_is_the_row(data: RunData) -> None:
    figure = plot(adaptermap.panel(data, "pca"))
    last = data.points[-1].points
    for place, task in enumerate(data.tasks):
        trace = figure["data"][place]
        mine = sorted((point.client, point.slot, point.row) for point in last if point.task == task)
        assert trace["marker"]["color"] == palette.colour(place)
        assert trace["marker"]["symbol"] == [palette.symbol(row) for _, _, row in mine]


def test_a_slot_that_sat_out_is_a_gap_and_one_with_several_tasks_is_grey(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Fake(tasks=("a", "b"), rounds=2))
    lines = [json.loads(line) for line in (run / "points.jsonl").read_text().splitlines()]
    lines[1]["points"] = [point for point in lines[1]["points"] if point["client"] != 3]
    for line in lines:
        line["points"] = [point | {"task": "a+b"} if point["client"] == 5 else point for point in line["points"]]
    (run / "points.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figure = plot(adaptermap.panel(load_run(run), "pca"))
    PlotlyFigure(figure)
    assert None in figure["data"][0]["x"] + figure["data"][1]["x"]
    grey = next(trace for trace in figure["data"] if trace["name"] == SEVERAL)
    assert grey["marker"]["color"] == palette.MUTED


def test_a_large_map_is_thinned_but_keeps_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptermap, "MOST_FRAMES", 3)
    monkeypatch.setattr(adaptermap, "MOST_SLOTS", 4)
    dots = tuple(Dot(1, 0.0, 0.0, client, 0, "t") for client in range(10))
    thin, note = adaptermap.thinned(Map(tuple(Frame(number, dots, ()) for number in range(1, 9)), "x", "y", 0))
    assert [frame.round for frame in thin.frames] == [1, 5, 8]
    assert [dot.client for dot in thin.frames[0].dots] == [0, 3, 6, 9]
    assert note == "The figure shows 3 of 8 rounds and 4 of 10 slots."


def test_points_that_are_not_finite_are_mentioned(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Fake(rounds=1))
    line = json.loads((run / "points.jsonl").read_text())
    line["points"][0]["at"][0] = float("nan")
    (run / "points.jsonl").write_text(json.dumps(line) + "\n")
    assert "1 adapters with numbers that are not finite are left out" in adaptermap.panel(load_run(run), "pca").text


def contrast(colour: str) -> float:
    """WCAG 2 contrast ratio against white."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05)


def test_colours_differ_and_stand_out_from_the_paper() -> None:
    assert len(set(palette.COLOURS)) == len(palette.COLOURS)
    assert all(contrast(colour) > 2 for colour in palette.COLOURS)
    assert contrast(palette.INK) > 7
    assert palette.dash(0) != palette.dash(len(palette.COLOURS))
    light = [contrast(colour) for colour in palette.SEQUENTIAL]
    assert light == sorted(light)
