"""Bottleneck adapters: y + W_up act(W_down y + b_down) + b_up behind a block's sub-layers (Houlsby et al. 2019, 1902.00751)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedquilt.adapters.base import Adapter, HeadPolicy, Inserted, Layers, as_dtype, head_leaves, uniform
from fedquilt.models.loading import Base
from fedquilt.models.roles import resolve, sides
from fedquilt.rng import generator
from fedquilt.types import Leaf, Spec, State

Activation = Literal["gelu", "relu", "tanh"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "tanh": torch.tanh}


@dataclass(frozen=True)
class Bottleneck(Inserted):
    """The adapter behind one linear map."""

    activation: str

    parts: ClassVar[tuple[str, ...]] = ("down.weight", "down.bias", "up.weight", "up.bias")

    def after(self, values: State, x: Tensor, y: Tensor) -> Tensor:
        """``[..., d]``, inside the residual branch."""
        hidden = ACTIVATIONS[self.activation](F.linear(y, values["down.weight"], values["down.bias"]))
        return y + F.linear(hidden, values["up.weight"], values["up.bias"])


def bottleneck(
    base: Base,
    *,
    seed: int,
    heads: int = 1,
    bottleneck: Annotated[int, Field(ge=1)] = 64,
    targets: tuple[str, ...] = ("o", "down"),
    layers: Layers = None,
    activation: Activation = "gelu",
    head: HeadPolicy = "federated",
) -> Adapter:
    """Houlsby adapters behind the maps with the given roles, of the last ``layers`` blocks.

    ``targets = ["down"]`` is the adapter of Pfeiffer et al. 2021 (arXiv 2005.00247).

    W_down starts uniform in +-1/sqrt(in), as torch's linear maps do, everything else at zero: the adapted model equals the base
    (Houlsby: N(0, 0.01), nearly). Its layer norms stay frozen here, where Houlsby trains them.

    Raises:
        ModelError: a role without a matching linear map outside the head.
    """
    modules = resolve(base.model, base.model_type, targets, layers, head=base.head)
    leaves: list[Leaf] = []
    init: dict[str, Tensor] = {}
    for index, name in enumerate(modules):
        width, _ = sides(base.model.get_submodule(name))
        made = {
            "down.weight": uniform((bottleneck, width), width, generator(seed, "bottleneck", name)),
            "down.bias": torch.zeros(bottleneck),
            "up.weight": torch.zeros(width, bottleneck),
            "up.bias": torch.zeros(width),
        }
        for part, tensor in made.items():
            role = "bias" if part.endswith("bias") else part.partition(".")[0]
            leaves.append(Leaf(f"{name}/{part}", tuple(tensor.shape), role, index, dtype=base.dtype))
            init[f"{name}/{part}"] = tensor
    more, head_init = head_leaves(base, head, heads, len(modules))
    spec = Spec("bottleneck", (*leaves, *more), head=head)
    inserts = dict.fromkeys(modules, Bottleneck(activation))
    return Adapter(spec, as_dtype(init | head_init, base.dtype), inserts=inserts, heads=heads, roles=tuple(targets))
