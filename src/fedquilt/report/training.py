"""Training loss and participation, round by round."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from fedquilt.report import palette
from fedquilt.report.lines import MOST_MARKERS
from fedquilt.report.panel import Panel, Picture, count_axis, layout, legend_right, quiet, round_axis
from fedquilt.report.read import RunData
from fedquilt.report.schema import Round
from fedquilt.report.table import Table, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SLUG, TITLE = "training", "Training"


def panel(run: RunData) -> Panel:
    """The mean local loss above, accepted and refused contributions below."""
    rounds = run.rounds
    if not rounds:
        return Panel(SLUG, TITLE, "No round has been finished yet.")
    columns = ("round", "clients", "jobs", "accepted", "refused", "reasons", "loss", "MB up", "MB down")
    rows = [
        (r.round, len(r.cohort), r.jobs, r.accepted, len(r.rejected), _reasons(r), r.loss, r.bytes_up / 1e6, r.bytes_down / 1e6)
        for r in rounds
    ]
    text = (
        "The loss is the mean over the clients' local steps. A refused contribution failed the server's checks and changed nothing."
    )
    picture = Picture(lambda figure: _draw(figure, rounds), _plot(rounds), inches=(8.0, 5.0))
    return Panel(SLUG, TITLE, text, Table(columns, tuple(rows)), picture)


def _reasons(row: Round) -> str:
    found = Counter(rejected.code for rejected in row.rejected)
    return ", ".join(f"{code} {count}" for code, count in sorted(found.items())) or "–"


def _plot(rounds: tuple[Round, ...]) -> dict[str, Any]:
    x = [row.round for row in rounds]
    loss = {
        "type": "scatter",
        "mode": "lines+markers" if len(x) <= MOST_MARKERS else "lines",
        "x": x,
        "y": [row.loss for row in rounds],
        "name": "training loss",
        "showlegend": False,
        "text": [show(row.loss) for row in rounds],
        "hovertemplate": "round %{x}: loss %{text}<extra></extra>",
        "line": {"color": palette.colour(0), "width": 2},
        "marker": {"size": 8},
    }
    bars = [
        {"type": "bar", "x": x, "y": y, "yaxis": "y2", "name": name, "marker": {"color": colour}, "width": 0.5}
        | {"hovertemplate": f"round %{{x}}: %{{y}} {name}<extra></extra>"}
        for name, y, colour in _bars(rounds)
    ]
    shared = layout(x="round", y="loss", height=480, barmode="stack")
    shared["xaxis"] |= {"anchor": "y2"} | round_axis(x[-1])
    shared["yaxis2"] = shared["yaxis"] | {"domain": [0.0, 0.24], "title": {"text": "contributions"}}
    shared["yaxis2"] |= count_axis(max(row.accepted + len(row.rejected) for row in rounds))
    shared["yaxis"] |= {"domain": [0.36, 1.0]}
    return {"data": [loss, *bars], "layout": shared}


def _bars(rounds: tuple[Round, ...]) -> list[tuple[str, list[int], str]]:
    accepted = ("accepted", [row.accepted for row in rounds], palette.colour(5))
    refused = ("refused", [len(row.rejected) for row in rounds], palette.colour(1))
    return [accepted, refused] if any(refused[1]) else [accepted]


def _draw(figure: Figure, rounds: tuple[Round, ...]) -> None:
    from matplotlib.ticker import MaxNLocator

    x = [row.round for row in rounds]
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 1))
    quiet(top, x="", y="training loss")
    quiet(bottom, x="round", y="contributions")
    losses = [float("nan") if row.loss is None else row.loss for row in rounds]
    top.plot(x, losses, marker="o" if len(x) <= MOST_MARKERS else "", color=palette.colour(0), linewidth=1.8)
    below = [0] * len(x)
    for name, counts, colour in _bars(rounds):
        bottom.bar(x, counts, width=0.5, bottom=below, color=colour, label=name)
        below = [a + b for a, b in zip(below, counts, strict=True)]
    legend_right(bottom)
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    bottom.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
