"""Bytes on the wire, both ways: sizes of the messages that a deployment sends (:mod:`fedquilt.wire.message`), headers included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedquilt.types import Reply, Shipment, Slot, Spec
from fedquilt.wire import message


def fingerprint_size(numbers: int) -> int:
    """Bytes of a fingerprint beside the leaves, as a message of its own."""
    return message.size([message.fingerprint(numbers)])


@dataclass
class Meter:
    """Counts what every client received and sent in the current round, and in all rounds."""

    spec: Spec
    total_up: int = 0
    total_down: int = 0
    clients: dict[int, dict[str, int]] = field(default_factory=dict)
    _sizes: dict[tuple[str, ...], int] = field(default_factory=dict)

    def start_round(self) -> None:
        """Forget the last round's clients."""
        self.clients = {}

    def down(self, sent: Mapping[Slot, Shipment]) -> None:
        """One message per slot with the leaves that it is sent."""
        for slot, shipment in sent.items():
            size = self.size(shipment.leaves)
            self._count(slot.client, "down", size)
            self.total_down += size

    def up(self, replies: Sequence[Reply]) -> None:
        """One message per reply, rejected ones included: they were sent."""
        for reply in replies:
            size = self.size(tuple(reply.delta))
            size += 0 if reply.fingerprint is None else fingerprint_size(reply.fingerprint.numel())
            self._count(reply.slot.client, "up", size)
            self.total_up += size

    def beside(self, sent: Mapping[int, int], came: Mapping[int, int]) -> None:
        """Bytes per client that are no messages of leaves: keys, shares and masked vectors."""
        for way, counts in (("down", sent), ("up", came)):
            for client, size in counts.items():
                self._count(client, way, size)
        self.total_down += sum(sent.values())
        self.total_up += sum(came.values())

    def round_bytes(self) -> Mapping[str, int]:
        """Sums of the current round."""
        return {way: sum(client[way] for client in self.clients.values()) for way in ("up", "down")}

    def size(self, names: Sequence[str]) -> int:
        """Bytes of a message with these leaves; 0 for none: nothing is sent then."""
        key = tuple(names)
        if key not in self._sizes:  # the same few messages for all slots of a round
            self._sizes[key] = message.size(self.spec.only(names)) if key else 0
        return self._sizes[key]

    def state(self) -> dict[str, int]:
        """The sums over all rounds, as JSON."""
        return {"up": self.total_up, "down": self.total_down}

    def restore(self, state: Mapping[str, int]) -> None:
        """The inverse of :meth:`state`."""
        self.total_up, self.total_down = state["up"], state["down"]

    def _count(self, client: int, way: str, size: int) -> None:
        self.clients.setdefault(client, {"up": 0, "down": 0})[way] += size
