"""Which row a cluster gets, and with whose adapter it goes on: a slot that sat out must never read another task's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from uploads import SPEC, World, federation, make_updates, new_hub, same_partition, state

from fedquilt import apply, assign, local, tree
from fedquilt.assign.identity import by_members
from fedquilt.method import Method, server_step
from fedquilt.types import Hub, Round, Slot

HEAD = "classifier/head.weight"
B = [leaf.name for leaf in SPEC.leaves if leaf.role == "lora_B"]
TASK_OF = {0: 0, 1: 1, 2: 0, 3: 1}  # client -> task; clients 0 and 1 are there in round 1, 2 and 3 in round 2
GOAL = {0: state(1), 1: state(2)}


def method(k: int, features: str, step: apply.Apply | None = None) -> Method:
    part = assign.kmeans(k, features=features)  # type: ignore[arg-type]
    return Method("m", local.sgd(1.0, steps=1), slots="task", assign=part, apply=step or apply.add())


ITEMS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=8)


@given(ITEMS)
def test_rows_keep_as_many_items_as_any_renaming_could(pairs: list[tuple[int, int]]) -> None:
    labels, before = torch.tensor([a for a, _ in pairs]), torch.tensor([b for _, b in pairs])
    rows = by_members(labels, before, 3).table
    best = max(int((torch.tensor(names)[labels] == before).sum()) for names in permutations((1, 2, 3)))
    assert int((rows == before).sum()) == best
    assert same_partition(dict(enumerate(labels.tolist())), dict(enumerate(rows.tolist())))


@given(ITEMS)
def test_a_row_goes_on_with_the_one_that_most_of_its_members_had(pairs: list[tuple[int, int]]) -> None:
    labels, before = torch.tensor([a for a, _ in pairs]), torch.tensor([b for _, b in pairs])
    rows, source = by_members(labels, before, 3)
    assert int(source[0]) == 0
    for row in (1, 2, 3):
        had = [b for r, b in zip(rows.tolist(), before.tolist(), strict=True) if r == row]
        known = [b for b in had if b]
        if not had:
            assert int(source[row]) == row
        elif not known:
            assert int(source[row]) == 0
        else:
            assert known.count(int(source[row])) == max(map(known.count, known))
            assert int(source[row]) == row or known.count(row) < known.count(int(source[row]))


def split(world: World, step: apply.Apply) -> list[Hub]:
    """Two rounds: with ten newcomers, one of two clusters becomes two and two become one; client 0 is away in round 2.

    Task 0 is client 0; task 1 clients 1 and 2, and 5 to 14 in round 2; task 2 clients 3 and 4, whose data differ somewhat.
    """
    turn = torch.linalg.qr(torch.randn(60, 3, generator=torch.Generator().manual_seed(0)))[0]
    places = {0: [1.0, 0, 0], 3: [0.0, 8, -0.565], 4: [0.0, 8, 0.565]}
    hubs, part = [new_hub(4)], method(3, "fisher", step)
    for number, cohort in ((1, range(5)), (2, range(5, 15))):
        updates = world.uploads(hubs[-1], number, only=cohort, progress=dict.fromkeys(world.truth, 0.8))
        looks = torch.stack([turn @ torch.tensor(places.get(slot.client, [0.0, 0, 0])) for slot in updates.origin])
        updates = replace(updates, extra={"fingerprint": looks})
        hubs.append(server_step(part, SPEC, hubs[-1], updates, Round(number, 0))[0])
    return hubs


@pytest.mark.parametrize("step", [apply.add(), apply.momentum(0.5)])
def test_who_is_away_keeps_its_adapter_when_others_get_its_row(step: apply.Apply) -> None:
    _, before, after = split(World(federation([0], [1], [1], [2], [2], *[[1]] * 10), noise=0.0), step)
    old, new = before.row_of(Slot(0, 0)), after.row_of(Slot(0, 0))
    assert old != new, "nothing was put to the test"
    assert new not in {row for slot, row in after.table.items() if slot.client >= 5}
    assert tree.equal(tree.row(after.bank, new), tree.row(before.bank, old))
    assert not tree.equal(tree.row(after.bank, new), tree.row(before.bank, new))
    for key in (key for key in after.memory if key.startswith("momentum/")):
        assert torch.equal(after.memory[key][new], before.memory[key][old])


def test_a_row_that_goes_on_with_another_s_adapter_ends_where_its_members_do() -> None:
    # What is averaged is start + delta, whatever the row held before: one step of add leads to the mean of the uploads.
    world = World(federation([0], [1], [1], [2], [2], *[[1]] * 10), noise=0.0)
    _, before, after = split(world, apply.add())
    uploads = world.uploads(before, 2, only=range(5, 15), progress=dict.fromkeys(world.truth, 0.8))
    (row,) = {row for slot, row in after.table.items() if slot.client >= 5}
    for key, x in after.bank.items():
        torch.testing.assert_close(x[row], (uploads.start[key] + uploads.delta[key]).mean(0), rtol=0, atol=1e-12)


def two_cohorts(features: str, *, skew: float = 0.0, flipped: bool = False) -> Hub:
    """Clients 0 and 1 in round 1, clients 2 and 3, of the same two tasks, in round 2, all on their way to their task's goal.

    Args:
        skew: heads differ by so much with the labels that a client has: opposite for the two clients of a task.
        flipped: round 2 uploads -A and -B, which are the same change of the model.
    """
    head = state(3)[HEAD]
    hub = new_hub(3, state(0, 0.0))
    for number, cohort in ((1, (0, 1)), (2, (2, 3))):
        deltas: dict[Slot, Mapping[str, Tensor]] = {}
        for client in cohort:
            goal = dict(GOAL[TASK_OF[client]])
            goal[HEAD] = goal[HEAD] + (skew if client in (0, 3) else -skew) * head
            sign = -1.0 if flipped and number == 2 else 1.0
            goal = {key: x if key == HEAD else sign * x for key, x in goal.items()}
            deltas[Slot(client, 0)] = tree.sub(goal, tree.row(hub.bank, hub.row_of(Slot(client, 0))))
        hub, _ = server_step(method(2, features), SPEC, hub, make_updates(deltas, hub), Round(number, 0))
    return hub


@pytest.mark.parametrize("features", ["b_factors", "factors", "products", "updates", "history"])
def test_heads_that_are_not_compared_do_not_decide_about_rows(features: str) -> None:
    hub = two_cohorts(features, skew=3.0)
    assert same_partition(hub.table, {Slot(client, 0): task for client, task in TASK_OF.items()})


def test_rows_of_products_do_not_depend_on_the_gauge() -> None:
    assert two_cohorts("products", flipped=True).table == two_cohorts("products").table
    assert not same_partition(two_cohorts("factors", flipped=True).table, {Slot(c, 0): task for c, task in TASK_OF.items()})
