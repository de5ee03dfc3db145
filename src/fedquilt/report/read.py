"""A run directory as data. The only door through which reports see a run."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fedquilt.directions import direction
from fedquilt.errors import StateError
from fedquilt.report.schema import Evaluation, PartitionFile, Points, Round, Routes, Summary

Row = TypeVar("Row", bound=BaseModel)
OWN = "own"  # the partition of clients with data of their own


@dataclass(frozen=True)
class RunData:
    """Everything a report needs of one run.

    Attributes:
        config: the resolved configuration, nested as in config.toml; ``config_text`` is the file itself.
        summary: None while the run has not finished.
        counts: task -> examples per client.
        rounds, routes, evals, points: ascending in the round.
        notes: what was odd about the files, to be shown to the reader.
    """

    path: Path
    config: Mapping[str, Any]
    config_text: str
    env: Mapping[str, Any]
    summary: Summary | None
    how: str
    counts: Mapping[str, tuple[int, ...]]
    rounds: tuple[Round, ...]
    routes: tuple[Routes, ...]
    evals: tuple[Evaluation, ...]
    points: tuple[Points, ...]
    events: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the run wrote its summary."""
        return self.summary is not None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names in the order in which every figure shows them: sorted."""
        return tuple(sorted(self.counts))

    def flat(self) -> dict[str, Any]:
        """The configuration with dotted keys: ``method.lr`` -> 0.001. Lists of tables are keyed by their ``name``."""
        return dict(_flatten("", self.config))

    def defaults(self) -> dict[str, Any]:
        """What of it nobody chose, as far as the run has written that down."""
        if not isinstance(self.env.get("chosen"), Mapping):
            return {}
        chosen = dict(_flatten("", self.env["chosen"]))
        return {key: value for key, value in self.flat().items() if key not in chosen}

    def setting(self, *keys: str, default: str = "not recorded") -> str:
        """The first of these dotted configuration keys that is set, as text."""
        flat = self.flat()
        return next((str(flat[key]) for key in keys if key in flat), default)

    def primary(self, task: str) -> str:
        """The name of the task's primary metric; empty before any evaluation."""
        scores = [score for row in self.evals for score in row.slots if score.task == task]
        reported = list(scores[0].metrics) if scores else self._reported(task)
        wanted = self.flat().get(f"tasks.{task}.metrics")
        if isinstance(wanted, list) and wanted and wanted[0] in reported:
            return str(wanted[0])
        return reported[0] if reported else ""

    @property
    def direction(self) -> str:
        """Which way the tasks' primary metrics are better; empty before any evaluation."""
        return direction(self.primary(task) for task in self.tasks)

    def _reported(self, task: str) -> list[str]:
        return next((list(row.tasks[task].metrics or {}) for row in self.evals if task in row.tasks), [])

    def megabytes(self, number: int) -> float | None:
        """Megabytes (1e6) sent up and down until the end of this round; None for a round that is not in the log."""
        if number == 0:
            return 0.0
        return next(((row.total_up + row.total_down) / 1e6 for row in self.rounds if row.round == number), None)


def _flatten(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        pairs = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        pairs = [(str(item.get("name", place)), item) for place, item in enumerate(value)]
    else:
        return [(prefix, value)]
    return [leaf for key, item in pairs for leaf in _flatten(f"{prefix}.{key}" if prefix else key, item)]


def load_run(path: Path) -> RunData:
    """Read a run directory.

    Raises:
        StateError: not a run directory; a file is missing, is not JSON, or lacks a field (the file and line are named).
    """
    if not (path / "config.toml").is_file():
        raise StateError(
            f"'{path}' is not a run directory", why="it holds no config.toml", fix="give the folder that `fedquilt run` printed"
        )
    notes: list[str] = []
    partition, evals = _document(path / "partition.json", PartitionFile), _by_round(_rows(path / "evals.jsonl", Evaluation, notes))
    counts = {task: tuple(len(part) for part in parts) for task, parts in partition.parts.items()}
    config_text = _text(path / "config.toml")
    return RunData(
        path=path,
        config=_toml(path / "config.toml", config_text),
        config_text=config_text,
        env=_object(path / "env.json"),
        summary=_document(path / "summary.json", Summary) if (path / "summary.json").exists() else None,
        how=partition.how,
        counts=_told(evals) if partition.how == OWN else counts,
        rounds=_by_round(_rows(path / "rounds.jsonl", Round, notes)),
        routes=_by_round(_rows(path / "routes.jsonl", Routes, notes)),
        evals=evals,
        points=_by_round(_rows(path / "points.jsonl", Points, notes)),
        events=tuple(json.loads(line) for line in _lines(path / "events.jsonl", notes)),
        notes=tuple(notes),
    )


def _told(evals: Sequence[Evaluation]) -> dict[str, tuple[int, ...]]:
    """Examples per client as clients say: of every slot, for nobody knows what it holds."""
    slots = {score.task: score for row in evals for score in row.slots}
    clients = max((score.client for score in slots.values()), default=-1) + 1
    return {task: tuple(score.samples if score.client == c else 0 for c in range(clients)) for task, score in slots.items()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StateError("a file of the run directory is missing", where=str(path), fix=f"fedquilt resume {path.parent}") from None
    except UnicodeDecodeError as error:
        raise StateError("a file of the run directory is not text", where=str(path), why=str(error)) from error


def _toml(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StateError("the resolved configuration is not TOML", where=str(path), why=str(error)) from error


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise StateError("a file of the run directory is not JSON", where=str(path), why=str(error)) from error
    if not isinstance(value, dict):
        raise StateError("a file of the run directory is not a JSON object", where=str(path))
    return value


def _document(path: Path, model: type[Row]) -> Row:
    return _parsed(_text(path), model, str(path))


def _parsed(text: str, model: type[Row], where: str) -> Row:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        why = f"{place}: {first['msg']}" if place else str(first["msg"])
        raise StateError("a file of the run directory is corrupt", where=where, why=why) from error


def _lines(path: Path, notes: list[str]) -> list[str]:
    """The lines of a log. One that has not been started is empty; a torn last line is left out and noted."""
    if not path.exists():
        return []
    text = _text(path)
    lines = text.split("\n")
    tail = lines.pop()
    if tail:  # the writer ends every record with a newline, so this one was cut by a crash or is being written now
        notes.append(f"The last line of {path.name} is incomplete and left out.")
    for number, line in enumerate(lines, 1):
        try:
            json.loads(line)
        except json.JSONDecodeError as error:
            raise StateError("a log of the run directory is corrupt", where=f"{path}:{number}", why=str(error)) from error
    return lines


def _rows(path: Path, model: type[Row], notes: list[str]) -> list[Row]:
    return [_parsed(line, model, f"{path}:{number}") for number, line in enumerate(_lines(path, notes), 1)]


def _by_round(rows: list[Row]) -> tuple[Row, ...]:
    """Ascending; of two rows of one round the later one: a resumed run does the rounds after its checkpoint again."""
    latest = {getattr(row, "round"): row for row in rows}  # noqa: B009 - all four row types have it, BaseModel does not
    return tuple(latest[number] for number in sorted(latest))
