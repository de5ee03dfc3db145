"""FedTT's adapter and classifier: bottleneck adapters whose two maps are tensor trains, and such a train as the head's hidden map.

Source: S. Ghiasvand, Y. Yang, Z. Xue, M. Alizadeh, Z. Zhang, R. Pedarsani. Communication-Efficient and Tensorized Federated
Fine-Tuning of Large Language Models. Findings of ACL 2025, arXiv 2410.13097, sections 3 and 4.

Where we differ from the paper: the adapted model equals the base at the start (from LoRETTA's, ``start = "paper"``, it does
not); the activation is not given there (LoRETTA's is tanh); no dropout inside the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedquilt.adapters.base import Adapter, HeadPolicy, Inserted, Layers, as_dtype, head_leaves, uniform
from fedquilt.adapters.bottleneck import ACTIVATIONS, Activation
from fedquilt.adapters.tt.maps import Way, multiply, spread
from fedquilt.adapters.tt.shapes import Shape, shape_of
from fedquilt.errors import ConfigError
from fedquilt.models.loading import Base
from fedquilt.models.roles import resolve, sides
from fedquilt.rng import generator
from fedquilt.types import Leaf, Spec, State


@dataclass(frozen=True)
class Train:
    """One tensorised map ``x W + b`` and the names of its tensors, ``<name>.core.<j>`` and ``<name>.bias``."""

    name: str
    shape: Shape
    rank: int
    inside: int
    bias: bool
    way: Way | None = None

    @property
    def outside(self) -> int:
        """Numbers that leave it."""
        return self.shape.product // self.inside

    @property
    def cores(self) -> tuple[str, ...]:
        """Names of the cores, in order."""
        return tuple(f"{self.name}.core.{j}" for j in range(len(self.shape.modes)))

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of all tensors."""
        return (*self.cores, f"{self.name}.bias") if self.bias else self.cores

    def __call__(self, values: State, x: Tensor) -> Tensor:
        """``x [..., in] -> [..., out]``."""
        y = multiply(x, [values[core] for core in self.cores], self.shape, self.way)
        return y + values[f"{self.name}.bias"] if self.bias else y

    def start(self, source: torch.Generator) -> dict[str, Tensor]:
        """LoRETTA's: W with variance 1 / (in + out), biases uniform in +-1/sqrt(out)."""
        made = dict(zip(self.cores, spread(self.shape, self.rank, self.inside, source), strict=True))
        if self.bias:
            made[f"{self.name}.bias"] = uniform((self.outside,), self.outside, source)
        return made


@dataclass(frozen=True)
class TrainAdapter(Inserted):
    """``y + up(act(down(y)))``."""

    down: Train
    up: Train
    activation: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of all tensors."""
        return self.down.parts + self.up.parts

    def after(self, values: State, x: Tensor, y: Tensor) -> Tensor:
        """``[..., d]``, inside the residual branch."""
        return y + self.up(values, ACTIVATIONS[self.activation](self.down(values, y)))


@dataclass(frozen=True)
class TrainMap(Inserted):
    """A tensor train in the place of a linear map."""

    train: Train

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of all tensors."""
        return self.train.parts

    def after(self, values: State, x: Tensor, y: Tensor) -> Tensor:
        """The map's output is not used."""
        return self.train(values, x)


