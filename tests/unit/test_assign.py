"""Clustering of adapters: the space they are compared in, and k-means with and without cannot-link."""

from __future__ import annotations

import sys
from itertools import chain, permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from sklearn.cluster import KMeans
from torch import Tensor
from uploads import RANK, SPEC, World, federation, make_updates, new_hub, same_partition, state

from fedquilt import assign, tree
from fedquilt.assign import features, lloyd
from fedquilt.assign.kmeans import Cloud, own_slots
from fedquilt.assign.lloyd import plus_plus
from fedquilt.errors import CompositionError, ConfigError
from fedquilt.rng import numpy_generator
from fedquilt.types import Leaf, Round, Slot, Spec

NOW = Round(1, 0)
HEAD = "classifier/head.weight"


def stack(n: int, seed: int = 0) -> dict[str, Tensor]:
    return tree.stack([state(seed * 100 + i) for i in range(n)])


def dense(items: dict[str, Tensor], *, head: bool) -> Tensor:
    """Every s B A as a full matrix: what the Gram trick must equal."""
    parts = [SPEC.scale * (items[b] @ items[a]) for a, b in SPEC.pairs()]
    parts += [items[HEAD]] if head else []
    return torch.cat([part.flatten(1) for part in parts], 1)


def centred_gram(x: Tensor) -> Tensor:
    x = x - x.mean(0)
    return x @ x.t()


