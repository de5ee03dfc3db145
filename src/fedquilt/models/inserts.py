"""What an adapter does at one module of the base model, and how that runs: for one adapter, and for the tokens of many together.

A family describes itself once, as an :class:`Insert` per module; LoRA, which adds a product of two factors, has a faster way of its
own in :mod:`fedquilt.models.packed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fedquilt import tree
from fedquilt.models.each import Each, Vector
from fedquilt.types import Stack


class Insert(Protocol):
    """A change of one module ``y = f(x)`` by tensors of an adapter. Rows of ``x`` do not see one another.

    Attributes:
        parts: names of its tensors; the leaf of one is ``<module path>/<part>``.
        reads: whether it changes what the module reads.
        per: what the first axis of ``x`` counts once all axes but the last are one (token), or as it stands (row: images).
        spread: whether its tensors are vectors that meet ``x`` and ``y`` element by element: they may come one per token, as
            :class:`Each`, or written out one per row.
    """

    @property
    def parts(self) -> tuple[str, ...]: ...
    @property
    def reads(self) -> bool: ...
    @property
    def per(self) -> Literal["token", "row"]: ...
    @property
    def spread(self) -> bool: ...

    def before(self, values: Mapping[str, Any], x: Tensor) -> Tensor:
        """What the module reads instead of ``x``; called only if ``reads``."""
        ...

    def after(self, values: Mapping[str, Any], x: Tensor, y: Tensor) -> Tensor:
        """What leaves the module instead of ``y``; ``x`` is what it has read."""
        ...


class Order(NamedTuple):
    """``forth`` sorts by adapter, ``back`` undoes it; the runs belong to ``adapters`` and have ``counts`` members."""

    forth: Tensor
    back: Tensor
    adapters: list[int]
    counts: list[int]


@dataclass
class Owners:
    """Which adapter each token, and each row, of the pass being computed belongs to.

    Attributes:
        stack: ``[G, ...]`` all adapters of the pass.
        token, row: numbers ``[T]`` and ``[n]``, on the host; None while there is one adapter only.
        prompt: ``[G, nv, ...]`` vectors of virtual tokens.
        only: the adapter of everything that is computed now, where that is one.
    """

    stack: Stack = field(default_factory=dict)
    token: Tensor | None = None
    row: Tensor | None = None
    only: int | None = 0
    prompt: Tensor = field(default_factory=lambda: torch.zeros(0))
    _orders: dict[str, Order] = field(default_factory=dict)
    _members: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _parts: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    def set(self, stack: Stack, token: Tensor | None = None, row: Tensor | None = None) -> None:
        """Begin a pass."""
        self.stack, self.token, self.row = stack, token, row
        self.only = None if tree.length(stack) > 1 else 0
        for of_the_pass in (self._orders, self._members, self._parts):
            of_the_pass.clear()

    def narrow(self, index: Tensor) -> None:
        """From here on only the tokens ``index`` (on the host) are computed."""
        self.token = None if self.token is None else self.token.index_select(0, index)
        self._orders.pop("token", None)
        self._members.pop("token", None)

    @property
    def device(self) -> torch.device:
        """Where the adapters are."""
        return next(iter(self.stack.values())).device

    def values(self, module: str, insert: Insert, owner: int) -> dict[str, Tensor]:
        """An insert's tensors of one adapter."""
        for key in (f"{module}/{part}" for part in insert.parts):
            if key not in self._parts:  # all at once: the gradient of one alone would be as large as that of all
                self._parts[key] = self.stack[key].unbind(0)
        return {part: self._parts[f"{module}/{part}"][owner] for part in insert.parts}

    def spread(self, module: str, insert: Insert) -> dict[str, Vector]:
        """An insert's vectors, one for every token (or row, ``[n, d]``), each its own adapter's."""
        if insert.per not in self._members:
            owner, count = tree.there(self.of(insert.per), self.device), tree.length(self.stack)
            dtype = next(iter(self.stack.values())).dtype
            self._members[insert.per] = owner, (owner[:, None] == torch.arange(count, device=self.device)).to(dtype)
        owner, members = self._members[insert.per]
        stacks = {part: self.stack[f"{module}/{part}"] for part in insert.parts}
        if insert.per == "token":
            return {part: Each(stack, owner, members) for part, stack in stacks.items()}
        # A product: its gradient is one, too, and the same in every run.
        return {part: members @ stack for part, stack in stacks.items()}

    def of(self, per: str) -> Tensor:
        """The adapter of every token (or row)."""
        owner = self.token if per == "token" else self.row
        if owner is None:
            raise ValueError(f"a pass over several adapters does not say whose its {per}s are")
        return owner

    @contextmanager
    def single(self, owner: int) -> Iterator[None]:
        """Inside the block everything belongs to one adapter (heads run adapter by adapter)."""
        before, self.only = self.only, owner
        try:
            yield
        finally:
            self.only = before

    def order(self, per: str) -> Order:
        """How to sort tokens (or rows) by their adapter."""
        if per not in self._orders:
            owner = self.of(per)
            index = torch.sort(owner, stable=True).indices
            adapters, counts = torch.unique_consecutive(owner[index], return_counts=True)
            forth, back = (tree.there(x, self.device) for x in (index, torch.argsort(index)))
            self._orders[per] = Order(forth, back, adapters.tolist(), counts.tolist())
        return self._orders[per]


class Lane(nn.Module):
    """A frozen module with an insert: every token meets its own adapter's vectors, or, where an adapter has more than vectors,
    tokens are sorted by adapter and every adapter's run goes through its own tensors."""

    def __init__(self, inner: nn.Module, name: str, insert: Insert, owners: Owners) -> None:
        super().__init__()
        self.inner, self.name, self.insert, self.owners = inner, name, insert, owners

    def __getattr__(self, name: str) -> Any:
        """What the module's surroundings ask of it (DINOv2 reads the dtype of its patch embedding's weight)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor) -> Tensor:
        insert, only = self.insert, self.owners.only
        if only is not None or insert.spread:
            values: Mapping[str, Any] = (
                self.owners.spread(self.name, insert) if only is None else self.owners.values(self.name, insert, only)
            )
            x = insert.before(values, x) if insert.reads else x
            return insert.after(values, x, self.inner(x))
        order = self.owners.order(insert.per)
        states = [self.owners.values(self.name, insert, owner) for owner in order.adapters]
        xs = self._runs(x, order)
        if insert.reads:
            xs = [insert.before(values, part) for values, part in zip(states, xs, strict=True)]
            x = torch.cat(xs).index_select(0, order.back).reshape(x.shape)
        y: Tensor = self.inner(x)
        parts = zip(states, xs, self._runs(y, order), strict=True)
        out = torch.cat([insert.after(values, part, made) for values, part, made in parts]).index_select(0, order.back)
        return out.reshape(y.shape)

    def _runs(self, x: Tensor, order: Order) -> list[Tensor]:
        """``x`` cut into one part per adapter."""
        flat = x.flatten(0, -2) if self.insert.per == "token" else x
        return list(flat.index_select(0, order.forth).split(order.counts))


def hook(module: nn.Module, name: str, insert: Insert, owners: Owners) -> None:
    """The reference way: an insert of one adapter on a module that is left as it is."""
    if insert.reads:
        module.register_forward_pre_hook(lambda _, args: (insert.before(owners.values(name, insert, 0), args[0]), *args[1:]))
    module.register_forward_hook(lambda _, args, y: insert.after(owners.values(name, insert, 0), args[0], y))
