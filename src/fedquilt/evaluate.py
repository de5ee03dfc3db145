"""What an adapter is worth: metrics per (client, task) slot, per task, and how well clusters match tasks.

The evaluator is the only place on the server's side of a simulation that sees the truth (which slot is which task); nothing it
computes flows back into training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedquilt import tree
from fedquilt.data.encode import Task
from fedquilt.data.kinds import GROUPED
from fedquilt.data.metrics import metric, questions
from fedquilt.data.view import View
from fedquilt.engine.base import Engine
from fedquilt.engine.batches import assemble
from fedquilt.models.loss import fill
from fedquilt.models.network import Network
from fedquilt.models.scoring import Asked, TextScores
from fedquilt.ticks import Tick, between, silent
from fedquilt.types import Batch, Hub, Slot, Spec, Stack, State

EVALUATION_TOKENS = 8000  # tokens per forward pass


@dataclass
class Evaluator:
    """Evaluates a hub on the tasks' evaluation splits."""

    network: Network
    view: View
    spec: Spec
    heads: Mapping[str, int] = field(default_factory=dict)
    texts: TextScores | None = None
    """Scores of generation tasks; None where there are none."""
    virtual: int = 0
    """Tokens that the model puts before every row."""
    tick: Tick = silent
    """Called with 0 before every pass."""
    _batches: dict[str, list[Batch]] = field(default_factory=dict)

    def __call__(self, hub: Hub, engine: Engine, shared: bool) -> dict[str, Any]:
        """One record of evals.jsonl, without its round. ``shared``: whether the bank rows are complete adapters."""
        cache: dict[tuple[object, str], dict[str, float]] = {}
        truth = self.view.truth(hub.step)
        slots = []
        for slot, names in truth.items():
            row = hub.row_of(slot)
            private = engine.own(slot)
            own = tree.merge(tree.row(hub.bank, row), private)
            # A slot without private leaves is its row; computed once for all slots of the row.
            key: object = ("row", row) if shared or not private else slot
            for name in names:
                scores = self._scores(cache, key, own, name)
                samples = sum(len(index) for task, index in self.view.data(slot, hub.step).parts if task == name)
                slots.append(
                    {"client": slot.client, "slot": slot.number, "row": row, "task": name, "metrics": scores, "samples": samples}
                )
        primary = [self._primary(entry) for entry in slots]
        tasks = sorted(self.view.tasks)
        many = tree.length(hub.bank) > 1
        rows = matched_rows(hub.table, truth) if many else dict.fromkeys(tasks, 0)
        return {
            "slots": slots,
            "tasks": {name: self._task(name, rows.get(name) if shared else None, hub, slots, cache) for name in tasks},
            "clustering": clustering(hub.table, truth) if many else None,
            "mean": float(np.mean(primary)),
        }

    def _primary(self, entry: Mapping[str, Any]) -> float:
        return float(entry["metrics"][self.view.tasks[entry["task"]].metrics[0]])

    def _task(
        self,
        name: str,
        row: int | None,
        hub: Hub,
        slots: Sequence[Mapping[str, Any]],
        cache: dict[tuple[object, str], dict[str, float]],
    ) -> dict[str, Any]:
        """The global adapter of a task: ``row``, which the Hungarian match of rows and tasks gives it; None for none."""
        mine = [self._primary(entry) for entry in slots if entry["task"] == name]
        out: dict[str, Any] = {"row": None, "metrics": None, "slot_mean": float(np.mean(mine)) if mine else None}
        if row is not None:
            out |= {"row": row, "metrics": self._scores(cache, ("row", row), tree.row(hub.bank, row), name)}
        return out

    def _scores(self, cache: dict[tuple[object, str], dict[str, float]], key: object, state: State, name: str) -> dict[str, float]:
        if (key, name) not in cache:
            cache[key, name] = self.of(state, name)
        return cache[key, name]

    def of(self, state: State, name: str) -> dict[str, float]:
        """The task's metrics of one adapter."""
        stack = {leaf: tensor[None] for leaf, tensor in state.items()}
        prompts = self.prompts(self.view.tasks[name], self.texts.rows) if self.texts else None
        return self.score(stack, name, self.split(name), prompts)

    def score(self, stack: Stack, name: str, batches: Sequence[Batch], prompts: Asked | None = None) -> dict[str, float]:
        """The task's metrics of adapters ``stack [G, ...]`` on evaluation ``batches``, every row answered by its owner; of
        generation tasks ROUGE-L too if there are ``prompts``."""
        task = self.view.tasks[name]
        if task.kind != "generation":
            outputs, labels = self.outputs(stack, name, batches)
            predictions = outputs[:, 0] if task.classes == 1 else outputs.argmax(1)
            margins, marks = outputs[:, -1] - outputs[:, 0], task.marks.take(self.order(task))
            return {
                m: questions(m, margins, labels, marks) if m in GROUPED else metric(m, task.classes)(predictions, labels)
                for m in task.metrics
            }
        if self.texts is None:
            raise ValueError(f"task {task.name!r} needs an evaluator with text scores")
        found = self.texts(stack, batches, prompts)
        return {m: found[m] for m in (*task.metrics, "rouge_l") if m in found}

    def prompts(self, task: Task, most: int) -> Asked | None:
        """Up to ``most`` evaluation rows, evenly spaced, and their right answers where more than one is; None for none."""
        rows = task.evaluation.usable(np.arange(len(task.evaluation)))
        chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))]
        if not most:
            return None
        return Asked(assemble([(task, 0, int(i)) for i in chosen], 0, split="evaluation"), task.marks.take(chosen).references)

    def outputs(self, stack: Stack, name: str, batches: Sequence[Batch]) -> tuple[NDArray[Any], NDArray[Any]]:
        """(logits ``[n, classes]``, labels ``[n]``) of every row by its owner among ``stack [G, ...]``."""
        classes = self.view.tasks[name].classes
        logits = torch.cat([self.network.logits(stack, batch)[:, :classes] for batch in between(batches, self.tick)])
        return logits.double().numpy(), torch.cat([batch.labels for batch in batches]).numpy()

    def order(self, task: Task) -> NDArray[np.int64]:
        """Evaluation rows in the order of :meth:`split`: by length."""
        return task.evaluation.usable(np.argsort(task.evaluation.lengths, kind="stable"))

    def split(self, name: str) -> list[Batch]:
        """A task's evaluation split in passes of similar length, assembled once."""
        task = self.view.tasks[name]
        if task.name not in self._batches:
            lengths, order = task.evaluation.lengths, self.order(task)
            head = self.heads.get(task.name, 0)
            self._batches[task.name] = [
                assemble([(task, head, int(i)) for i in order[some]], 0, split="evaluation")
                for some in fill((lengths[order] + self.virtual).tolist(), EVALUATION_TOKENS)
            ]
        return self._batches[task.name]


