"""The toy simulation's result as a table and as the paper's figure 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedquilt.report import palette
from fedquilt.report.panel import Panel, Picture, quiet
from fedquilt.report.table import Cell, Table, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {"shared": "one network for both tasks", "separate": "one network per task", "told": "one network, told the task"}
COLUMNS = ("activation", "width", *NAMES.values(), "per task, half as wide", "gain, same width", "gain, same total")


def panel(result: Mapping[str, Any]) -> Panel:
    """Everything about a result of :mod:`fedquilt.runs.toy` as its JSON has it.

    ``gain`` is how much lower the error is with one network per task than with one for both, seed by seed: positive where the
    paper's claim holds.
    """
    rows = [
        row for name, found in result["activations"].items() for row in _rows(name, found["errors"], result["setting"]["widths"])
    ]
    text = "Mean squared error on fresh points, mean over both tasks; mean ± sd over seeds."
    return Panel("toy", "One network or one per task", text, Table(COLUMNS, tuple(rows)), _picture(result))


def _rows(activation: str, errors: Mapping[str, Any], widths: list[int]) -> list[tuple[Cell, ...]]:
    """``errors``: kind -> seeds x widths."""
    rows = []
    for place, width in enumerate(widths):
        by_kind = {kind: [seed[place] for seed in errors[kind]] for kind in NAMES}
        halves = _column(errors["separate"], widths, width / 2)
        cells = (spread(by_kind[kind]) for kind in NAMES)
        gains = (spread(_less(by_kind["shared"], by_kind["separate"])), spread(_less(by_kind["shared"], halves)))
        rows.append((activation, width, *cells, spread(halves), *gains))
    return rows


def _column(errors: list[list[float]], widths: list[int], width: float) -> list[float]:
    """One width of every seed; nothing where that width was not simulated."""
    return [seed[widths.index(int(width))] for seed in errors] if width in widths else []


def _less(one: list[float], other: list[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)] if other else []


def _picture(result: Mapping[str, Any]) -> Picture:
    found, widths = result["activations"], result["setting"]["widths"]
    return Picture(lambda figure: _draw(figure, found, widths), {}, (9.0, 3.1 * len(found) + 0.7))


def _draw(figure: Figure, found: Mapping[str, Any], widths: list[int]) -> None:
    grid = figure.subplots(len(found), 2, sharey=True, squeeze=False)
    for row, (name, one) in enumerate(found.items()):
        for column, (axis, factor) in enumerate((("width of each network", 1), ("width of all networks together", 2))):
            ax = grid[row, column]
            quiet(ax, x=axis, y="mean squared error" if column == 0 else "")
            ax.set_title(name, loc="left", fontsize=10, color=palette.INK)
            _lines(ax, one, widths, factor)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)


def _lines(ax: Axes, found: Mapping[str, Any], widths: list[int], factor: int) -> None:
    """``factor``: how many networks of a width count together where there is one per task."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    for place, (kind, label) in enumerate(NAMES.items()):
        total = [width * (factor if kind == "separate" else 1) for width in widths]
        by_width = list(zip(*found["errors"][kind], strict=True))
        mean = [sum(values) / len(values) for values in by_width]
        sd = [
            (sum((v - m) ** 2 for v in values) / max(1, len(values) - 1)) ** 0.5 for values, m in zip(by_width, mean, strict=True)
        ]
        low, high = ([m + sign * s for m, s in zip(mean, sd, strict=True)] for sign in (-1, 1))
        style: dict[str, Any] = {"color": palette.colour(place), "marker": palette.marker(place), "label": label}
        ax.plot(total, mean, linewidth=1.8, markersize=5.5, **style)
        ax.fill_between(total, low, high, color=style["color"], alpha=0.15, linewidth=0)
    for kind, dashes, label in (("shared", "--", "least possible without being told"), ("told", ":", "least possible")):
        ax.axhline(found["floors"][kind], color=palette.MUTED, linestyle=dashes, linewidth=1.3, label=label)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(FixedLocator(sorted({*widths, factor * widths[-1]})))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_major_locator(FixedLocator([0.05, 0.1, 0.2, 0.4]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
