"""Judge the answers of a finished run: every adapter on its slots' tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedquilt import tree
from fedquilt.data.partition import refuse_own
from fedquilt.errors import ConfigError
from fedquilt.judge.client import Judge
from fedquilt.judge.score import ask, parse
from fedquilt.models.scoring import TextScores
from fedquilt.runs.atomic import write_atomic
from fedquilt.runs.build import Built, check_room
from fedquilt.runs.config import load_config
from fedquilt.runs.reopen import reopen
from fedquilt.types import Batch, Hub, Slot, State

REPLY_TOKENS = 8  # of a score, for estimates
Key = tuple[object, str]  # (bank row or slot, task)


@dataclass(frozen=True)
class Examples:
    """The evaluation rows of a task that are judged, the same for every adapter, and their (prompt, reference) as texts."""

    batch: Batch
    texts: list[tuple[str, str]]

    def questions(self, answers: Sequence[str]) -> list[str]:
        """Messages to the judge about one adapter's ``answers``."""
        return [ask(prompt, reference, answer) for (prompt, reference), answer in zip(self.texts, answers, strict=True)]


@dataclass(frozen=True)
class Opened:
    """A run that can answer. ``slots``: (slot, row, task) -> which adapter answers; equal adapters answer once."""

    built: Built
    adapters: Mapping[Key, State]
    slots: Mapping[tuple[Slot, int, str], Key]
    scores: TextScores
    examples: Mapping[str, Examples]


def open_run(run: Path, *, rows: int, max_new: int) -> Opened:
    """Load the last committed state of a run on texts.

    Raises:
        StateError: nothing committed there.
        ConfigError: the run's tasks are not of the kind ``generation``, or no rows.
    """
    config = load_config(run / "config.toml")
    refuse_own(config.partition)
    if config.tasks[0].kind != "generation":
        what = f"the run's tasks are of the kind {config.tasks[0].kind}: there are no answers to judge"
        raise ConfigError(what, where=str(run), fix="give a run on generation tasks")
    built, hub = reopen(run)
    check_room(built.config, built.base, built.adapter, max_new)
    scores = TextScores(built.network, built.base.tokenizer, rows, max_new)  # type: ignore[arg-type]  # kind: generation
    slots = dict(_slots(built, hub))
    states = {key: _state(built, hub, slot, row) for (slot, row, _), key in slots.items()}
    examples = {name: _examples(built, scores, name) for _, name in states}
    return Opened(built, states, slots, scores, examples)


def _examples(built: Built, scores: TextScores, task: str) -> Examples:
    asked = built.evaluator.prompts(built.tasks[task], scores.rows)
    if asked is None:
        raise ConfigError("there is nothing to judge with --rows 0", where="--rows", fix="at least 1")
    batch = asked.batch
    return Examples(batch, list(zip(scores.prompts(batch), scores.references(batch), strict=True)))


def _slots(built: Built, hub: Hub) -> Iterator[tuple[tuple[Slot, int, str], Key]]:
    for slot, names in built.view.truth(hub.step).items():
        row = hub.row_of(slot)
        for name in names:
            yield (slot, row, name), (("row", row) if built.bank_is_complete else slot, name)


def _state(built: Built, hub: Hub, slot: Slot, row: int) -> State:
    return built.engine.state_of(slot, tree.row(hub.bank, row))


def estimate(opened: Opened, price_in: float, price_out: float) -> dict[str, Any]:
    """Requests, tokens (by the run's own tokenizer, with references in place of answers) and their price per million tokens."""
    calls = tokens = 0
    for _, task in opened.adapters:
        examples = opened.examples[task]
        questions = examples.questions([reference for _, reference in examples.texts])
        calls += len(questions)
        tokens += sum(len(opened.built.base.tokenizer(question, verbose=False)["input_ids"]) for question in questions)
    out = calls * REPLY_TOKENS
    return {"requests": calls, "tokens_in": tokens, "tokens_out": out, "price": (tokens * price_in + out * price_out) / 1e6}


def judge_run(opened: Opened, judge: Judge, run: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Answer, ask, average; also written to ``judge.json`` in the run directory."""
    means: dict[Key, float] = {}
    used = {"requests": 0, "cached": 0, "tokens_in": 0, "tokens_out": 0}
    for key, state in opened.adapters.items():
        stack = {name: tensor[None] for name, tensor in state.items()}
        examples = opened.examples[key[1]]
        answers = [answer for answer, _ in opened.scores.answers(stack, examples.batch)]
        replies = [judge(question, parse) for question in examples.questions(answers)]
        means[key] = float(np.mean([parse(reply.text) for reply in replies]))
        for reply in replies:
            used["cached" if reply.cached else "requests"] += 1
            used["tokens_in"] += 0 if reply.cached else reply.tokens_in
            used["tokens_out"] += 0 if reply.cached else reply.tokens_out
        say(f"{key[1]}: {means[key]:.3f}")
    slots = [
        {"client": slot.client, "slot": slot.number, "row": row, "task": task, "score": means[key]}
        for (slot, row, task), key in opened.slots.items()
    ]
    tasks = sorted({str(entry["task"]) for entry in slots})
    per_task = {task: float(np.mean([entry["score"] for entry in slots if entry["task"] == task])) for task in tasks}
    mean = float(np.mean([entry["score"] for entry in slots]))
    record = {"model": judge.model, "rows": opened.scores.rows, "mean": mean, "tasks": per_task, "slots": slots, "used": used}
    write_atomic(run / "judge.json", json.dumps(record, indent=1).encode())
    return record
