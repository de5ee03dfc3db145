"""Server and clients in one process, with every message through its bytes: for tests, and for a look at what travels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Node = Callable[[bytes], bytes | None]  # a message to its answer; None: there is none


@dataclass
class Loopback:
    """A transport whose nodes answer at once; ``sent`` and ``came``: bytes so far."""

    hosts: Mapping[int, Node]
    sent: int = 0
    came: int = 0
    issued: int = 0
    answers: dict[int, bytes | None] = field(default_factory=dict)

    def nodes(self) -> Sequence[int]:
        """All of them."""
        return sorted(self.hosts)

    def send(self, node: int, data: bytes) -> int:
        """Ask."""
        self.sent, self.issued = self.sent + len(data), self.issued + 1
        self.answers[self.issued] = self.hosts[node](data)
        return self.issued

    def receive(self, tickets: Sequence[int], seconds: float) -> Mapping[int, bytes | str]:
        """What they said."""
        found: dict[int, bytes | str] = {}
        for ticket in tickets:
            data = self.answers.pop(ticket, None)
            if data is not None:
                self.came += len(data)
                found[ticket] = data
        return found
