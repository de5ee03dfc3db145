"""How long work says that it is alive: a call between any two passes of the model. What it raises ends the work there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Tick = Callable[[int], None]  # given the number of slot-steps just done; 0 before a pass that is no step
Item = TypeVar("Item")


def silent(_: int) -> None:
    """Tells nobody."""


def between(items: Iterable[Item], tick: Tick) -> Iterator[Item]:
    """The same items, with ``tick(0)`` before each."""
    for item in items:
        tick(0)
        yield item
