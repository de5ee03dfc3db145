"""Weighted means inside groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from fedquilt.types import Stack, Updates

Weighting = Literal["samples", "uniform"]


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
        touched = torch.bincount(group, minlength=rows) > 0
        out = {}
        for key in sorted(updates.delta):
            delta = updates.delta[key]
            share = weight.view(-1, *[1] * (delta.dim() - 1)).double()
            if key in self.trained_only:
                changed = delta.flatten(2).ne(0).any(2) if delta.dim() > 2 else delta.ne(0)
                share = share * changed.view(*changed.shape, *[1] * (delta.dim() - changed.dim()))
            total = _sums(share * delta.double(), group, rows)
            mass = _sums(share, group, rows)
            out[key] = torch.where(mass > 0, total / mass.clamp(min=torch.finfo(torch.float64).tiny), 0.0).to(delta.dtype)
        return out, touched


def _sums(values: Tensor, group: Tensor, rows: int) -> Tensor:
    """Sum per group, one contributor after the other: index_add's own order is not promised on every device."""
    out = values.new_zeros((rows, *values.shape[1:]))
    for index, row in enumerate(group.tolist()):
        out[row] += values[index]
    return out
