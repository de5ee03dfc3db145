"""Families that train vectors: IA3, BitFit, SSF and layer norms."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedquilt import tree
from fedquilt.adapters.base import Adapter, HeadPolicy, Inserted, Layers, as_dtype, head_leaves
from fedquilt.adapters.whole import backbone, weight_leaves
from fedquilt.errors import ModelError
from fedquilt.models.each import Each, Vector, affine
from fedquilt.models.inserts import Insert
from fedquilt.models.loading import Base
from fedquilt.models.roles import ROLES, TABLE, resolve, sides
from fedquilt.types import Leaf, Spec, State


@dataclass(frozen=True)
class Scale(Inserted):
    """y * s, or with ``reads`` f(x * s)."""

    reads: bool = False

    spread: ClassVar[bool] = True
    parts: ClassVar[tuple[str, ...]] = ("ia3",)

    def before(self, values: Mapping[str, Vector], x: Tensor) -> Tensor:
        """The map's input, scaled."""
        return affine(x, values["ia3"], None)

    def after(self, values: Mapping[str, Vector], x: Tensor, y: Tensor) -> Tensor:
        """The map's output, scaled unless its input was."""
        return y if self.reads else affine(y, values["ia3"], None)


@dataclass(frozen=True)
class Bias(Inserted):
    """Another bias in the place of the module's own."""

    own: Tensor = field(repr=False, compare=False)
    per: Literal["token", "row"] = "token"

    spread: ClassVar[bool] = True
    parts: ClassVar[tuple[str, ...]] = ("bias",)

    def after(self, values: Mapping[str, Vector], x: Tensor, y: Tensor) -> Tensor:
        """``y - own + bias``."""
        return affine(y, None, _channels(values["bias"] - tree.there(self.own, y.device), self.per))


@dataclass(frozen=True)
class Affine(Inserted):
    """y * gamma + beta."""

    per: Literal["token", "row"] = "token"

    spread: ClassVar[bool] = True
    parts: ClassVar[tuple[str, ...]] = ("gamma", "beta")

    def after(self, values: Mapping[str, Vector], x: Tensor, y: Tensor) -> Tensor:
        """Scaled and shifted."""
        return affine(y, _channels(values["gamma"], self.per), _channels(values["beta"], self.per))


@dataclass(frozen=True)
class Norm(Inserted):
    """A norm with parameters of its own; ``module`` is a copy: the base's may get hooks that call this."""

    module: nn.Module = field(repr=False, compare=False)
    parts: tuple[str, ...] = ("weight", "bias")

    def after(self, values: State, x: Tensor, y: Tensor) -> Tensor:
        """The norm of ``x`` once more, with these parameters."""
        out: Tensor = functional_call(self.module, dict(values), (x,))
        return out


def _channels(vector: Vector, per: str) -> Vector:
    """Ready to be broadcast over ``y [..., d]``, or over images ``y [n, d, h, w]``."""
    return vector if per == "token" or isinstance(vector, Each) else vector[..., None, None]


def ia3(
    base: Base,
    *,
    seed: int,
    heads: int = 1,
    targets: tuple[str, ...] = ("k", "v", "down"),
    layers: Layers = None,
    head: HeadPolicy = "federated",
) -> Adapter:
    """IA3 (Liu et al. 2022, arXiv 2205.05638): keys, values and the second feed-forward map's input times a vector, ones at first.

    A role other than ``down`` is scaled at its output. peft's default targets scale the input of BERT's attention output too (they
    match ``output.dense`` twice); these are the paper's.

    Raises:
        ModelError: a role without a matching linear map outside the head.
    """
    reading = set(resolve(base.model, base.model_type, ("down",), head=base.head)) if "down" in targets else set()
    modules = resolve(base.model, base.model_type, targets, layers, head=base.head)
    lengths = {name: sides(base.model.get_submodule(name))[1 if name in reading else 0] for name in modules}
    vectors = {f"{name}/ia3": torch.ones(length) for name, length in lengths.items()}
    return _family("ia3", base, vectors, "scale", {name: Scale(name in reading) for name in modules}, head, heads, targets)


