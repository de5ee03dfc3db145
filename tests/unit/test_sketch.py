"""Many adapters: sketches against exact distances, and clusterings by them against exact ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from uploads import SPEC, new_hub

from fedquilt import tree
from fedquilt.assign import features, kmeans, lloyd, sketch
from fedquilt.assign.kmeans import Cloud, of_some_clients
from fedquilt.assign.kmeans import kmeans as part_of
from fedquilt.assign.sketch import Items
from fedquilt.rng import generator, numpy_generator
from fedquilt.types import Hub, Leaf, Round, Slot, Spec, Updates

NAMES = [leaf.name for leaf in SPEC.leaves if "/head." not in leaf.name]
EVERY = ("b_factors", "factors", "products", "updates", "history", "fingerprint", "fisher")


def sketched(items: Items, names: list[str], width: int, seed: int) -> Tensor:
    out = torch.zeros(items.n, width, dtype=torch.float64)
    sketch.Sketch(width, seed).add(out, items, names)
    return out


def probed(items: Items, width: int, seed: int) -> Tensor:
    out = torch.zeros(items.n, width, dtype=torch.float64)
    sketch.Sketch(width, seed).add_products(out, items, SPEC)
    return out


def random_stack(n: int, seed: int) -> dict[str, Tensor]:
    stream = generator(seed, "stack")
    return {leaf.name: torch.randn(n, *leaf.shape, generator=stream) for leaf in SPEC.leaves}


def test_a_sketch_keeps_inner_products_in_expectation() -> None:
    """Over 4,000 seeds, to five standard errors; linear in the items."""
    items = features.stacked(random_stack(2, 0))
    found = torch.stack([sketched(items, NAMES, 7, seed) for seed in range(4000)])
    exact = tree.flatten_rows(items.whole(NAMES))
    for i, j in ((0, 0), (0, 1), (1, 1)):
        inner = (found[:, i] * found[:, j]).sum(1)
        assert abs(float(inner.mean() - exact[i] @ exact[j])) < 5 * float(inner.std()) / math.sqrt(len(inner))
    both = features.stacked({key: x[:1] + 2 * x[1:] for key, x in items.whole(NAMES).items()})
    torch.testing.assert_close(sketched(both, NAMES, 7, 3), found[3, :1] + 2 * found[3, 1:])


def test_probed_products_keep_theirs_whatever_the_gauge() -> None:
    """Against the products themselves; B G and G^-1 A give the same numbers."""
    stack = random_stack(2, 1)
    items = features.stacked(stack)
    found = torch.stack([probed(items, 5, seed) for seed in range(4000)])
    exact = torch.cat([(SPEC.scale * stack[b].double() @ stack[a].double()).flatten(1) for a, b in SPEC.pairs()], 1)
    for i, j in ((0, 0), (0, 1), (1, 1)):
        inner = (found[:, i] * found[:, j]).sum(1)
        assert abs(float(inner.mean() - exact[i] @ exact[j])) < 5 * float(inner.std()) / math.sqrt(len(inner))
    turned = {key: x.double() for key, x in stack.items()}
    for a, b in SPEC.pairs():
        g = torch.randn(2, SPEC.rank, SPEC.rank, generator=generator(2), dtype=torch.float64)
        turned[a], turned[b] = torch.linalg.solve(g, turned[a]), turned[b] @ g
    torch.testing.assert_close(probed(features.stacked(turned), 5, 0), found[0])


def test_what_is_sketched_is_not_written_to() -> None:
    """Parts are copies, in float64 as well: signs are put on in place."""
    stack = {key: x.double() for key, x in random_stack(3, 2).items()}
    items, before = features.stacked(stack), {key: x.clone() for key, x in stack.items()}
    first = sketched(items, NAMES, 7, 0), probed(items, 5, 0), items.means(torch.tensor([0, 1, 1]), 2)
    again = sketched(items, NAMES, 7, 0), probed(items, 5, 0), items.means(torch.tensor([0, 1, 1]), 2)
    assert all(torch.equal(x, before[key]) for key, x in stack.items())
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def one_feature(layers: int) -> Tensor:
    """The same number is large in every layer of 768, with its own size and sign in each item and layer."""
    x = 0.01 * torch.randn(20, layers, 768, generator=generator(10), dtype=torch.float64)
    x[:, :, 308] += torch.randn(20, layers, generator=generator(11), dtype=torch.float64)
    return x


@pytest.mark.parametrize("n", [2, 10_000, 100_000])
@pytest.mark.parametrize(
    "leaves",
    [
        torch.randn(20, 1, 30_000, generator=generator(3), dtype=torch.float64),
        torch.randn(20, 300, 40, generator=generator(3), dtype=torch.float64),
        one_feature(1000),
    ],
    ids=["one leaf", "small leaves", "a large feature"],
)
def test_the_wider_the_closer(n: int, leaves: Tensor) -> None:
    """Squared distances of 20 items in so many leaves, by the width that so many items get."""
    parts = {f"{i:04d}": leaf for i, leaf in enumerate(leaves.unbind(1))}
    found = sketched(features.stacked(parts), list(parts), sketch.width(n), 0)
    ratio = (torch.pdist(found) / torch.pdist(leaves.flatten(1))).square()
    expected = math.sqrt(2 / sketch.width(n))
    assert float((ratio - 1).abs().max()) < 4.5 * expected
    assert float((ratio - 1).std()) < 1.3 * expected


@pytest.mark.parametrize("maps", [1, 12])
def test_products_are_as_close_whatever_the_number_of_maps(maps: int) -> None:
    """Squared distances of 20 random products of rank 2."""
    leaves, stack = [], {}
    for i in range(maps):
        leaves += [Leaf(f"{i}/lora_A", (2, 96), "lora_A", i, 0), Leaf(f"{i}/lora_B", (64, 2), "lora_B", i, 1)]
        stack[f"{i}/lora_A"] = torch.randn(20, 2, 96, generator=generator(i, "a"), dtype=torch.float64)
        stack[f"{i}/lora_B"] = torch.randn(20, 64, 2, generator=generator(i, "b"), dtype=torch.float64)
    spec = Spec("lora", tuple(leaves), scale=3.0, rank=2)
    found = torch.zeros(20, sketch.width(1000), dtype=torch.float64)
    sketch.Sketch(sketch.width(1000), 0).add_products(found, features.stacked(stack), spec)
    exact = torch.cat([(3.0 * stack[b] @ stack[a]).flatten(1) for a, b in spec.pairs()], 1)
    ratio = (torch.pdist(found) / torch.pdist(exact)).square()
    assert float((ratio - 1).abs().max()) < 4.5 * math.sqrt(2 / sketch.width(1000)) * (1.5 if maps == 1 else 1.0)


def test_standard_is_standardised_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(50, 9, generator=generator(4)) * 3 + 5
    x[:, 4] = 2.0
    weight = torch.rand(50, generator=generator(4), dtype=torch.float64)
    monkeypatch.setattr(sketch, "AT_ONCE", 7 * 9)
    found = torch.cat([part.clone() for _, part in sketch.standard(x, weight).parts("")])
    torch.testing.assert_close(found, features.standardised(x, weight))


def test_means_of_groups_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    stack, labels = random_stack(23, 5), torch.arange(23) % 4 % 3
    monkeypatch.setattr(sketch, "AT_ONCE", 30)
    found = features.stacked(stack).means(labels, 4)
    whole = tree.flatten_rows(tree.map_leaves(Tensor.double, stack))
    torch.testing.assert_close(found[:3], torch.stack([whole[labels == c].mean(0) for c in range(3)]))
    assert not bool(found[3].any())


@pytest.mark.parametrize("seed", range(30))
def test_only_clients_whose_nearest_clusters_collide_need_a_match(seed: int) -> None:
    """The same cost as an assignment for every client; never two items of one client in a cluster."""
    stream = generator(seed, "cost")
    owner = torch.arange(5).repeat_interleave(torch.tensor([1, 2, 3, 6, 2]))[torch.randperm(14, generator=stream)]
    distance = torch.rand(14, 6, generator=stream, dtype=torch.float64)
    labels = lloyd.assigned(distance, owner)
    for client in range(int(owner.max()) + 1):
        mine = distance[owner == client]
        rows, columns = linear_sum_assignment(mine.numpy())
        own = labels[owner == client]
        assert len(set(own.tolist())) == len(own)
        assert float(mine[torch.arange(len(own)), own].sum()) == pytest.approx(float(mine[rows, columns].sum()))


def test_distances_by_products_are_those_by_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(40, 30, generator=generator(6), dtype=torch.float64)
    centres = torch.cat([points[:3], points[3:4] * float("nan"), points[4:6] + 1])
    exact = lloyd.squared(points, centres)
    monkeypatch.setattr(lloyd, "MOST", 0)
    torch.testing.assert_close(lloyd.squared(points, centres), exact, rtol=1e-12, atol=1e-12)
    assert bool(exact[:, 3].isinf().all())


def test_some_clients_with_all_their_items() -> None:
    clients = [client for client in range(400) for _ in range(1 + client % 3)]
    some = of_some_clients(clients, numpy_generator(0, "x")).tolist()
    assert sketch.EXACT <= len(some) < sketch.EXACT + 3
    chosen = {clients[i] for i in some}
    assert some == [i for i, client in enumerate(clients) if client in chosen]
    assert of_some_clients([1, 1, 5], numpy_generator(0, "x")).tolist() == [0, 1, 2]


# ---- clusterings ---------------------------------------------------------------------------------------------------------

TASKS = 4


def crowd(clients: int) -> tuple[Updates, Tensor]:
    """Every client has one to four of four tasks that pull in their own directions; the task of every upload."""
    slots, tasks = [], []
    stream = generator(7, "crowd")
    for client in range(clients):
        own = torch.randperm(TASKS, generator=stream)[: 1 + client % TASKS].tolist()
        slots += [Slot(client, number) for number in range(len(own))]
        tasks += own
    truth = torch.tensor(tasks)
    n, pull, noise = len(slots), random_stack(TASKS, 8), random_stack(len(slots), 9)
    start = {key: new_hub(TASKS + 1).bank[key][torch.zeros(n, dtype=torch.long)] for key in NAMES}
    looks = torch.randn(TASKS, 50, generator=stream)[truth] + 0.3 * torch.randn(n, 50, generator=stream)
    updates = Updates(
        {key: pull[key][truth] + 0.3 * noise[key] for key in NAMES},
        start,
        torch.ones(n, dtype=torch.float64),
        tuple(slots),
        torch.zeros(n),
        torch.full((n,), SPEC.rank),
        {"fingerprint": looks},
    )
    return updates, truth


@pytest.mark.parametrize("constraint", ["cannot-link", "none"])
@pytest.mark.parametrize("chosen", EVERY)
def test_a_crowd_is_clustered_as_if_exactly(chosen: Any, constraint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same partition as without sketches and samples, and the right one; in the second round, too."""
    part = part_of(TASKS, features=chosen, constraint=constraint, restarts=4)
    updates, truth = crowd(130)
    assert len(updates) > sketch.EXACT

    def partitions() -> list[Tensor]:
        hub, found = new_hub(TASKS + 1), []
        for number in (1, 2):
            assigned = part(updates, hub, SPEC, Round(number, 0))
            table = dict(zip(updates.origin, assigned.group.tolist(), strict=True))
            bank = {key: x.clone() for key, x in hub.bank.items()}
            for row in range(1, TASKS + 1):
                for key in NAMES:
                    bank[key][row] = (updates.start[key] + updates.delta[key])[assigned.group == row].mean(0)
            hub = Hub(bank, table, memory=dict(assigned.memory), step=number)
            found.append(assigned.group)
        return found

    sketched = partitions()
    for module in (features, kmeans_module()):
        monkeypatch.setattr(module, "EXACT", 10**9)
    exact = partitions()
    for found in (*sketched, *exact):
        pairs = {(int(a), int(b)) for a, b in zip(found, truth, strict=True)}
        assert len(pairs) == TASKS
    assert torch.equal(sketched[0], sketched[1]), "rows keep their identity"


