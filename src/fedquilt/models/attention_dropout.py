"""Attention with dropout of its probabilities, for rows of many lengths: torch's fused attention cannot take a mask of ours.

Queries, keys and values of all rows are brought into the order (length, row, head) once, so that every length is a batch of
matrices that lie one behind the other, and the masks of all lengths are hashed together. What is left for each length are two
products with a softmax between them, and their counterparts on the way back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedquilt.models.dropout import SeededDropout, attention_keys, fates, scale, words


class Layout(NamedTuple):
    """Where everything of a pass is, the same in every layer.

    Attributes:
        groups: (rows, length) of each length.
        forth: ``[T heads]`` for every place in the order (length, row, head, position) the token's head that stands there; ``back``
            undoes it.
        words: what is hashed for the masks, ``[rows heads length, words]`` of every length after one another, flat.
    """

    groups: list[tuple[int, int]]
    forth: Tensor
    back: Tensor
    words: Tensor


def layout(groups: list[tuple[int, int]], heads: int, keys: Tensor) -> Layout:
    """``keys [n]``: of the rows, by which their masks are hashed."""
    forth, hashed, token, row = [], [], 0, 0
    for rows, length in groups:
        places = torch.arange(rows * length * heads).view(rows, length, heads) + token * heads
        forth.append(places.transpose(1, 2).flatten())
        hashed.append(words(attention_keys(keys[row : row + rows], heads, length), length).flatten())
        token, row = token + rows * length, row + rows
    order = torch.cat(forth)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return Layout(groups, order, back, torch.cat(hashed))


def attend(q: Tensor, k: Tensor, v: Tensor, factor: float, dropout: SeededDropout, where: Layout) -> Tensor:
    """Of rows that all see all of themselves. ``q, k, v [T, heads, d]``; ``factor``: of the scores; returns ``[T, heads d]``."""
    kept = fates(where.words, dropout.p, dropout.site)
    out: Tensor = _Attend.apply(q, k, v, factor, kept, scale(dropout.p), where)  # type: ignore[no-untyped-call]
    return out


class _Group(NamedTuple):
    """One length: ``q, k, v [rows heads, length, d]`` and what else is asked for, the probabilities and which of them stay."""

    matrices: list[Tensor]
    probabilities: Tensor
    kept: Tensor


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, factor: float, kept: Tensor, grown: float, where: Layout) -> Tensor:
        heads = q.shape[1]
        flat = [_flat(x).index_select(0, where.forth) for x in (q, k, v)]
        probabilities = q.new_empty(sum(rows * heads * length * length for rows, length in where.groups))
        out = torch.empty_like(flat[0])
        for (query, key, value, made), found, stay in _groups([*flat, out], probabilities, kept, where.groups, heads):
            torch.baddbmm(found, query, key.transpose(1, 2), beta=0, alpha=factor, out=found)
            torch.softmax(found, -1, out=found)
            torch.baddbmm(made, stay.to(q.dtype).mul_(found), value, beta=0, alpha=grown, out=made)
        ctx.save_for_backward(*flat, probabilities, kept)
        ctx.other = factor, grown, where
        return out.index_select(0, where.back).view(len(q), -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *flat, probabilities, kept = ctx.saved_tensors
        factor, grown, where = ctx.other
        heads = len(flat[0]) // len(grad)
        flat.append(_flat(grad.view(len(grad), heads, -1)).index_select(0, where.forth))
        made = [torch.empty_like(x) for x in flat[:3]]
        for matrices, found, stay in _groups([*flat, *made], probabilities, kept, where.groups, heads):
            query, key, value, given, to_query, to_key, to_value = matrices
            mask = stay.to(grad.dtype)
            by_probability = torch.bmm(given, value.transpose(1, 2)).mul_(mask).mul_(grown)
            torch.baddbmm(to_value, mask.mul_(found).transpose(1, 2), given, beta=0, alpha=grown, out=to_value)
            by_score = torch._softmax_backward_data(by_probability, found, -1, found.dtype)
            torch.baddbmm(to_query, by_score, key, beta=0, alpha=factor, out=to_query)
            torch.baddbmm(to_key, by_score.transpose(1, 2), query, beta=0, alpha=factor, out=to_key)
        back = (x.index_select(0, where.back).view(len(grad), heads, -1) for x in made)
        return (*back, None, None, None, None)


def _flat(x: Tensor) -> Tensor:
    """``[T, heads, d]`` as ``[T heads, d]``."""
    return x.reshape(-1, x.shape[-1])


def _groups(
    matrices: list[Tensor], probabilities: Tensor, kept: Tensor, groups: list[tuple[int, int]], heads: int
) -> Iterator[_Group]:
    """Length by length, as views."""
    token = square = byte = 0
    for rows, length in groups:
        n, wide = rows * heads, 4 * ((length + 3) // 4)
        tokens, squares, bytes_ = token + n * length, square + n * length * length, byte + n * length * wide
        yield _Group(
            [x[token:tokens].view(n, length, -1) for x in matrices],
            probabilities[square:squares].view(n, length, length),
            kept[byte:bytes_].view(n, length, wide)[..., :length],
        )
        token, square, byte = tokens, squares, bytes_
