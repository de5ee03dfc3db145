"""Several runs on one spoke per task: the shape of figure 2(b) of the FL-TAC paper (Ping et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from fedquilt.report import palette
from fedquilt.report.panel import Panel, Picture, layout
from fedquilt.report.table import Table, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SLUG, TITLE = "radar", "Tasks around a circle"
FEWEST = 3  # spokes: two are a line
Scores = Mapping[str, Sequence[float | None]]  # run -> one score per task


def panel(tasks: Sequence[str], scores: Scores, label: str, ways: Set[bool]) -> Panel:
    """Better is always further out. For at least ``FEWEST`` tasks.

    ``label``: what the scores are; ``ways``: for which of them less is better (True) or more.
    """
    known = [value for values in scores.values() for value in values if value is not None]
    if not known:
        return Panel(SLUG, TITLE, "Nothing has been evaluated yet.")
    if len(ways) > 1:
        return Panel(SLUG, TITLE, f"There is no one way out: {label}.")
    inner, outer = _span(known, lower=True in ways)
    text = f"The last evaluation, {label}. Further out is better; the axis begins at {show(inner)}, not at zero."
    radial: dict[str, Any] = {"range": [inner, outer], "gridcolor": palette.GRID, "linecolor": palette.MUTED, "angle": 90}
    polar = {
        "bgcolor": palette.PAPER,
        "radialaxis": radial,
        "angularaxis": {"gridcolor": palette.GRID, "linecolor": palette.MUTED, "direction": "clockwise", "rotation": 90},
    }
    data = [_line(place, name, tasks, values) for place, (name, values) in enumerate(scores.items())]
    shared = layout(x="", y="", height=520, polar=polar)
    plot = {"data": data, "layout": {key: value for key, value in shared.items() if key not in ("xaxis", "yaxis")}}
    rows = tuple((name, *values) for name, values in scores.items())
    picture = Picture(lambda figure: _draw(figure, tasks, scores, (inner, outer)), plot, inches=(8.0, 5.6))
    return Panel(SLUG, TITLE, text, Table(("run", *tasks), rows), picture)


def _span(known: Sequence[float], *, lower: bool) -> tuple[float, float]:
    """The axis from its centre outwards, a tenth wider than the scores."""
    low, high = min(known), max(known)
    room = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
    return (high + room, low - room) if lower else (low - room, high + room)


def _line(place: int, name: str, tasks: Sequence[str], values: Sequence[float | None]) -> dict[str, Any]:
    return {
        "type": "scatterpolar",
        "name": name,
        "theta": [*tasks, tasks[0]],
        "r": [*values, values[0]],
        "mode": "lines+markers",
        "text": [show(value) for value in (*values, values[0])],
        "hovertemplate": "<b>%{theta}</b>, %{fullData.name}<br>%{text}<extra></extra>",
        "line": {"color": palette.colour(place), "width": 2, "dash": palette.dash(place)[0]},
        "marker": {"symbol": palette.symbol(place), "size": 8, "color": palette.colour(place)},
    }


def _draw(figure: Figure, tasks: Sequence[str], scores: Scores, span: tuple[float, float]) -> None:
    ax: Any = figure.add_subplot(projection="polar")
    ax.set_theta_zero_location("N")
    ax.set_theta_direction(-1)
    angles = [2 * math.pi * place / len(tasks) for place in range(len(tasks))]
    for place, (name, values) in enumerate(scores.items()):
        closed = [math.nan if value is None else value for value in (*values, values[0])]
        style = {"color": palette.colour(place), "linestyle": palette.dash(place)[1], "marker": palette.marker(place)}
        ax.plot([*angles, angles[0]], closed, label=name, linewidth=1.8, markersize=6, **style)
    ax.set_rlim(*span)
    ax.set_xticks(angles, tasks)
    for text, angle in zip(ax.get_xticklabels(), angles, strict=True):  # names begin or end at the circle, not in it
        side = math.sin(angle)
        text.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
    ax.grid(True, color=palette.GRID)
    ax.spines["polar"].set_color(palette.MUTED)
    ax.tick_params(colors=palette.INK)
    ax.legend(loc="upper left", bbox_to_anchor=(1.12, 1.05), borderaxespad=0.0, frameon=False)
