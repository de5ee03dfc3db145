"""Losses of single rows, shared by every way of running a model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from fedquilt import tree
from fedquilt.types import Batch


def row_losses(logits: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """Loss of every row ``[n]`` from ``logits [n, C]``; labels and classes are on the host.

    Rows with ``classes >= 2`` get the cross-entropy over their own first ``classes`` logits (a head may be wider than a task's
    label set); rows with ``classes == 1`` the squared error of logit 0.
    """
    width = logits.shape[1]
    outside = torch.arange(width).unsqueeze(0) >= classes.unsqueeze(1)
    masked = logits.masked_fill(tree.there(outside, logits.device), float("-inf"))
    regression = classes == 1
    target = torch.where(regression, torch.zeros_like(labels), labels).long()
    entropy = F.cross_entropy(masked, tree.there(target, logits.device), reduction="none")
    if not bool(regression.any()):
        return entropy
    wanted = tree.there(labels.to(logits.dtype), logits.device)
    return torch.where(tree.there(regression, logits.device), (logits[:, 0] - wanted).square(), entropy)


def slot_means(rows: Tensor, owner: Tensor, slots: int) -> Tensor:
    """Mean of ``rows [n]`` per owner (on the host): ``[slots]`` (0 for an owner without rows)."""
    count = tree.there(torch.bincount(owner, minlength=slots).clamp(min=1), rows.device)
    return rows.new_zeros(slots).index_add(0, tree.there(owner, rows.device), rows) / count


def cut(batch: Batch, budget: int, extra: int = 0, *, padded: bool = False) -> list[Batch]:
    """Rows of similar length together, at most ``budget`` tokens at a time (a longer row alone); the batch itself where it fits.

    ``extra``: virtual tokens that the model puts before every row; ``padded``: every row counts as the longest.

    The mean loss of the batch is the sum of the pieces' means, each times its share of the rows.
    """
    lengths = batch.lengths + extra
    if padded:
        lengths = torch.full_like(lengths, int(lengths.max()))
    if int(lengths.sum()) <= budget:
        return [batch]
    order = torch.sort(batch.lengths, stable=True).indices
    return [batch.pick(order[some]) for some in fill(lengths[order].tolist(), budget)]


def fill(lengths: Sequence[int], budget: int) -> list[slice]:
    """Neighbours together, as many as fit into ``budget``; one that is longer is alone."""
    begins, total = [0] if lengths else [], 0
    for place, length in enumerate(lengths):
        if total and total + length > budget:
            begins.append(place)
            total = 0
        total += length
    return [slice(begin, end) for begin, end in pairwise([*begins, len(lengths)])]
