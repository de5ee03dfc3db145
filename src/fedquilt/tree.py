"""Algebra on flat dicts of tensors. A *state* is one adapter; a *stack* has one more leading axis.

All functions are pure, keep keys in sorted order and keep each tensor's dtype unless they say otherwise. Sums over contributors
are taken in the given order and in float64 (Trap: 50 arrival orders of 10 float32 uploads gave 50 different sums).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

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


def stack(states: Sequence[Tree]) -> dict[str, Tensor]:
    """n states -> one stack with a new leading axis ``[n, ...]``."""
    return map_leaves(lambda *xs: torch.stack(xs), *states)


def row(stacked: Tree, index: int) -> dict[str, Tensor]:
    """Row ``index`` of a stack, as a view without the leading axis."""
    return map_leaves(lambda x: x[index], stacked)


def unstack(stacked: Tree) -> list[dict[str, Tensor]]:
    """All rows of a stack, as views: the inverse of :func:`stack`."""
    parts = [stacked[key].unbind(0) for key in stacked]
    return [dict(zip(stacked, row, strict=True)) for row in zip(*parts, strict=True)]


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


def max_difference(a: Tree, b: Tree) -> float:
    """Largest absolute difference over all leaves (float64); NaN if there is a NaN anywhere."""
    same_keys(a, b)
    largest = [(a[k].double() - b[k].double()).abs().max() for k in a if a[k].numel()]
    return float(torch.stack(largest).max()) if largest else 0.0
