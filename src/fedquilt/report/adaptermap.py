"""The adapters in the plane, round by round: colour is the true task, shape is the row the method chose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedquilt.report import palette
from fedquilt.report.adapterplot import adapter_plot, kind_of, kinds
from fedquilt.report.panel import Panel, Picture, quiet
from fedquilt.report.project import Frame, Kind, Map, project
from fedquilt.report.read import RunData
from fedquilt.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_FRAMES, MOST_SLOTS = 50, 2000  # the page stays below some 10 MB
NAMES: dict[Kind, str] = {"pca": "PCA", "umap": "UMAP"}


def panel(run: RunData, kind: Kind) -> Panel:
    """A map with a slider over rounds; on paper four rounds from the first to the last."""
    slug, title = f"adapters-{kind}", f"Adapters ({NAMES[kind]})"
    if not any(row.points for row in run.points):
        return Panel(slug, title, "This run has recorded no points.")
    found = project(run.points, kind)
    shown, cut = thinned(found)
    text = (
        f"Every small mark is one client's uploaded adapter, every large open one a row of the server's bank. {NAMES[kind]} was "
        "fitted once over all rounds, so places can be compared between them."
    )
    if found.left_out:
        text += f" {found.left_out} adapters with numbers that are not finite are left out."
    rows = [(f.round, d.client, d.slot, d.task, d.row, d.x, d.y) for f in found.frames for d in f.dots]
    table = Table(("round", "client", "slot", "task", "row", "x", "y"), tuple(rows))
    tasks = run.tasks
    picture = Picture(lambda figure: _draw(figure, shown, tasks), adapter_plot(shown, tasks), inches=(9.0, 7.4))
    return Panel(slug, title, f"{text} {cut}".strip(), table, picture)


def thinned(found: Map) -> tuple[Map, str]:
    """At most so many frames and slots, evenly chosen (the first and the last round stay), and a sentence that says so."""
    slots = sorted({(dot.client, dot.slot) for frame in found.frames for dot in frame.dots})
    kept = {slots[place] for place in _even(len(slots), MOST_SLOTS)}
    numbers = _even(len(found.frames), MOST_FRAMES)
    if len(kept) == len(slots) and len(numbers) == len(found.frames):
        return found, ""
    frames = [found.frames[number] for number in numbers]
    fewer = tuple(Frame(f.round, tuple(d for d in f.dots if (d.client, d.slot) in kept), f.rows) for f in frames)
    note = f"The figure shows {len(numbers)} of {len(found.frames)} rounds and {len(kept):,} of {len(slots):,} slots."
    return Map(fewer, found.x, found.y, found.left_out), note


def _even(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return sorted({round(place * (count - 1) / (most - 1)) for place in range(most)})


def _draw(figure: Figure, found: Map, tasks: tuple[str, ...]) -> None:
    chosen = [found.frames[place] for place in _even(len(found.frames), 4)]
    across = 1 if len(chosen) == 1 else 2
    down = -(-len(chosen) // across)
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    panes = list(grid.flat)
    for pane, frame in zip(panes, chosen, strict=False):
        _draw_frame(pane, frame, tasks)
    for pane in panes[len(chosen) :]:
        pane.set_visible(False)
    figure.supxlabel(found.x, fontsize=10)
    figure.supylabel(found.y, fontsize=10)
    _legend(figure, found, tasks)


def _draw_frame(ax: Axes, frame: Frame, tasks: tuple[str, ...]) -> None:
    quiet(ax, x="", y="")
    ax.set_title(f"round {frame.round}", fontsize=10, loc="left")
    for dot in frame.dots:
        ax.plot(
            [dot.x],
            [dot.y],
            palette.marker(dot.row),
            color=kinds(tasks)[kind_of(dot, tasks)],
            alpha=0.8,
            markersize=6,
            markeredgewidth=0,
        )
    for row in frame.rows:
        ax.plot(
            [row.x], [row.y], palette.marker(row.row), color="none", markeredgecolor=palette.INK, markersize=12, markeredgewidth=1.4
        )


def _legend(figure: Figure, found: Map, tasks: tuple[str, ...]) -> None:
    from matplotlib.lines import Line2D

    used = sorted({dot.row for frame in found.frames for dot in frame.marks})
    present = {kind_of(dot, tasks) for frame in found.frames for dot in frame.dots}
    marks = [
        Line2D([], [], linestyle="none", marker="o", color=colour, label=kind)
        for kind, colour in kinds(tasks).items()
        if kind in present
    ]
    shapes = [
        Line2D([], [], linestyle="none", marker=palette.marker(row), color="none", markeredgecolor=palette.INK, label=f"row {row}")
        for row in used
    ]
    figure.legend(handles=[*marks, *shapes], loc="outside right upper", frameon=False)
