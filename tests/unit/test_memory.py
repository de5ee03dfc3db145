"""The estimate of a run's memory follows what is computed side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedquilt.evaluate import EVALUATION_TOKENS
from fedquilt.models.heap import SLACK, held
from fedquilt.models.room import ALLOCATOR, pass_bytes, token_bytes
from fedquilt.runs import memory
from fedquilt.runs.build import build
from tests.tiny import tiny_config


def test_tokens_are_those_of_the_largest_batches_up_to_the_budget(tmp_path: Path) -> None:
    built = build(tiny_config(tmp_path, "fltac", method={"batch": 4}))
    sizes = []
    for data in built.view.slots.values():
        lengths = np.concatenate([built.tasks[name].train.lengths[index] for name, index in data.parts])
        sizes.append(int(min(4, len(lengths)) * lengths.mean()))
    engine: Any = built.engine
    assert memory.tokens(engine, built) == sum(sizes)
    engine.together = 2
    assert memory.tokens(engine, built) == sum(sorted(sizes)[-2:])
    engine.token_budget = 7
    assert memory.tokens(engine, built) == 7
    engine.one_by_one = True
    assert memory.tokens(engine, built) == max(sizes), "never cut"


def test_the_peak_adds_what_is_held_the_larger_pass_and_the_slots(tmp_path: Path, monkeypatch: Any) -> None:
    built = build(tiny_config(tmp_path, "fedit", cohort=2))
    monkeypatch.setattr(memory, "held", lambda: 1000)
    trained = built.adapter.spec.size() * 4
    slots = trained * (5 * 2 + len(built.view.slots))
    evaluation = EVALUATION_TOKENS * pass_bytes(built.base)
    assert memory.peak(built) == 1000 + int(evaluation * ALLOCATOR) + slots
    monkeypatch.setattr(memory, "tokens", lambda *_: 10 * EVALUATION_TOKENS)
    training = 10 * EVALUATION_TOKENS * token_bytes(built.base)
    assert memory.peak(built) == 1000 + int(training * ALLOCATOR) + slots
    monkeypatch.setattr(memory, "held", lambda: None)
    weights = sum(x.numel() * x.element_size() for x in built.base.model.parameters())
    assert memory.peak(built) == weights + int(training * ALLOCATOR) + slots


def test_passes_keep_no_more_of_one_another_than_the_slack_where_it_can_be_given_back(monkeypatch: Any) -> None:
    once = 10 * SLACK
    monkeypatch.setattr(memory, "trimmer", lambda: print)
    assert memory.grown(once) == once + SLACK
    assert memory.grown(100) == int(100 * ALLOCATOR)
    monkeypatch.setattr(memory, "trimmer", lambda: None)
    assert memory.grown(once) == int(once * ALLOCATOR)


def test_what_is_held_is_at_least_the_model(tmp_path: Path) -> None:
    built = build(tiny_config(tmp_path, "fedit"))
    assert (held() or 0) >= sum(x.numel() * x.element_size() for x in built.base.model.parameters())
