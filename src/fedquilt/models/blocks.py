"""A few rows at a time: what is done to them one step after the other is done in the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


def blocks(x: Tensor, numbers: int) -> Iterator[slice]:
    """Rows of ``x [N, ...]``, about so many ``numbers`` at a time; on a GPU, where every step is a launch, all at once."""
    rows = numbers * len(x) // max(1, x.numel()) if x.device.type == "cpu" else len(x)
    step = max(1, rows)
    return (slice(begin, min(begin + step, len(x))) for begin in range(0, len(x), step))
