"""The number of tasks is not known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from uploads import SPEC, World, federation, new_hub, same_partition

from fedquilt import assign, local, method
from fedquilt.assign.features import Features
from fedquilt.assign.lloyd import silhouette
from fedquilt.types import Hub, Round, Slot

FOUR = federation([0, 1, 2], [1, 2], [2, 3], [3, 0], [0, 1, 3], [2])


def stepped(hub: Hub, world: World, number: int, most: int, features: Features = "b_factors") -> tuple[Hub, dict[str, float]]:
    part = assign.kmeans(most, features=features, estimate=True, restarts=20)
    composed = method.Method("test", local.sgd(0.1, steps=1), slots="task", assign=part)
    after, metrics = method.server_step(composed, SPEC, hub, world.uploads(hub, number), Round(number, 0))
    return after, dict(metrics)


@pytest.mark.parametrize("features", ["b_factors", "factors", "products", "history"])
@pytest.mark.parametrize("most", [4, 7])
def test_the_number_and_the_partition_are_found_and_kept(features: Features, most: int) -> None:
    world, hub = World(FOUR), new_hub(most + 1)
    tables = []
    for number in (1, 2, 3):
        hub, metrics = stepped(hub, world, number, most, features)
        tables.append(dict(hub.table))
        assert metrics["clusters"] == 4
        assert 0.3 < metrics["silhouette"] <= 1
    assert same_partition(tables[0], FOUR)
    assert tables[0] == tables[1] == tables[2]


def test_a_task_that_arrives_later_gets_a_row_of_its_own() -> None:
    early = {slot: task for slot, task in FOUR.items() if task < 3}
    world, hub = World(FOUR), new_hub(7)
    for number in (1, 2):
        world.truth = early
        hub, metrics = stepped(hub, world, number, 6)
        assert metrics["clusters"] == 3
    before = dict(hub.table)
    world.truth = FOUR
    hub, metrics = stepped(hub, world, 3, 6)
    assert metrics["clusters"] == 4
    assert same_partition(hub.table, FOUR)
    assert {slot: hub.table[slot] for slot in before} == before


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 99))
def test_never_fewer_than_one_client_s_slots_nor_more_than_allowed(slots: list[int], seed: int) -> None:
    truth = {Slot(client, number): 0 for client, n in enumerate(slots) for number in range(n)}
    hub, _ = stepped(new_hub(6), World(truth, noise=1.0, seed=seed), 1, 5)
    assert max(slots) <= len(set(hub.table.values())) <= 5


@given(st.integers(2, 4), st.integers(0, 1000))
def test_silhouette_equals_its_definition(k: int, seed: int) -> None:
    stream = np.random.default_rng(seed)
    x, labels = stream.normal(size=(9, 3)), np.concatenate([np.arange(k), stream.integers(0, k, 9 - k)])
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)
    scores = []
    for i in range(9):
        own = (labels == labels[i]) & (np.arange(9) != i)
        if not own.any():
            scores.append(0.0)
            continue
        a = distance[i, own].mean()
        b = min(distance[i, labels == c].mean() for c in range(k) if c != labels[i])
        scores.append((b - a) / max(a, b))
    assert silhouette(torch.as_tensor(x), torch.as_tensor(labels)) == pytest.approx(np.mean(scores), abs=1e-12)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_where_it_is_not_defined_it_is_zero(labels: list[int]) -> None:
    assert silhouette(torch.eye(3, dtype=torch.float64), torch.tensor(labels)) == 0
