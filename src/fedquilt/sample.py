"""Who takes part in a round: ``sample(clients, now) -> cohort``, seeded by the run and the round alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from pydantic import Field

from fedquilt.errors import ConfigError
from fedquilt.types import Round

Participation = Annotated[float, Field(description="share of the clients in each round")]


class Sample(Protocol):
    """A cohort, ascending."""

    def __call__(self, clients: Sequence[int], now: Round) -> list[int]:
        """Chosen client ids."""
        ...


@dataclass(frozen=True)
class everyone:
    """Full participation."""

    def __call__(self, clients: Sequence[int], now: Round) -> list[int]:
        return sorted(clients)


@dataclass(frozen=True)
class fraction:
    """``max(1, round(share * N))`` clients, uniformly without replacement (FedAvg, McMahan et al. 2017, algorithm 1)."""

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"participation must be in (0, 1], got {self.share}", where="participation")

    def __call__(self, clients: Sequence[int], now: Round) -> list[int]:
        ordered = sorted(clients)
        # ceil of x.5 rather than banker's rounding: 0.5 of 5 clients is 3
        wanted = max(1, math.floor(self.share * len(ordered) + 0.5))
        chosen = torch.randperm(len(ordered), generator=now.generator("sample"))[:wanted].tolist()
        return sorted(ordered[i] for i in chosen)


def share(participation: Participation) -> Sample:
    """Everyone, or a fraction of the clients in every round."""
    return everyone() if participation == 1 else fraction(participation)
