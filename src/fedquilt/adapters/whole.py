"""Families that inject nothing: the head alone, all parameters, and those of the last blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from fedquilt.adapters.base import Adapter, HeadPolicy, as_dtype, head_leaves
from fedquilt.errors import ModelError
from fedquilt.models.loading import Base
from fedquilt.models.roles import in_last
from fedquilt.types import Leaf, Spec


def head(base: Base, *, seed: int, heads: int = 1, head: HeadPolicy = "federated") -> Adapter:
    """Linear probing: only the classification head trains (what a frozen encoder gives for free).

    Raises:
        ModelError: a model without a head.
    """
    if not base.head:
        raise ModelError(
            f"'{base.name}' is a language model and has no classification head to train",
            where="adapter.family",
            fix="choose a method that trains LoRA, such as fedit",
        )
    leaves, init = head_leaves(base, head, heads, 0)
    return Adapter(Spec("head", tuple(leaves), head=head), as_dtype(init, base.dtype), heads=heads)


def full(base: Base, *, seed: int, heads: int = 1, head: HeadPolicy = "federated") -> Adapter:
    """Full fine-tuning: every parameter of the base model is a leaf ``<module path>/<parameter>``.

    Raises:
        ModelError: the base is quantised.
    """
    return weight_leaves("full", base, backbone(base), head, heads)


def last_layers(
    base: Base, *, seed: int, heads: int = 1, layers: Annotated[int, Field(ge=1)] = 1, head: HeadPolicy = "federated"
) -> Adapter:
    """All parameters of the last ``layers`` blocks.

    Raises:
        ModelError: fewer blocks, or none under a known name; a quantised base.
    """
    names = [name for name, _ in base.model.named_parameters()]
    return weight_leaves("last_layers", base, in_last(names, layers), head, heads)


def backbone(base: Base) -> list[str]:
    """Names of the parameters outside the head."""
    return [name for name, _ in base.model.named_parameters() if name.partition(".")[0] not in base.head]


def weight_leaves(family: str, base: Base, names: Sequence[str], head: str, heads: int) -> Adapter:
    """An adapter of parameters of the base model: leaves ``<module path>/<parameter>``; a vector is a bias or a scale (of a norm).

    Raises:
        ModelError: the base is quantised.
    """
    if any(not x.dtype.is_floating_point for x in base.model.parameters()):
        fix = "leave model.quantization out, or train an adapter"
        raise ModelError("quantised weights cannot be trained", where="model.quantization", fix=fix)
    order = {name: index for index, (name, _) in enumerate(base.model.named_parameters())}
    leaves, init = [], {}
    for name in names:
        tensor = base.model.get_parameter(name)
        path, _, parameter = name.rpartition(".")
        key = f"{path}/{parameter}"
        role = "weight" if tensor.dim() > 1 else "bias" if parameter.endswith("bias") else "scale"
        leaves.append(Leaf(key, tuple(tensor.shape), role, order[name], dtype=base.dtype))
        init[key] = tensor.detach().clone()
    more, start = head_leaves(base, head, heads, len(order))
    spec = Spec(family, (*leaves, *more), head=head)
    return Adapter(spec, as_dtype(init | start, base.dtype), heads=heads, weights=True)


def weight_key(leaf: str) -> str:
    """``bert.pooler.dense/weight`` -> ``bert.pooler.dense.weight``."""
    return leaf.replace("/", ".")
