"""How evenly a run serves its clients: the spread of the slots' scores, one box per task."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from fedquilt.report import palette
from fedquilt.report.panel import Panel, Picture, axes, layout
from fedquilt.report.read import RunData
from fedquilt.report.schema import SlotScore
from fedquilt.report.table import Table, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SLUG, TITLE = "spread-over-slots", "Spread over slots"


def panel(run: RunData) -> Panel:
    """A box per task over its slots' primary metric at the last evaluation."""
    if not run.evals:
        return Panel(SLUG, TITLE, "Nothing has been evaluated yet.")
    last = run.evals[-1]
    found = {task: [(s, v) for s in last.slots if s.task == task and (v := _score(run, s)) is not None] for task in run.tasks}
    boxes = {f"{task}\n{run.primary(task)}": pairs for task, pairs in found.items() if pairs}
    if not boxes:
        return Panel(SLUG, TITLE, "The last evaluation holds no slot scores.")
    five = {name: _five([value for _, value in pairs]) for name, pairs in boxes.items()}
    columns = ("task", "metric", "slots", "lowest", "lower quartile", "median", "upper quartile", "highest", "mean")
    table = Table(columns, tuple((*name.split("\n"), *row) for name, row in five.items()))
    text = (
        f"Every dot is one client's adapter after round {last.round}; the box is the middle half, the whiskers reach the "
        "lowest and the highest. A long one is a task that serves its clients unevenly; "
        "a flat one has slots that share one row's adapter."
    )
    data = [_box(name, place, pairs, five[name]) for place, (name, pairs) in enumerate(boxes.items())]
    plot = {"data": data, "layout": layout(x="", y=f"primary metric ({run.direction})", showlegend=False)}
    values = {name: [value for _, value in pairs] for name, pairs in boxes.items()}
    return Panel(SLUG, TITLE, text, table, Picture(lambda figure: _draw(figure, values), plot))


def _score(run: RunData, slot: SlotScore) -> float | None:
    return slot.metrics.get(run.primary(slot.task))


Five = tuple[int, float, float, float, float, float, float]


def _five(values: list[float]) -> Five:
    """How many, lowest, three quartiles (linear interpolation), highest, mean."""
    lower, middle, upper = statistics.quantiles(values * 2 if len(values) == 1 else values, n=4, method="inclusive")
    return (len(values), min(values), lower, middle, upper, max(values), statistics.fmean(values))


def _box(name: str, place: int, pairs: list[tuple[SlotScore, float]], five: Five) -> dict[str, Any]:
    _, lowest, lower, middle, upper, highest, _ = five  # given to plotly, whose quartiles are other ones than the table's
    texts = [f"{_who(s)}<br>{show(v)} with {s.samples:,} examples" for s, v in pairs]
    return {
        "type": "box",
        "name": name.replace("\n", "<br>"),
        "x": [name.replace("\n", "<br>")],
        "q1": [lower],
        "median": [middle],
        "q3": [upper],
        "lowerfence": [lowest],
        "upperfence": [highest],
        "y": [[value for _, value in pairs]],
        "text": [texts],
        "hovertemplate": "<b>%{x}</b><br>%{text}<extra></extra>",
        "hoveron": "points",
        "boxpoints": "all",
        "jitter": 0.5,
        "pointpos": 0,
        "line": {"color": palette.colour(place), "width": 2},
        "fillcolor": palette.faded(place, 0.12),
        "marker": {"symbol": palette.symbol(place), "size": 7, "opacity": 0.75, "color": palette.colour(place)},
    }


def _draw(figure: Figure, values: dict[str, list[float]]) -> None:
    ax = axes(figure, x="", y="primary metric")
    ax.grid(False, axis="x")
    for place, scores in enumerate(values.values()):
        colour = palette.colour(place)
        line = {"color": colour, "linewidth": 1.6}
        ax.boxplot(
            [scores],
            positions=[place],
            widths=0.5,
            whis=(0, 100),
            boxprops=line,
            whiskerprops=line,
            capprops=line,
            medianprops=line,
        )
        # a fixed fan instead of random jitter: the file is the same every time
        across = [place + 0.16 * ((number * 7) % 5 - 2) / 2 for number in range(len(scores))]
        ax.plot(across, scores, palette.marker(place), color=colour, alpha=0.7, markersize=4.5, markeredgewidth=0)
    crowded = len(values) > 10
    ax.set_xticks(range(len(values)), list(values), rotation=30 if crowded else 0, ha="right" if crowded else "center")


def _who(score: SlotScore) -> str:
    return f"client {score.client}, slot {score.slot}" + ("" if score.row is None else f", row {score.row}")
