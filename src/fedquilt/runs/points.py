"""Where adapters are, for the maps in the report: a seeded sketch of every upload and of every bank row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedquilt import tree
from fedquilt.data.view import View
from fedquilt.rng import generator
from fedquilt.types import Hub, Stack, Updates

WIDTH = 128


class Sketch:
    """Count sketch (Charikar, Chen, Farach-Colton 2002) to ``WIDTH`` numbers: every scalar is added with a random sign to a
    random bucket, so squared distances are kept in expectation (relative error about sqrt(2 / WIDTH))."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.maps: tuple[Tensor, Tensor] | None = None

    def __call__(self, stack: Stack) -> Tensor:
        """``[n, WIDTH]`` float64 of all leaves but the head."""
        x = tree.flatten_rows({key: tensor for key, tensor in stack.items() if "/head." not in key} or stack)
        if self.maps is None:
            size = x.shape[1]
            stream = generator(self.seed, "sketch")
            bucket = torch.randint(WIDTH, (size,), generator=stream)
            sign = torch.randint(2, (size,), generator=stream).double() * 2 - 1
            self.maps = bucket, sign
        bucket, sign = self.maps
        return torch.zeros(len(x), WIDTH, dtype=torch.float64).index_add(1, bucket, x * sign)


def records(number: int, updates: Updates | None, hub: Hub, view: View, sketch: Sketch) -> dict[str, list[dict[str, Any]]]:
    """The round's lines of routes.jsonl and points.jsonl, relative to row 0 (the common start, or the one adapter).

    Without updates, where only sums are known, nothing is said of where the uploads were."""
    held = {slot: view.data(slot, number) for slot in sorted(hub.table)}  # who is away may have been moved, too
    routes = [
        {"client": slot.client, "slot": slot.number, "row": row, "tasks": list(held[slot].tasks), "samples": held[slot].samples}
        for slot, row in sorted(hub.table.items())
    ]
    out = {"routes.jsonl": [{"round": number, "slots": routes}]}
    if updates is not None and updates.delta:
        # What did not travel in this round is as in the slot's row: maps show whole adapters, whichever leaves take turns.
        around = tree.rows(hub.bank, [hub.row_of(slot) for slot in updates.origin])
        uploaded = sketch(tree.merge(around, tree.add(updates.start, updates.delta)))
        bank = sketch(hub.bank)
        points = [
            {
                "client": slot.client,
                "slot": slot.number,
                "row": hub.row_of(slot),
                "task": "+".join(held[slot].tasks),
                "at": _short(point),
            }
            for slot, point in zip(updates.origin, uploaded - bank[0], strict=True)
        ]
        rows = [{"row": row, "at": _short(point)} for row, point in enumerate(bank - bank[0])]
        out["points.jsonl"] = [{"round": number, "points": points, "rows": rows}]
    return out


def _short(point: Tensor) -> list[float]:
    return [float(f"{x:.5g}") for x in point.tolist()]
