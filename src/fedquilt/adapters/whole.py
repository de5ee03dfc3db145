"""Families that inject nothing: the head alone, and full fine-tuning."""

from __future__ import annotations

from fedquilt.adapters.base import Adapter, HeadPolicy, as_dtype, head_leaves
from fedquilt.errors import ModelError
from fedquilt.models.loading import Base
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
    if any(not x.dtype.is_floating_point for x in base.model.parameters()):
        fix = "leave model.quantization out, or train an adapter"
        raise ModelError("quantised weights cannot be trained", where="model.quantization", fix=fix)
    leaves, init = [], {}
    for index, (name, tensor) in enumerate(base.model.named_parameters()):
        path, _, parameter = name.rpartition(".")
        if path.split(".")[0] in base.head:
            continue
        key = f"{path}/{parameter}"
        leaves.append(Leaf(key, tuple(tensor.shape), "weight", index, dtype=base.dtype))
        init[key] = tensor.detach().clone()
    more, head_init = head_leaves(base, head, heads, len(leaves))
    return Adapter(Spec("full", (*leaves, *more), head=head), as_dtype(init | head_init, base.dtype), heads=heads)


def weight_key(leaf: str) -> str:
    """``bert.pooler.dense/weight`` -> ``bert.pooler.dense.weight``."""
    return leaf.replace("/", ".")
