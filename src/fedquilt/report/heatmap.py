"""Who has what: examples per client and task."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fedquilt.report import palette
from fedquilt.report.panel import Panel, Picture, axes, layout
from fedquilt.report.read import RunData
from fedquilt.report.table import Cell, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SLUG, TITLE = "data", "Data of the clients"
WRITE_NUMBERS_UP_TO = 24  # clients: more do not fit beside one another


def panel(run: RunData) -> Panel:
    """Tasks down, clients across; the colour is logarithmic, an empty cell is white."""
    tasks = run.tasks
    clients = len(run.counts[tasks[0]]) if tasks else 0
    if not clients:
        return Panel(SLUG, TITLE, "The partition is empty.")
    totals = tuple(sum(run.counts[task][client] for task in tasks) for client in range(clients))
    rows: list[tuple[Cell, ...]] = [
        (str(client), *(run.counts[task][client] for task in tasks), totals[client]) for client in range(clients)
    ]
    table = Table(("client", *tasks, "together"), (*rows, _foot(run, totals)))
    idle = sum(total == 0 for total in totals)
    text = f"Partition '{run.how}': the training examples of each client. The colour is logarithmic; white is none." + (
        f" {idle} of {clients} clients {'has' if idle == 1 else 'have'} no data." if idle else ""
    )
    counts = [list(run.counts[task]) for task in tasks]
    inches = (min(14.0, max(6.0, 2.2 + 0.62 * min(clients, 18))), 1.5 + 0.45 * len(tasks))
    picture = Picture(lambda figure: _draw(figure, list(tasks), counts), _plot(list(tasks), counts), inches)
    return Panel(SLUG, TITLE, text, table, picture)


def _foot(run: RunData, totals: tuple[int, ...]) -> tuple[Cell, ...]:
    return ("together", *(sum(run.counts[task]) for task in run.tasks), sum(totals))


def _logs(counts: list[list[int]]) -> list[list[float | None]]:
    return [[math.log10(number) if number else None for number in row] for row in counts]


def _span(counts: list[list[int]]) -> tuple[int, int]:
    """The fewest and the most examples of a cell that has any; at least a doubling, or the scale would have no length."""
    filled = [number for row in counts for number in row if number] or [1]
    return min(filled), max(2 * min(filled), *filled)


def _ticks(low: int, high: int) -> list[int]:
    """1, 2 or 5 times a power of ten, inside the span; its ends where it holds none."""
    found = [lead * 10**power for power in range(len(str(high))) for lead in (1, 2, 5)]
    return [tick for tick in found if low <= tick <= high] or [low, high]


def _plot(tasks: list[str], counts: list[list[int]]) -> dict[str, Any]:
    clients = len(counts[0])
    span = _span(counts)
    ticks = _ticks(*span)
    steps = len(palette.SEQUENTIAL) - 1
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": list(range(clients)),
        "y": tasks,
        "z": _logs(counts),
        "customdata": counts,
        "zmin": math.log10(span[0]),
        "zmax": math.log10(span[1]),
        "colorscale": [[place / steps, colour] for place, colour in enumerate(palette.SEQUENTIAL)],
        "xgap": 2 if clients <= 60 else 0,
        "ygap": 2,
        "hovertemplate": "client %{x}, <b>%{y}</b><br>%{customdata:,} examples<extra></extra>",
        "hoverongaps": False,
        "colorbar": {
            "title": {"text": "examples"},
            "tickvals": _logs([ticks])[0],
            "ticktext": [f"{t:,}" for t in ticks],
            "thickness": 14,
        },
    }
    if clients <= WRITE_NUMBERS_UP_TO:
        trace |= {"text": [[f"{number:,}" if number else "" for number in row] for row in counts], "texttemplate": "%{text}"}
    axis = {"showgrid": False, "dtick": 1} if clients <= 40 else {"showgrid": False}
    rows = {"autorange": "reversed", "showgrid": False, "title": {"text": ""}}
    return {"data": [trace], "layout": layout(x="client", y="", height=max(280, 130 + 46 * len(tasks)), xaxis=axis, yaxis=rows)}


def _draw(figure: Figure, tasks: list[str], counts: list[list[int]]) -> None:
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    ax = axes(figure, x="client", y="")
    ax.grid(False)
    low, high = _span(counts)
    cells = [[float(number) if number else float("nan") for number in row] for row in counts]
    shades = LinearSegmentedColormap.from_list("blues", palette.SEQUENTIAL)
    image = ax.imshow(cells, aspect="auto", cmap=shades, norm=LogNorm(low, high), interpolation="nearest")
    ax.set_yticks(range(len(tasks)), tasks)
    clients = len(counts[0])
    if clients <= WRITE_NUMBERS_UP_TO:
        ax.set_xticks(range(clients))
        for down, row in enumerate(counts):
            for across, number in enumerate(row):
                dark = number and math.log(number / low) > 0.5 * math.log(high / low)
                text = f"{number:,}" if number else ""
                ax.text(across, down, text, ha="center", va="center", fontsize=8, color="white" if dark else palette.INK)
    bar = figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02)
    bar.set_ticks(ticks := _ticks(low, high), labels=[f"{tick:,}" for tick in ticks])
    bar.minorticks_off()
    bar.set_label("examples")
