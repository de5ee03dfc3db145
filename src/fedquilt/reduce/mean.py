"""Weighted means inside groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from fedquilt import tree
from fedquilt.types import Stack, Updates

Weighting = Literal["samples", "uniform"]

ROWS, COLUMNS = 32, 8192  # of a block: 2 MB in float64


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

    A block of contributors and columns at a time, so that the float64 copies stay in the cache. On a CPU ``index_add_`` adds one
    contributor after the other, so neither blocks nor threads change a bit of the sums.
    """
    n, weight = len(group), weight.double()
    flat = {key: tree.as_matrix(x) for key, x in stack.items()}
    out = {key: x.new_empty(rows, x.shape[1]) for key, x in flat.items()}
    mass = weight.new_zeros(rows).index_add_(0, group, weight).clamp_(min=torch.finfo(torch.float64).tiny)[:, None]
    columns = min(COLUMNS, sum(x.shape[1] for x in flat.values()))
    total, wide = weight.new_empty(rows, columns), weight.new_empty(min(n, ROWS), columns)
    for pieces in _blocks({key: x.shape[1] for key, x in flat.items()}):
        width = pieces[-1].block.stop
        sums = total[:, :width].zero_()
        for above in range(0, n, ROWS):
            some = slice(above, above + ROWS)
            block = wide[: len(group[some]), :width]
            for piece in pieces:
                block[:, piece.block].copy_(flat[piece.key][some, piece.leaf])
            sums.index_add_(0, group[some], block.mul_(weight[some, None]))
        sums.div_(mass)
        for piece in pieces:
            out[piece.key][:, piece.leaf] = sums[:, piece.block]
    return {key: x.reshape(rows, *stack[key].shape[1:]) for key, x in out.items()}


class _Piece(NamedTuple):
    """Columns of a leaf, and where they are in a block."""

    key: str
    leaf: slice
    block: slice


def _blocks(widths: Mapping[str, int]) -> Iterator[list[_Piece]]:
    """All leaves beside each other, ``COLUMNS`` at a time."""
    pieces: list[_Piece] = []
    full = 0
    for key, width in widths.items():
        done = 0
        while done < width:
            more = min(width - done, COLUMNS - full)
            pieces.append(_Piece(key, slice(done, done + more), slice(full, full + more)))
            done, full = done + more, full + more
            if full == COLUMNS:
                yield pieces
                pieces, full = [], 0
    if pieces:
        yield pieces
