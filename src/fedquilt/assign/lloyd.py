"""Lloyd's algorithm on points: plain (scikit-learn), from known clusters, and with at most one slot of a client each.

Everywhere ``weight [n]`` is how much a point counts, 1 by default: one of which little is known must not be a cluster of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedquilt.rng import generator

MOST = 2**21  # differences that are formed; where there are more, products are
AT_ONCE = 2**16  # numbers that are copied at a time: half a MB
ROWS = 1024  # items


@dataclass(frozen=True)
class Clustering:
    """Labels ``[n]`` int64 in 0..k-1 and the weighted sum of squared distances to the own centre."""

    labels: Tensor
    inertia: float


def squared(points: Tensor, centres: Tensor) -> Tensor:
    """Squared distances ``[n, k]``; NaN centres (empty clusters) are infinitely far."""
    if points.numel() * len(centres) <= MOST:
        rows = points.split(max(1, AT_ONCE // max(1, centres.numel())))
        distance = torch.cat([(some[:, None] - centres[None]).square_().sum(2) for some in rows])
    else:  # points are centred and float64: what cancels here is far below what tells clusters apart
        lengths = torch.linalg.vector_norm(points, dim=1).square()[:, None] + centres.square().sum(1)
        distance = (lengths - points @ (2 * centres).t()).clamp(min=0)
    return torch.nan_to_num(distance, nan=float("inf"))


def plus_plus(
    points: Tensor, k: int, stream: np.random.Generator, first: Sequence[int] = (), weight: Tensor | None = None
) -> Tensor:
    """k starting centres: the items ``first``, others by k-means++ (Arthur & Vassilvitskii 2007); distinct while there are any."""
    counts = _weights(points, weight).numpy()
    chosen = list(first[:k]) or [int(stream.choice(len(points), p=counts / counts.sum()))]
    nearest = squared(points, points[chosen]).min(1).values.numpy() * counts
    while len(chosen) < k:
        nearest[chosen] = 0.0
        total = nearest.sum()
        free = next((i for i in range(len(points)) if i not in chosen), 0)
        chosen.append(int(stream.choice(len(points), p=nearest / total)) if total > 0 else free)
        nearest = np.minimum(nearest, squared(points, points[chosen[-1:]])[:, 0].numpy() * counts)
    return points[chosen]


def farthest(points: Tensor, k: int, weight: Tensor) -> Tensor:
    """k starting centres: always the point that is farthest from those before it, first from the mean (Gonzalez 1985)."""
    distance = squared(points, _mean(points, weight, weight > 0)[None])[:, 0]
    chosen: list[int] = []
    while len(chosen) < k:
        chosen.append(int((distance * weight).argmax()))
        own = squared(points, points[chosen[-1:]])[:, 0]
        distance = own if len(chosen) == 1 else torch.minimum(distance, own)
    return points[chosen]


def from_labels(points: Tensor, labels: Tensor, k: int, weight: Tensor | None = None) -> Tensor:
    """Means of known groups ``[k, d]`` (label -1: unknown). A cluster nobody belongs to is NaN: never nearest, kept empty."""
    counts = _weights(points, weight)
    return torch.stack([_mean(points, counts, labels == c) for c in range(k)])


def plain(points: Tensor, start: Tensor, weight: Tensor | None = None) -> Clustering:
    """scikit-learn's KMeans from this start, on one thread (the row order is the caller's: sorted by slot)."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    distinct, inverse = torch.unique(points, dim=0, return_inverse=True)
    if len(distinct) <= len(start):  # fewer distinct items than clusters: every distinct item is its own cluster
        return Clustering(inverse, 0.0)
    with threadpool_limits(1):
        model = KMeans(len(start), init=start.numpy(), n_init=1).fit(points.numpy(), sample_weight=_weights(points, weight).numpy())
    return Clustering(torch.as_tensor(model.labels_, dtype=torch.long), float(model.inertia_))