def bitfit(base: Base, *, seed: int, heads: int = 1, head: HeadPolicy = "federated") -> Adapter:
    """BitFit (Ben Zaken et al. 2022, arXiv 2106.10199): all bias vectors of the base, embeddings' norm and pooler included.

    Raises:
        ModelError: a model without biases (Llama).
    """
    names = [name for name in backbone(base) if name.rpartition(".")[2].endswith("bias")]
    if not names:
        fix = "choose another family, such as lora or ssf"
        raise ModelError(f"'{base.name}' has no biases to train", where="adapter.family", fix=fix)
    if any(not name.endswith(".bias") for name in names):  # DeBERTa keeps q's and v's biases apart from any map
        return weight_leaves("bitfit", base, names, head, heads)
    owners = {name.removesuffix(".bias"): base.model.get_parameter(name) for name in names}
    inserts = {name: Bias(own.detach().to(base.dtype), _per(base.model.get_submodule(name))) for name, own in owners.items()}
    vectors = {f"{name}/bias": own.detach().clone() for name, own in owners.items()}
    return _family("bitfit", base, vectors, "bias", inserts, head, heads)


def layer_norms(base: Base, *, seed: int, heads: int = 1, head: HeadPolicy = "federated") -> Adapter:
    """Scale and shift of every norm of the base (Llama: scale).

    Raises:
        ModelError: no norm is found.
    """
    norms = dict(_norms(base))
    if not norms:
        raise ModelError(f"'{base.name}' has no norms to train", where="adapter.family", fix="choose another family, such as lora")
    inserts = {
        name: Norm(copy.deepcopy(module), tuple(part for part, _ in module.named_parameters())) for name, module in norms.items()
    }
    vectors = {f"{name}/{part}": x.detach().clone() for name, module in norms.items() for part, x in module.named_parameters()}
    return _family("layer_norms", base, vectors, "norm", inserts, head, heads)


def ssf(base: Base, *, seed: int, heads: int = 1, head: HeadPolicy = "federated") -> Adapter:
    """SSF (Lian et al. 2022, arXiv 2210.08823): a scale and a shift behind all maps with a role, norms and patch embedding.

    They start at exactly 1 and 0 (the paper: normal around them, deviation 0.02), so the adapted model equals the base.

    Raises:
        ModelError: an architecture without a table of roles.
    """
    if base.model_type not in TABLE:
        fix = "choose another family, such as lora with adapter.targets"
        raise ModelError(f"no SSF for '{base.model_type}'", where="adapter.family", why="its maps' roles are not known", fix=fix)
    table = resolve(base.model, base.model_type, ROLES)
    widths = {name: sides(base.model.get_submodule(name))[0] for name in table}
    widths |= {name: len(next(module.parameters())) for name, module in _norms(base)}
    widths |= {name: module.out_channels for name, module in base.model.named_modules() if isinstance(module, nn.Conv2d)}
    vectors: dict[str, Tensor] = {}
    for name, width in widths.items():
        vectors |= {f"{name}/gamma": torch.ones(width), f"{name}/beta": torch.zeros(width)}
    inserts = {name: Affine(_per(base.model.get_submodule(name))) for name in widths}
    return _family("ssf", base, vectors, "scale", inserts, head, heads)


def _family(
    family: str,
    base: Base,
    vectors: Mapping[str, Tensor],
    role: str,
    inserts: Mapping[str, Insert],
    head: str,
    heads: int,
    targets: tuple[str, ...] = (),
) -> Adapter:
    order = {name: index for index, (name, _) in enumerate(base.model.named_modules())}
    leaves = [
        Leaf(name, tuple(x.shape), "shift" if name.endswith("/beta") else role, order[name.partition("/")[0]], dtype=base.dtype)
        for name, x in vectors.items()
    ]
    more, start = head_leaves(base, head, heads, len(order))
    init = as_dtype({**vectors, **start}, base.dtype)
    return Adapter(Spec(family, (*leaves, *more), head=head), init, inserts=inserts, heads=heads, roles=targets)


def _norms(base: Base) -> Iterator[tuple[str, nn.Module]]:
    """By the name of their class: Llama's and DeBERTa's are their own."""
    for name, module in base.model.named_modules():
        if type(module).__name__.endswith(("LayerNorm", "RMSNorm", "NoNorm")):
            yield name, module


def _per(module: nn.Module) -> Literal["token", "row"]:
    return "row" if isinstance(module, nn.Conv2d) else "token"
