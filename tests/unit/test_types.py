"""The nouns: checks, counts, and the ragged batch."""

from __future__ import annotations

import dataclasses
import random
import typing
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedquilt import rng
from fedquilt.types import Batch, Hub, Job, Leaf, Reply, Round, Slot, Spec, Updates

LEAVES = (
    Leaf("enc.1.q/lora_B", (4, 2), "lora_B", 1, 1),
    Leaf("enc.1.q/lora_A", (2, 3), "lora_A", 1, 0),
    Leaf("enc.0.q/lora_A", (2, 3), "lora_A", 0, 0),
    Leaf("enc.0.q/lora_B", (4, 2), "lora_B", 0, 1),
    Leaf("classifier.bias/head", (5,), "head", 2),
    Leaf("temperature/head", (), "head", 3),
)
SPEC = Spec("lora", LEAVES, scale=8.0, rank=2)


def updates(**changes: Any) -> Updates:
    fields: dict[str, Any] = {
        "delta": {"a": torch.tensor([[1.0], [2.0]])},
        "start": {"a": torch.zeros(2, 1)},
        "weight": torch.ones(2, dtype=torch.float64),
        "origin": (Slot(0, 1), Slot(3, 0)),
        "staleness": torch.zeros(2),
        "rank": torch.zeros(2),
    }
    return Updates(**{**fields, **changes})


def test_leaf_sizes() -> None:
    assert [leaf.size for leaf in LEAVES] == [8, 6, 6, 8, 5, 1]


def test_spec_counts_adapter_and_head_apart() -> None:
    assert SPEC.counts() == {"adapter": 28, "head": 6, "total": 34}
    assert SPEC.size("lora_A", "head") == 18
    assert Spec("full", LEAVES[:1]).counts() == {"adapter": 8, "head": 0, "total": 8}


def test_spec_names_are_sorted_and_selected_by_role() -> None:
    assert SPEC.names() == tuple(sorted(leaf.name for leaf in LEAVES))
    assert SPEC.names("lora_B") == ("enc.0.q/lora_B", "enc.1.q/lora_B")
    assert SPEC.names("prompt") == ()


def test_spec_pairs_are_in_model_order() -> None:
    assert SPEC.pairs() == [("enc.0.q/lora_A", "enc.0.q/lora_B"), ("enc.1.q/lora_A", "enc.1.q/lora_B")]
    assert Spec("head", LEAVES[4:]).pairs() == []


def test_round_randomness_is_that_of_rng() -> None:
    now = Round(3, 42)
    assert now.derive("cohort", 1) == rng.derive(42, "round", 3, "cohort", 1)
    assert now.generator("x").initial_seed() == rng.generator(42, "round", 3, "x").initial_seed()
    assert Round(4, 42).derive() != now.derive()


def test_nothing_that_travels_has_a_field_for_a_task_a_label_or_text() -> None:
    fields = {kind: {f.name for f in dataclasses.fields(kind)} for kind in (Job, Reply, Updates, Hub)}
    assert fields == {
        Job: {"slot", "row", "round", "effort"},
        Reply: {"slot", "round", "delta", "weight", "extra", "fingerprint"},
        Updates: {"delta", "start", "weight", "origin", "staleness", "rank", "extra"},
        Hub: {"bank", "table", "patch", "memory", "step"},
    }
    assert typing.get_type_hints(Slot) == {"client": int, "number": int}
    # Declared scalars only: no value of ``extra`` can be a string.
    assert typing.get_type_hints(Reply)["extra"] == Mapping[str, float]


@pytest.mark.parametrize("kind", [Job, Reply, Updates, Hub, Batch, Spec, Leaf, Round])
def test_nouns_are_frozen(kind: type) -> None:
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_updates_keep_what_they_are_given() -> None:
    mine = updates(extra={"loss": torch.tensor([0.5, 0.25])})
    assert len(mine) == 2
    other = mine.with_delta({"a": torch.full((2, 1), 7.0)})
    assert other.delta["a"].tolist() == [[7.0], [7.0]]
    assert mine.delta["a"].tolist() == [[1.0], [2.0]]
    assert other.extra is mine.extra


def test_updates_without_shared_leaves_are_legal() -> None:
    assert len(updates(delta={}, start={})) == 2


@pytest.mark.parametrize("origin", [(Slot(3, 0), Slot(0, 1)), (Slot(0, 1), Slot(0, 1)), (Slot(0, 2), Slot(0, 1))])
def test_updates_out_of_order_or_twice_are_refused(origin: tuple[Slot, ...]) -> None:
    with pytest.raises(ValueError, match="sorted by"):
        updates(origin=origin)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta": {"a": torch.ones(3, 1)}}, "delta has 3 rows for 2 slots"),
        ({"start": {"a": torch.ones(1, 1)}}, "start has 1 rows for 2 slots"),
        ({"start": {"b": torch.ones(2, 1)}}, "differ in keys"),
        ({"start": {}}, "differ in keys"),
        ({"weight": torch.ones(3)}, "length 3 for 2"),
        ({"staleness": torch.ones(1)}, "length 1 for 2"),
        ({"rank": torch.ones(4)}, "length 4 for 2"),
        ({"extra": {"loss": torch.ones(5)}}, "length 5 for 2"),
    ],
)
def test_updates_that_do_not_fit_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        updates(**changes)


