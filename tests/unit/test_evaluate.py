"""Matching rows with tasks, and the record of an evaluation."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, adjusted_rand_score

from fedquilt import tree
from fedquilt.evaluate import Evaluator, clustering, matched_rows
from fedquilt.testing import run_tiny, tiny_config
from fedquilt.types import Slot, Stack

NAMES = ("a", "b", "c")


def slots(rows: list[int]) -> dict[Slot, int]:
    return {Slot(i, 0): row for i, row in enumerate(rows)}


def truth(names: list[str]) -> dict[Slot, tuple[str, ...]]:
    return {Slot(i, 0): (name,) for i, name in enumerate(names)}


@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from(NAMES)), min_size=1, max_size=12))
def test_accuracy_is_the_best_over_all_one_to_one_matches(pairs: list[tuple[int, str]]) -> None:
    rows, names = [row for row, _ in pairs], [name for _, name in pairs]
    found = clustering(slots(rows), truth(names))
    assert found is not None
    best = max(
        sum(dict(zip(NAMES, order, strict=False)).get(name) == row for row, name in pairs)
        for order in itertools.permutations(range(1, 5), 3)
    )
    assert found["accuracy"] == pytest.approx(best / len(pairs))
    assert found["ari"] == pytest.approx(adjusted_rand_score(names, rows))
    assert found["rows_in_use"] == len(set(rows))


def test_names_of_rows_do_not_matter() -> None:
    one = clustering(slots([1, 1, 2, 3]), truth(["a", "a", "b", "c"]))
    other = clustering(slots([3, 3, 1, 2]), truth(["a", "a", "b", "c"]))
    assert one == other
    assert one is not None
    assert one["accuracy"] == one["ari"] == one["nmi"] == 1.0


def test_slots_with_several_tasks_and_unknown_slots_are_left_out() -> None:
    table = {Slot(0, 0): 1, Slot(1, 0): 2, Slot(9, 9): 1}
    known = {Slot(0, 0): ("a",), Slot(1, 0): ("a", "b")}
    assert matched_rows(table, known) == {"a": 1}
    assert clustering({Slot(1, 0): 2}, known) is None
    assert matched_rows({}, known) == {}


def test_the_record_of_an_evaluation() -> None:
    """Scores are those of an argmax done by hand with the slot's own adapter."""
    outcome = run_tiny(tiny_config("fltac", method={"lr": 1e-2, "steps": 2, "batch": 4}))
    built = outcome.built
    record = built.evaluator(outcome.hub, built.engine, built.bank_is_complete)
    assert len(record["slots"]) == len(built.view.slots)
    for entry in record["slots"]:
        slot = Slot(entry["client"], entry["slot"])
        assert built.view.slots[slot].tasks == (entry["task"],)
        assert entry["samples"] == built.view.slots[slot].samples
        state = tree.row(outcome.hub.bank, outcome.hub.row_of(slot))
        outputs, labels = built.evaluator.outputs(tree.stack([state]), entry["task"], built.evaluator.split(entry["task"]))
        assert entry["metrics"]["accuracy"] == accuracy_score(labels, outputs.argmax(1))
    assert record["mean"] == pytest.approx(np.mean([entry["metrics"]["accuracy"] for entry in record["slots"]]))
    assert set(record["tasks"]) == set(built.tasks)


def test_private_adapters_are_evaluated_one_by_one() -> None:
    outcome = run_tiny(tiny_config("local_only", method={"lr": 5e-2, "steps": 4, "batch": 4}))
    built = outcome.built
    assert not built.bank_is_complete
    record = built.evaluator(outcome.hub, built.engine, built.bank_is_complete)
    assert all(task["row"] is None and task["metrics"] is None for task in record["tasks"].values())
    assert record["clustering"] is None
    for entry in record["slots"]:
        slot = Slot(entry["client"], entry["slot"])
        state = built.engine.state_of(slot, tree.row(outcome.hub.bank, 0))
        outputs, labels = built.evaluator.outputs(tree.stack([state]), entry["task"], built.evaluator.split(entry["task"]))
        assert entry["metrics"]["accuracy"] == accuracy_score(labels, outputs.argmax(1))


def test_clients_that_never_took_part_share_the_evaluation_of_their_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand of them cost no more than one."""
    options = {"lr": 5e-2, "steps": 2, "batch": 4, "participation": 0.5}
    outcome = run_tiny(tiny_config("fedit", method=options, adapter={"head": "private"}, rounds=1))
    built = outcome.built
    record = built.evaluator(outcome.hub, built.engine, built.bank_is_complete)
    asked, score = [], Evaluator.score

    def counted(self: Evaluator, stack: Stack, name: str, *rest: Any) -> dict[str, float]:
        asked.append((name, float(sum(x.square().sum() for x in stack.values()))))  # a trained head sums up to what it did before
        return score(self, stack, name, *rest)

    monkeypatch.setattr(Evaluator, "score", counted)
    assert built.evaluator(outcome.hub, built.engine, built.bank_is_complete) == record
    there = set(outcome.rounds[0]["cohort"])
    assert 0 < len(there) < 4
    assert [bool(built.engine.own(slot)) for slot in built.view.slots] == [slot.client in there for slot in built.view.slots]
    own = sum(len(names) for slot, names in built.view.truth(1).items() if slot.client in there)
    rest = {name for slot, names in built.view.truth(1).items() if slot.client not in there for name in names}
    assert len(asked) == len(set(asked)) == own + len(rest)
    for entry in record["slots"]:
        slot = Slot(entry["client"], entry["slot"])
        state = built.engine.state_of(slot, tree.row(outcome.hub.bank, outcome.hub.row_of(slot)))
        outputs, labels = built.evaluator.outputs(tree.stack([state]), entry["task"], built.evaluator.split(entry["task"]))
        assert entry["metrics"]["accuracy"] == accuracy_score(labels, outputs.argmax(1))