def _contingency(table: Mapping[Slot, int], truth: Mapping[Slot, Sequence[str]]) -> tuple[NDArray[Any], list[int], list[str]]:
    """Counts of slots ``[rows, tasks]`` over slots with one task that have contributed."""
    pairs = [(row, truth[slot][0]) for slot, row in table.items() if len(truth.get(slot, ())) == 1]
    rows, names = sorted({row for row, _ in pairs}), sorted({name for _, name in pairs})
    counts = np.zeros((len(rows), len(names)))
    for row, name in pairs:
        counts[rows.index(row), names.index(name)] += 1
    return counts, rows, names


def matched_rows(table: Mapping[Slot, int], truth: Mapping[Slot, Sequence[str]]) -> dict[str, int]:
    """Task -> row by the one-to-one match that agrees with most slots."""
    from scipy.optimize import linear_sum_assignment

    counts, rows, names = _contingency(table, truth)
    if not counts.size:
        return {}
    row, name = linear_sum_assignment(-counts)
    return {names[j]: rows[i] for i, j in zip(row.tolist(), name.tolist(), strict=True)}


def clustering(table: Mapping[Slot, int], truth: Mapping[Slot, Sequence[str]]) -> dict[str, float] | None:
    """Accuracy of the best one-to-one match, adjusted Rand index, normalised mutual information, rows in use."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    counts, rows, names = _contingency(table, truth)
    if not counts.size:
        return None
    match = matched_rows(table, truth)
    hits = sum(counts[rows.index(row), names.index(name)] for name, row in match.items())
    flat = [(i, j) for i in range(len(rows)) for j in range(len(names)) for _ in range(int(counts[i, j]))]
    found, true = [i for i, _ in flat], [j for _, j in flat]
    return {
        "accuracy": float(hits / counts.sum()),
        "ari": float(adjusted_rand_score(true, found)),
        "nmi": float(normalized_mutual_info_score(true, found)),
        "rows_in_use": len(rows),
    }