def test_a_slot_that_never_contributed_reads_row_zero() -> None:
    hub = Hub({"a": torch.zeros(3, 2)}, {Slot(1, 0): 2})
    assert hub.row_of(Slot(1, 0)) == 2
    assert hub.row_of(Slot(1, 1)) == 0
    assert Hub({}).row_of(Slot(9, 9)) == 0


@pytest.mark.parametrize("row", [-1, 3])
def test_a_table_that_points_outside_the_bank_is_refused(row: int) -> None:
    with pytest.raises(ValueError, match="outside the bank of 3 rows"):
        Hub({"a": torch.zeros(3, 2)}, {Slot(0, 0): row})


def patch(k: int = 3) -> dict[str, torch.Tensor]:
    return {"enc.0.q/patch_A": torch.zeros(k, 2, 5), "enc.0.q/patch_B": torch.zeros(k, 4, 2)}


def test_a_patch_belongs_to_a_row_as_two_factors() -> None:
    Hub({"a": torch.zeros(3, 2)}, patch=patch())
    bank = {"a": torch.zeros(3, 2)}
    one = {"enc.0.q/patch_A": patch()["enc.0.q/patch_A"]}
    with pytest.raises(ValueError, match="pairs of low-rank factors"):
        Hub(bank, patch=one)
    with pytest.raises(ValueError, match="pairs of low-rank factors"):
        Hub(bank, patch={"enc.0.q/weight": torch.zeros(3, 4, 5)})
    with pytest.raises(ValueError, match="one patch per row"):
        Hub(bank, patch=patch(k=1))
    with pytest.raises(ValueError, match="one patch per row"):
        Hub(bank, patch={key: x[:, 0] for key, x in patch().items()})


def ragged(lengths: list[int], first: int = 0) -> tuple[Batch, list[dict[str, Any]]]:
    """A batch, and the same rows as python lists: the oracle."""
    source = random.Random(first)
    rows = [
        {
            "tokens": [source.randrange(1000) for _ in range(n)],
            "types": [source.randrange(2) for _ in range(n)],
            "lengths": n,
            "labels": float(source.randrange(3)),
            "classes": source.randrange(1, 4),
            "owner": first + i,
            "head": source.randrange(5),
            "keys": source.randrange(2**62),
        }
        for i, n in enumerate(lengths)
    ]
    return pack(rows), rows


def pack(rows: list[dict[str, Any]]) -> Batch:
    def column(name: str) -> torch.Tensor:
        return torch.tensor([row[name] for row in rows], dtype=torch.float64 if name == "labels" else torch.long)

    flat = {name: torch.tensor([t for row in rows for t in row[name]], dtype=torch.long) for name in ("tokens", "types")}
    return Batch(**flat, **{name: column(name) for name in ("lengths", "labels", "classes", "owner", "head", "keys")})


def same(a: Batch, b: Batch) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Batch)]
    return all(x is y is None or torch.equal(x, y) for x, y in pairs)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=8), st.data())
def test_picking_rows_of_a_ragged_batch(lengths: list[int], data: st.DataObject) -> None:
    batch, rows = ragged(lengths)
    index = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=8))
    picked = batch.pick(torch.tensor(index, dtype=torch.long))
    assert len(picked) == len(index)
    assert same(picked, pack([rows[i] for i in index]))


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3), min_size=1, max_size=4))
def test_concatenating_ragged_batches(groups: list[list[int]]) -> None:
    parts = [ragged(lengths, first=10 * i) for i, lengths in enumerate(groups)]
    assert same(Batch.cat([batch for batch, _ in parts]), pack([row for _, rows in parts for row in rows]))


def images(rows: list[int]) -> Batch:
    """Images that are constant: row i is a 2 x 2 image of the number i."""
    n, number = len(rows), torch.tensor(rows)
    empty = torch.empty(0, dtype=torch.long)
    pixels = number[:, None, None, None].expand(n, 3, 2, 2).to(torch.uint8)
    return Batch(empty, empty, torch.full((n,), 5), number.double(), number, number, number, number, pixels)


def test_picking_and_concatenating_images() -> None:
    batch = images([3, 1, 4, 1])
    assert same(batch.pick(torch.tensor([2, 0])), images([4, 3]))
    assert same(Batch.cat([images([3]), images([1, 4, 1])]), batch)
    assert batch.pick(torch.tensor([0])).pixels.dtype == torch.uint8  # type: ignore[union-attr]
