"""Clustering by what every slot asked for over the rounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from uploads import SPEC, World, federation, make_updates, new_hub, same_partition, state

from fedquilt import assign, local, method
from fedquilt.assign.history import extend, recall
from fedquilt.types import Hub, Round, Slot

NAMES = [leaf.name for leaf in SPEC.leaves if leaf.role == "lora_B"]
ONE_EACH = federation([0], [0], [0], [1], [1], [1])


def stepped(how: str, hub: Hub, world: World, number: int, **options: object) -> Hub:
    """One server step of a method that clusters by ``how``; the optimum is approached slowly, so a merge pulls hard."""
    composed = method.Method(
        "test", local.sgd(0.1, steps=1), slots="task", assign=assign.kmeans(2, features=how, constraint="none")
    )
    updates = world.uploads(hub, number, progress=dict.fromkeys(world.truth, 0.1), **options)
    return method.server_step(composed, SPEC, hub, updates, Round(number, 0))[0]


def misled(hub: Hub, world: World) -> Hub:
    """After round 1, as if one slot of each task had been taken for the other's: every row has come to the mean of its members."""
    wrong = {slot: 1 + (1 - task if slot.client in (2, 3) else task) for slot, task in ONE_EACH.items()}
    first, second = world.optimum[0], world.optimum[1]
    bank = {
        key: torch.stack([x[0], (2 * first[key] + second[key]) / 3, (first[key] + 2 * second[key]) / 3])
        for key, x in hub.bank.items()
    }
    return replace(hub, bank=bank, table=wrong)


@pytest.mark.parametrize(("how", "recovers"), [("history", True), ("b_factors", False)])
def test_a_wrong_first_merge_is_undone(how: str, recovers: bool) -> None:
    world = World(ONE_EACH, noise=0.005)
    hub = misled(stepped(how, new_hub(3), world, 1), world)
    for number in range(2, 8):
        hub = stepped(how, hub, world, number)
    assert same_partition(hub.table, ONE_EACH) is recovers


def test_who_is_away_is_clustered_with_the_others() -> None:
    world = World(ONE_EACH, noise=0.005)
    hub = misled(stepped("history", new_hub(3), world, 1), world)
    for number in range(2, 5):
        hub = stepped("history", hub, world, number, only=[0, 1, 4, 5])
    assert same_partition(hub.table, ONE_EACH), "clients 2 and 3 were given the wrong row and never came back"


def test_a_cohort_without_a_task_forgets_nothing() -> None:
    world = World(ONE_EACH, noise=0.005)
    hub = stepped("history", new_hub(3), world, 1)
    before = dict(hub.table)
    for number in range(2, 5):
        hub = stepped("history", hub, world, number, only=[0, 1])
    assert hub.table == before


@given(st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=5))
def test_it_is_the_mean_of_everybodys_own_updates(rounds: list[set[int]]) -> None:
    given_: dict[Slot, list[dict[str, torch.Tensor]]] = {}
    past = recall({})
    for number, clients in enumerate(rounds):
        deltas = {Slot(client, 1): state(100 * number + client) for client in clients}
        for slot, delta in deltas.items():
            given_.setdefault(slot, []).append(delta)
        past = recall(extend(past, make_updates(deltas), NAMES).memory())
    assert past.slots == tuple(sorted(given_))
    assert sorted(past.mean().leaves) == sorted(NAMES)
    mean = past.mean().whole(NAMES)
    for i, slot in enumerate(past.slots):
        for key in NAMES:
            torch.testing.assert_close(
                mean[key][i], torch.stack([delta[key] for delta in given_[slot]]).mean(0), rtol=0, atol=1e-12
            )
