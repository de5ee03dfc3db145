"""Server optimisers: the reduced updates of a round become the next bank.

``apply(bank [K, ...], delta [K, ...], touched [K], memory) -> (bank, memory)``. Rows that got no update keep their value and
their moments. Moments ``[K, ...]`` stand in ``memory`` under :data:`MOMENTUM`, so that they go where their row goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fedquilt import tree
from fedquilt.errors import ConfigError
from fedquilt.types import Stack

Memory = Mapping[str, Tensor]
MOMENTUM = "momentum/"  # in Hub.memory, before the leaf's name


class Apply(Protocol):
    """A server optimiser."""

    def __call__(self, bank: Stack, delta: Stack, touched: Tensor, memory: Memory) -> tuple[Stack, Memory]:
        """The next bank and the next moments."""
        ...


def _where(touched: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return new.where(touched.view(-1, *[1] * (new.dim() - 1)), old)


@dataclass(frozen=True)
class add:
    """x <- x + lr * delta. With ``lr = 1`` this is FedAvg's server step (McMahan et al. 2017)."""

    lr: float = 1.0

    def __call__(self, bank: Stack, delta: Stack, touched: Tensor, memory: Memory) -> tuple[Stack, Memory]:
        def step(x: Tensor, d: Tensor) -> Tensor:
            return _where(touched, x + (d if self.lr == 1 else self.lr * d), x)

        return tree.merge(bank, tree.map_leaves(step, tree.select(bank, delta), delta)), memory


@dataclass(frozen=True)
class momentum:
    """FedAvgM (Hsu et al. 2019, arXiv 1909.06335): m <- beta m + delta; x <- x + lr m. Moments are kept per row.

    ``beta = 0`` equals :class:`add` bit for bit.
    """

    beta: float = 0.9
    lr: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ConfigError(f"server momentum must be in [0, 1), got {self.beta}", where="method")

    def __call__(self, bank: Stack, delta: Stack, touched: Tensor, memory: Memory) -> tuple[Stack, Memory]:
        if self.beta == 0:
            return add(self.lr)(bank, delta, touched, memory)
        old = {key: memory.get(f"{MOMENTUM}{key}", d.new_zeros(d.shape)) for key, d in delta.items()}
        new = tree.map_leaves(lambda m, d: _where(touched, self.beta * m + d, m), old, delta)
        moved, _ = add(self.lr)(bank, new, touched, {})
        return moved, {**memory, **{f"{MOMENTUM}{key}": m for key, m in new.items()}}
