"""The files of a run directory as typed rows: what a report relies on. Fields it does not know are let through."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=True)


class Rejected(_Row):
    """A contribution the gate refused, with its code (``nonfinite``, ``norm``, ...)."""

    slot: tuple[int, int]
    code: str
    detail: str = ""


class Round(_Row):
    """One line of rounds.jsonl. Bytes are payload bytes summed over the clients."""

    round: int = Field(ge=1)
    cohort: tuple[int, ...]
    jobs: int
    accepted: int
    rejected: tuple[Rejected, ...] = ()
    loss: float | None
    """Mean local training loss; None when nothing was accepted."""
    bytes_up: int
    bytes_down: int
    total_up: int
    total_down: int
    step: dict[str, Any] = {}


class RoutedSlot(_Row):
    """Where one slot's contribution went; ``tasks`` is the evaluator's ground truth."""

    client: int
    slot: int
    row: int
    tasks: tuple[str, ...]
    samples: int


class Routes(_Row):
    """One line of routes.jsonl."""

    round: int
    slots: tuple[RoutedSlot, ...]


class SlotScore(_Row):
    """One slot's metrics on its task's evaluation split. The first metric is the primary one."""

    client: int
    slot: int
    row: int | None
    """None where its client chose it, and tells nobody."""
    task: str
    metrics: dict[str, float | None]
    samples: int


class TaskScore(_Row):
    """The metrics of the row that stands for a task, and the mean of its slots' primary metric."""

    row: int | None = None
    metrics: dict[str, float | None] | None = None
    """None where no row stands for the task alone: private leaves, or fewer rows than tasks."""
    slot_mean: float | None


class Clustering(_Row):
    """Agreement of rows with tasks."""

    accuracy: float
    ari: float
    nmi: float
    rows_in_use: int


class Evaluation(_Row):
    """One line of evals.jsonl. Round 0 is before training; ``mean`` is over slots."""

    round: int = Field(ge=0)
    slots: tuple[SlotScore, ...]
    tasks: dict[str, TaskScore]
    clustering: Clustering | None = None
    mean: float | None


class RowPoint(_Row):
    """One adapter of the bank after the server's step, as a random sketch."""

    row: int
    at: tuple[float | None, ...]


class Point(RowPoint):
    """One uploaded adapter, sketched the same way; ``task`` is ``a+b`` for a slot with several."""

    client: int
    slot: int
    task: str


class Points(_Row):
    """One line of points.jsonl."""

    round: int
    points: tuple[Point, ...]
    rows: tuple[RowPoint, ...] = ()


class TaskSummary(_Row):
    """The final scores of a task; slot_* are of the primary metric over its slots."""

    row: int | None = None
    metrics: dict[str, float | None] | None = None
    slot_mean: float | None
    slot_min: float | None = None
    slot_max: float | None = None
    n_slots: int


class Parameters(_Row):
    """Numbers in one slot's adapter."""

    adapter: int
    head: int
    total: int


class Bytes(_Row):
    """Payload of the whole run, and the mean per client and round."""

    up: int
    down: int
    up_per_client_round: float
    down_per_client_round: float


class Seconds(_Row):
    """Wall clock."""

    total: float
    train: float
    eval: float


class Summary(_Row):
    """summary.json, written when a run ends."""

    name: str
    method: str
    config_hash: str
    rounds: int
    mean: float | None
    tasks: dict[str, TaskSummary]
    clustering: Clustering | None = None
    parameters: Parameters
    bytes: Bytes
    steps_total: int | None
    seconds: Seconds | None = None


class PartitionFile(_Row):
    """partition.json: task -> one list of example numbers per client."""

    how: str
    parts: dict[str, tuple[tuple[int, ...], ...]]
