"""The gate: every bad reply has a code, and only good ones pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from uploads import SPEC, state

from fedquilt import tree
from fedquilt.gate import CODES, Gate, Rejection
from fedquilt.types import Failure, Job, Reply, Round, Slot

SHARED = SPEC.names()
KEY = "enc.0.q/lora_A"
NOW = Round(3, 0)
JOBS = [Job(Slot(client, 0), 0, NOW) for client in range(3)]


def reply(client: int = 0, **change: Any) -> Reply:
    return replace(Reply(Slot(client, 0), 3, state(client), 5.0, {"loss": 0.5}), **change)


def with_leaf(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**state(0), KEY: tensor}


def poisoned(value: float) -> torch.Tensor:
    tensor = state(0)[KEY].clone()
    tensor[1, 2] = value
    return tensor


GOOD = state(0)[KEY]
BAD: list[tuple[str, str, dict[str, Any]]] = [
    ("a NaN", "nonfinite", {"delta": with_leaf(poisoned(float("nan")))}),
    ("an Inf", "nonfinite", {"delta": with_leaf(poisoned(float("-inf")))}),
    ("a NaN among the scalars", "nonfinite", {"extra": {"loss": float("nan")}}),
    ("a transposed leaf", "schema", {"delta": with_leaf(GOOD.t())}),
    ("a leaf that would broadcast", "schema", {"delta": with_leaf(GOOD[:1])}),
    ("half the precision", "schema", {"delta": with_leaf(GOOD.half())}),
    ("complex numbers", "schema", {"delta": with_leaf(GOOD.to(torch.complex128))}),
    ("a list for a tensor", "schema", {"delta": with_leaf([[0.0] * 5] * 2)}),  # type: ignore[arg-type]
    ("a sparse tensor", "schema", {"delta": with_leaf(GOOD.to_sparse())}),
    ("text among the scalars", "nonfinite", {"extra": {"loss": "low"}}),
    ("a leaf too few", "schema", {"delta": {k: x for k, x in state(0).items() if k != KEY}}),
    ("a leaf too many", "schema", {"delta": {**state(0), "../../etc/passwd": GOOD}}),
    ("no examples", "weight", {"weight": 0.0}),
    ("minus nine examples", "weight", {"weight": -9.0}),
    ("10^12 examples", "weight", {"weight": 1e12}),
    ("NaN examples", "weight", {"weight": float("nan")}),
    ("a weight that is text", "weight", {"weight": "5"}),
    ("the round before", "replay", {"round": 2}),
    ("somebody who was not asked", "unknown", {"slot": Slot(7, 0)}),
]


def test_good_replies_pass_unchanged() -> None:
    replies = [reply(client) for client in (2, 0, 1)]
    accepted, rejected = Gate(SPEC)(replies, JOBS, SHARED)
    assert accepted == replies
    assert rejected == []


@pytest.mark.parametrize(("what", "code", "change"), BAD, ids=[what for what, _, _ in BAD])
def test_a_bad_reply_is_rejected_and_the_others_pass(what: str, code: str, change: dict[str, Any]) -> None:
    others = [reply(1), reply(2)]
    accepted, rejected = Gate(SPEC)([reply(0, **change), *others], JOBS, SHARED)
    assert accepted == others
    assert [r.code for r in rejected] == [code]
    assert rejected[0].detail
    assert code in CODES


@pytest.mark.parametrize(("what", "code", "change"), [case for case in BAD if "delta" in case[2] and case[1] == "nonfinite"])
def test_of_replies_that_are_rows_of_one_stack_the_bad_one_is_found(what: str, code: str, change: dict[str, Any]) -> None:
    rows = tree.unstack(tree.stack([state(1), change["delta"], state(2)]))
    replies = [reply(client, delta=row) for client, row in enumerate(rows)]
    accepted, rejected = Gate(SPEC)(replies, JOBS, SHARED)
    assert accepted == [replies[0], replies[2]]
    assert [(r.slot, r.code) for r in rejected] == [(Slot(1, 0), code)]


def test_rows_of_a_stack_with_another_schema_are_all_rejected() -> None:
    for leaf in (GOOD.t(), GOOD[:1], GOOD.half()):
        rows = tree.unstack(tree.stack([with_leaf(leaf)] * 2))
        accepted, rejected = Gate(SPEC)([reply(0, delta=rows[0]), reply(1, delta=rows[1]), reply(2)], JOBS, SHARED)
        assert [r.slot.client for r in accepted] == [2]
        assert [r.code for r in rejected] == ["schema", "schema"]


def test_the_first_of_two_replies_is_used() -> None:
    first, second = reply(0), reply(0, delta=state(99))
    accepted, rejected = Gate(SPEC)([first, second], JOBS, SHARED)
    assert accepted == [first]
    assert [r.code for r in rejected] == ["duplicate"]


def test_what_never_came_is_counted_with_the_rejected() -> None:
    """With the code that the engine gives; a reply that comes after all is used."""
    lost = [Failure(Slot(client, 0), "lost", "nothing came in time") for client in (0, 1)]
    accepted, rejected = Gate(SPEC)([*lost, reply(1)], JOBS, SHARED)
    assert [r.slot for r in accepted] == [Slot(1, 0)]
    assert rejected == [Rejection(Slot(client, 0), "lost", "nothing came in time") for client in (0, 1)]


def test_a_good_reply_after_a_bad_one_of_the_same_slot_is_used() -> None:
    accepted, rejected = Gate(SPEC)([reply(0, weight=-1.0), reply(0)], JOBS, SHARED)
    assert [r.weight for r in accepted] == [5.0]
    assert [r.code for r in rejected] == ["weight"]


def test_only_the_shared_leaves_may_come() -> None:
    accepted, rejected = Gate(SPEC)([reply(0)], JOBS, [KEY])
    assert accepted == []
    assert "unexpected" in rejected[0].detail


def test_the_cap_on_weights_can_be_set() -> None:
    assert Gate(SPEC, most=4)([reply(0)], JOBS, SHARED)[0] == []
    assert len(Gate(SPEC, most=5)([reply(0)], JOBS, SHARED)[0]) == 1
