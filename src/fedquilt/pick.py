"""Which leaves train, and which travel. A pick is a frozen value: ``pick(spec, now) -> names``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch

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


@dataclass(frozen=True)
class cores:
    """Some cores of every tensor train; ``others``: all leaves that are no cores as well.

    Args:
        trainable: ``paper``: the first, the last and one between them; ``single``: one of all. A mean of products of cores is the
            product of their means exactly if one core alone differs between the clients, so only ``single`` is averaged exactly.
        order: which one: ``cyclic`` takes the middle cores in turn (``single``: all cores, the last one first, which is the
            only one with a gradient where it starts at zero), ``random`` draws one per round (the same for all trains of one
            length; ``single`` begins with the last), ``fixed`` keeps the one in the middle (``single``: the last).

    Source: FedTT+ (Ghiasvand et al. 2025, arXiv 2410.13097, section 4.3), which leaves the schedule open.
    """

    trainable: Literal["paper", "single"] = "paper"
    order: Literal["cyclic", "random", "fixed"] = "cyclic"
    others: bool = True

    def __call__(self, spec: Spec, now: Round) -> tuple[str, ...]:
        chosen = {length: self.places(length, now) for length in {leaf.core[1] for leaf in spec.leaves if leaf.core}}
        moving = [leaf.name for leaf in spec.leaves if (leaf.core[0] in chosen[leaf.core[1]] if leaf.core else self.others)]
        return tuple(sorted(moving))

    def places(self, length: int, now: Round) -> set[int]:
        """0-based places of the moving cores of a train of ``length`` cores."""
        if self.trainable == "single":
            turn = {"cyclic": now.number - 1, "fixed": 0}.get(self.order)
            if turn is None:
                turn = 0 if now.number == 1 else _draw(length, now)
            return {length - 1 - turn % length}
        if length <= 3:
            return set(range(length))
        between = length - 2
        turn = {"cyclic": (now.number - 1) % between, "fixed": between // 2}.get(self.order)
        return {0, 1 + (_draw(between, now) if turn is None else turn), length - 1}


def _draw(below: int, now: Round) -> int:
    return int(torch.randint(below, (), generator=now.generator("core", below)))
