"""What every adapter family produces, and the head that all of them share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor

from fedquilt.errors import ConfigError, did_you_mean
from fedquilt.models.inserts import Insert
from fedquilt.models.loading import Base
from fedquilt.models.prompts import Prompt
from fedquilt.types import Leaf, Spec, State

HeadPolicy = Literal["federated", "per-task", "private", "frozen"]
Layers = Annotated[int | None, Field(ge=1)]  # of the last so many blocks only; None: of all
HEAD_POLICIES: tuple[str, ...] = get_args(HeadPolicy)


@dataclass(frozen=True)
class Adapter:
    """One family on one base model.

    Attributes:
        spec: leaves and algebra, what the parts and the server see.
        init: the common start of all clients (independent starts cannot be averaged, nor clustered).
        modules: linear maps with LoRA factors, in model order; empty for other families.
        dropout: probability on the input of the adapter branch.
        heads: heads in one adapter: 1, or the number of tasks under the per-task policy.
        inserts: what families other than LoRA do at which module.
        weights: whether leaves other than the head's are parameters of the base model itself: one adapter per pass.
        prompt: virtual tokens.
        options: what the family's builder was called with, for those who build it again.
    """

    spec: Spec
    init: State
    modules: tuple[str, ...] = ()
    alpha: float = 1.0
    dropout: float = 0.0
    heads: int = 1
    roles: tuple[str, ...] = field(default=())
    inserts: Mapping[str, Insert] = field(default_factory=dict)
    weights: bool = False
    prompt: Prompt | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def virtual(self) -> int:
        """Tokens that the model reads before the words of every row."""
        return self.prompt.tokens if self.prompt is not None and self.prompt.kind == "input" else 0

    @property
    def inserted(self) -> frozenset[str]:
        """Names of the leaves that inserts use."""
        return frozenset(f"{module}/{part}" for module, insert in self.inserts.items() for part in insert.parts)


class Inserted:
    """What most inserts are: behind their module, token by token."""

    reads: bool = False
    per: Literal["token", "row"] = "token"
    spread: ClassVar[bool] = False

    def before(self, values: State, x: Tensor) -> Tensor:
        """What it was."""
        return x


def head_leaves(base: Base, policy: str, heads: int, first_index: int, without: str = "") -> tuple[list[Leaf], dict[str, Tensor]]:
    """Leaves and start of the classification head: ``<module>/head.<parameter>``, with a leading ``[heads]`` axis per task.

    ``without``: a module of the head that an insert replaces.

    A causal language model has none: there the default policy says nothing, and any other is refused.

    Raises:
        ConfigError: an unknown policy, or one for a head that is not there.
    """
    if policy not in HEAD_POLICIES:
        raise ConfigError(f"unknown head policy '{policy}'", where="adapter.head", fix=did_you_mean(policy, HEAD_POLICIES))
    if not base.head and policy != "federated":
        what = f"head policy '{policy}', but '{base.name}' is a language model and has no classification head"
        raise ConfigError(what, where="adapter.head", fix="leave adapter.head out")
    leaves, init = [], {}
    for path, parameter, tensor in head_parameters(base):
        if path == without:
            continue
        value = tensor.detach().clone()
        if heads > 1:
            value = value.expand(heads, *value.shape).clone()
        name = f"{path}/head.{parameter}"
        leaves.append(Leaf(name, tuple(value.shape), "head", first_index, dtype=value.dtype))
        init[name] = value
    return leaves, init


def head_parameters(base: Base) -> Iterable[tuple[str, str, Tensor]]:
    """(module path, parameter name, tensor) of every head parameter, in model order."""
    for top in base.head:
        for name, tensor in base.model.get_submodule(top).named_parameters():
            inner, _, parameter = name.rpartition(".")
            yield (f"{top}.{inner}" if inner else top), parameter, tensor


def head_key(leaf: str) -> str:
    """``classifier.dense/head.weight`` -> ``classifier.dense.weight``: the tensor's name in the base model."""
    return leaf.replace("/head.", ".")


def uniform(shape: tuple[int, ...], sides: int, stream: torch.Generator) -> Tensor:
    """float64, uniform in +-1/sqrt(sides): how torch's linear maps start."""
    bound = 1 / math.sqrt(sides)
    return torch.rand(shape, generator=stream, dtype=torch.float64) * 2 * bound - bound


def as_dtype(init: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors in the base model's dtype, keys sorted."""
    return {name: init[name].to(dtype) for name in sorted(init)}
