"""The adapter map for the browser: fixed traces (one per task, one for the bank), one frame per round, a slider."""

from __future__ import annotations

from typing import Any

from fedquilt.report import palette
from fedquilt.report.panel import Plot, layout
from fedquilt.report.project import Dot, Frame, Map, RowDot

SEVERAL = "several tasks"  # the kind of a slot that holds more than one: it has no colour of its own


def kinds(tasks: tuple[str, ...]) -> dict[str, str]:
    """What a dot can be -> its colour."""
    return {task: palette.colour(place) for place, task in enumerate(tasks)} | {SEVERAL: palette.MUTED}


def kind_of(dot: Dot, tasks: tuple[str, ...]) -> str:
    """The dot's task; slots with several tasks are logged as ``a+b``."""
    return dot.task if dot.task in tasks else SEVERAL


def adapter_plot(found: Map, tasks: tuple[str, ...]) -> Plot:
    """Data, layout and frames. Points keep their place in the arrays over all frames; an absent slot is a gap."""
    slots: dict[str, list[tuple[int, int]]] = {}
    for kind in kinds(tasks):
        slots[kind] = sorted({(d.client, d.slot) for f in found.frames for d in f.dots if kind_of(d, tasks) == kind})
    present = {kind: colour for kind, colour in kinds(tasks).items() if slots[kind]}
    rows = sorted({row.row for frame in found.frames for row in frame.rows})
    frames: list[dict[str, Any]] = []
    for frame in found.frames:
        moving = [_dots(frame, slots[kind], colour) for kind, colour in present.items()]
        frames.append({"name": str(frame.round), "data": [*moving, _rows(frame, rows)], "traces": list(range(len(present) + 1))})
    fixed = [*(_kind_trace(kind) for kind in present), _bank_trace()]
    data = [still | moving for still, moving in zip(fixed, frames[-1]["data"], strict=True)]
    used = sorted({dot.row for frame in found.frames for dot in frame.marks})
    keys = [*(_colour_key(kind, colour) for kind, colour in present.items()), *(_shape_key(row) for row in used)]
    return {"data": [*data, *keys], "layout": _layout(found, len(present)), "frames": frames}


def _dots(frame: Frame, slots: list[tuple[int, int]], colour: str) -> dict[str, Any]:
    here = {(dot.client, dot.slot): dot for dot in frame.dots}
    found: list[Dot | None] = [here.get(slot) for slot in slots]
    symbols = [palette.symbol(dot.row) if dot else "circle" for dot in found]
    return {
        "x": [_short(dot.x) if dot else None for dot in found],
        "y": [_short(dot.y) if dot else None for dot in found],
        "text": [f"<b>{dot.task}</b><br>client {dot.client}, slot {dot.slot} → row {dot.row}" if dot else "" for dot in found],
        "marker": {"symbol": symbols, "size": 10, "color": colour, "opacity": 0.8, "line": {"width": 0}},
    }


def _rows(frame: Frame, rows: list[int]) -> dict[str, Any]:
    here = {row.row: row for row in frame.rows}
    found: list[RowDot | None] = [here.get(row) for row in rows]
    symbols = [f"{palette.symbol(row)}-open" for row in rows]
    return {
        "x": [_short(row.x) if row else None for row in found],
        "y": [_short(row.y) if row else None for row in found],
        "text": [f"row {row}" for row in rows],
        "marker": {"symbol": symbols, "size": 19, "color": palette.INK, "line": {"width": 2}},
    }


def _short(value: float) -> float:
    """Five significant digits: beyond what a screen shows, at a third of the bytes."""
    return float(f"{value:.5g}")


def _kind_trace(kind: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": kind,
        "legendgroup": kind,
        "showlegend": False,  # its first point would stand for it, in the shape of that point's row
        "hovertemplate": "%{text}<extra></extra>",
    }


def _colour_key(kind: str, colour: str) -> dict[str, Any]:
    """A legend entry without points; a click on it hides the points of its group."""
    return _key(kind, {"symbol": "circle", "size": 10, "color": colour}) | {"legendgroup": kind}


def _bank_trace() -> dict[str, Any]:
    return {"type": "scatter", "mode": "markers", "name": "bank", "showlegend": False} | {
        "hovertemplate": "server's bank, %{text}<extra></extra>"
    }


def _shape_key(row: int) -> dict[str, Any]:
    """An entry of the second legend: which shape is which row."""
    return _key(f"row {row}", {"symbol": f"{palette.symbol(row)}-open", "size": 10, "color": palette.INK}) | {"legend": "legend2"}


def _key(name: str, marker: dict[str, Any]) -> dict[str, Any]:
    return {"type": "scatter", "mode": "markers", "name": name, "x": [None], "y": [None], "marker": marker, "hoverinfo": "skip"}


def _layout(found: Map, entries: int) -> Plot:
    dots = [dot for frame in found.frames for dot in frame.marks]
    spans = {"xaxis": {"range": _range([d.x for d in dots])}, "yaxis": {"range": _range([d.y for d in dots])}}
    names = [str(frame.round) for frame in found.frames]
    still = {"itemclick": False, "itemdoubleclick": False, "bgcolor": "rgba(255,255,255,0)", "yanchor": "top"}
    # 22 px per entry of the first legend, of some 450 px of drawing
    second = still | {"title": {"text": "Shape: chosen row"}, "x": 1.02, "y": 0.88 - 0.049 * entries}
    more: dict[str, Any] = {"legend": {"title": {"text": "Colour: true task"}, "x": 1.02, "y": 1.0}, "legend2": second}
    if len(names) > 1:
        more |= {"sliders": [_slider(names)], "updatemenus": [_buttons(names)], "margin": {"b": 110}}
    return layout(x=found.x, y=found.y, height=600 if len(names) > 1 else 500, hovermode="closest", **spans, **more)


def _range(values: list[float]) -> list[float]:
    """The span of all frames and a margin: an axis that moved with the slider would hide what moves."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 1.0
    return [low - margin, high + margin]


def _slider(names: list[str]) -> dict[str, Any]:
    still = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    return {
        "active": len(names) - 1,
        "currentvalue": {"prefix": "round ", "xanchor": "left", "font": {"size": 14}},
        "x": 0.16,
        "len": 0.84,
        "pad": {"t": 56, "b": 8},
        "steps": [{"label": name, "method": "animate", "args": [[name], still]} for name in names],
    }


def _buttons(names: list[str]) -> dict[str, Any]:
    moving = {"mode": "immediate", "frame": {"duration": 700, "redraw": True}, "transition": {"duration": 0}}
    halt = {"mode": "immediate", "frame": {"duration": 0, "redraw": False}, "transition": {"duration": 0}}
    return {
        "type": "buttons",
        "direction": "left",
        "showactive": False,
        "x": 0.0,
        "xanchor": "left",
        "y": 0,
        "yanchor": "top",
        "pad": {"t": 82},
        "buttons": [
            {"label": "Play", "method": "animate", "args": [names, moving]},
            {"label": "Pause", "method": "animate", "args": [[None], halt]},
        ],
    }
