"""What a server without data knows of its clients', and how it learns what adapters are worth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedquilt.data.view import SlotData, View
from fedquilt.deploy.remote import Remote
from fedquilt.types import Hub, Slot


@dataclass(frozen=True)
class Elsewhere(View):
    """Slots with as many examples as their clients say, of tasks that nobody here knows: each is named after its slot."""

    engine: Remote = field(kw_only=True)

    def data(self, slot: Slot, number: int) -> SlotData:
        """Examples without content."""
        index = np.broadcast_to(np.int64(0), (self.engine.samples(slot),))  # no memory, however many they say
        return SlotData(((name(slot), index),))

    def truth(self, number: int) -> dict[Slot, tuple[str, ...]]:
        """Of the slots that are there."""
        there = self.engine.roster(max(1, number)).items()
        return {slot: (name(slot),) for client, count in there for slot in (Slot(client, n) for n in range(count))}


def name(slot: Slot, part: int = 0) -> str:
    """Of what a slot's examples are of."""
    return f"client-{slot.client}-slot-{slot.number}" + (f"-{part}" if part else "")


def evaluation(engine: Remote, hub: Hub) -> dict[str, Any] | None:
    """A record of evals.jsonl from what the clients say; None if nobody says anything."""
    slots: list[dict[str, Any]] = [
        {
            "client": slot.client,
            "slot": slot.number,
            "row": None if engine.client.choose else hub.row_of(slot),  # who chooses tells nobody
            "task": name(slot, score.part),
            "metrics": dict(score.metrics),
            "samples": score.samples,
        }
        for slot, score in engine.judge(hub)
    ]
    if not slots:
        return None
    primary = {entry["task"]: next(iter(entry["metrics"].values())) for entry in slots}
    values = [value for value in primary.values() if value is not None]
    return {
        "slots": slots,
        "tasks": {task: {"row": None, "metrics": None, "slot_mean": value} for task, value in primary.items()},
        "clustering": None,
        "mean": float(np.mean(values)) if values else None,
    }
