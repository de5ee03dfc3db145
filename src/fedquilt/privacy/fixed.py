"""Numbers as integers modulo 2^64, whose sums are exact whatever their order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]


def encode(x: NDArray[np.float64], *, bits: int, contributors: int) -> Words:
    """``round(x 2^bits)`` modulo 2^64; negative numbers are the upper half.

    Raises:
        ValueError: not finite, or so large that the sum over ``contributors`` such numbers could leave the range.
    """
    scaled = np.rint(np.ldexp(np.asarray(x, dtype=np.float64), bits))
    most = (2**63 - 1) // contributors
    if not np.isfinite(scaled).all():
        raise ValueError("NaN or Inf cannot be encoded")
    largest = float(np.abs(scaled).max(initial=0.0))
    if largest >= most:
        raise ValueError(
            f"|x| up to {largest / 2**bits:.3g} with {bits} bits behind the point: {contributors} of them may leave 64 bits"
        )
    return scaled.astype(np.int64).view(np.uint64)


def decode(total: Words, *, bits: int) -> NDArray[np.float64]:
    """The sum of what was encoded."""
    return np.ldexp(total.view(np.int64).astype(np.float64), -bits)
