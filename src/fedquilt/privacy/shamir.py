"""Secrets of 32 bytes in n shares of which any t give it back, and t - 1 tell nothing.

Source: Shamir, How to share a secret, CACM 1979: a random polynomial of degree t - 1 over a prime field, whose value at 0 is the
secret.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

PRIME = 2**256 + 297  # the smallest above 2^256
SIZE = 33  # bytes of a share


def split(secret: bytes, holders: Sequence[int], threshold: int) -> dict[int, bytes]:
    """One share per holder (positive numbers).

    Raises:
        ValueError: a secret of another size, a threshold that is not in 1..n, a number that is not positive or comes twice.
    """
    if len(secret) != 32:
        raise ValueError(f"a secret of {len(secret)} bytes, want 32")
    if not 1 <= threshold <= len(holders):
        raise ValueError(f"a threshold of {threshold} for {len(holders)} holders")
    if min(holders) < 1 or len(set(holders)) != len(holders):
        raise ValueError(f"holders {list(holders)}: want different positive numbers")
    polynomial = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return {holder: _value(polynomial, holder).to_bytes(SIZE, "big") for holder in holders}


def _value(polynomial: Sequence[int], x: int) -> int:
    value = 0
    for factor in reversed(polynomial):
        value = (value * x + factor) % PRIME
    return value


def weights(holders: Sequence[int]) -> dict[int, int]:
    """What the shares of these holders are multiplied by (Lagrange at 0): the same for all secrets that they hold."""
    found = {}
    for i in holders:
        above = below = 1
        for j in holders:
            if j != i:
                above, below = above * j % PRIME, below * (j - i) % PRIME
        found[i] = above * pow(below, -1, PRIME) % PRIME
    return found


def join(shares: Mapping[int, bytes], by: Mapping[int, int]) -> bytes:
    """The secret from the shares of ``by``'s holders; ``by``: their :func:`weights`, as many as the threshold.

    Raises:
        ValueError: shares that belong to no secret of 32 bytes. (Most wrong ones give another secret: compare a hash.)
    """
    secret = sum(int.from_bytes(shares[holder], "big") * weight for holder, weight in by.items()) % PRIME
    if secret >> 256:
        raise ValueError("the shares belong to no secret")
    return secret.to_bytes(32, "big")
