"""Line figures: named series over one x axis, each with its colour, marker and dash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fedquilt.report import palette
from fedquilt.report.panel import Picture, axes, layout, legend_right, round_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MOST_MARKERS = 40  # of a line: more would hide it


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        x, y: of its points; a None in y is a gap.
        hover: a text per point, shown in the browser.
        low, high: a band around the line (mean ± sd over seeds), or empty.
        strong: drawn thick and black: the mean among its parts.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    hover: tuple[str, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    strong: bool = False
    place: int | None = None
    """Which colour; its position in the figure when None. A run keeps its colour in figures that lack another run."""


Scale = Literal["linear", "rounds", "log"]  # of the x axis


def unit_range(series: Sequence[Series]) -> tuple[float, float]:
    """A y axis for measures of which 1 is the best and 0 that of chance: what falls below chance is shown too."""
    return min(0.0, *(value for one in series for value in one.y if value is not None)), 1.05


def line_figure(
    series: Sequence[Series], *, x: str, y: str, scale: Scale = "linear", span: tuple[float, float] | None = None
) -> Picture:
    """All series in one figure. A logarithmic axis has no place for zeros; ``span``: of the y axis, if it is fixed."""
    data = [trace for place, one in enumerate(series) for trace in _traces(one, _place(one, place))]
    ticks: dict[str, Any] = {"type": "log", "dtick": 1} if scale == "log" else {}
    if scale == "rounds":
        ticks = round_axis(max((value for one in series for value in one.x), default=1))
    yaxis: dict[str, Any] = {"range": list(span)} if span else {}
    plot = {"data": data, "layout": layout(x=x, y=y, xaxis=ticks, yaxis=yaxis, hovermode="closest")}
    return Picture(lambda figure: _draw(figure, series, x, y, scale, span), plot)


def _place(one: Series, position: int) -> int:
    return position if one.place is None else one.place


def _traces(one: Series, place: int) -> list[dict[str, Any]]:
    colour = palette.INK if one.strong else palette.colour(place)
    line = {"color": colour, "width": 3.5 if one.strong else 2, "dash": palette.dash(place)[0]}
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers" if len(one.x) <= MOST_MARKERS else "lines",
        "name": one.name,
        "x": list(one.x),
        "y": list(one.y),
        "text": list(one.hover),
        "hovertemplate": "<b>%{fullData.name}</b><br>%{text}<extra></extra>",
        "line": line,
        "marker": {"symbol": palette.symbol(place), "size": 8, "color": colour},
    }
    if not one.low:
        return [trace]
    band = {
        "type": "scatter",
        "mode": "lines",
        "x": [*one.x, *reversed(one.x)],
        "y": [*one.high, *reversed(one.low)],
        "fill": "toself",
        "fillcolor": palette.faded(place, 0.15),
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": one.name,
    }
    return [band, trace | {"legendgroup": one.name}]


def _draw(figure: Figure, series: Sequence[Series], x: str, y: str, scale: Scale, span: tuple[float, float] | None) -> None:
    from matplotlib.ticker import MaxNLocator

    ax = axes(figure, x=x, y=y)
    for position, one in enumerate(series):
        place = _place(one, position)
        colour = palette.INK if one.strong else palette.colour(place)
        values = [float("nan") if value is None else value for value in one.y]
        if one.low:
            ax.fill_between(one.x, one.low, one.high, color=colour, alpha=0.15, linewidth=0)
        style: dict[str, Any] = {
            "marker": palette.marker(place) if len(one.x) <= MOST_MARKERS else "",
            "linestyle": palette.dash(place)[1],
            "linewidth": 3.0 if one.strong else 1.8,
        }
        ax.plot(one.x, values, color=colour, label=one.name, markersize=5.5, **style)
    if span:
        ax.set_ylim(*span)
    if scale == "log":
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("")
    if scale == "rounds":
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if series:
        legend_right(ax)
