"""The adapter map for the browser: fixed traces (one per task, one for the bank), one frame per round, a slider."""

from __future__ import annotations

from typing import Any

from fedquilt.report import palette
from fedquilt.report.panel import Plot, layout
from fedquilt.report.project import Dot, Frame, Map, RowDot


def adapter_plot(found: Map, tasks: tuple[str, ...]) -> Plot:
    """Data, layout and frames. Points keep their place in the arrays over all frames; an absent slot is a gap."""
    slots = {task: sorted({(d.client, d.slot) for f in found.frames for d in f.dots if d.task == task}) for task in tasks}
    present = [task for task in tasks if slots[task]]
    rows = sorted({row.row for frame in found.frames for row in frame.rows})
    frames = [
        {
            "name": str(frame.round),
            "data": [*(_dots(frame, task, slots[task]) for task in present), _rows(frame, rows)],
            "traces": list(range(len(present) + 1)),
        }
        for frame in found.frames
    ]
    last = frames[-1]["data"]
    colours = [_style(task, tasks.index(task)) for task in present]
    data = [*(style | moving for style, moving in zip(colours, last, strict=False)), _bank_style() | last[-1]]
    used = sorted({dot.row for frame in found.frames for dot in frame.dots})
    data += [_shape_key(row) for row in used]
    return {"data": data, "layout": _layout(found), "frames": frames}


def _dots(frame: Frame, task: str, slots: list[tuple[int, int]]) -> dict[str, Any]:
    here = {(dot.client, dot.slot): dot for dot in frame.dots if dot.task == task}
    found: list[Dot | None] = [here.get(slot) for slot in slots]
    return {
        "x": [_short(dot.x) if dot else None for dot in found],
        "y": [_short(dot.y) if dot else None for dot in found],
        "text": [f"client {dot.client}, slot {dot.slot} → row {dot.row}" if dot else "" for dot in found],
        "marker": {"symbol": [palette.symbol(dot.row) if dot else "circle" for dot in found]},
    }


def _rows(frame: Frame, rows: list[int]) -> dict[str, Any]:
    here = {row.row: row for row in frame.rows}
    found: list[RowDot | None] = [here.get(row) for row in rows]
    return {
        "x": [_short(row.x) if row else None for row in found],
        "y": [_short(row.y) if row else None for row in found],
        "text": [f"row {row}" for row in rows],
        "marker": {"symbol": [f"{palette.symbol(row)}-open" for row in rows]},
    }


def _short(value: float) -> float:
    """Five significant digits: beyond what a screen shows, at a third of the bytes."""
    return float(f"{value:.5g}")


def _style(task: str, place: int) -> dict[str, Any]:
    # The marker's colour and size stand on the layout's side of a frame too: plotly merges marker by key, so frames carry only shapes.
    return {
        "type": "scatter",
        "mode": "markers",
        "name": task,
        "legendgroup": "tasks",
        "legendgrouptitle": {"text": "colour: true task"},
        "hovertemplate": f"<b>{task}</b><br>%{{text}}<extra></extra>",
        "_marker": {"size": 10, "color": palette.colour(place), "opacity": 0.8, "line": {"width": 0}},
    }


def _bank_style() -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "bank",
        "showlegend": False,
        "hovertemplate": "bank, %{text}<extra></extra>",
        "_marker": {"size": 19, "color": palette.INK, "line": {"width": 2}},
    }


def _shape_key(row: int) -> dict[str, Any]:
    """A legend entry without points: which shape is which row."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"row {row}",
        "x": [None],
        "y": [None],
        "legendgroup": "rows",
        "legendgrouptitle": {"text": "shape: row chosen"},
        "marker": {"symbol": f"{palette.symbol(row)}-open", "size": 10, "color": palette.INK},
        "hoverinfo": "skip",
    }