# -- features ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [False, True])
def test_gram_of_products_equals_dense_matrices(head: bool) -> None:
    items = stack(6)
    expected = centred_gram(dense(items, head=head))
    torch.testing.assert_close(features.gram(items, SPEC, "products", head), expected, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("kind", ["factors", "updates"])
def test_gram_of_factors_equals_dense_vectors(kind: features.Features, head: bool) -> None:
    items = stack(6)
    names = [key for key in items if head or key != HEAD]
    expected = centred_gram(tree.flatten_rows(tree.select(items, names)))
    torch.testing.assert_close(features.gram(items, SPEC, kind, head), expected, rtol=1e-12, atol=1e-12)


def test_products_are_invariant_to_the_gauge_and_factors_are_not() -> None:
    items = stack(5)
    stream = torch.Generator().manual_seed(1)
    gauge = torch.eye(RANK, dtype=torch.float64) + 0.4 * torch.randn(5, RANK, RANK, generator=stream, dtype=torch.float64)
    turned = dict(items)
    for a, b in SPEC.pairs():
        turned[a], turned[b] = torch.linalg.solve(gauge, items[a]), items[b] @ gauge
    gram = features.gram(items, SPEC, "products", False)
    torch.testing.assert_close(features.gram(turned, SPEC, "products", False), gram, rtol=1e-10, atol=1e-8)
    raw = features.gram(items, SPEC, "factors", False)
    assert (features.gram(turned, SPEC, "factors", False) - raw).abs().max() > 0.1 * raw.abs().max()


@given(st.integers(1, 8), st.integers(0, 1000))
def test_coordinates_keep_all_distances(n: int, seed: int) -> None:
    x = tree.flatten_rows(stack(n, seed)).numpy()
    points = features.coordinates(centred_gram(torch.from_numpy(x)))
    assert points.shape[0] == n
    assert points.shape[1] <= n
    np.testing.assert_allclose(pdist(points.numpy()) if points.shape[1] else np.zeros(n * (n - 1) // 2), pdist(x), rtol=1e-9)


def test_distances_do_not_cancel() -> None:
    # Trap 11: far from the origin, ||x||^2 + ||y||^2 - 2 x.y in float32 loses the distance; a true 0.200 must stay 0.200.
    stream = torch.Generator().manual_seed(0)
    spec = Spec("lora", (Leaf("m/lora_A", (1, 100_000), "lora_A", 0, 0), Leaf("m/lora_B", (1, 1), "lora_B", 0, 1)), 1.0, 1)
    x = torch.randn(1, 1, 100_000, generator=stream)
    way = torch.randn(1, 1, 100_000, generator=stream).double()
    y = (x.double() + 0.2 * way / way.norm()).float()
    true = float((x.double() - y.double()).norm())
    assert true == pytest.approx(0.2, abs=1e-3)
    expanded = (x.square().sum() + y.square().sum() - 2 * (x * y).sum()).clamp(min=0).sqrt().item()
    assert abs(expanded - true) > 0.005
    for kind in ("factors", "products"):
        a = torch.cat([x, y]).double()
        items = {"m/lora_A": a, "m/lora_B": torch.ones(2, 1, 1, dtype=torch.float64)}
        points = features.coordinates(features.gram(items, spec, kind, False))  # type: ignore[arg-type]
        assert float((points[0] - points[1]).norm()) == pytest.approx(true, rel=1e-6)


def test_products_need_pairs() -> None:
    with pytest.raises(ValueError, match="two low-rank factors"):
        features.gram({"h": torch.ones(2, 3)}, Spec("head", (Leaf("h", (3,), "head", 0),)), "products", False)


def test_values_are_what_was_uploaded_in_float64() -> None:
    updates = make_updates({Slot(0, 0): {"a": torch.tensor([0.5])}})
    updates.start["a"].fill_(2.0)
    found = features.uploaded(updates).whole(["a"])["a"]
    assert (found.tolist(), found.dtype) == ([[2.5]], torch.float64)


# -- Lloyd ---------------------------------------------------------------------------------------------------------------


def cloud(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_plain_in_coordinates_equals_sklearn_in_the_full_space(seed: int) -> None:
    x = tree.flatten_rows(stack(12, seed))
    points = features.coordinates(centred_gram(x))
    mine = lloyd.plain(points, points[[0, 5, 9]])
    theirs = KMeans(3, init=x[[0, 5, 9]].numpy(), n_init=1).fit(x.numpy())
    assert mine.labels.tolist() == theirs.labels_.tolist()
    assert mine.inertia == pytest.approx(theirs.inertia_, rel=1e-9)


def test_without_constraints_one_slot_per_client_equals_sklearn() -> None:
    # One slot per client: cannot-link has nothing to forbid, so Lloyd's algorithm must come out.
    points = cloud(15, 4, 3)
    theirs = KMeans(3, init=points[:3].numpy(), n_init=1, algorithm="lloyd", tol=0).fit(points.numpy())
    for mine in (lloyd.constrained(points, points[:3], list(range(15))), lloyd.nearest(points, points[:3])):
        assert mine.labels.tolist() == theirs.labels_.tolist()
        assert mine.inertia == pytest.approx(theirs.inertia_, rel=1e-12)


clients_strategy = st.lists(st.integers(1, 3), min_size=1, max_size=5).map(
    lambda sizes: [client for client, size in enumerate(sizes) for _ in range(size)]
)


@given(clients_strategy, st.integers(0, 2), st.integers(0, 10_000), st.booleans())
def test_cannot_link_is_never_violated_and_no_client_can_do_better(clients: list[int], more: int, seed: int, ties: bool) -> None:
    k = 3 + more
    points = cloud(len(clients), 3, seed)
    points = points.round() if ties else points
    start = cloud(k, 3, seed + 1)
    found = lloyd.constrained(points, start, clients)
    for client in set(clients):
        own = [int(label) for label, c in zip(found.labels, clients, strict=True) if c == client]
        assert len(set(own)) == len(own)
    centres = lloyd.from_labels(points, found.labels, k)
    centres = torch.where(centres.isnan(), start, centres)
    distance = lloyd.squared(points, centres)
    for client in set(clients):
        own = [i for i, c in enumerate(clients) if c == client]
        best = min(sum(distance[i, c].item() for i, c in zip(own, way, strict=True)) for way in permutations(range(k), len(own)))
        assert sum(distance[i, found.labels[i]].item() for i in own) <= best + 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_the_best_of_many_starts_is_the_brute_force_optimum(seed: int) -> None:
    clients, k = [0, 0, 1, 1, 2, 3], 2
    points = cloud(6, 2, seed)
    stream = np.random.default_rng(seed)
    found = min(lloyd.constrained(points, lloyd.plus_plus(points, k, stream), clients).inertia for _ in range(30))
    best = float("inf")
    for labels in product(range(k), repeat=6):
        if labels[0] != labels[1] and labels[2] != labels[3]:
            centres = lloyd.from_labels(points, torch.tensor(labels), k)
            best = min(best, float((points - centres[list(labels)]).square().sum()))
    assert found == pytest.approx(best, rel=1e-12)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(1, 12), st.integers(0, 100))
def test_plus_plus_takes_distinct_items_while_there_are_any(values: list[int], k: int, seed: int) -> None:
    points = torch.tensor(values, dtype=torch.float64)[:, None]
    k = min(k, len(values))
    chosen = lloyd.plus_plus(points, k, np.random.default_rng(seed)).flatten().tolist()
    assert len(chosen) == k
    assert len(set(chosen)) == min(k, len(set(values)))


def test_a_cluster_without_members_keeps_its_centre_and_its_name() -> None:
    points = torch.tensor([[0.0], [0.1], [5.0]], dtype=torch.float64)
    start = lloyd.from_labels(points, torch.tensor([0, 0, 2]), 4)
    assert start[1].isnan().all()
    assert start[3].isnan().all()
    for found in (lloyd.constrained(points, start, [0, 1, 2]), lloyd.nearest(points, start)):
        assert found.labels[:2].tolist() == [0, 0]
        assert found.labels[2] == 2
    # The centre of an absent group draws nobody: scikit-learn would move it to the farthest item.
    away = torch.tensor([[0.0], [5.0], [100.0]], dtype=torch.float64)
    assert lloyd.nearest(points, away).labels.tolist() == [0, 0, 1]
    # An unknown cluster opens only when a client has more slots than there are known ones.
    forced = lloyd.constrained(points, start, [0, 0, 0])
    assert len(set(forced.labels.tolist())) == 3


def test_it_stops_after_enough_iterations() -> None:
    points = cloud(40, 1, 0).sort(0).values  # from two far starts at one end the border needs several steps to travel
    whole = lloyd.nearest(points, points[:2])
    ones = points.new_ones(40)
    steps = [lloyd._until_stable(points, points[:2], ones, lambda d: d.argmin(1), most).inertia for most in range(1, 12)]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > steps[-1] == whole.inertia


# -- the part ------------------------------------------------------------------------------------------------------------


def test_one_puts_everybody_in_row_zero() -> None:
    found = assign.one()(make_updates({Slot(0, 0): state(1), Slot(4, 2): state(2)}), new_hub(1), SPEC, NOW)
    assert found.group.tolist() == [0, 0]
    assert assign.one().rows == 1


def test_what_a_part_sees_is_a_constant() -> None:
    assert (assign.one.sees, assign.kmeans.sees) == ("sum", "content")
    assert assign.kmeans(3).rows == 4
    with pytest.raises(TypeError):
        assign.kmeans(3, sees="sum")  # type: ignore[call-arg]


def test_impossible_settings_are_refused() -> None:
    hub = new_hub(2)
    three = make_updates({Slot(0, i): state(i) for i in range(3)})
    with pytest.raises(CompositionError, match="3 slots for 2 clusters"):
        assign.kmeans(2)(three, new_hub(3), SPEC, NOW)
    with pytest.raises(CompositionError, match="needs uploads"):
        assign.kmeans(1)(make_updates({Slot(0, 0): {}}), hub, SPEC, NOW)
    for bad in ({"k": 0}, {"k": 2, "restarts": 0}):
        with pytest.raises(ConfigError):
            assign.kmeans(**bad)
    head = Spec("head", SPEC.leaves[-1:])
    for part in (assign.kmeans(2), assign.kmeans(2, features="products", head=True)):
        with pytest.raises(CompositionError, match=r"low-rank|head"):
            part.check(head)
    assign.one().check(head)
    assign.kmeans(2, head=True).check(head)
    assign.kmeans(2, features="products").check(SPEC)


@pytest.mark.parametrize("constraint", ["cannot-link", "none"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_more_clusters_than_uploads(n: int, constraint: str) -> None:
    updates = make_updates({Slot(client, 0): state(client) for client in range(n)})
    found = assign.kmeans(5, constraint=constraint)(updates, new_hub(6), SPEC, NOW)  # type: ignore[arg-type]
    assert len(set(found.group.tolist())) == n
    assert all(1 <= row <= 5 for row in found.group.tolist())


@pytest.mark.parametrize("size", [1.0, 0.0])
@pytest.mark.parametrize("constraint", ["cannot-link", "none"])
@pytest.mark.parametrize("kind", ["factors", "products", "updates"])
def test_identical_adapters(constraint: str, kind: str, size: float) -> None:
    updates = make_updates({Slot(client, number): state(1, size) for client in range(3) for number in range(2)})
    part = assign.kmeans(3, constraint=constraint, features=kind)  # type: ignore[arg-type]
    group = part(updates, new_hub(4), SPEC, NOW).group
    assert all(1 <= row <= 3 for row in group.tolist())
    if constraint == "cannot-link":
        assert all(group[2 * client] != group[2 * client + 1] for client in range(3))


@pytest.mark.parametrize("kind", ["factors", "products", "updates"])
@pytest.mark.parametrize("constraint", ["cannot-link", "none"])
def test_the_planted_partition_is_found_whoever_owns_which_number(kind: str, constraint: str) -> None:
    truth = federation([0, 1, 2], [2, 0], [1], [0, 2, 1], [2, 1], [0])
    part = assign.kmeans(3, features=kind, constraint=constraint)  # type: ignore[arg-type]
    for turn in range(4):
        # The same uploads under other client numbers: the partition must follow them.
        names = np.random.default_rng(turn).permutation(6)
        renamed = {Slot(int(names[slot.client]), slot.number): task for slot, task in truth.items()}
        updates = World(renamed).uploads(new_hub(4), 1)
        rows = dict(zip(updates.origin, part(updates, new_hub(4), SPEC, NOW).group.tolist(), strict=True))
        assert same_partition(rows, renamed)


# -- where k-means starts ------------------------------------------------------------------------------------------------


def test_the_slots_of_one_client_are_starts() -> None:
    assert own_slots([0, 0, 1, 2, 2, 2]) == [[3, 4, 5], [0, 1]]
    points = torch.arange(12.0).reshape(6, 2)
    stream = numpy_generator(0, "x")
    assert torch.equal(plus_plus(points, 2, stream, [3, 4, 5]), points[[3, 4]])
    begun = plus_plus(points, 3, stream, [0, 1])
    assert torch.equal(begun[:2], points[:2])
    assert all(not torch.equal(begun[2], point) for point in begun[:2])


def least_inertia(points: Tensor) -> float:
    """Of all ways to pair three slots of each of five clients."""
    pairings = product(*[list(permutations(range(3)))] * 4)
    best = float("inf")
    for pairing in pairings:
        labels = torch.tensor([0, 1, 2, *chain.from_iterable(pairing)])
        groups = [points[labels == c] for c in range(3)]
        best = min(best, sum(float((group - group.mean(0)).square().sum()) for group in groups))
    return best


def test_they_find_the_least_inertia_where_random_starts_often_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clients, part = [client for client in range(5) for _ in range(3)], assign.kmeans(3, restarts=5)

    def optimal(points: Tensor, least: float, seed: int) -> bool:
        cloud = Cloud(points, points.new_ones(15), clients)
        return min(found.inertia for found in part._afresh(cloud, 3, Round(1, seed))) <= least * (1 + 1e-9)

    worlds = []
    for seed in range(12):
        noise = torch.randn((15, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        points = torch.eye(4, dtype=torch.float64)[:3].repeat(5, 1) * 1.5 + noise  # hardly apart
        worlds.append((points, least_inertia(points), seed))
    with_own = sum(optimal(*world) for world in worlds)
    monkeypatch.setattr(sys.modules[own_slots.__module__], "own_slots", lambda clients: [])
    assert with_own > sum(optimal(*world) for world in worlds)
    assert with_own >= 10
