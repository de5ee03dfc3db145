"""Uploads of a made-up federation in which the truth is known: what the tests of clustering and of the server step feed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedquilt import tree
from fedquilt.types import Hub, Leaf, Slot, Spec, Updates

D_IN, D_OUT, RANK = 5, 4, 2
SPEC = Spec(
    "lora",
    (
        Leaf("enc.0.q/lora_A", (RANK, D_IN), "lora_A", 0, 0, torch.float64),
        Leaf("enc.0.q/lora_B", (D_OUT, RANK), "lora_B", 0, 1, torch.float64),
        Leaf("enc.1.q/lora_A", (RANK, D_IN), "lora_A", 1, 0, torch.float64),
        Leaf("enc.1.q/lora_B", (D_OUT, RANK), "lora_B", 1, 1, torch.float64),
        Leaf("classifier/head.weight", (3, D_IN), "head", 2, None, torch.float64),
    ),
    scale=8.0,
    rank=RANK,
)


def state(seed: int, size: float = 1.0) -> dict[str, Tensor]:
    """One random adapter."""
    stream = torch.Generator().manual_seed(seed)
    return {leaf.name: size * torch.randn(leaf.shape, generator=stream, dtype=leaf.dtype) for leaf in SPEC.leaves}


def make_updates(
    deltas: Mapping[Slot, Mapping[str, Tensor]], hub: Hub | None = None, weights: Mapping[Slot, float] | None = None
) -> Updates:
    """Stacked updates; every slot started from its row of ``hub`` (zeros without one)."""
    origin = tuple(sorted(deltas))
    delta = tree.stack([deltas[slot] for slot in origin])
    start = tree.zeros_like(delta)
    if hub is not None:
        start = tree.rows(tree.select(hub.bank, delta), [hub.row_of(slot) for slot in origin])
    weight = torch.tensor([(weights or {}).get(slot, 1.0) for slot in origin], dtype=torch.float64)
    return Updates(delta, start, weight, origin, torch.zeros(len(origin)), torch.full((len(origin),), RANK))


def new_hub(rows: int, start: Mapping[str, Tensor] | None = None) -> Hub:
    """A bank of equal rows, nobody seen yet."""
    first = start if start is not None else state(0, 0.1)
    return Hub({key: torch.stack([x] * rows) for key, x in first.items()})


class World:
    """Tasks with an optimum each; a slot moves a share of the way from its start to its task's optimum, plus noise."""

    def __init__(self, truth: Mapping[Slot, int], *, noise: float = 0.02, seed: int = 7) -> None:
        self.truth, self.noise, self.seed = truth, noise, seed
        self.optimum = {task: state(1000 * seed + task) for task in set(truth.values())}

    def uploads(
        self, hub: Hub, number: int, *, only: Sequence[int] | None = None, progress: Mapping[Slot, float] | None = None
    ) -> Updates:
        """Round ``number`` with the clients ``only`` (None: all)."""
        deltas = {}
        for slot, task in self.truth.items():
            if only is None or slot.client in only:
                way = tree.sub(self.optimum[task], tree.row(hub.bank, hub.row_of(slot)))
                seed = self.seed + 100_000 * number + 1000 * slot.client + slot.number
                deltas[slot] = tree.add(tree.scale(way, (progress or {}).get(slot, 0.6)), state(seed, self.noise))
        return make_updates(deltas, hub)


def federation(*tasks_of: Sequence[int]) -> dict[Slot, int]:
    """``federation([0, 1], [1])``: client 0 has tasks 0 and 1, client 1 has task 1."""
    return {Slot(client, number): task for client, tasks in enumerate(tasks_of) for number, task in enumerate(tasks)}


def same_partition(one: Mapping[Slot, int], other: Mapping[Slot, int]) -> bool:
    """Whether two labellings of the same slots are equal up to the names of the labels."""
    pairs = {(one[slot], other[slot]) for slot in one}
    return set(one) == set(other) and len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
