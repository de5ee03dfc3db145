"""The assignment protocol, and the trivial one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from fedquilt.errors import ConfigError
from fedquilt.types import Hub, Metrics, Round, Slot, Spec, Updates

Fingerprints = Literal["", "states", "fisher"]  # :mod:`fedquilt.models.fingerprint`


@dataclass(frozen=True)
class Assignment:
    """Row of each contribution ``[n]`` int64, numbers worth logging, what the part keeps, and new rows of slots that are away.

    ``source [rows]``: the row whose adapter and moments each row goes on with; None: its own.
    """

    group: Tensor
    metrics: Metrics = field(default_factory=dict)
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    table: Mapping[Slot, int] = field(default_factory=dict)
    source: Tensor | None = None


def at_least_one(part: object, *names: str) -> None:
    """Raise where one of the numbers of an assignment is below 1."""
    for name in names:
        if getattr(part, name) < 1:
            what = f"{name} must be at least 1, got {getattr(part, name)}"
            raise ConfigError(what, where=f"assign.{type(part).__name__}, {name}", fix="a whole number from 1 on")


class Assign(Protocol):
    """Sort contributions into rows.

    ``sees`` is what the part must be able to look at: ``sum`` (nothing of a single update), ``each`` (that an update exists
    and from whom) or ``content`` (its tensors). A class constant: a method cannot talk it away.
    """

    sees: ClassVar[str]

    @property
    def fingerprint(self) -> Fingerprints:
        """What newcomers send of their data."""
        ...

    @property
    def rows(self) -> int:
        """Rows of the bank, newcomers' row 0 included."""
        ...

    def check(self, spec: Spec) -> None:
        """Refuse an adapter that this part cannot work with (``CompositionError``), before anything runs."""
        ...

    def check_clients(self, clients: Sequence[int], places: int = 1) -> None:
        """Refuse slots (the client of each; ``places`` of one task on a client) that cannot be told apart or brought together."""
        ...

    def __call__(self, updates: Updates, hub: Hub, spec: Spec, now: Round) -> Assignment:
        """The row of every contribution."""
        ...


@dataclass(frozen=True)
class one:
    """Everybody in row 0: FedAvg (McMahan et al. 2017) and all single-adapter methods."""

    sees: ClassVar[str] = "sum"
    fingerprint: ClassVar[Fingerprints] = ""

    @property
    def rows(self) -> int:
        """One."""
        return 1

    def check(self, spec: Spec) -> None:
        """Any adapter will do."""

    def check_clients(self, clients: Sequence[int], places: int = 1) -> None:
        """Any clients will do."""

    def __call__(self, updates: Updates, hub: Hub, spec: Spec, now: Round) -> Assignment:
        return Assignment(torch.zeros(len(updates), dtype=torch.long))
