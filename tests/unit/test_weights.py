"""Slots of which little is known count less in a clustering: weights against repeated items, and what they are for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from uploads import SPEC, make_updates, new_hub, state

from fedquilt.assign import kmeans, lloyd
from fedquilt.assign.features import standardised
from fedquilt.assign.history import WEIGHT, extend, recall
from fedquilt.assign.kmeans import LOOKED
from fedquilt.models.fingerprint import Fisher
from fedquilt.rng import generator
from fedquilt.types import Round, Slot

TIMES = torch.tensor([1, 3, 2, 1, 4, 1, 2, 2, 1, 1, 3, 5])


def cloud(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points without any clusters, and the same with every one as often as it counts."""
    points = torch.randn(len(TIMES), 3, generator=generator(seed, "cloud"), dtype=torch.float64)
    return points, points.repeat_interleave(TIMES, 0)


@pytest.mark.parametrize("run", [lloyd.nearest, lloyd.plain])
@pytest.mark.parametrize("seed", range(5))
def test_a_weight_is_a_number_of_copies(run: Any, seed: int) -> None:
    points, copies = cloud(seed)
    found, expected = run(points, points[:3], TIMES.double()), run(copies, points[:3])
    assert torch.equal(found.labels.repeat_interleave(TIMES), expected.labels)
    assert found.inertia == pytest.approx(expected.inertia)
    assert not torch.equal(found.labels, run(points, points[:3]).labels) or seed, "the weights changed nothing"


def test_so_it_is_for_moments_means_and_silhouettes() -> None:
    points, copies = cloud(0)
    ones = torch.ones(len(copies), dtype=torch.float64)
    torch.testing.assert_close(
        standardised(points, TIMES.double()).repeat_interleave(TIMES, 0), standardised(copies, ones), rtol=1e-12, atol=1e-12
    )
    labels = torch.arange(len(TIMES)) % 3
    torch.testing.assert_close(
        lloyd.from_labels(points, labels, 4, TIMES.double()),
        lloyd.from_labels(copies, labels.repeat_interleave(TIMES), 4),
        equal_nan=True,
    )
    assert bool(lloyd.from_labels(points, labels, 4, TIMES.double())[3].isnan().all())
    silhouettes = [lloyd.silhouette(points, labels, weight) for weight in (None, TIMES.double())]
    assert silhouettes[0] != silhouettes[1]


def test_inside_a_client_the_heavier_slot_has_the_first_choice() -> None:
    """Two slots of one client want the same cluster; whoever counts more gets it."""
    points = torch.tensor([[0.0], [0.1], [0.0], [5.0]], dtype=torch.float64)
    centres = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    for heavy, expected in ((0, [0, 1]), (1, [1, 0])):
        weight = torch.ones(4, dtype=torch.float64)
        weight[heavy] = 100.0
        distance = lloyd.squared(points[:2], centres) * weight[:2, None]
        assert lloyd.assigned(distance, torch.tensor([0, 0])).tolist() == expected


def test_starts_are_drawn_by_weight() -> None:
    points = torch.arange(4.0, dtype=torch.float64)[:, None]
    weight = torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    for seed in range(5):
        assert lloyd.plus_plus(points, 1, np.random.default_rng(seed), weight=weight).tolist() == [[2.0]]


def test_the_farthest_points_are_far_and_count() -> None:
    """From everybody's mean on; a point that hardly counts is not taken before one that does."""
    points = torch.tensor([[0.0], [1.0], [10.0], [11.0], [100.0]], dtype=torch.float64)
    ones = torch.ones(5, dtype=torch.float64)
    assert lloyd.farthest(points, 3, ones).flatten().tolist() == [100.0, 0.0, 11.0]
    light = torch.tensor([1.0, 1.0, 1.0, 1.0, 1e-4], dtype=torch.float64)
    assert lloyd.farthest(points, 2, light).flatten().tolist() == [0.0, 11.0]


def test_the_server_knows_how_many_examples_squared_gradients_are_of() -> None:
    assert Fisher.examples == LOOKED
    first = make_updates({Slot(0, 0): state(0), Slot(2, 0): state(1)}, weights={Slot(0, 0): 5.0, Slot(2, 0): 7.0})
    past = extend(recall({}), first, [])
    second = make_updates({Slot(1, 0): state(2), Slot(2, 0): state(3)}, weights={Slot(1, 0): 9.0, Slot(2, 0): 8.0})
    past = extend(recall(past.memory()), second, [])
    assert past.weight.tolist() == [5.0, 9.0, 8.0]
    before = {key: x for key, x in past.memory().items() if key != WEIGHT}
    assert bool(recall(before).weight.isinf().all()), "in a run from before weights were kept all count the same"


@pytest.mark.parametrize("constraint", ["none", "cannot-link"])
@pytest.mark.parametrize("few", [1.0, 300.0])
def test_a_slot_with_one_example_is_no_cluster_of_its_own(few: float, constraint: Any) -> None:
    """Its squared gradient is far from everything. If it counted like the others, it would take a cluster of its own."""
    stream = generator(1, "few")
    truth = torch.tensor([0, 1] * 10)
    looks = torch.randn(2, 400, generator=stream)[truth] + 0.3 * torch.randn(20, 400, generator=stream)
    looks[7] += 8 * torch.randn(400, generator=stream)
    slots = [Slot(i, 0) for i in range(20)]
    weights = {slot: few if slot.client == 7 else 300.0 for slot in slots}
    updates = make_updates({slot: state(i) for i, slot in enumerate(slots)}, weights=weights)
    updates = replace(updates, extra={"fingerprint": looks})
    group = kmeans(2, features="fisher", constraint=constraint)(updates, new_hub(3), SPEC, Round(1, 0)).group
    others = torch.arange(20) != 7
    apart = torch.equal(group[others] == group[0], truth[others] == truth[0])
    assert apart == (few == 1.0)
