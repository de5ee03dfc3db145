"""Vectors of which every token has its own adapter's, and what they do to it, without a copy of them per token.

Written out they would be as large as what they meet, for the scale and for the shift, and autograd would keep them until the way
back: elementwise work is paid for by memory that is touched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedquilt.models.blocks import blocks

BLOCK = 1 << 20  # numbers


@dataclass(frozen=True)
class Each:
    """A vector for each of T tokens.

    Attributes:
        stack: ``[G, d]`` one per adapter.
        owner: ``[T]`` int64, the adapter of every token.
        members: ``[T, G]`` the same as ones and zeros: sums over tokens are products with it, the same in every run.
    """

    stack: Tensor
    owner: Tensor
    members: Tensor

    def __sub__(self, other: Tensor) -> Each:
        return replace(self, stack=self.stack - other)


Vector = Tensor | Each


def affine(y: Tensor, scale: Vector | None, shift: Vector | None) -> Tensor:
    """``y * scale + shift`` of ``y [..., d]``; both of the same kind, or None for 1 and 0.

    Raises:
        TypeError: one of each kind.
    """
    if isinstance(scale, Each) and isinstance(shift, Each | None):
        return _applied(y, scale.stack, shift.stack if shift else None, scale)
    if isinstance(shift, Each) and scale is None:
        return _applied(y, None, shift.stack, shift)
    if isinstance(scale, Each) or isinstance(shift, Each):
        raise TypeError("a scale and a shift of two kinds")
    scaled = y if scale is None else y * scale
    return scaled if shift is None else scaled + shift


def _applied(y: Tensor, scale: Tensor | None, shift: Tensor | None, whose: Each) -> Tensor:
    flat = y.flatten(0, -2)
    out: Tensor = _Affine.apply(flat, scale, shift, whose.owner, whose.members)  # type: ignore[no-untyped-call]
    return out.view(y.shape)


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, scale: Tensor | None, shift: Tensor | None, owner: Tensor, members: Tensor) -> Tensor:
        ctx.save_for_backward(None if scale is None else y, scale, owner, members)
        out = torch.empty_like(y)
        for some in blocks(y, BLOCK):
            if scale is None:
                out[some] = y[some]
            else:
                torch.index_select(scale, 0, owner[some], out=out[some]).mul_(y[some])
            if shift is not None:
                out[some].addmm_(members[some], shift)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        y, scale, owner, members = ctx.saved_tensors
        to_y, to_scale, to_shift = ctx.needs_input_grad[:3]
        by_shift = members.t() @ grad if to_shift else None
        if scale is None:
            return (grad if to_y else None), None, by_shift, None, None
        by_y = torch.empty_like(grad) if to_y else None
        by_scale = torch.zeros_like(scale) if to_scale else None
        for some in blocks(grad, BLOCK):
            if by_scale is not None:
                by_scale.addmm_(members[some].t(), grad[some] * y[some])
            if by_y is not None:
                torch.index_select(scale, 0, owner[some], out=by_y[some]).mul_(grad[some])
        return by_y, by_scale, by_shift, None, None
