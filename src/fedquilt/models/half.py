"""Frozen linear maps in bfloat16, everything else in float32.

The base model is not trained, so only its products lose precision: adapters, heads, layer norms, attention and the optimiser stay
in float32, and there is no loss scaling. It is autocast for the linear maps alone, without autocast's conversion of every
weight in every pass. Worth it where the processor multiplies bfloat16 (AVX512-BF16, AMX); elsewhere it is slower than float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedquilt.models.roles import inside, transposed

HALF = torch.bfloat16


class HalfLinear(nn.Linear):
    """A linear map whose product is computed in bfloat16; input and output keep the caller's dtype.

    The weight may be held in another dtype (peft moves a wrapped model as a whole): it was rounded once, so rounding it again
    changes nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(HALF)
        return F.linear(input.to(HALF), self.weight.to(HALF), bias).to(input.dtype)


@cache
def half_conv1d() -> type[nn.Module]:
    """GPT-2's linear map, weight ``[in, out]``, in the same way. Made here, for importing its base class takes a second."""
    from transformers.pytorch_utils import Conv1D

    class HalfConv1D(Conv1D):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x.to(HALF), self.weight.t().to(HALF), self.bias.to(HALF)).to(x.dtype)

    return HalfConv1D


class HalfEmbedding(nn.Embedding):
    """An embedding that shares its weight with a :class:`HalfLinear` (tied output map); its vectors leave in float32."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()


def halve(model: nn.Module, keep: Sequence[str]) -> None:
    """Make every linear map of ``model`` outside the modules ``keep`` compute in bfloat16, in place.

    An embedding that shares its weight with one becomes a :class:`HalfEmbedding`.
    """
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    for module in model.modules():
        if type(module) is nn.Embedding and any(module.weight is linear.weight for linear in linears):
            module.__class__ = HalfEmbedding
    for name, module in model.named_modules():
        if inside(name, keep):
            continue
        if type(module) is nn.Linear:
            module.__class__ = HalfLinear
            module.to(HALF)
        elif transposed(module):
            module.__class__ = half_conv1d()
            module.to(HALF)


def is_half(model: nn.Module) -> bool:
    """Whether :func:`halve` has been here."""
    return any(isinstance(module, HalfLinear) or type(module).__name__ == "HalfConv1D" for module in model.modules())


def multiplies_half() -> bool:
    """Whether this processor has instructions for bfloat16 products."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
