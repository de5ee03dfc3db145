"""LoRA (Hu et al. 2021, arXiv 2106.09685): W x + (alpha / r) B A x with A ``[r, in]`` and B ``[out, r]``, W frozen."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from fedquilt.adapters.base import Adapter, HeadPolicy, Layers, as_dtype, head_leaves, uniform
from fedquilt.models.loading import Base
from fedquilt.models.roles import resolve, sides
from fedquilt.rng import generator
from fedquilt.types import Leaf, Spec


def lora(
    base: Base,
    *,
    seed: int,
    heads: int = 1,
    rank: Annotated[int, Field(ge=1)] = 1,
    alpha: Annotated[float, Field(gt=0)] = 16.0,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    targets: tuple[str, ...] = ("q", "v"),
    layers: Layers = None,
    head: HeadPolicy = "federated",
) -> Adapter:
    """LoRA on the maps with the given roles (of the last ``layers`` blocks), plus the head.

    The start is peft's: A uniform in +-1/sqrt(in) (Kaiming with a = sqrt 5), B zero, so the adapted model equals the base and
    the first gradient of A is exactly zero. A is drawn once from the seed and shared by all clients.

    Raises:
        ModelError: a role without a matching linear map outside the head.
    """
    modules = resolve(base.model, base.model_type, targets, layers, head=base.head)
    leaves: list[Leaf] = []
    init = {}
    for index, name in enumerate(modules):
        out_features, in_features = sides(base.model.get_submodule(name))
        a = uniform((rank, in_features), in_features, generator(seed, "lora", name))
        leaves.append(Leaf(f"{name}/lora_A", (rank, in_features), "lora_A", index, 0, base.dtype))
        leaves.append(Leaf(f"{name}/lora_B", (out_features, rank), "lora_B", index, 1, base.dtype))
        init[f"{name}/lora_A"] = a
        init[f"{name}/lora_B"] = torch.zeros(out_features, rank)
    more, head_init = head_leaves(base, head, heads, len(modules))
    spec = Spec("lora", (*leaves, *more), scale=alpha / rank, rank=rank, head=head)
    return Adapter(spec, as_dtype(init | head_init, base.dtype), modules, alpha, dropout, heads, tuple(targets))
