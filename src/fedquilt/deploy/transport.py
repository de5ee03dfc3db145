"""What carries messages between a server and its clients' nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

SILENT = "nothing came in time"  # why there is no answer, where the transport says nothing


class Transport(Protocol):
    """Carries messages to nodes and back. A node is whatever the transport can reach; who is behind it is said in an answer."""

    def nodes(self) -> Sequence[int]:
        """Those that can be reached now."""
        ...

    def send(self, node: int, data: bytes) -> int:
        """Hand over a message; a ticket for its answer."""
        ...

    def receive(self, tickets: Sequence[int], seconds: float) -> Mapping[int, bytes | str]:
        """Answers that came within that time, and of those that will not come the reason."""
        ...
