"""Scores of one run against the megabytes it had sent by then."""

from __future__ import annotations

from fedquilt.report.lines import Series, line_figure
from fedquilt.report.panel import Panel
from fedquilt.report.read import RunData
from fedquilt.report.table import Table, show

SLUG, TITLE = "score-against-bytes", "Score against bytes"


def panel(run: RunData) -> Panel:
    """One line per task (mean of the primary metric over its slots) and the mean over all slots."""
    known = [(row, sent) for row in run.evals if (sent := run.megabytes(row.round)) is not None]
    if not known:
        return Panel(SLUG, TITLE, "Nothing has been evaluated yet.")
    x = tuple(sent for _, sent in known)
    heads = {task: f"{task} ({metric})" if (metric := run.primary(task)) else task for task in run.tasks}
    columns = {heads[task]: [row.tasks[task].slot_mean if task in row.tasks else None for row, _ in known] for task in run.tasks}
    if len(columns) > 1:
        columns["mean over slots"] = [row.mean for row, _ in known]
    series = []
    for name, y in columns.items():
        hover = [f"round {row.round}: {show(value)}<br>{sent:.2f} MB sent" for (row, sent), value in zip(known, y, strict=True)]
        series.append(Series(name, x, tuple(y), tuple(hover), strong=name == "mean over slots"))
    rows = [(row.round, sent, *(y[place] for y in columns.values())) for place, (row, sent) in enumerate(known)]
    text = (
        "Each line is one task: the mean of its primary metric over the clients' adapters, each measured with the row it was "
        "routed to. Megabytes are payload, up and down, of all clients together"
        + ("; the first point is before training." if known[0][0].round == 0 else ".")
    )
    picture = line_figure(series, x="megabytes sent by all clients, up and down", y=f"primary metric ({run.direction})")
    return Panel(SLUG, TITLE, text, Table(("round", "MB", *columns), tuple(rows)), picture)