def tt(
    base: Base,
    *,
    seed: int,
    heads: int = 1,
    rank: Annotated[int, Field(ge=1)] = 5,
    bottleneck: Annotated[int, Field(ge=1)] = 64,
    targets: tuple[str, ...] = ("o", "down"),
    layers: Layers = None,
    activation: Activation = "tanh",
    bias: bool = True,
    classifier: Literal["tensorized", "dense"] = "tensorized",
    start: Literal["identity", "paper"] = "identity",
    shapes: Literal["published", "automatic"] = "published",
    way: Way | None = None,
    head: HeadPolicy = "federated",
) -> Adapter:
    """Tensor-train adapters behind the maps with the given roles (of the last ``layers`` blocks), plus the head.

    Args:
        rank: of every inner bond. A map that splits is of this rank, whatever ``bottleneck`` is.
        bias: of the adapters' maps (more numbers than the cores themselves in wide models).
        classifier: ``tensorized`` replaces the head's hidden map (RoBERTa's and ELECTRA's ``classifier.dense``, DistilBERT's
            ``pre_classifier``, the pooler of BERT, DeBERTa and ERNIE) by a tensor train that belongs to the head and starts anew;
            without a hidden map (ViT, language models) there is nothing to replace.
        start: ``identity``: the last core of ``up`` and all biases of the adapters zero.
        shapes: modes of the maps, see :mod:`fedquilt.adapters.tt.shapes`.
        way: how products are computed; None: the cheapest (:mod:`fedquilt.adapters.tt.maps`).

    Raises:
        ModelError: a role without a matching linear map outside the head.
        ConfigError: a tensorised classifier with one head per task; a way that a shape does not allow.
    """
    modules = resolve(base.model, base.model_type, targets, layers, head=base.head)
    hidden = _hidden(base) if classifier == "tensorized" else ""
    if hidden and heads > 1:
        fix = "set adapter.classifier = 'dense', or another head policy"
        raise ConfigError("a tensorized classifier cannot be one per task", where="adapter.classifier", fix=fix)

    def train(name: str, inside: int, outside: int, biased: bool) -> Train:
        made = shape_of(inside, outside, published=shapes == "published")
        if made.split is None and way not in (None, "dense"):
            what = f"modes {made.modes} of a map from {inside} to {outside} have no split"
            other = "" if 1 in (inside, outside) else "set adapter.shapes = 'automatic', or "  # a single number has no modes at all
            raise ConfigError(what, where="adapter.way", fix=f"{other}leave adapter.way out")
        return Train(name, made, rank, inside, biased, way)

    inserts: dict[str, TrainAdapter | TrainMap] = {}
    leaves: list[Leaf] = []
    init: dict[str, Tensor] = {}
    for index, name in enumerate(modules):
        width, _ = sides(base.model.get_submodule(name))
        insert = TrainAdapter(train("down", width, bottleneck, bias), train("up", bottleneck, width, bias), activation)
        inserts[name] = insert
        source = generator(seed, "tt", name)
        made = insert.down.start(source) | insert.up.start(source)
        if start == "identity":
            made |= {part: torch.zeros_like(made[part]) for part in (insert.up.cores[-1], *(p for p in made if p.endswith("bias")))}
        leaves += _leaves(name, (insert.down, insert.up), made, "", index, base.dtype)
        init |= {f"{name}/{part}": tensor for part, tensor in made.items()}
    if hidden:
        out, inside = sides(base.model.get_submodule(hidden))
        head_map = train("head", inside, out, True)
        inserts[hidden] = TrainMap(head_map)
        made = head_map.start(generator(seed, "tt", hidden))
        leaves += _leaves(hidden, (head_map,), made, "head", len(modules), base.dtype)
        init |= {f"{hidden}/{part}": tensor for part, tensor in made.items()}
    more, head_start = head_leaves(base, head, heads, len(modules), without=hidden)
    spec = Spec("tt", (*leaves, *more), rank=rank, head=head)
    return Adapter(spec, as_dtype(init | head_start, base.dtype), inserts=inserts, heads=heads, roles=tuple(targets))


def _leaves(
    module: str, trains: tuple[Train, ...], made: Mapping[str, Tensor], role: str, index: int, dtype: torch.dtype
) -> list[Leaf]:
    leaves = []
    for train in trains:
        for part in train.parts:
            core = None if part not in train.cores else (train.cores.index(part), len(train.cores))
            kind = role or ("bias" if core is None else "core")
            leaves.append(Leaf(f"{module}/{part}", tuple(made[part].shape), kind, index, dtype=dtype, core=core))
    return leaves


def _hidden(base: Base) -> str:
    """The linear map before the one that makes the logits; empty where the model has none."""
    for name in ("classifier.dense", "pre_classifier", f"{base.model.base_model_prefix}.pooler.dense", "pooler.dense"):
        try:
            module = base.model.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(module, nn.Linear):
            return name
    return ""