def nearest(points: Tensor, start: Tensor, weight: Tensor | None = None) -> Clustering:
    """Lloyd's algorithm in which an empty cluster keeps its centre. (scikit-learn moves it to a far item: the row of a task
    that is absent from a cohort would be given to a split of another task.)"""
    return _until_stable(points, start, _weights(points, weight), lambda distance: distance.argmin(1))


def constrained(points: Tensor, start: Tensor, clients: Sequence[int], weight: Tensor | None = None) -> Clustering:
    """Slots of one client get different clusters: per client a Hungarian assignment on its distances, then means, until stable.

    Both halves lower the inertia, so it ends. A cluster that loses all members keeps its centre. NaN centres take a slot only
    when a client has more slots than there are real ones: the new centre is then that slot.
    """
    owner = torch.unique(torch.as_tensor(clients), return_inverse=True)[1]
    counts = _weights(points, weight)
    return _until_stable(points, start, counts, lambda distance: assigned(distance * counts[:, None], owner))


def silhouette(points: Tensor, labels: Tensor, weight: Tensor | None = None) -> float:
    """Mean silhouette in [-1, 1] (Rousseeuw 1987), of many items that of :data:`ROWS` of them; 0 where it is not defined:
    one cluster, or every item its own."""
    from sklearn.metrics import silhouette_samples

    counts = _weights(points, weight)
    if len(points) > ROWS:  # drawn, not spaced: clients with equally many slots would alias
        some = torch.randperm(len(points), generator=generator(0, "silhouette"))[:ROWS]
        points, labels, counts = points[some], labels[some], counts[some]
    if not 1 < len(torch.unique(labels)) < len(labels):
        return 0.0
    return float(np.average(silhouette_samples(points.numpy(), labels.numpy()), weights=counts.numpy()))


def _weights(points: Tensor, weight: Tensor | None) -> Tensor:
    return points.new_ones(len(points)) if weight is None else weight


def _blocks(points: Tensor, *beside: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Points and what belongs to them, as many at a time as have :data:`AT_ONCE` numbers."""
    step = max(1, AT_ONCE // max(1, points.shape[1]))
    return zip(*(x.split(step) for x in (points, *beside)), strict=True)


def _mean(points: Tensor, counts: Tensor, chosen: Tensor) -> Tensor:
    """Weighted mean of the chosen points ``[d]``, of which a few are copied at a time; NaN of none."""
    parts = _blocks(points, counts, chosen)
    total = torch.stack([(some[own] * many[own, None]).sum(0) for some, many, own in parts]).sum(0)
    return total / counts[chosen].sum()


def _until_stable(
    points: Tensor, start: Tensor, counts: Tensor, label: Callable[[Tensor], Tensor], iterations: int = 100
) -> Clustering:
    centres = start.clone()
    labels = torch.full((len(points),), -1, dtype=torch.long)
    for _ in range(iterations):
        new = label(squared(points, centres))
        if torch.equal(new, labels):
            break
        labels = new
        for c in torch.unique(labels).tolist():
            centres[c] = _mean(points, counts, labels == c)
    parts = _blocks(points, labels, counts)
    return Clustering(labels, sum(float((some - centres[own]).square_().sum(1) @ many) for some, own, many in parts))


def assigned(distance: Tensor, owner: Tensor) -> Tensor:
    """The cheapest different clusters for items ``[n]`` of the same ``owner [n]``, numbered from 0."""
    from scipy.optimize import linear_sum_assignment

    finite = distance[distance.isfinite()]
    cost = torch.nan_to_num(distance, posinf=float(finite.max()) * 1e6 + 1.0)
    labels = cost.argmin(1)  # optimal for everybody whose items differ here already
    taken = torch.bincount(owner * cost.shape[1] + labels)
    order, sizes = torch.argsort(owner, stable=True), torch.bincount(owner).tolist()
    members = order.split(sizes)
    for client in torch.unique(torch.nonzero(taken > 1).flatten() // cost.shape[1]).tolist():
        item, cluster = linear_sum_assignment(cost[members[client]].numpy())
        labels[members[client][torch.as_tensor(item)]] = torch.as_tensor(cluster)
    return labels
