"""Products with a matrix that is stored as tensor-train cores: three ways with equal results, and which one is cheapest.

``W [in, out]``, read row by row, is the contraction of the cores ``G_j [r_{j-1}, k_j, r_j]`` (FedTT, arXiv 2410.13097, section 3):

- ``contract``: the input goes through the cores one by one and W is never built (the paper's way);
- ``dense``: W is built once, then one product;
- ``halves``: a train that splits at q is a product of two matrices, ``W = L [in, r_q] R [r_q, out]``: the cores before the split
  multiplied out, and those behind it. Ours: two thin products, cheapest for all but a handful of inputs. It also says what a
  tensorised map is: a map of rank r_q.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fedquilt.adapters.tt.shapes import Shape

Way = Literal["contract", "dense", "halves"]


def dense(cores: Sequence[Tensor], inside: int) -> Tensor:
    """W ``[in, out]``."""
    return chain(cores).reshape(inside, -1)


def chain(cores: Sequence[Tensor]) -> Tensor:
    """Neighbouring cores multiplied out: ``[r_first, product of their modes, r_last]``."""
    out = cores[0]
    for core in cores[1:]:
        left, mode = out.shape[:2]
        out = (out.reshape(-1, out.shape[2]) @ core.reshape(core.shape[0], -1)).reshape(left, mode * core.shape[1], core.shape[2])
    return out


def halves(cores: Sequence[Tensor], split: int) -> tuple[Tensor, Tensor]:
    """``L [in, r_q]`` and ``R [r_q, out]`` with ``W = L R``."""
    return chain(cores[:split])[0], chain(cores[split:])[:, :, 0]


def contract(x: Tensor, cores: Sequence[Tensor], split: int) -> Tensor:
    """``x [n, in] -> x W [n, out]`` core by core; no intermediate has more than ``n r max(in, out)`` numbers."""
    n = len(x)
    h = x[:, None]  # [n, r, what is left of the input]
    for core in cores[:split]:
        left, mode, right = core.shape
        h = torch.einsum("nrkm,rks->nsm", h.reshape(n, left, mode, -1), core)
    h = h.reshape(n, 1, -1)  # [n, what is made of the output, r]
    for core in cores[split:]:
        left, mode, right = core.shape
        h = (h @ core.reshape(left, mode * right)).reshape(n, -1, right)
    return h.reshape(n, -1)


def multiply(x: Tensor, cores: Sequence[Tensor], shape: Shape, way: Way | None = None) -> Tensor:
    """``x [..., in] -> x W [..., out]``; ``way`` None: the cheapest for so many rows.

    Raises:
        ValueError: a way that needs a split, and the shape has none.
    """
    rows, inside = x.numel() // x.shape[-1], x.shape[-1]
    way = way or cheapest(shape, [core.shape[2] for core in cores[:-1]], inside, rows)
    if way == "dense":
        return x @ dense(cores, inside)
    if shape.split is None:
        raise ValueError(f"modes {shape.modes} have no split for {inside} inputs: only the dense way works")
    if way == "contract":
        return contract(x.reshape(rows, inside), cores, shape.split).reshape(*x.shape[:-1], -1)
    left, right = halves(cores, shape.split)
    return (x @ left) @ right


def cheapest(shape: Shape, ranks: Sequence[int], inside: int, rows: int) -> Way:
    """The way with the fewest multiplications."""
    if shape.split is None:
        return "dense"
    prices = costs(shape, ranks, inside, rows)
    return min(prices, key=lambda way: prices[way])


def costs(shape: Shape, ranks: Sequence[int], inside: int, rows: int) -> dict[Way, int]:
    """Multiplications of every way for ``rows`` inputs, building included; ``ranks``: of the J - 1 inner bonds."""
    modes, q = shape.modes, shape.split
    bonds = (1, *ranks, 1)
    outside = math.prod(modes) // inside
    price: dict[Way, int] = {"dense": _building(modes, bonds, 0, len(modes)) + rows * inside * outside}
    if q is None:
        return price
    built = _building(modes, bonds, 0, q) + _building(modes, bonds, q, len(modes))
    price["halves"] = built + rows * bonds[q] * (inside + outside)
    coming = sum(bonds[j] * bonds[j + 1] * math.prod(modes[j:q]) for j in range(q))
    going = sum(math.prod(modes[q : j + 1]) * bonds[j] * bonds[j + 1] for j in range(q, len(modes)))
    price["contract"] = rows * (coming + going)
    return price


def _building(modes: Sequence[int], bonds: Sequence[int], first: int, last: int) -> int:
    """Multiplications of :func:`chain` over the cores first..last - 1."""
    return sum(bonds[first] * math.prod(modes[first : j + 1]) * bonds[j] * bonds[j + 1] for j in range(first + 1, last))


def spread(shape: Shape, rank: int, inside: int, generator: torch.Generator) -> list[Tensor]:
    """Normal cores, float64, for which every number of W has the variance 1 / (in + out).

    LoRETTA's start: core j is N(0, 1) / sqrt(r_j) * sigma^(1/J), and the r_j cancel along the train.
    """
    sigma = math.sqrt(1 / (inside + math.prod(shape.modes) // inside))
    scale = sigma ** (1 / len(shape.modes))
    draw = [torch.randn(core, generator=generator, dtype=torch.float64) for core in shape.cores(rank)]
    return [core * (scale / math.sqrt(core.shape[2])) for core in draw]
