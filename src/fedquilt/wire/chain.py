"""Compose wire parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from fedquilt.types import Job, Stack, State, Updates


class Wire(Protocol):
    """One concern of the wire, both halves.

    ``sees`` is a class constant, not a field: a user must not be able to talk a part past the check of composition.
    """

    sees: ClassVar[str]

    def send(self, delta: State, job: Job) -> State:
        """Client side, before encoding."""
        ...

    def receive(self, updates: Updates) -> Updates:
        """Server side, all accepted updates of the round."""
        ...

    def finish(self, delta: Stack, touched: Tensor, counts: Tensor) -> Stack:
        """Server side, after the reduction: ``[K, ...]``; counts ``[K]`` contributors per row."""
        ...


class Plain:
    """A wire part that changes nothing; parts override what they need. ``hides``: where it is asked for that the server is shown
    nothing but sums; empty if it is not."""

    sees: ClassVar[str] = "sum"
    hides: ClassVar[str] = ""

    def send(self, delta: State, job: Job) -> State:
        return delta

    def receive(self, updates: Updates) -> Updates:
        return updates

    def finish(self, delta: Stack, touched: Tensor, counts: Tensor) -> Stack:
        return delta


@dataclass(frozen=True)
class chain(Plain):
    """Parts in the order in which a client applies them; the server undoes them in reverse."""

    parts: tuple[Wire, ...] = ()

    @property
    def summed(self) -> bool:
        """Whether the server sees nothing but sums."""
        return any(getattr(part, "hides", "") for part in self.parts)

    def send(self, delta: State, job: Job) -> State:
        for part in self.parts:
            delta = part.send(delta, job)
        return delta

    def receive(self, updates: Updates) -> Updates:
        for part in reversed(self.parts):
            updates = part.receive(updates)
        return updates

    def finish(self, delta: Stack, touched: Tensor, counts: Tensor) -> Stack:
        for part in reversed(self.parts):
            delta = part.finish(delta, touched, counts)
        return delta
