"""What simulated clients keep between rounds, slot by slot: private leaves (``private``), persistent optimisers (``moments``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from fedquilt.types import Slot, State


class Kept(Protocol):
    """Where it is kept."""

    def get(self, slot: Slot) -> Mapping[str, State]:
        """Kind -> tensors; empty for a slot that keeps nothing yet."""
        ...

    def put(self, slot: Slot, kept: Mapping[str, State]) -> None:
        """In the place of what the slot kept before."""
        ...


class InMemory:
    """All of it in this process: for tests and short runs."""

    def __init__(self) -> None:
        self.slots: dict[Slot, Mapping[str, State]] = {}

    def get(self, slot: Slot) -> Mapping[str, State]:
        """Kind -> tensors."""
        return self.slots.get(slot, {})

    def put(self, slot: Slot, kept: Mapping[str, State]) -> None:
        """Keep."""
        self.slots[slot] = kept

    def tensors(self) -> dict[str, Tensor]:
        """Everything, by key."""
        return {key: x for slot, kept in sorted(self.slots.items()) for key, x in flat(slot, kept).items()}


def flat(slot: Slot, kept: Mapping[str, State]) -> dict[str, Tensor]:
    """``<client>.<slot>/<kind>/<leaf>`` -> tensor."""
    return {
        f"{slot.client}.{slot.number}/{kind}/{name}": x for kind, state in sorted(kept.items()) for name, x in sorted(state.items())
    }


def slot_of(key: str) -> Slot:
    """The slot in a key of :func:`flat`."""
    client, number = key.split("/", 1)[0].split(".")
    return Slot(int(client), int(number))


def kept_of(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The inverse of :func:`flat`, for the tensors of one slot."""
    kept: dict[str, dict[str, Tensor]] = {}
    for key, x in tensors.items():
        _, kind, name = key.split("/", 2)
        kept.setdefault(kind, {})[name] = x
    return kept
