"""Frozen linear maps in bfloat16, everything else in float32.

The base model is not trained, so only its products lose precision: adapters, heads, layer norms, attention and the optimiser stay
in float32, and there is no loss scaling. It is autocast for the linear maps alone, without autocast's conversion of every
weight in every pass. Worth it where the processor multiplies bfloat16 (AVX512-BF16, AMX); elsewhere it is slower than float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HALF = torch.bfloat16


class HalfLinear(nn.Linear):
    """A linear map whose product is computed in bfloat16; input and output keep the caller's dtype.

    The weight may be held in another dtype (peft moves a wrapped model as a whole): it was rounded once, so rounding it again
    changes nothing.
    """

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(HALF)
        return F.linear(input.to(HALF), self.weight.to(HALF), bias).to(input.dtype)


def halve(model: nn.Module, keep: Sequence[str]) -> None:
    """Make every linear map of ``model`` outside the modules ``keep`` a :class:`HalfLinear`, in place."""
    for name, module in model.named_modules():
        if type(module) is nn.Linear and not any(name == top or name.startswith(f"{top}.") for top in keep):
            module.__class__ = HalfLinear
            module.to(HALF)


def multiplies_half() -> bool:
    """Whether this processor has instructions for bfloat16 products."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
