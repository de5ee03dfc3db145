"""Flower's grid as a transport."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedquilt.deploy.flower.codec import unwrapped, wrapped
from fedquilt.errors import StateError

PAUSE = 0.2  # seconds between two looks at whether answers came; Flower's own waits for three


@dataclass
class GridTransport:
    """Carries messages over a grid.

    Args:
        ttl: seconds that a message lives: those of a round, or a client that was away would train rounds that are over.
    """

    grid: Grid
    ttl: float = 3600.0
    issued: list[str | None] = field(default_factory=list)  # ticket -> Flower's id; None: it could not be sent

    def nodes(self) -> Sequence[int]:
        """Those that are connected."""
        return sorted(self.grid.get_node_ids())

    def wait(self, expected: int, patience: float = 600.0) -> None:
        """Until so many nodes are connected, or for ``patience`` seconds; then whoever is there takes part."""
        end = time.monotonic() + patience
        while len(self.nodes()) < expected and time.monotonic() < end:
            time.sleep(PAUSE)

    def send(self, node: int, data: bytes) -> int:
        """Push one message."""
        message = Message(wrapped(data), dst_node_id=node, message_type=MessageType.TRAIN, ttl=self.ttl)
        self.issued += list(self.grid.push_messages([message])) or [None]
        return len(self.issued) - 1

    def receive(self, tickets: Sequence[int], seconds: float) -> Mapping[int, bytes | str]:
        """Pull until all are there or the time is up."""
        found: dict[int, bytes | str] = {t: "it could not be sent" for t in tickets if self.issued[t] is None}
        waiting = {name: t for t in tickets if (name := self.issued[t]) is not None}
        end = time.monotonic() + seconds
        while waiting:
            for message in self.grid.pull_messages(list(waiting)):
                ticket = waiting.pop(message.metadata.reply_to_message_id, None)
                if ticket is not None:  # else: an answer to nothing that was asked
                    found[ticket] = _content(message)
            if time.monotonic() > end:
                break
            if waiting:
                time.sleep(PAUSE)
        return found


def _content(message: Message) -> bytes | str:
    if message.has_error():
        return f"Flower's error {message.error.code}: {message.error.reason or 'no reason given'}"
    try:
        return unwrapped(message.content)
    except StateError:
        return b""  # no message of ours: malformed
