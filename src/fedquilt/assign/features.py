"""In what space adapters are compared. Of few items every choice ends in exact coordinates ``[n, <= n]``, so clustering costs
nothing more; many are sketched (:mod:`fedquilt.assign.sketch`).

Distances come from a float64 Gram matrix of *centred* items: ||x||^2 + ||y||^2 - 2 x.y in float32 cancels (a true 0.200 came out
as 0.219 at dimension 1e5). Coordinates are the eigenvectors of that matrix scaled by the roots of its eigenvalues: all pairwise
distances are kept, in n dimensions instead of 10^4..10^7.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fedquilt import tree
from fedquilt.assign.sketch import EXACT, Items, Sketch, Source, room, standard, width
from fedquilt.types import Spec, Stack, Updates

Features = Literal["b_factors", "factors", "products", "updates", "history", "fingerprint", "fisher"]


def uploaded(updates: Updates) -> Items:
    """What was uploaded: start + delta."""

    def fill(key: str, rows: slice, out: Tensor) -> None:
        out.copy_(updates.start[key][rows]).add_(updates.delta[key][rows])

    return Items(len(updates), {key: Source(delta.shape[1:], partial(fill, key)) for key, delta in updates.delta.items()})


def stacked(stack: Mapping[str, Tensor]) -> Items:
    """Adapters that are there already, ``[n, ...]``."""

    def fill(key: str, rows: slice, out: Tensor) -> None:
        out.copy_(stack[key][rows])

    return Items(tree.length(stack), {key: Source(x.shape[1:], partial(fill, key)) for key, x in stack.items()})


def located(groups: Sequence[Items], spec: Spec, features: Features, head: bool, seed: int) -> Tensor:
    """Points ``[n, d]`` of all items of the groups, one group after the other, around their mean; see :func:`gram`."""
    names, heads = compared(groups[0].leaves, spec, features, head), [key for key in groups[0].leaves if "/head." in key]
    n = sum(items.n for items in groups)
    if n <= EXACT:
        wholes = [items.whole(names) for items in groups]
        return coordinates(gram({key: torch.cat([whole[key] for whole in wholes]) for key in names}, spec, features, head))
    sketch, points = Sketch(width(n), seed), room(n, width(n))
    for items, part in zip(groups, points.split([items.n for items in groups]), strict=True):
        if features == "products":
            sketch.add_products(part, items, spec)
        sketch.add(part, items, names if features != "products" else heads if head else [])
    return points.sub_(points.mean(0))


def described(fingerprints: Tensor, weight: Tensor, seed: int) -> Tensor:
    """Points of items by fingerprints ``[n, d]`` alone, of which every number counts the same; ``weight [n]`` of the items."""
    n = len(fingerprints)
    if n <= EXACT:
        return coordinates(linear(standardised(fingerprints, weight)))
    points = room(n, width(n))
    Sketch(width(n), seed).add(points, standard(fingerprints, weight), [""])
    return points


def gram(whole: Stack, spec: Spec, features: Features, head: bool) -> Tensor:
    """Centred float64 Gram matrix ``[n, n]`` of the items ``whole [n, ...]``.

    ``factors`` and ``updates``: all tensors one after the other (FL-TAC, Ping et al. 2024, section 3.2: raw adapter parameters);
    for ``updates`` the items are the changes of this round. ``b_factors``: only the factors that start at zero (lora_B); at
    B = 0 the gradient of A vanishes, but AdamW still moves A by steps of full size, so early on A is mostly noise.
    ``history``: as ``b_factors``, for items that are mean updates of slots (:mod:`fedquilt.assign.history`);
    ``fingerprint``: the same beside the fingerprint of the slot's data, see :func:`beside`. ``fisher`` looks at fingerprints alone,
    see :func:`standardised`.
    ``products``: sum over maps of <s B_i A_i, s B_j A_j> = s^2 tr((B_i^T B_j)(A_j A_i^T)): the update itself, invariant to the
    factors' gauge (B G, G^-1 A); never forms an ``[out, in]`` matrix.
    """
    if features != "products":
        return linear(tree.flatten_rows(tree.select(whole, compared(whole, spec, features, head))))
    total = _products(whole, spec)
    if head:
        total = total + linear(tree.flatten_rows(tree.select(whole, [key for key in whole if "/head." in key])))
    return centred(total)


def compared(names: Iterable[str], spec: Spec, features: Features, head: bool) -> list[str]:
    """Which of the uploaded leaves count."""
    chosen = [key for key in names if head or "/head." not in key]
    if features in ("b_factors", "history", "fingerprint") and spec.pairs():
        chosen = [key for key in chosen if not key.endswith("/lora_A")]
    return chosen


def linear(x: Tensor) -> Tensor:
    """Centred Gram matrix ``[n, n]`` of items ``x [n, d]``."""
    x = x - x.mean(0)  # before the product: subtracting afterwards would cancel
    return x @ x.t()


def _products(stack: Stack, spec: Spec) -> Tensor:
    total: Tensor | None = None
    for name_a, name_b in spec.pairs():
        a, b = stack[name_a], stack[name_b].transpose(1, 2)  # [n, r, in], [n, r, out]
        inner_a = torch.einsum("irx,jsx->ijrs", a, a)
        inner_b = torch.einsum("irx,jsx->ijrs", b, b)
        term = (inner_a * inner_b).sum((2, 3)) * spec.scale**2
        total = term if total is None else total + term
    if total is None:
        raise ValueError("no map with two low-rank factors")
    return total


def centred(g: Tensor) -> Tensor:
    """The Gram matrix of the items minus their mean."""
    return g - g.mean(0, keepdim=True) - g.mean(1, keepdim=True) + g.mean()


def beside(one: Tensor, other: Tensor) -> Tensor:
    """Coordinates of items that are described twice, ``[n, a]`` and ``[n, b]``: both centred and every item scaled to length 1 in
    each, so that neither description outweighs the other."""
    if len(one) > EXACT:
        both = torch.cat([_unit(one), _unit(other)], 1)
        return both.sub_(both.mean(0))
    return coordinates(centred(sum(_unit(x) @ _unit(x).t() for x in (one, other))))  # type: ignore[arg-type]


def standardised(x: Tensor, weight: Tensor) -> Tensor:
    """Items ``[n, d]`` with mean 0 and variance 1 in every number, both weighted ``[n]``; one in which all items agree is 0."""
    share = (weight / weight.sum())[:, None]
    x = x.double() - (share * x.double()).sum(0)
    return x / (share * x.square()).sum(0).sqrt().clamp(min=torch.finfo(torch.float32).tiny)


def _unit(x: Tensor) -> Tensor:
    x = x.double() - x.double().mean(0)
    return torch.nn.functional.normalize(x, dim=1)


def coordinates(g: Tensor) -> Tensor:
    """Points ``[n, d]`` (1 <= d <= n) with exactly the pairwise distances of Gram matrix ``g``."""
    eigenvalues, vectors = torch.linalg.eigh((g + g.t()) / 2)
    used = eigenvalues > eigenvalues.clamp(min=0).max() * 1e-14
    if not bool(used.any()):  # all items are the same point
        return g.new_zeros((len(g), 1))
    points: Tensor = vectors[:, used] * eigenvalues[used].sqrt()
    return points
