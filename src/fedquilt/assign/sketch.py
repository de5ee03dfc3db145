"""Many adapters by a few random numbers each: distances survive to a few percent, in one pass and little memory.

Up to :data:`EXACT` items the server works on exact coordinates (:mod:`fedquilt.assign.features`): few items are what a sketch
gets wrong, and cheap. Above, their n^2 distances and the n^3 steps to coordinates no longer are.

``y_b = sum of s_j x_j over all coordinates j = b mod W`` with random signs s is a count sketch (Charikar, Chen, Farach-Colton 2002)
whose buckets are strides, so that a sketch is one sum over contiguous memory: E <y, y'> = <x, x'>, with a relative error of squared
distances of about sqrt(2 / W). Buckets are dealt anew for every leaf: a feature that is large in every layer falls into another one
in each, and small leaves share all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from mmap import ACCESS_COPY, mmap

import torch
from torch import Tensor

from fedquilt.rng import generator
from fedquilt.types import Spec

EXACT = 256  # items up to which nothing is approximated
WIDTHS = ((2_000, 2048), (12_000, 384))  # (items, numbers for each of so many): below 40 MB
LEAST = 256  # numbers beyond
AT_ONCE = 2**15  # numbers of the items that are made at a time: 256 KB


def room(*shape: int) -> Tensor:
    """Zeros, float64, mapped apart from the heap: there a block seldom lies where the one before it lay (decision 016), and the
    points of a round can miss the hole that the last ones left."""
    numbers = math.prod(shape)
    return torch.frombuffer(mmap(-1, max(1, numbers) * 8, access=ACCESS_COPY), dtype=torch.float64)[:numbers].view(shape)


@dataclass(frozen=True)
class Source:
    """One leaf of all items: ``fill`` writes some rows, ``[m, *shape]``, into a float64 tensor, which the reader may change."""

    shape: tuple[int, ...]
    fill: Callable[[slice, Tensor], object]

    @property
    def size(self) -> int:
        """Numbers of one item."""
        return math.prod(self.shape)

    def read(self, rows: slice, buffer: Tensor) -> Tensor:
        """Some rows, at the beginning of the flat ``buffer``."""
        m = rows.stop - rows.start
        out = buffer[: m * self.size].view(m, *self.shape)
        self.fill(rows, out)
        return out


@dataclass(frozen=True)
class Items:
    """``n`` adapters, a leaf and a few rows at a time: nothing of the size of all of them is made."""

    n: int
    leaves: Mapping[str, Source]

    def whole(self, names: Iterable[str]) -> dict[str, Tensor]:
        """These leaves of all items ``[n, ...]``."""
        every = slice(0, self.n)
        return {key: self.leaves[key].read(every, torch.empty(self.n * self.size(key), dtype=torch.float64)) for key in names}

    def means(self, labels: Tensor, k: int) -> Tensor:
        """Mean of every group ``[k, d]``, all leaves one after the other; zeros where a group is empty."""
        counts = torch.bincount(labels, minlength=k).clamp(min=1).double()
        means = []
        for key in sorted(self.leaves):
            total = torch.zeros(k, self.size(key), dtype=torch.float64)
            for rows, part in self.parts(key):
                total.index_add_(0, labels[rows], part.flatten(1))
            means.append(total / counts[:, None])
        return torch.cat(means, 1)

    def size(self, key: str) -> int:
        """Numbers of one item in a leaf."""
        return self.leaves[key].size

    def parts(self, key: str) -> Iterator[tuple[slice, Tensor]]:
        """The rows of a leaf, :data:`AT_ONCE` numbers at a time, all in one place: a part is gone when the next is read."""
        size = self.size(key)
        buffer = room(self.step(size) * size)
        for rows in self.blocks(size):
            yield rows, self.leaves[key].read(rows, buffer)

    def blocks(self, size: int) -> Iterator[slice]:
        """All items, as many at a time as have :data:`AT_ONCE` numbers if each has ``size``."""
        step = self.step(size)
        return (slice(begin, min(begin + step, self.n)) for begin in range(0, self.n, step))

    def step(self, size: int) -> int:
        """How many items are in a block if each has ``size`` numbers."""
        return max(1, min(self.n, AT_ONCE // max(1, size)))


@dataclass(frozen=True)
class Sketch:
    """A random linear map to ``width`` numbers, the same for the same seed."""

    width: int
    seed: int

    def add(self, out: Tensor, items: Items, names: Iterable[str]) -> None:
        """Add the sketches of all items, their leaves ``names`` one after the other, to ``out [n, width]``."""
        for key in sorted(names):
            signs, places = self._dealt(items.size(key), key)
            for rows, part in items.parts(key):
                folded = self._folded(part.flatten(1), signs)
                out[rows].scatter_add_(1, places.expand(len(folded), -1), folded)

    def add_products(self, out: Tensor, items: Items, spec: Spec) -> None:
        """The same of the products ``s B_i A_i``, none of which is formed.

        The sketch of an outer product is the circular convolution of the sketches of its factors (Pham & Pagh, KDD 2013), and
        sums over columns and maps are taken before the way back. It knows ``B A`` alone, whatever the gauge of its factors.
        """
        rank = max(1, spec.rank)
        dealt = {key: self._dealt(items.size(key) // rank, key) for pair in spec.pairs() for key in pair}
        step = items.step(self.width * rank)
        left, right = (room(step * max(items.size(pair[side]) for pair in spec.pairs())) for side in (0, 1))
        placed = room(step, rank, self.width)
        for rows in items.blocks(self.width * rank):
            total = torch.zeros(rows.stop - rows.start, self.width // 2 + 1, dtype=torch.complex128)
            for name_a, name_b in spec.pairs():
                a, b = items.leaves[name_a].read(rows, left), items.leaves[name_b].read(rows, right).transpose(1, 2)
                turned = self._turned(a, *dealt[name_a], placed).mul_(self._turned(b, *dealt[name_b], placed))
                total += turned.sum(1)
            out[rows] += torch.fft.irfft(total, n=self.width) * spec.scale

    def _turned(self, x: Tensor, signs: Tensor, places: Tensor, placed: Tensor) -> Tensor:
        """Fourier transforms ``[m, r, width // 2 + 1]`` of the sketches of vectors ``[m, r, d]``; ``placed`` is room for these."""
        folded, some = self._folded(x.flatten(0, 1), signs).view(*x.shape[:2], -1), placed[: len(x)].zero_()
        turned: Tensor = torch.fft.rfft(some.scatter_(2, places.expand_as(folded), folded))
        return turned

    def _dealt(self, d: int, key: str) -> tuple[Tensor, Tensor]:
        """What is drawn for a leaf: the signs of its ``d`` numbers, and where the first ``min(d, width)`` buckets are put."""
        stream = generator(self.seed, "sketch", key)
        signs = torch.randint(0, 2, (d,), generator=stream, dtype=torch.float64) * 2 - 1
        return signs, torch.argsort(torch.randperm(self.width, generator=stream))[:d]

    def _folded(self, x: Tensor, signs: Tensor) -> Tensor:
        """``[m, d]``, which is written to, -> ``[m, min(d, width)]``: what is left of a leaf, before it is put in its places."""
        d, even = len(signs), len(signs) // self.width * self.width
        x *= signs
        if not even:
            return x
        folded = x[:, :even].view(len(x), -1, self.width).sum(1)
        folded[:, : d - even] += x[:, even:]
        return folded


def width(n: int) -> int:
    """How many numbers each of ``n`` items gets."""
    return next((wide for most, wide in WIDTHS if n <= most), LEAST)


def standard(x: Tensor, weight: Tensor) -> Items:
    """Items ``x [n, d]`` with mean 0 and variance 1 in every number, both weighted ``[n]``, a few rows at a time."""
    share = (weight / weight.sum())[:, None]
    first = x[0].double()  # moments around it: around zero a large mean would cancel
    moved = Source(x.shape[1:], lambda rows, out: out.copy_(x[rows]).sub_(first))
    means, squares = torch.zeros_like(first), torch.zeros_like(first)
    for rows, part in Items(len(x), {"": moved}).parts(""):
        means += (share[rows] * part).sum(0)
        squares += (share[rows] * part.square_()).sum(0)
    scale = (squares - means.square()).clamp(min=0).sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    centre = first + means
    return Items(len(x), {"": Source(x.shape[1:], lambda rows, out: out.copy_(x[rows]).sub_(centre).div_(scale))})
