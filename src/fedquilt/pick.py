"""Which leaves train, and which travel. A pick is a frozen value: ``pick(spec, now) -> names``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fedquilt.types import Round, Spec


class Pick(Protocol):
    """Names of leaves, for one round."""

    def __call__(self, spec: Spec, now: Round) -> tuple[str, ...]:
        """Sorted leaf names."""
        ...


@dataclass(frozen=True)
class everything:
    """All leaves."""

    def __call__(self, spec: Spec, now: Round) -> tuple[str, ...]:
        return spec.names()


@dataclass(frozen=True)
class nothing:
    """No leaf: as ``share`` it means that nothing is sent (local-only training)."""

    def __call__(self, spec: Spec, now: Round) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True)
class roles:
    """Leaves with one of the ``names`` as role.

    >>> roles(("head",))
    roles(names=('head',))
    """

    names: tuple[str, ...]

    def __call__(self, spec: Spec, now: Round) -> tuple[str, ...]:
        return spec.names(*self.names)


@dataclass(frozen=True)
class alternate:
    """One LoRA factor per round, B in round 1: with B = 0 at the start the gradient of A is exactly zero. The head always.

    Source: RoLoRA (Chen et al. 2025, arXiv 2502.01755), alternating rounds.
    """

    def __call__(self, spec: Spec, now: Round) -> tuple[str, ...]:
        return spec.names("lora_B" if now.number % 2 else "lora_A", "head")
