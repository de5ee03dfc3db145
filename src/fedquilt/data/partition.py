"""Who holds which training rows. Every rule gives disjoint parts that together are all rows, and terminates.

The rules: ``dirichlet-task`` (Ping et al. 2024, FL-TAC, section 4.1), ``dirichlet-label`` (Hsu et al. 2019, arXiv
1909.06335), ``iid``, ``shards`` (McMahan et al. 2017, section 3), ``column`` (natural: a user, a hospital, a topic) and
``file`` (saved before). With ``own`` nothing is spread: every client is a machine with its own data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedquilt.data.files import replacing
from fedquilt.data.load import RawTask
from fedquilt.data.marks import joined
from fedquilt.data.spec import PartitionConfig
from fedquilt.errors import ConfigError, DataError, did_you_mean
from fedquilt.rng import numpy_generator

SHOWN = 10  # clients that a note names
WRITE = "fedquilt data partition CONFIG --out FILE"

Index = NDArray[np.int64]
Parts = tuple[Index, ...]
Labels = NDArray[Any]


@dataclass(frozen=True)
class Partition:
    """``parts[task][client]``: sorted row numbers of the task's training split, int64; empty where a client lacks the task."""

    parts: Mapping[str, Parts]
    how: str
    notes: tuple[str, ...] = ()

    @property
    def clients(self) -> int:
        """The number of clients, those without data included."""
        return len(next(iter(self.parts.values()), ()))

    def counts(self) -> dict[str, list[int]]:
        """Task -> rows of each client."""
        return {task: [len(part) for part in parts] for task, parts in self.parts.items()}

    def save(self, path: Path) -> None:
        """Write JSON; the file appears whole or not at all."""
        parts = {task: [part.tolist() for part in self.parts[task]] for task in sorted(self.parts)}
        text = json.dumps({"how": self.how, "notes": self.notes, "parts": parts}, sort_keys=True)
        with replacing(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Partition:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: the file is missing, not JSON, or not a partition.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            parts = {task: tuple(_index(rows) for rows in clients) for task, clients in content["parts"].items()}
            result = cls(parts, str(content["how"]), tuple(content.get("notes", ())))
        except OSError as error:
            raise DataError("the partition cannot be read", where=str(path), why=str(error), fix="check the path") from error
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            fix = f"write it anew: {WRITE}"
            raise DataError("this is no partition file", where=str(path), why=repr(error), fix=fix) from error
        sizes = {len(clients) for clients in parts.values()}
        if result.how == "own" and not result.parts:
            return result
        if len(sizes) != 1 or sizes == {0}:
            fix = f"write it anew: {WRITE}"
            raise DataError("all tasks of a partition need the same number of clients, at least one", where=str(path), fix=fix)
        return result


def own(tasks: Mapping[str, RawTask], client: int | None) -> Partition:
    """All rows on this machine are its client's; None: a server, which has none."""
    parts = {name: (*[np.arange(0)] * (client or 0), np.arange(len(task.train.labels))) for name, task in tasks.items()}
    return Partition({} if client is None else parts, "own")


def refuse_own(config: PartitionConfig) -> None:
    """Raise where data is asked for that is on the clients' machines alone."""
    if config.how == "own":
        raise ConfigError(
            "the clients of this configuration have data of their own, on their own machines",
            where="partition.how",
            fix="train them by fedquilt submit, or choose another rule to simulate them here",
        )


def _index(rows: Sequence[int]) -> Index:
    """Sorted row numbers; refuses anything that numpy would only round to them."""
    if not isinstance(rows, list) or not all(type(row) is int for row in rows):
        raise ValueError("row numbers must be lists of integers")
    return np.array(sorted(rows), dtype=np.int64)


def partition(tasks: Mapping[str, RawTask | Labels], config: PartitionConfig, *, seed: int, root: Path | None = None) -> Partition:
    """Spread the training rows of all ``tasks`` (or bare label arrays ``[n]``) over clients.

    Args:
        seed: used unless ``config.seed`` is set. ``dirichlet-task`` draws task i, in sorted order of names, from
            ``numpy.default_rng(seed + i)``, as the published FL-TAC code does: seed 42 and the five GLUE tasks give its partition.
        root: folder that a relative ``config.file`` starts from.

    Raises:
        DataError: no client gets a row, a column is missing, or a saved partition does not fit the data.
    """
    if not tasks:
        raise DataError("there is no task to partition", where="partition")
    seed = seed if config.seed is None else config.seed
    refuse_own(config)
    if config.how == "file":
        parts = _from_file(tasks, config, root)
    elif config.how == "column":
        parts = _by_column(tasks, config)
    else:
        rule = _RULES[config.how]
        parts = {name: _spread(rule, tasks[name], config, seed, i, name) for i, name in enumerate(sorted(tasks))}
    _check_whole(tasks, parts, config)
    if not any(len(part) for clients in parts.values() for part in clients):
        raise DataError("no client has any row", where="partition", fix="check the tasks' sizes and the rule")
    return Partition(parts, config.how, _notes(parts, config))


def _check_whole(tasks: Mapping[str, RawTask | Labels], parts: Mapping[str, Parts], config: PartitionConfig) -> None:
    """Rules keep questions whole; columns and files may not."""
    for name, task in tasks.items():
        groups = task.train.marks.groups if isinstance(task, RawTask) else None
        if groups is None:
            continue
        held = np.concatenate([np.unique(groups[part]) for part in parts[name]])
        if len(held) != len(np.unique(held)):
            why = "its candidates are rows, and a client that has some of them has another question"
            what = f"partition.how = {config.how!r} parts questions of task {name!r} over clients"
            raise DataError(
                what, where="partition", why=why, fix="partition by a column that is the same in all rows of a question"
            )


def _labels(task: RawTask | Labels) -> Labels:
    return task.train.labels if isinstance(task, RawTask) else np.asarray(task)


def _notes(parts: Mapping[str, Parts], config: PartitionConfig) -> tuple[str, ...]:
    totals = np.sum([[len(part) for part in clients] for clients in parts.values()], axis=0)
    notes = []
    if idle := np.flatnonzero(totals == 0).tolist():
        notes.append(without_data(idle, len(totals)))
    if config.how in ("column", "file") and len(totals) != config.clients:
        notes.append(f"{len(totals)} clients come from the {config.how}; partition.clients = {config.clients} is not used")
    return tuple(notes)


def without_data(idle: Sequence[int], clients: int) -> str:
    """The clients that no row was drawn for; of many the first.

    >>> without_data([3], 10)
    '1 of 10 clients has no data: 3'
    >>> without_data(range(100), 120)
    '100 of 120 clients have no data: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 90 more'
    """
    more = f" and {len(idle) - SHOWN} more" if len(idle) > SHOWN else ""
    verb = "has" if len(idle) == 1 else "have"
    return f"{len(idle)} of {clients} clients {verb} no data: {', '.join(map(str, idle[:SHOWN]))}{more}"


def _cut(order: Index, shares: NDArray[np.float64]) -> Parts:
    """Cut ``order`` at the cumulative ``shares`` (rounded down); the last client gets what is left over."""
    ends = (np.cumsum(shares)[:-1] * len(order)).astype(np.int64)
    return tuple(np.sort(part) for part in np.split(order, ends))


def _dirichlet_task(labels: Labels, config: PartitionConfig, seed: int, position: int, name: str) -> Parts:
    # The published seeding, not rng.derive: the same seed must give the published partition. Keep the order of the draws.
    rng = np.random.default_rng(seed + position)
    shares = rng.dirichlet(np.full(config.clients, config.alpha))
    kept = np.where(shares < config.min_share, 0.0, shares)
    if kept.sum() == 0:  # every share is below the threshold (many clients): give all to the largest, do not redraw
        kept = np.where(shares == shares.max(), shares, 0.0)
    return _cut(rng.permutation(len(labels)), kept / kept.sum())


def _dirichlet_label(labels: Labels, config: PartitionConfig, seed: int, position: int, name: str) -> Parts:
    rng = numpy_generator(seed, "partition", config.how, name)
    pieces: list[list[Index]] = [[] for _ in range(config.clients)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(config.clients, config.alpha))
        for client, part in enumerate(_cut(rows, shares)):
            pieces[client].append(part)
    empty = np.empty(0, np.int64)
    return tuple(np.sort(np.concatenate([empty, *own])) for own in pieces)


def _iid(labels: Labels, config: PartitionConfig, seed: int, position: int, name: str) -> Parts:
    rng = numpy_generator(seed, "partition", config.how, name)
    parts = [np.sort(part) for part in np.array_split(rng.permutation(len(labels)), config.clients)]
    if len(labels) < config.clients:  # else the same clients would have one row of every task, and the others nothing at all
        parts = [parts[i] for i in rng.permutation(config.clients)]
    return tuple(parts)


def _shards(labels: Labels, config: PartitionConfig, seed: int, position: int, name: str) -> Parts:
    rng = numpy_generator(seed, "partition", config.how, name)
    shuffled = rng.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    shards = np.array_split(by_label, config.clients * config.shards_per_client)
    hands = rng.permutation(len(shards)).reshape(config.clients, config.shards_per_client)
    return tuple(np.sort(np.concatenate([shards[shard] for shard in hand])) for hand in hands)


def _spread(rule: _Rule, task: RawTask | Labels, config: PartitionConfig, seed: int, position: int, name: str) -> Parts:
    """By rows, or by whole questions, which go with the label of their first row."""
    labels = _labels(task)
    if not isinstance(task, RawTask) or task.train.marks.groups is None:
        return rule(labels, config, seed, position, name)
    units = task.train.marks.units(len(labels))
    parts = rule(labels[[unit[0] for unit in units]], config, seed, position, name)
    return tuple(joined([units[i] for i in part]) for part in parts)


_Rule = Callable[[Labels, PartitionConfig, int, int, str], Parts]
_RULES: dict[str, _Rule] = {
    "dirichlet-task": _dirichlet_task,
    "dirichlet-label": _dirichlet_label,
    "iid": _iid,
    "shards": _shards,
}


def _by_column(tasks: Mapping[str, RawTask | Labels], config: PartitionConfig) -> dict[str, Parts]:
    """One client per distinct value over all tasks, in sorted order of the values."""
    values: dict[str, NDArray[Any]] = {}
    for name in sorted(tasks):
        task = tasks[name]
        held = task.train.columns if isinstance(task, RawTask) else {}
        if config.column not in held:
            hint = did_you_mean(str(config.column), held)
            raise DataError(f"column {config.column!r} was not loaded", where=f"task {name!r}, partition.column", fix=hint)
        values[name] = held[str(config.column)]
    owners = sorted({str(value) for column in values.values() for value in column}, key=_natural)
    return {name: tuple(np.flatnonzero(column == owner) for owner in owners) for name, column in values.items()}


def _natural(value: str) -> tuple[bool, int, str]:
    """Whole numbers by size, before other values by name: client 2 comes before client 10."""
    number = value.isascii() and value.isdigit()
    return (not number, int(value) if number else 0, value)


def _from_file(tasks: Mapping[str, RawTask | Labels], config: PartitionConfig, root: Path | None) -> dict[str, Parts]:
    if config.file is None:  # PartitionConfig refuses this; said again for the type checker
        raise ConfigError("partition.file is not given", where="partition")
    path = (root or Path()) / config.file
    saved = Partition.load(path)
    if set(saved.parts) != set(tasks):
        odd = ", ".join(sorted(set(saved.parts) ^ set(tasks)))
        fix = f"write one of these tasks: {WRITE}"
        raise DataError(f"the partition is of other tasks: {odd}", where=str(path), fix=fix)
    for name in sorted(tasks):
        rows = np.sort(np.concatenate(saved.parts[name]))
        n = len(_labels(tasks[name]))
        if not np.array_equal(rows, np.arange(n)):
            span = f"{rows[0]} to {rows[-1]}" if len(rows) else "none"
            why = f"it holds {len(rows)} row numbers ({span}); the task has rows 0 to {n - 1}, each once"
            fix = f"write one for this data: {WRITE}"
            raise DataError(f"the partition does not fit task {name!r}", where=str(path), why=why, fix=fix)
    return {name: saved.parts[name] for name in sorted(tasks)}