def kmeans_module() -> Any:
    """The module behind the part of the same name."""
    import sys

    return sys.modules[kmeans.__module__]


@pytest.mark.parametrize("seed", range(5))
def test_a_task_that_few_have_is_found(seed: int) -> None:
    """Four of 4,000 slots, none of which need be among those that starts are looked for with."""
    stream = generator(seed, "few")
    truth = torch.randint(0, 3, (4000,), generator=stream)
    truth[torch.randperm(4000, generator=stream)[:4]] = 3
    points = 10 * torch.randn(4, 40, generator=stream, dtype=torch.float64)[truth]
    points = points + torch.randn(4000, 40, generator=stream, dtype=torch.float64)
    cloud = Cloud.of(points, [Slot(i, 0) for i in range(4000)])
    found, _ = part_of(4, constraint="none")._best(cloud, None, Round(1, seed), fresh=True)
    assert len({(int(a), int(b)) for a, b in zip(found.labels, truth, strict=True)}) == 4


def test_the_number_of_clusters_of_a_crowd() -> None:
    part: Callable[..., Any] = part_of(7, features="fisher", restarts=4, estimate=True)
    updates, truth = crowd(450)
    found = part(updates, new_hub(8), SPEC, Round(1, 0))
    assert found.metrics["clusters"] == TASKS
    assert len({(int(a), int(b)) for a, b in zip(found.group, truth, strict=True)}) == TASKS
