"""How the sides of a linear map are factored into the modes of a tensor train."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

LARGEST = 16  # a mode that the factoriser makes is at most so large, unless a side has a larger prime


@dataclass(frozen=True)
class Shape:
    """The modes of a map ``x [in] -> x W [out]``: core j is ``[r_{j-1}, modes[j], r_j]``; W, row by row, is their product.

    Attributes:
        modes: k_1..k_J with product in x out.
        split: q with k_1 ... k_q = in, so that the cores before belong to the input and those behind to the output; None where
            no prefix has that product: then W has to be built.
    """

    modes: tuple[int, ...]
    split: int | None

    def cores(self, rank: int) -> tuple[tuple[int, int, int], ...]:
        """Shapes of the J cores when every inner bond has ``rank``."""
        ranks = (1, *[rank] * (len(self.modes) - 1), 1)
        return tuple(zip(ranks[:-1], self.modes, ranks[1:], strict=True))

    @property
    def product(self) -> int:
        """in x out."""
        return math.prod(self.modes)

    def size(self, rank: int) -> int:
        """Numbers in all cores."""
        return sum(left * mode * right for left, mode, right in self.cores(rank))


# FedTT (arXiv 2410.13097), table 6, and for other sizes the table of LoRETTA, which FedTT builds on; (in, out) -> modes. The way
# back mirrors them. Some of LoRETTA's have no split (1024, 1280, 1536, 1600, 8192); that of 2304, whose product is not 2304 x 64,
# is left out.
PUBLISHED: Mapping[tuple[int, int], tuple[int, ...]] = {
    (768, 64): (8, 8, 12, 8, 8),
    (1024, 64): (4, 8, 8, 8, 8, 4),
    (1280, 64): (4, 8, 8, 8, 8, 5),
    (1536, 64): (4, 8, 8, 8, 8, 6),
    (1600, 64): (5, 8, 8, 8, 8, 5),
    (4096, 64): (16, 16, 16, 4, 4, 4),
    (5120, 64): (5, 8, 8, 16, 8, 8),
    (8192, 64): (4, 16, 16, 16, 8, 4),
    (768, 768): (12, 8, 8, 8, 8, 12),
    (1024, 1024): (4, 8, 8, 16, 8, 8, 4),
    (4096, 4096): (8, 8, 8, 8, 8, 8, 8, 8),
}


def shape_of(inside: int, outside: int, *, published: bool = True) -> Shape:
    """The modes of a map from ``inside`` to ``outside`` numbers: the published ones where there are any, else :func:`factors`."""
    if published and (inside, outside) in PUBLISHED:
        return split(PUBLISHED[inside, outside], inside)
    if published and (outside, inside) in PUBLISHED:
        return split(PUBLISHED[outside, inside][::-1], inside)
    return split((*factors(inside), *factors(outside)[::-1]), inside)


def split(modes: tuple[int, ...], inside: int) -> Shape:
    """The modes with their split, if they have one.

    >>> split((8, 8, 12, 8, 8), 768)
    Shape(modes=(8, 8, 12, 8, 8), split=3)
    """
    prefixes = [math.prod(modes[:q]) for q in range(1, len(modes))]
    return Shape(modes, prefixes.index(inside) + 1 if inside in prefixes else None)


@cache
def factors(number: int) -> tuple[int, ...]:
    """As few factors of at most 16 as possible, of those the most equal (smallest sum), ascending; larger primes stay as they are.

    >>> factors(768), factors(384), factors(11008)
    ((8, 8, 12), (6, 8, 8), (16, 16, 43))
    """
    large = []
    for prime in _primes(number):
        if prime > LARGEST:
            large.append(prime)
            number //= prime
    return tuple(sorted((*large, *min(_factorings(number, 2), key=lambda found: (len(found), sum(found), found)))))


def _factorings(number: int, least: int) -> list[tuple[int, ...]]:
    """All ascending factorings with factors from ``least`` to 16."""
    if number == 1:
        return [()]
    sides = [side for side in range(least, min(number, LARGEST) + 1) if number % side == 0]
    return [(side, *rest) for side in sides for rest in _factorings(number // side, side)]


def _primes(number: int) -> list[int]:
    """Prime factors, ascending."""
    for prime in range(2, math.isqrt(number) + 1):
        if number % prime == 0:
            return [prime, *_primes(number // prime)]
    return [number] if number > 1 else []
