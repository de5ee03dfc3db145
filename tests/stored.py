"""A small state of a made-up run, for the tests of the run directory."""

from __future__ import annotations

import torch

from fedquilt.meter import Meter
from fedquilt.runs.store import Store
from fedquilt.types import Hub, Leaf, Slot, Spec

SPEC = Spec("x", (Leaf("a/w", (2,), "w", 0),))
MEMORY = {"0.0/private/a/w": torch.tensor([9.0, 9.0])}


def hub(step: int) -> Hub:
    bank = {"a/w": torch.full((2, 2), float(step))}
    patch = {"a/patch_A": torch.ones(2, 1, 2), "a/patch_B": torch.ones(2, 2, 1)}
    return Hub(bank, {Slot(0, 0): 1, Slot(4, 2): 0}, patch, {"momentum/a/w": torch.zeros(2, 2)}, step)


def meter(step: int) -> Meter:
    return Meter(SPEC, total_up=10 * step, total_down=20 * step)


def commit(store: Store, step: int) -> None:
    store.commit(hub(step), MEMORY, {"rounds.jsonl": [{"round": step}], "evals.jsonl": [{"round": step, "mean": 0.5}]}, meter(step))
