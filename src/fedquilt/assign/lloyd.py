"""Lloyd's algorithm on exact coordinates: plain (scikit-learn), from known clusters, and with at most one slot of a client each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Clustering:
    """Labels ``[n]`` int64 in 0..k-1 and the sum of squared distances to the own centre."""

    labels: Tensor
    inertia: float


def squared(points: Tensor, centres: Tensor) -> Tensor:
    """Squared distances ``[n, k]`` by differences; NaN centres (empty clusters) are infinitely far."""
    distance = (points[:, None] - centres[None]).square().sum(2)
    return torch.nan_to_num(distance, nan=float("inf"))


def plus_plus(points: Tensor, k: int, stream: np.random.Generator, first: Sequence[int] = ()) -> Tensor:
    """k starting centres: the items ``first``, others by k-means++ (Arthur & Vassilvitskii 2007); distinct while there are any."""
    chosen = list(first[:k]) or [int(stream.integers(len(points)))]
    while len(chosen) < k:
        nearest = squared(points, points[chosen]).min(1).values.numpy()
        nearest[chosen] = 0.0
        total = nearest.sum()
        free = [i for i in range(len(points)) if i not in chosen]
        chosen.append(int(stream.choice(len(points), p=nearest / total)) if total > 0 else free[0])
    return points[chosen]


def from_labels(points: Tensor, labels: Tensor, k: int) -> Tensor:
    """Means of known groups ``[k, d]`` (label -1: unknown). A cluster nobody belongs to is NaN: never nearest, kept empty."""
    means = [points[labels == c].mean(0) if bool((labels == c).any()) else points[0] * float("nan") for c in range(k)]
    return torch.stack(means)


def plain(points: Tensor, start: Tensor) -> Clustering:
    """scikit-learn's KMeans from this start, on one thread (the row order is the caller's: sorted by slot)."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    distinct, inverse = torch.unique(points, dim=0, return_inverse=True)
    if len(distinct) <= len(start):  # fewer distinct items than clusters: every distinct item is its own cluster
        return Clustering(inverse, 0.0)
    with threadpool_limits(1):
        model = KMeans(len(start), init=start.numpy(), n_init=1).fit(points.numpy())
    return Clustering(torch.as_tensor(model.labels_, dtype=torch.long), float(model.inertia_))


def nearest(points: Tensor, start: Tensor) -> Clustering:
    """Lloyd's algorithm in which an empty cluster keeps its centre. (scikit-learn moves it to a far item: the row of a task
    that is absent from a cohort would be given to a split of another task.)"""
    return _until_stable(points, start, lambda distance: distance.argmin(1))


def constrained(points: Tensor, start: Tensor, clients: Sequence[int]) -> Clustering:
    """Slots of one client get different clusters: per client a Hungarian assignment on its distances, then means, until stable.

    Both halves lower the inertia, so it ends. A cluster that loses all members keeps its centre. NaN centres take a slot only
    when a client has more slots than there are real ones: the new centre is then that slot.
    """
    groups = [[i for i, c in enumerate(clients) if c == client] for client in sorted(set(clients))]
    return _until_stable(points, start, lambda distance: _assign(distance, groups))


def silhouette(points: Tensor, labels: Tensor) -> float:
    """Mean silhouette in [-1, 1] (Rousseeuw 1987); 0 where it is not defined: one cluster, or every item its own."""
    from sklearn.metrics import silhouette_score

    if not 1 < len(torch.unique(labels)) < len(labels):
        return 0.0
    return float(silhouette_score(points.numpy(), labels.numpy()))


def _until_stable(points: Tensor, start: Tensor, label: Callable[[Tensor], Tensor], iterations: int = 100) -> Clustering:
    centres = start.clone()
    labels = torch.full((len(points),), -1, dtype=torch.long)
    for _ in range(iterations):
        new = label(squared(points, centres))
        if torch.equal(new, labels):
            break
        labels = new
        for c in torch.unique(labels).tolist():
            centres[c] = points[labels == c].mean(0)
    return Clustering(labels, float((points - centres[labels]).square().sum()))


def _assign(distance: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    from scipy.optimize import linear_sum_assignment

    finite = distance[distance.isfinite()]
    cost = torch.nan_to_num(distance, posinf=float(finite.max()) * 1e6 + 1.0)
    labels = torch.empty(len(distance), dtype=torch.long)
    for members in groups:
        item, cluster = linear_sum_assignment(cost[members].numpy())
        labels[torch.as_tensor(members)[torch.as_tensor(item)]] = torch.as_tensor(cluster)
    return labels
