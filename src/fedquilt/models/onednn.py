"""Frozen float32 linear maps multiplied by oneDNN instead of MKL, where MKL does not use what the processor has.

torch multiplies float32 matrices with MKL, which takes its AVX-512 kernels on Intel's processors alone: on others it multiplies
half as many numbers at a time as the processor could. oneDNN, which torch brings along too, asks what a processor can do and not
who made it. It wants the weight of a product turned its own way, so for the way back every map has a second, transposed copy of
its weight.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fedquilt.errors import ConfigError, did_you_mean
from fedquilt.models.roles import inside

VARIABLE = "FEDQUILT_PRODUCTS"  # of the environment: mkl or onednn
ROOM = 4 << 30  # bytes of weights; above, a second copy is too much to ask


class OneDnnLinear(nn.Linear):
    """A frozen linear map ``[..., in]`` to ``[..., out]``; with weights that are not its own or are trained, or on another device,
    an ordinary one."""

    own: tuple[Tensor]  # the weight that was loaded; in a tuple, for it is no second parameter
    other: tuple[Tensor, int] | None  # the same transposed, and of which version it was made

    def forward(self, input: Tensor) -> Tensor:
        trained = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        ours = input.dtype == torch.float32 and input.device.type == "cpu"
        if trained or not ours or self.weight is not self.own[0]:
            return F.linear(input, self.weight, self.bias)
        flat = input.reshape(-1, self.in_features)
        out: Tensor = _Product.apply(flat, self)  # type: ignore[no-untyped-call]
        return out if input.dim() == 2 else out.view(*input.shape[:-1], self.out_features)

    def turned(self) -> Tensor:
        """The weight as ``[in, out]``: made when a gradient first asks for it, and anew once the weight has changed in place."""
        if self.other is None or self.other[1] != self.weight._version:
            self.other = self.weight.detach().t().contiguous(), self.weight._version
        return self.other[0]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: OneDnnLinear) -> Tensor:
        ctx.layer = layer
        return _multiply(x, layer.weight, layer.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _multiply(grad, ctx.layer.turned(), None), None


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x [n, in]`` times ``weight [out, in]`` transposed."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def turn(model: nn.Module, keep: Sequence[str]) -> None:
    """Make every frozen float32 linear map of ``model`` outside the modules ``keep`` an :class:`OneDnnLinear`, in place; none if
    they are larger than ``ROOM`` together."""
    maps = [module for name, module in model.named_modules() if type(module) is nn.Linear and not inside(name, keep)]
    if sum(module.weight.numel() * 4 for module in maps) > ROOM:
        return
    for module in maps:
        module.__class__ = OneDnnLinear
        object.__setattr__(module, "own", (module.weight,))
        object.__setattr__(module, "other", None)


def turn_back(model: nn.Module) -> None:
    """Undo :func:`turn`, in place."""
    for module in model.modules():
        if isinstance(module, OneDnnLinear):
            del module.own, module.other
            module.__class__ = nn.Linear  # type: ignore[assignment]


@cache
def pays() -> bool:
    """Whether this processor has AVX-512 and MKL does not use it; else as ``FEDQUILT_PRODUCTS`` says.

    Raises:
        ConfigError: that is neither ``mkl`` nor ``onednn``, or the latter is not in this torch.
    """
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "mkl", "onednn"):
        raise ConfigError(f"{VARIABLE} is '{wanted}'", where="environment", fix=did_you_mean(wanted, ["mkl", "onednn"]))
    if wanted == "onednn" and not there:
        raise ConfigError(f"{VARIABLE} is onednn, which this torch does not have", where="environment", fix=f"unset {VARIABLE}")
    if wanted:
        return wanted == "onednn"
    return there and torch.backends.mkl.is_available() and torch.cpu._is_avx512_supported() and maker() not in ("", "GenuineIntel")


def maker() -> str:
    """Of the processor, as Linux has it; empty if it does not say."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
