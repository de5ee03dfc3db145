"""Algebra on flat dicts of tensors. A *state* is one adapter; a *stack* has one more leading axis.

All functions are pure, keep keys in sorted order and keep each tensor's dtype unless they say otherwise. Sums over contributors
are taken in the given order and in float64 (Trap: 50 arrival orders of 10 float32 uploads gave 50 different sums).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping, Sequence
from itertools import groupby
from typing import cast

import torch
from torch import Tensor

Tree = Mapping[str, Tensor]


def same_keys(*trees: Tree) -> None:
    """Raise ``ValueError`` unless all trees have the same keys."""
    first = set(trees[0])
    for other in trees[1:]:
        if set(other) != first:
            odd = sorted(first ^ set(other))
            raise ValueError(f"trees differ in keys: {odd[:5]}")


def map_leaves(function: Callable[..., Tensor], *trees: Tree) -> dict[str, Tensor]:
    """Apply ``function`` leaf by leaf to trees of equal keys."""
    same_keys(*trees)
    return {key: function(*(tree[key] for tree in trees)) for key in sorted(trees[0])}


def there(x: Tensor, device: torch.device | None) -> Tensor:
    """``x`` on a device (None: where it is), by a copy that the host does not wait for."""
    return x.to(device, non_blocking=True)


def add(a: Tree, b: Tree) -> dict[str, Tensor]:
    """a + b."""
    return map_leaves(torch.add, a, b)


def sub(a: Tree, b: Tree) -> dict[str, Tensor]:
    """a - b."""
    return map_leaves(torch.sub, a, b)


def scale(a: Tree, factor: float) -> dict[str, Tensor]:
    """factor * a."""
    return map_leaves(lambda x: x * factor, a)


def zeros_like(a: Tree) -> dict[str, Tensor]:
    """Zeros of the same shapes."""
    return map_leaves(torch.zeros_like, a)


class Row(Mapping[str, Tensor]):
    """One row of a stack, as a state whose leaves are views, made when somebody asks for one: until then a row costs nothing, and
    :func:`stack` takes many from their stack at once."""

    __slots__ = ("index", "of")

    def __init__(self, of: Tree, index: int) -> None:
        self.of, self.index = of, index

    def __getitem__(self, key: str) -> Tensor:
        return self.of[key][self.index]

    def __iter__(self) -> Iterator[str]:
        return iter(self.of)

    def __len__(self) -> int:
        return len(self.of)

    def keys(self) -> KeysView[str]:
        """Those of the stack: they compare faster than a general mapping's."""
        return self.of.keys()


def stack(states: Sequence[Tree]) -> dict[str, Tensor]:
    """n states -> one stack with a new leading axis ``[n, ...]`` (copies)."""
    if len(states) == 0 or not all(isinstance(state, Row) for state in states):
        return map_leaves(lambda *xs: torch.stack(xs), *states)
    runs = [list(run) for _, run in groupby(cast(Sequence[Row], states), key=lambda row: id(row.of))]
    parts = [(run[0].of, [row.index for row in run]) for run in runs]
    return rows(*parts[0]) if len(parts) == 1 else map_leaves(lambda *xs: torch.cat(xs), *(_taken(*part) for part in parts))


def neighbours(index: Sequence[int]) -> slice | None:
    """The slice that takes what ``index`` takes, if there is one: a view instead of a copy.

    >>> neighbours([3, 4, 5]), neighbours([3, 5])
    (slice(3, 6, None), None)
    """
    begin, end = index[0], index[0] + len(index)
    return slice(begin, end) if list(index) == list(range(begin, end)) else None


def _taken(stacked: Tree, index: list[int]) -> Tree:
    where = neighbours(index)
    return rows(stacked, index) if where is None else map_leaves(lambda x: x[where], stacked)


def row(stacked: Tree, index: int) -> dict[str, Tensor]:
    """Row ``index`` of a stack, as a view without the leading axis."""
    return map_leaves(lambda x: x[index], stacked)


def unstack(stacked: Tree) -> list[Row]:
    """All rows of a stack, as views: the inverse of :func:`stack`."""
    return [Row(stacked, index) for index in range(length(stacked))]


def own(tree: Tree) -> dict[str, Tensor]:
    """Tensors of their own: a view of a row keeps the whole stack alive, and is written whole into a checkpoint."""
    return map_leaves(torch.clone, tree)


def rows(stacked: Tree, index: Sequence[int] | Tensor) -> dict[str, Tensor]:
    """Several rows of a stack (a copy): ``[len(index), ...]``."""
    where = torch.as_tensor(index, dtype=torch.long)
    return map_leaves(lambda x: x.index_select(0, where.to(x.device)), stacked)


def length(stacked: Tree) -> int:
    """The leading axis of a stack; ``ValueError`` if the leaves disagree."""
    sizes = {x.shape[0] for x in stacked.values()}
    if len(sizes) != 1:
        raise ValueError(f"not a stack: leading axes {sorted(sizes)}")
    return sizes.pop()


def select(tree: Tree, names: Iterable[str]) -> dict[str, Tensor]:
    """The sub-tree of these keys, sorted."""
    return {key: tree[key] for key in sorted(names)}


def merge(base: Tree, patch: Tree) -> dict[str, Tensor]:
    """``base`` with the leaves of ``patch`` in their place (keys of either)."""
    both = {**base, **patch}
    return {key: both[key] for key in sorted(both)}


def flatten(tree: Tree, dtype: torch.dtype = torch.float64) -> Tensor:
    """All leaves of one state as one vector in sorted key order (copies)."""
    return torch.cat([tree[key].reshape(-1).to(dtype) for key in sorted(tree)])


def as_matrix(leaf: Tensor) -> Tensor:
    """One leaf of a stack as ``[n, numbers per row]``, also of no rows or no numbers."""
    return leaf.reshape(leaf.shape[0], math.prod(leaf.shape[1:]))


def flatten_rows(stacked: Tree, dtype: torch.dtype = torch.float64) -> Tensor:
    """A stack as a matrix ``[n, numbers per state]`` in sorted key order (copies)."""
    return torch.cat([as_matrix(stacked[key]).to(dtype) for key in sorted(stacked)], dim=1)


def numel(tree: Tree) -> int:
    """Scalars in all leaves together."""
    return sum(x.numel() for x in tree.values())


def norm_rows(stacked: Tree) -> Tensor:
    """L2 norm of every row over all leaves together, float64 ``[n]``."""
    return torch.stack([as_matrix(x).double().square().sum(1) for x in stacked.values()]).sum(0).sqrt()


def equal(a: Tree, b: Tree) -> bool:
    """Bit for bit: same keys, dtypes, shapes and values."""
    return set(a) == set(b) and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def finite(tree: Tree) -> bool:
    """Whether all of it is numbers. A finite sum has finite terms; one that is not may have overflowed."""
    return all(bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all()) for x in tree.values())


def max_difference(a: Tree, b: Tree) -> float:
    """Largest absolute difference over all leaves (float64); NaN if there is a NaN anywhere."""
    same_keys(a, b)
    largest = [(a[k].double() - b[k].double()).abs().max() for k in a if a[k].numel()]
    return float(torch.stack(largest).max()) if largest else 0.0
