"""What every slot has asked for so far: the mean of its own updates over the rounds, whatever rows it was given in between.

A clustering of the uploaded values sees the rows that it chose itself: after a wrong merge the slot starts from the wrong row and
looks as if it belonged there. A slot's own updates keep pulling towards its own task, so their mean shows the error and a later
round can undo it. Slots that are away keep their place, so a cohort that lacks whole tasks forgets nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fedquilt import tree
from fedquilt.assign.sketch import Items, Source
from fedquilt.types import Slot, Stack, Updates

PREFIX = "history/"  # in Hub.memory
SLOTS, COUNTS, WEIGHT, FINGERPRINT = (f"{PREFIX}{name}" for name in ("slots", "counts", "weight", "fingerprint"))


@dataclass(frozen=True)
class History:
    """Sums of updates ``total [S, ...]`` of S slots in ascending order and how many rounds each was in, ``counts [S]``.

    ``weight [S]``: what each slot's last update counted, its number of examples. ``fingerprint [S, d]``: of each slot's data,
    where the method asks for it.
    """

    slots: tuple[Slot, ...]
    total: Stack
    counts: Tensor
    weight: Tensor
    fingerprint: Tensor | None = None

    def mean(self) -> Items:
        """Mean update of every slot."""

        def fill(key: str, rows: slice, out: Tensor) -> None:
            out.copy_(self.total[key][rows]).div_(self.counts[rows].view(-1, *[1] * (out.dim() - 1)))

        return Items(len(self.slots), {key: Source(x.shape[1:], partial(fill, key)) for key, x in self.total.items()})

    def memory(self) -> dict[str, Tensor]:
        """As entries of ``Hub.memory``."""
        slots = torch.tensor([[slot.client, slot.number] for slot in self.slots])
        more = {} if self.fingerprint is None else {FINGERPRINT: self.fingerprint}
        return {
            SLOTS: slots,
            COUNTS: self.counts,
            WEIGHT: self.weight,
            **more,
            **{f"{PREFIX}{key}": x for key, x in self.total.items()},
        }


def recall(memory: Mapping[str, Tensor]) -> History:
    """The inverse of :meth:`History.memory`; empty before the first round."""
    if SLOTS not in memory:
        return History((), {}, torch.zeros(0), torch.zeros(0, dtype=torch.float64))
    own = (SLOTS, COUNTS, WEIGHT, FINGERPRINT)
    total = {key.removeprefix(PREFIX): x for key, x in memory.items() if key.startswith(PREFIX) and key not in own}
    slots = tuple(Slot(*pair) for pair in memory[SLOTS].tolist())
    weight = memory.get(WEIGHT, torch.full((len(slots),), torch.inf, dtype=torch.float64))  # a run from before it was kept
    return History(slots, total, memory[COUNTS], weight, memory.get(FINGERPRINT))


def extend(past: History, updates: Updates, names: list[str]) -> History:
    """Add this round's updates (leaves ``names``) to the sums; new slots are added."""
    slots = tuple(sorted({*past.slots, *updates.origin}))
    place = {slot: i for i, slot in enumerate(slots)}
    was = torch.tensor([place[slot] for slot in past.slots], dtype=torch.long)
    now = torch.tensor([place[slot] for slot in updates.origin], dtype=torch.long)
    total = {}
    for key in names:
        delta = updates.delta[key]
        summed = delta.new_zeros((len(slots), *delta.shape[1:]))
        if past.slots:
            summed[was] = past.total[key]
        total[key] = summed.index_add(0, now, delta)
    counts = torch.zeros(len(slots))
    counts[was] = past.counts
    counts = counts.index_add(0, now, torch.ones(len(now)))
    weight = updates.weight.new_zeros(len(slots))
    weight[was], weight[now] = past.weight, updates.weight
    return History(slots, tree.select(total, names), counts, weight, _fingerprints(past, updates, was, now, len(slots)))


def _fingerprints(past: History, updates: Updates, was: Tensor, now: Tensor, slots: int) -> Tensor | None:
    """Those known before, and those that came now (NaN: none came)."""
    given = updates.extra.get("fingerprint")
    if given is None:
        return past.fingerprint
    came = ~given[:, 0].isnan()
    if not len(was) and bool(came.all()):  # the first round: as they are
        return given
    out = given.new_full((slots, given.shape[1]), float("nan"))
    out[now[came]] = given[came]
    if past.fingerprint is not None:
        out[was] = past.fingerprint
    return out
