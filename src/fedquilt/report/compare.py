"""Several runs side by side: overlaid curves, a row per configuration, mean ± sd over seeds."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedquilt.directions import LOWER_IS_BETTER, direction
from fedquilt.errors import ConfigError, StateError
from fedquilt.report import palette, radar
from fedquilt.report.lines import Series, line_figure, unit_range
from fedquilt.report.page import Fact, Page, write
from fedquilt.report.panel import Panel, Picture, axes, layout, legend_right
from fedquilt.report.paper import save_panels
from fedquilt.report.read import RunData, load_run
from fedquilt.report.schema import Evaluation
from fedquilt.report.table import COST_COLUMNS, Cell, Group, Spread, Table, group_runs, score_columns, show, spread, summary_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEFORE = "before training"
FAR = 20  # times as many bytes as another run: on a linear axis the smaller one's curve would be a dash
Measure = Callable[[Evaluation], float | None]


def compare(runs: Sequence[Path], out: Path) -> Path:
    """Write ``out/compare.html`` and ``out/figures/*``; return the path of the page.

    Raises:
        ConfigError: no runs.
        StateError: a path is not a run directory, or ``out`` cannot be written.
    """
    data = load_runs(runs)
    groups = group_runs(data)
    panels = compare_panels(data)
    notes = [f"{run.path.name} has not finished: its last evaluation so far is shown." for run in data if not run.finished]
    page = Page(
        title="Comparison",
        subtitle=", ".join(group.label for group in groups),
        facts=tuple(_fact(group) for group in groups[:6]),
        settings=(),
        panels=panels,
        notes=tuple(notes),
        sources=tuple((f"Configuration of {run.path.name}", run.config_text) for run in data),
    )
    try:
        save_panels(panels, out / "figures")
        return write(page, out / "compare.html")
    except OSError as error:
        where, fix = str(error.filename or out), "choose another folder with --out"
        raise StateError("the comparison cannot be written", where=where, why=str(error.strerror), fix=fix) from error


def load_runs(runs: Sequence[Path]) -> list[RunData]:
    """Read all of them; one given twice counts once, or it would look like a seed more."""
    unique = {os.path.realpath(path): path for path in runs}
    if not unique:
        raise ConfigError("there is nothing to compare", fix="give one or more run directories")
    return [load_run(path) for path in unique.values()]


def compare_panels(runs: Sequence[RunData]) -> tuple[Panel, ...]:
    """Results, cost, score over rounds, against bytes and per task (twice where a circle can be), clustering over rounds."""
    groups = group_runs(runs)
    summary = summary_rows(runs)
    results = Panel(
        "summary",
        "Runs",
        "One line per configuration. Runs that differ in nothing but the seed are one line: mean ± sample standard deviation. "
        "A second run of one seed is a line of its own, and so are unfinished runs. "
        f"mean is over slots; a task's column is the mean of its primary metric over its slots ({better(runs)}).",
        summary.pick(score_columns(summary)),
    )
    costs = Panel(
        "cost",
        "Cost",
        "Numbers in one slot's adapter, adapter and head apart, and payload bytes.",
        summary.pick(("run", *COST_COLUMNS)),
    )
    scores = _curves(groups, lambda row: row.mean, "score-over-rounds", "Score over rounds", _label(runs))
    clusters = _curves(
        groups,
        lambda row: row.clustering.accuracy if row.clustering else None,
        "clustering",
        "Clustering over rounds",
        "accuracy of rows against tasks",
        unit=True,
    )
    tasks, found = _task_scores(groups)
    middles = {label: [_mean_or_none(cell) for cell in cells] for label, cells in found.items()}
    ways = {run.primary(task) in LOWER_IS_BETTER for run in runs for task in run.tasks}
    beside = [_per_task(tasks, found, runs)]
    if len(tasks) >= radar.FEWEST:
        beside.append(radar.panel(tasks, middles, _label(runs), ways))
    if BEFORE in found:
        beside = [replace(panel, text=f"{panel.text} {BEFORE}: the mean of all runs at the start.") for panel in beside]
    return (results, costs, scores, _against_bytes(groups, runs), *beside, clusters)


def better(runs: Sequence[RunData]) -> str:
    """Which way the runs' primary metrics are better."""
    return direction(run.primary(task) for run in runs for task in run.tasks)


def _label(runs: Sequence[RunData]) -> str:
    way = better(runs)
    return "mean primary metric over slots" + (f" ({way})" if way else "")


def _fact(group: Group) -> Fact:
    score = spread(run.evals[-1].mean if run.evals else None for run in group.runs)
    detail = f"mean ± sd over {score.n} runs" if isinstance(score, Spread) else f"seed {group.seeds}"
    return Fact(group.label, show(score), detail)


def _curve(group: Group, measure: Measure) -> list[tuple[int, Cell]]:
    """(round, value over the group's runs), for the rounds that all of them have evaluated."""
    found = [{row.round: value for row in run.evals if (value := measure(row)) is not None} for run in group.runs]
    shared = sorted(set.intersection(*(set(values) for values in found)))
    return [(number, spread(values[number] for values in found)) for number in shared]


def _mean(cell: Cell) -> float:
    return cell.mean if isinstance(cell, Spread) else float(cell)  # type: ignore[arg-type]  # spread() of known values


def _mean_or_none(cell: Cell) -> float | None:
    return None if cell is None else _mean(cell)


def _edge(cell: Cell, sign: int) -> float:
    return _mean(cell) + sign * (cell.sd if isinstance(cell, Spread) else 0.0)


def _series(place: int, group: Group, x: Sequence[float], cells: Sequence[Cell], hover: Sequence[str]) -> Series:
    band = any(isinstance(cell, Spread) for cell in cells)
    low = tuple(_edge(cell, -1) for cell in cells) if band else ()
    high = tuple(_edge(cell, 1) for cell in cells) if band else ()
    return Series(group.label, tuple(x), tuple(_mean(cell) for cell in cells), tuple(hover), low, high, place=place)


def _curves(groups: Sequence[Group], measure: Measure, slug: str, title: str, y: str, *, unit: bool = False) -> Panel:
    series, rows = [], []
    for place, group in enumerate(groups):
        curve = _curve(group, measure)
        if curve:
            hover = [f"round {number}: {show(cell)}" for number, cell in curve]
            series.append(_series(place, group, [float(number) for number, _ in curve], [cell for _, cell in curve], hover))
        rows += [(group.label, number, cell) for number, cell in curve]
    if not series:
        return Panel(slug, title, "None of the runs has it.")
    table = Table(("run", "round", y), tuple(rows))
    picture = line_figure(series, x="round", y=y, scale="rounds", span=unit_range(series) if unit else None)
    return Panel(slug, title, "A band is one standard deviation over seeds.", table, picture)


def _against_bytes(groups: Sequence[Group], runs: Sequence[RunData]) -> Panel:
    slug, title = "score-against-bytes", "Score against bytes"
    curves = [
        [(number, sent, cell) for number, cell in _curve(group, lambda row: row.mean) if (sent := _sent(group, number)) is not None]
        for group in groups
    ]
    if not any(curves):
        return Panel(slug, title, "Nothing has been evaluated yet.")
    ends = [curve[-1][1] for curve in curves if curve and curve[-1][1]]
    far = bool(ends) and max(ends) > FAR * min(ends)
    series, rows = [], []
    for place, (group, curve) in enumerate(zip(groups, curves, strict=True)):
        rows += [(group.label, number, sent, cell) for number, sent, cell in curve]
        if shown := [point for point in curve if point[1] or not far]:
            hover = [f"round {number}: {show(cell)}<br>{sent:.2f} MB" for number, sent, cell in shown]
            series.append(_series(place, group, [sent for _, sent, _ in shown], [cell for _, _, cell in shown], hover))
    x, y = "megabytes sent by all clients, up and down", _label(runs)
    text = f"Payload of all clients together, mean over seeds. Further to the left is better, and {better(runs)}."
    if far:
        text += " The axis is logarithmic: scores for which nothing was sent are in the table alone."
    picture = line_figure(series, x=x, y=y, scale="log" if far else "linear")
    return Panel(slug, title, text, Table(("run", "round", "MB", y), tuple(rows)), picture)


def _sent(group: Group, number: int) -> float | None:
    known = [run.megabytes(number) for run in group.runs]
    values = [value for value in known if value is not None]
    return sum(values) / len(values) if len(values) == len(known) else None


def _task_scores(groups: Sequence[Group]) -> tuple[list[str], dict[str, list[Cell]]]:
    """Tasks, and each group's score of every one; last what the model scored before training, if all runs say so of one model."""
    runs = [run for group in groups for run in group.runs]
    tasks = sorted({task for run in runs for task in run.tasks})
    found = {group.label: [_task(group.runs, task, -1) for task in tasks] for group in groups}
    if all(run.evals and run.evals[0].round == 0 and run.config.get("model") == runs[0].config.get("model") for run in runs):
        found[BEFORE] = [_mean_or_none(_task(runs, task, 0)) for task in tasks]
    return tasks, found


def _per_task(tasks: list[str], found: dict[str, list[Cell]], runs: Sequence[RunData]) -> Panel:
    slug, title = "score-per-task", "Score per task"
    if all(cell is None for cells in found.values() for cell in cells):
        return Panel(slug, title, "Nothing has been evaluated yet.")
    rows = tuple((label, *cells) for label, cells in found.items())
    data = [_dots(label, place, tasks, cells) for place, (label, cells) in enumerate(found.items())]
    names = {"autorange": "reversed", "title": {"text": ""}}
    shared = layout(x=_label(runs), y="", height=150 + 52 * len(tasks), yaxis=names)
    plot = {"data": data, "layout": shared}
    picture = Picture(lambda figure: _draw(figure, tasks, found, _label(runs)), plot, inches=(8.0, 1.8 + 0.45 * len(tasks)))
    return Panel(
        slug, title, "The last evaluation; bars are one standard deviation over seeds.", Table(("run", *tasks), rows), picture
    )


def _task(runs: Sequence[RunData], task: str, which: int) -> Cell:
    scores = [run.evals[which].tasks.get(task) for run in runs if run.evals]
    return spread(score.slot_mean if score else None for score in scores)


def _dots(label: str, place: int, tasks: list[str], cells: list[Cell]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label,
        "y": tasks,
        "x": [_mean_or_none(cell) for cell in cells],
        "error_x": {"array": [_edge(cell, 1) - _mean(cell) if cell is not None else 0 for cell in cells], "thickness": 1.5},
        "text": [show(cell) for cell in cells],
        "hovertemplate": "<b>%{y}</b>, %{fullData.name}<br>%{text}<extra></extra>",
        "marker": {"symbol": palette.symbol(place), "size": 12, "color": palette.colour(place), "opacity": 0.85},
    }


def _draw(figure: Figure, tasks: list[str], found: dict[str, list[Cell]], label: str) -> None:
    ax = axes(figure, x=label, y="")
    for place, (label, cells) in enumerate(found.items()):
        known = [(row, cell) for row, cell in enumerate(cells) if cell is not None]
        x, y = [_mean(cell) for _, cell in known], [row for row, _ in known]
        bars = [_edge(cell, 1) - _mean(cell) for _, cell in known]
        style: dict[str, Any] = {"fmt": palette.marker(place), "color": palette.colour(place), "markersize": 8, "alpha": 0.85}
        ax.errorbar(x, y, xerr=bars, label=label, **style)
    ax.set_yticks(range(len(tasks)), tasks)
    ax.set_ylim(len(tasks) - 0.5, -0.5)
    legend_right(ax)
