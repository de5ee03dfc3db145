"""A small state of a made-up run, for the tests of the run directory."""

from __future__ import annotations

from typing import Any

import torch

from fedquilt.runs.store import Store
from fedquilt.types import Hub, Slot

KEPT = {"private": {"a/w": torch.tensor([9.0, 9.0])}}


def hub(step: int) -> Hub:
    bank = {"a/w": torch.full((2, 2), float(step))}
    patch = {"a/patch_A": torch.ones(2, 1, 2), "a/patch_B": torch.ones(2, 2, 1)}
    return Hub(bank, {Slot(0, 0): 1, Slot(4, 2): 0}, patch, {"momentum/a/w": torch.zeros(2, 2)}, step)


def books(step: int) -> dict[str, dict[str, Any]]:
    return {"bytes": {"up": 10 * step, "down": 20 * step}, "delivery": {"visits": [[0, 0, step, 1]], "changes": {}}}


def commit(store: Store, step: int) -> None:
    store.clients.put(Slot(0, 0), KEPT)
    store.commit(hub(step), {"rounds.jsonl": [{"round": step}], "evals.jsonl": [{"round": step, "mean": 0.5}]}, books(step))
