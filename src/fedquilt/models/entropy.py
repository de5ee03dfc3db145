"""Losses of predicted tokens over a large vocabulary, some positions at a time, and how they are summed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK = 256  # positions; 50 MB of logits for a vocabulary of 49,152


def entropies(output: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) at every position ``[R]`` for final hidden states ``[R, d]`` and the frozen or trained output map.

    With a frozen plain map only ``[R, d]`` is kept for the backward pass, not the logits ``[R, V]``.
    """
    weight = output.weight if isinstance(output, nn.Linear) and output.bias is None else None
    if isinstance(weight, Tensor) and not weight.requires_grad:
        found: Tensor = _Frozen.apply(hidden, targets, output, weight)
        return found
    return F.cross_entropy(output(hidden), targets, reduction="none")


def row_sums(losses: Tensor, rows: Tensor, n: int) -> Tensor:
    """Sums ``[n]`` of token losses ``[R]``, of which each belongs to one of ``n`` rows ``[R]``."""
    return losses.new_zeros(n).index_add(0, rows, losses)


class _Frozen(torch.autograd.Function):
    """A position's loss depends on its own hidden state alone, so its gradient can be made in the forward pass, while the chunk's
    logits are there: d loss / d h = (softmax(W h) - onehot) W."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, output: nn.Module, weight: Tensor) -> Tensor:
        losses, grads = [], []
        for h, target in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            logits: Tensor = output(h)
            logp = F.log_softmax(logits, dim=-1)
            losses.append(-logp.gather(1, target[:, None])[:, 0])
            if ctx.needs_input_grad[0]:
                slope = logp.exp_()
                slope[torch.arange(len(target), device=target.device), target] -= 1
                grads.append((slope.to(weight.dtype) @ weight).to(hidden.dtype))
        ctx.save_for_backward(torch.cat(grads) if grads else hidden.new_empty(0))
        return torch.cat(losses) if losses else hidden.new_empty(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return grad[:, None] * slopes, None, None, None
