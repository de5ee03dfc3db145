"""What a slot must be sent before it trains: the leaves of its row that changed since it was last here.

At its first visit that is the whole adapter: a server cannot count on a client to draw the same start (torch's generators differ
from device to device). After a move to another row it is whatever any round changed in any row; the rest is the same in all.
Leaves that train and do not travel are the client's own and never sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedquilt import tree
from fedquilt.method import ClientPlan
from fedquilt.types import Job, Round, Shipment, Slot, Spec, Stack


@dataclass
class Delivery:
    """The server's memory of who has seen what.

    Attributes:
        visits: slot -> (round of its last visit, the row it was sent then).
        changes: leaf -> for every row the last round that changed it; absent: none did.
    """

    spec: Spec
    client: ClientPlan
    visits: dict[Slot, tuple[int, int]] = field(default_factory=dict)
    changes: dict[str, list[int]] = field(default_factory=dict)

    def send(self, jobs: Sequence[Job], now: Round) -> dict[Slot, Shipment]:
        """What each job's slot is sent now; from then on it has it."""
        common = self.client.common(self.spec, now)
        due = {job.slot: Shipment(self._due(job, common), self.visits.get(job.slot, (0, 0))[0]) for job in jobs}
        self.visits.update({job.slot: (now.number, job.row) for job in jobs})
        return due

    def _due(self, job: Job, common: Sequence[str]) -> tuple[str, ...]:
        if job.slot not in self.visits:
            return tuple(common)
        last, row = self.visits[job.slot]
        changed = [name for name in common if name in self.changes]
        return tuple(name for name in changed if row != job.row or self.changes[name][row] >= last)

    def forget(self, slots: Sequence[Slot]) -> None:
        """Of these it is not known what they have: the next time they are sent everything."""
        for slot in slots:
            self.visits.pop(slot, None)

    def stepped(self, before: Stack, after: Stack, number: int) -> None:
        """Note which leaves of which rows round ``number`` changed."""
        for name, x in after.items():
            same = tree.as_matrix(x == before[name]).all(1).tolist()
            if not all(same):
                rounds = self.changes.setdefault(name, [0] * len(same))
                self.changes[name] = [last if kept else number for last, kept in zip(rounds, same, strict=True)]

    def state(self) -> dict[str, Any]:
        """As JSON; a copy."""
        return {
            "visits": [[slot.client, slot.number, *visit] for slot, visit in sorted(self.visits.items())],
            "changes": {name: list(rounds) for name, rounds in self.changes.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state`."""
        self.visits = {Slot(client, number): (when, row) for client, number, when, row in state["visits"]}
        self.changes = {name: list(rounds) for name, rounds in state["changes"].items()}
