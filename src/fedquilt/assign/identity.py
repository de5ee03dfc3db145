"""Which bank row a cluster gets: labels of k-means are arbitrary, and a row must keep its meaning over the rounds.

Who is away may be in a cluster that loses its row to a part of it. Nothing is trained into the row that the cluster gets in its
place, so that row must bring along what its members had: a slot that sat out would read another task's adapter.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """Rows ``[n]`` of items, and ``source [k + 1]``: the row whose adapter and moments each row goes on with, most its own."""

    table: Tensor
    source: Tensor


def by_place(labels: Tensor, centres: Tensor, rows: Tensor) -> Tensor:
    """Rows 1..k ``[n]`` for cluster ``labels [n]``: the match with the smallest squared distances from the clusters' ``centres
    [k, d]`` to those of the ``rows [k, d]``, in the space in which items are compared."""
    used = torch.unique(labels)
    distance = torch.cdist(centres[used], rows, compute_mode="donot_use_mm_for_euclid_dist").square()
    matched = torch.zeros(len(centres), dtype=torch.long)
    matched[used] = match(distance)
    return matched[labels] + 1


def by_members(labels: Tensor, before: Tensor, k: int) -> Rows:
    """The match that leaves most items in the row they had, ``before [n]`` (0: none).

    A cluster goes on with the row that most of its members had, also if another cluster gets that row; one of newcomers alone with
    row 0, which they start from. A row that no cluster gets stays as it is.
    """
    shared = torch.zeros((k, k), dtype=torch.long)
    known = before > 0
    shared.index_put_((labels[known], before[known] - 1), torch.ones(1, dtype=torch.long), accumulate=True)
    row, source = match(-shared), torch.arange(k + 1)
    for cluster in torch.unique(labels).tolist():
        members, own = shared[cluster], int(row[cluster])
        if members[own] < members.max():
            source[own + 1] = int(members.argmax()) + 1
        elif not members.any():
            source[own + 1] = 0
    return Rows(row[labels] + 1, source)


def match(cost: Tensor) -> Tensor:
    """The cheapest different column for every row of ``cost``."""
    from scipy.optimize import linear_sum_assignment

    _, column = linear_sum_assignment(cost.numpy())
    return torch.as_tensor(column)
