"""The results table of one run: what the report opens with."""

from __future__ import annotations

from fedquilt.report.panel import Panel
from fedquilt.report.read import OWN, RunData
from fedquilt.report.schema import Evaluation, TaskScore
from fedquilt.report.table import Cell, Table

SLUG, TITLE = "results", "Results"


def panel(run: RunData) -> Panel:
    """Per task: its row's metrics, and its slots' primary metric as mean, lowest and highest, after the last evaluation."""
    if not run.evals:
        return Panel(SLUG, TITLE, "Nothing has been evaluated yet.")
    last = run.evals[-1]
    if run.how == OWN:
        return Panel(SLUG, TITLE, _SAID.format(last.round, run.direction), _said(run, last))
    names = sorted({name for score in last.tasks.values() for name in score.metrics or {}})
    columns = ("task", "row", *names, "slots", "slot mean", "slot lowest", "slot highest")
    rows = [(task, *_cells(run, last, task, score, names)) for task, score in sorted(last.tasks.items())]
    text = (
        f"After round {last.round}. The metrics are those of the task's row of the server's bank on the task's evaluation split; "
        "the slot columns give the primary metric over the clients' own adapters, each measured with the row it was routed to. "
        f"Of the primary metrics, {run.direction}."
    )
    return Panel(SLUG, TITLE, text, Table(columns, tuple(rows)))


_SAID = (
    "After round {}. Every line is what a client says that the adapter of one of its slots is worth, on rows that it keeps back "
    "and nobody else has. Of the primary metrics, {}."
)


def _said(run: RunData, last: Evaluation) -> Table:
    metrics = [(score, run.primary(score.task)) for score in last.slots]
    rows = [(score.task, _row(score.row), name, score.metrics.get(name), score.samples) for score, name in metrics]
    return Table(("slot", "row", "metric", "score", "training examples"), tuple(rows))


def _cells(run: RunData, last: Evaluation, task: str, score: TaskScore, names: list[str]) -> list[Cell]:
    primary = run.primary(task)
    known = [value for s in last.slots if s.task == task and (value := s.metrics.get(primary)) is not None]
    spread: list[Cell] = [score.slot_mean, min(known, default=None), max(known, default=None)]
    return [_row(score.row), *((score.metrics or {}).get(name) for name in names), len(known), *spread]


def _row(row: int | None) -> str:
    return "–" if row is None else str(row)
