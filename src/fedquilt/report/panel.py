"""One section of a report: a figure twice (drawn for paper, described for the browser) and the table below it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedquilt.report.palette import GRID, INK, MUTED, PAPER
from fedquilt.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Plot = dict[str, Any]  # what plotly.js draws: {"data": [...], "layout": {...}, "frames": [...]}


@dataclass(frozen=True)
class Picture:
    """A figure: ``draw`` fills an empty matplotlib figure of ``inches``; ``plot`` is the same for plotly.js."""

    draw: Callable[[Figure], None]
    plot: Plot
    inches: tuple[float, float] = (8.0, 4.2)


@dataclass(frozen=True)
class Panel:
    """A section.

    Attributes:
        slug: file name of its pictures and anchor in the page.
        text: one or two sentences: how to read it, or why there is nothing to see.
        picture: None when there is nothing to draw.
    """

    slug: str
    title: str
    text: str
    table: Table | None = None
    picture: Picture | None = None


def layout(*, x: str, y: str, height: int = 420, **more: Any) -> Plot:
    """The plotly layout that all figures share; ``more`` is laid over it."""
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": MUTED, "ticks": "outside", "tickcolor": GRID, "automargin": True}
    shared: Plot = {
        "height": height,
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": INK},
        "margin": {"l": 64, "r": 24, "t": 36, "b": 52},
        "hoverlabel": {"font": {"size": 13}, "align": "left"},
        "legend": {"bgcolor": "rgba(255,255,255,0)", "tracegroupgap": 0, "traceorder": "normal"},
        "xaxis": axis | {"title": {"text": x, "standoff": 12}},
        "yaxis": axis | {"title": {"text": y, "standoff": 12}},
    }
    for key, value in more.items():
        shared[key] = shared[key] | value if isinstance(shared.get(key), dict) and isinstance(value, dict) else value
    return shared


def count_axis(most: int) -> Plot:
    """A short axis of counts: few ticks, all of them whole numbers."""
    return {"dtick": max(1, round(most / 3)), "tickformat": ",d", "range": [0, 1.15 * max(1, most)]}


def round_axis(last: float) -> Plot:
    """An axis of rounds: every one has its tick while they fit."""
    return {"dtick": 1} if last <= 12 else {"tickformat": "d"}


def axes(figure: Figure, *, x: str, y: str) -> Axes:
    """One quiet matplotlib axes: labels, a light grid, no box."""
    ax: Axes = figure.add_subplot()
    quiet(ax, x=x, y=y)
    return ax


def quiet(ax: Axes, *, x: str, y: str) -> None:
    """Style an axes like the page's figures."""
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(True, color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(MUTED)
    ax.tick_params(colors=INK)


def legend_right(ax: Axes) -> None:
    """A legend beside the axes, where it cannot cover a point."""
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, frameon=False)
