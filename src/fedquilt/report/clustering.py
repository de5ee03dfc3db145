"""How well the rows of the bank match the tasks, over rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedquilt.report import palette
from fedquilt.report.lines import MOST_MARKERS, Series, line_figure, unit_range
from fedquilt.report.panel import Panel, Picture, count_axis, layout, legend_right, quiet
from fedquilt.report.read import RunData
from fedquilt.report.table import Table, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SLUG, TITLE = "clustering", "Clustering"
MEASURES = {"accuracy": "accuracy", "ari": "adjusted Rand index", "nmi": "normalised mutual information"}


def panel(run: RunData) -> Panel:
    """Accuracy, ARI and NMI of row against task, and how many rows are in use."""
    scored = [(row.round, row.clustering) for row in run.evals if row.clustering is not None]
    if not scored:
        return Panel(SLUG, TITLE, "This run has no clustering scores: its method does not assign contributions to rows.")
    x = tuple(float(number) for number, _ in scored)
    series = []
    for key, name in MEASURES.items():
        y = tuple(float(getattr(score, key)) for _, score in scored)
        hover = tuple(f"round {number}: {show(value)}" for (number, _), value in zip(scored, y, strict=True))
        series.append(Series(name, x, y, hover))
    rows = tuple((number, score.accuracy, score.ari, score.nmi, score.rows_in_use) for number, score in scored)
    table = Table(("round", *MEASURES.values(), "rows in use"), rows)
    text = (
        "Rows are what the method decided, tasks are the truth, which only the evaluation knows. 1 is perfect agreement; the "
        "adjusted Rand index of chance is 0."
    )
    used = tuple(score.rows_in_use for _, score in scored)
    return Panel(SLUG, TITLE, text, table, _picture(series, x, used))


def _picture(series: list[Series], x: tuple[float, ...], used: tuple[int, ...]) -> Picture:
    upper = line_figure(series, x="round", y="agreement with tasks", scale="rounds")
    bars = {
        "type": "bar",
        "x": list(x),
        "y": list(used),
        "yaxis": "y2",
        "name": "rows in use",
        "marker": {"color": palette.MUTED},
        "hovertemplate": "round %{x}: %{y} rows in use<extra></extra>",
        "showlegend": False,
        "width": 0.5,
    }
    shared: dict[str, Any] = layout(x="round", y="agreement with tasks", height=500)
    ticks = upper.plot["layout"]["xaxis"] | {"anchor": "y2"}
    shared["yaxis"] |= {"domain": [0.34, 1.0], "range": list(unit_range(series))}
    shared["yaxis2"] = shared["yaxis"] | {"domain": [0.0, 0.22], "title": {"text": "rows in use"}} | count_axis(max(used))
    plot = {"data": [*upper.plot["data"], bars], "layout": shared | {"xaxis": ticks}}
    return Picture(lambda figure: _draw(figure, series, x, used), plot, inches=(8.0, 5.2))


def _draw(figure: Figure, series: list[Series], x: tuple[float, ...], used: tuple[int, ...]) -> None:
    from matplotlib.ticker import MaxNLocator

    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    quiet(top, x="", y="agreement with tasks")
    quiet(bottom, x="round", y="rows in use")
    for place, one in enumerate(series):
        values = [float("nan") if value is None else value for value in one.y]
        top.plot(
            one.x,
            values,
            marker=palette.marker(place) if len(x) <= MOST_MARKERS else "",
            color=palette.colour(place),
            label=one.name,
            linewidth=1.8,
        )
    legend_right(top)
    top.set_ylim(*unit_range(series))
    bottom.bar(x, used, width=0.5, color=palette.MUTED)
    bottom.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
