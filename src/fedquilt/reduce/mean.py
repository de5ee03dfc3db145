"""Weighted means inside groups."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Annotated, ClassVar, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from fedquilt import tree
from fedquilt.types import Stack, Updates

Weighting = Annotated[
    Literal["samples", "uniform"],
    Field(description="of uploads in an average: by the numbers of training examples, or all alike"),
]

NUMBERS, COLUMNS = 65_536, 4096  # of a block: 512 KB in float64, so that it and the sums stay in a core's own cache


class Reduce(Protocol):
    """Combine the rows of each group."""

    sees: ClassVar[str]

    @property
    def unweighted(self) -> bool:
        """Whether every contribution counts the same (what central noise is calibrated for)."""
        ...

    def __call__(self, updates: Updates, group: Tensor, rows: int) -> tuple[Stack, Tensor]:
        """Reduced ``[rows, ...]`` and which rows got anything ``[rows]`` (bool)."""
        ...


@dataclass(frozen=True)
class mean:
    """delta_k = sum_{i in group k} p_i delta_i with p_i = n_i / sum n (``samples``) or 1 / |group| (``uniform``).

    Source: FedAvg (McMahan et al. 2017) is ``samples`` with one group; FL-TAC (Ping et al. 2024, section 3.2) is ``uniform``.
    Sums are taken in the order of the updates (ascending slot) in float64 and cast once, so arrival order cannot matter.

    Args:
        trained_only: average a leaf's head ``h`` (leading axis of per-task heads) over the contributors that changed it,
            so a head that few clients train is not diluted by the zeros of the others.

    Shapes: delta ``[n, ...]``, group ``[n]`` int64 -> ``[rows, ...]``. Rows without contributors are zero.
    """

    weighting: Weighting = "samples"
    trained_only: tuple[str, ...] = ()

    sees: ClassVar[str] = "sum"

    @property
    def unweighted(self) -> bool:
        return self.weighting == "uniform"

    def __call__(self, updates: Updates, group: Tensor, rows: int) -> tuple[Stack, Tensor]:
        weight = torch.ones_like(updates.weight) if self.weighting == "uniform" else updates.weight
        whole = tree.select(updates.delta, [key for key in updates.delta if key not in self.trained_only])
        out = means(whole, weight, group, rows)
        for key in set(updates.delta) - set(whole):
            out[key] = _heads_apart(updates.delta[key], weight, group, rows)
        return dict(sorted(out.items())), torch.bincount(group, minlength=rows) > 0


def _heads_apart(delta: Tensor, weight: Tensor, group: Tensor, rows: int) -> Tensor:
    """Every head ``[n, heads, ...]`` as a contributor of its own, to a group of its own, if it changed."""
    heads = delta.shape[1]
    each = tree.as_matrix(delta.flatten(0, 1))
    share = weight.repeat_interleave(heads) * each.ne(0).any(1)
    where = (group[:, None] * heads + torch.arange(heads)).flatten()
    return means({"": each}, share, where, rows * heads)[""].reshape(rows, *delta.shape[1:])


def means(stack: Stack, weight: Tensor, group: Tensor, rows: int) -> dict[str, Tensor]:
    """Weighted mean ``[rows, ...]`` of finite ``stack [n, ...]`` per group; 0 where nothing weighs.

    A block of contributors and columns of a leaf at a time, so that the float64 copies stay in the cache. On a CPU ``index_add_``
    adds one contributor after the other, so neither blocks nor threads change a bit of the sums.
    """
    n, weight = len(group), weight.double()
    flat = {key: tree.as_matrix(x) for key, x in stack.items()}
    mass = weight.new_zeros(rows).index_add_(0, group, weight).clamp_(min=torch.finfo(torch.float64).tiny)[:, None]
    alike = bool((weight == 1).all())  # times 1 changes no bit
    widest = min(COLUMNS, max((x.shape[1] for x in flat.values()), default=0))
    total, wide = weight.new_empty(rows * widest), weight.new_empty(min(n * widest, max(NUMBERS, widest)))

    @cache  # leaves have few widths, and making views takes as long as the sums of a small leaf
    def views(width: int) -> tuple[Tensor, list[tuple[slice, Tensor, Tensor, Tensor]]]:
        """Sums ``[rows, width]``, and of every block: its contributors, their groups, weights and float64 copies."""
        step = max(1, NUMBERS // width)
        copies = wide[: min(n, step) * width].view(-1, width)
        blocks = [slice(begin, begin + step) for begin in range(0, n, step)]
        return total[: rows * width].view(rows, width), [(b, group[b], weight[b, None], copies[: n - b.start]) for b in blocks]

    out = {key: x.new_empty(rows, x.shape[1]) for key, x in flat.items()}
    for key, x in flat.items():
        for columns in _columns(x.shape[1]):
            sums, blocks = views(columns.stop - columns.start)
            sums.zero_()
            for some, groups, weights, copies in blocks:
                copies.copy_(x[some, columns])
                sums.index_add_(0, groups, copies if alike else copies.mul_(weights))
            out[key][:, columns] = sums.div_(mass)
    return {key: x.reshape(rows, *stack[key].shape[1:]) for key, x in out.items()}


def _columns(width: int) -> list[slice]:
    """All columns of a leaf, at most ``COLUMNS`` at a time."""
    return [slice(begin, min(begin + COLUMNS, width)) for begin in range(0, width, COLUMNS)]
