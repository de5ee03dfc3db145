"""What is compared alternates lap by lap, so that other load on the machine hits all of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

K = TypeVar("K")


def laps_of(ways: Mapping[K, Callable[[], object]], laps: int) -> dict[K, list[float]]:
    """Seconds of every lap; one to warm up."""
    seconds: dict[K, list[float]] = {name: [] for name in ways}
    for lap in range(laps + 1):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            if lap:
                seconds[name].append(time.perf_counter() - begin)
    return seconds
